"""Accuracy: benchmarks, how answers are read and scored, runs that can be continued, lmms-eval."""
