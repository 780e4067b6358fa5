"""Published data sets: a folder as published in, videos and conversations out.

A new one is a file here with one subclass of `Adapter`, and its line in `ADAPTERS`.
"""

from liteframe.data.importers.base import Adapter, License, Problem, Record, Source
from liteframe.data.importers.clevrer import Clevrer
from liteframe.data.importers.finevideo import FineVideo
from liteframe.data.importers.llava_video import LLaVAVideo
from liteframe.data.importers.ntu_rgbd import NtuRgbd
from liteframe.data.importers.sharegpt4video import ShareGPT4Video

__all__ = ["ADAPTERS", "Adapter", "License", "Problem", "Record", "Source"]

ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter for adapter in (ShareGPT4Video(), LLaVAVideo(), FineVideo(), Clevrer(), NtuRgbd())
}
