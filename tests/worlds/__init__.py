"""Set-ups that tests of several rooms share: videos, models, runs and samples, each with one maker."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
