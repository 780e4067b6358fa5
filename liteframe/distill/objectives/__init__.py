"""Objectives of distillation by name."""

from liteframe.distill.objectives.base import ClipLosses, Objective
from liteframe.distill.objectives.ctd import CompressedTokens

__all__ = ["ClipLosses", "CompressedTokens", "Objective", "objectives"]

objectives: dict[str, type[CompressedTokens]] = {"ctd": CompressedTokens}
