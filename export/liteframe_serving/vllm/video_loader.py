"""Frames of a video file for vLLM's server: the very ones that `liteframe ask` and training's evaluation look at.

vLLM's own loader takes frames from the first to the last; here they are the middles of equal spans. Which decoder
reads them stays vLLM's business.
"""

from typing import Any

from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, VideoBackend

from liteframe.data.video.sampling import at_fps
from liteframe.data.video.timeline import Timeline


@VIDEO_LOADER_REGISTRY.register("liteframe")
class LiteFrameVideoLoader(VideoBackend):
    """Chosen by `--media-io-kwargs '{"video": {"video_backend": "liteframe", "num_frames": 256}}'`."""

    @classmethod
    def compute_frames_index_to_sample(cls, source: Any, target: Any, **kwargs: Any) -> list[int]:
        """Indices of at most `target.num_frames` frames (-1: all), `target.fps` a second (-1: any rate)."""
        rate = source.original_fps or 1.0  # 0 where the file does not say
        return at_fps(
            Timeline.constant_rate(source.total_frames_num, rate),  # vLLM tells no more of a file
            target_fps=target.fps if target.fps > 0 else rate,
            max_frames=target.num_frames if target.num_frames > 0 else source.total_frames_num,
        )
