"""Fewer tokens out of a video's many: the table of reducers by name, and the road from a teacher to pooled features."""

from liteframe.reduce.base import Signals
from liteframe.reduce.base import Tokens as Reduced
from liteframe.reduce.dycoke import DyCoke
from liteframe.reduce.evs import EVS
from liteframe.reduce.fastvid import FastVID
from liteframe.reduce.flashvid import FlashVID
from liteframe.reduce.holitom import HoliTom
from liteframe.reduce.pools import Average, Maximum, Subsample
from liteframe.reduce.prumerge import PruMerge
from liteframe.reduce.prunevid import PruneVid
from liteframe.reduce.reducer import Reducer
from liteframe.reduce.sttm import STTM
from liteframe.reduce.tome import ToMe
from liteframe.reduce.unicomp import UniComp
from liteframe.reduce.vcast import VCast
from liteframe.reduce.vidcom2 import VidCom2
from liteframe.reduce.visionzip import VisionZip
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
    visionzip=VisionZip(),
    fastvid=FastVID(),
    holitom=HoliTom(),
    flashvid=FlashVID(),
    vcast=VCast(),
    vidcom2=VidCom2(),
    evs=EVS(),
    tome=ToMe(),
    prumerge=PruMerge(),
    unicomp=UniComp(),
    prunevid=PruneVid(),
    sttm=STTM(),
    dycoke=DyCoke(),
    **{"prumerge+": PruMerge(plus=True), "dycoke+pool2": DyCoke(group=8, pool=2)},
)
