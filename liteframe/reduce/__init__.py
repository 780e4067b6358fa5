"""Fewer tokens out of a video's many: the table of reducers by name, and the road from a teacher to pooled features."""

from liteframe.reduce.average import Average
from liteframe.reduce.base import Reducer, Signals
from liteframe.reduce.base import Tokens as Reduced
from liteframe.reduce.wap import WeightedAverage

__all__ = ["Reduced", "Signals", "reducers"]

# Each is tested by being named here (tests/reduce/test_reducers.py).
reducers: dict[str, Reducer] = {"average": Average(), "wap": WeightedAverage()}
