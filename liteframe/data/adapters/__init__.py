"""Published data sets: a folder as published in, videos and conversations out.

A new one is a file here with one subclass of `Adapter`, and its line in `ADAPTERS`.
"""

from liteframe.data.adapters.base import Adapter, Licence, Problem, Record, Source
from liteframe.data.adapters.clevrer import Clevrer
from liteframe.data.adapters.finevideo import FineVideo
from liteframe.data.adapters.llava_video import LLaVAVideo
from liteframe.data.adapters.ntu_rgbd import NtuRgbd
from liteframe.data.adapters.sharegpt4video import ShareGPT4Video

__all__ = ["ADAPTERS", "Adapter", "Licence", "Problem", "Record", "Source"]

ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter for adapter in (ShareGPT4Video(), LLaVAVideo(), FineVideo(), Clevrer(), NtuRgbd())
}
