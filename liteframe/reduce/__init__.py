"""Fewer tokens out of a video's many: the table of reducers by name, and the road from a teacher to pooled features."""

from liteframe.reduce.base import Signals
from liteframe.reduce.base import Tokens as Reduced
from liteframe.reduce.pools import Average, Maximum, Subsample
from liteframe.reduce.reducer import Reducer
from liteframe.reduce.wap import WeightedAverage

__all__ = ["Reduced", "Signals", "reducers"]


class _Table(dict[str, Reducer]):
    """Reducers by name, each with its authors' defaults."""

    def __missing__(self, name: str) -> Reducer:
        raise ValueError(f"there is no reducer {name!r}; there are {', '.join(self)}")


# Each is tested by being named here (tests/reduce/test_reducers.py).
reducers = _Table(
    average=Average(),
    max=Maximum(),
    subsample=Subsample(),
    wap=WeightedAverage(),
)
