"""Would the live encoder give what a token cache holds? A random sample of it, decoded and encoded again."""

from __future__ import annotations

from functools import partial

from lightning.fabric import Fabric
from transformers.utils.logging import disable_progress_bar

from liteframe.align.media import MediaReader
from liteframe.align.tokens.builder import LiveEncoder
from liteframe.align.tokens.cache import TokenCache
from liteframe.align.tokens.settings import TokenSettings
from liteframe.data.video.errors import VideoError
from liteframe.models.vlm.load import load_processor
from liteframe.training.cache.verify import Advance, ClipCheck, check_clips

DEADLINE = 60.0
# The error of a sound clip may be this large, in standard deviations of a channel. On the machine that built the cache
# it is 0 in fp32 and what the codec rounds, 0.002, in bf16; an encoder in bfloat16 differs from itself elsewhere.
TOLERANCE = {"fp32": 0.003, "bf16": 0.01}
BFLOAT16_ENCODER = 0.04


def tolerance(settings: TokenSettings) -> float:
    """The largest `ClipCheck.error` of a sound clip."""
    rounds = settings.precision != "32-true" or settings.dtype != "float32"
    return TOLERANCE[settings.codec] + (BFLOAT16_ENCODER if rounds else 0.0)


def check_sample(cache: TokenCache, count: int, seed: int, accelerator: str, advance: Advance) -> list[ClipCheck]:
    """Decode random clips again, give them to the live encoder, and compare.

    Clips that failed when the cache was built are not drawn.

    Raises:
        ValueError: the encoder cannot be loaded or is another, or frames are prepared otherwise.
    """
    settings = cache.settings
    fabric = Fabric(accelerator=accelerator, devices=1, precision=settings.precision)  # type: ignore[arg-type]
    disable_progress_bar()
    processor = load_processor(settings.vlm, settings.encoder)
    encoder = LiveEncoder(settings.vlm, settings.encoder, processor, fabric)
    cache.refuse_other("data.tokens", encoder.identity)
    reader = MediaReader(processor, settings.draws, DEADLINE)
    return check_clips(cache, partial(_check, cache, encoder=encoder, reader=reader), count, seed, advance)


def _check(
    cache: TokenCache, split: str, view: int, index: int, *, encoder: LiveEncoder, reader: MediaReader
) -> ClipCheck | None:
    row = cache.media.rows[index]
    place = f"{split} {index}, view {view}"
    try:
        stored = cache.stored(split, view, index)
        if stored.failed:
            return None
        live = reader.load(view, row.medium, row.sharing)
    except ValueError as error:
        return ClipCheck(place, str(error))
    except VideoError as error:
        return ClipCheck(place, f"the video cannot be read again: {error}")
    assert live.pixels is not None
    frames, size = list(live.key[1]) or [0], list(live.pixels.shape[2:])
    if (frames, size) != (stored.facts["frames"], stored.facts["size"]):
        return ClipCheck(place, f"{row.files[0]}: other frames, or frames of another size, would be shown now")
    grid = encoder(live.pixels).float().cpu()  # [T',h,w,C]
    difference = (grid - stored.encoded["tokens"].float()).square().mean((0, 1, 2)).sqrt()
    spread = grid.flatten(0, 2).std(0, correction=0).clamp_min(1e-12)
    off = float((difference / spread).median())
    # Written so that NaN fails.
    if not off <= tolerance(cache.settings):
        what = f"the live encoder's tokens differ by {off:.3g} standard deviations"
        return ClipCheck(place, f"{row.files[0]}: {what}; the video or the software has changed", off)
    return ClipCheck(place, error=off)
