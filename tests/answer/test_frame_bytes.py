"""Frames go to the device as bytes, a quarter of what normalized ones take, and are normalized there."""

import copy

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from liteframe.answer.frame_encoder import frame_encoder
from liteframe.answer.session import StreamSession


class Sent(TorchDispatchMode):
    """Counts the bytes of tensors that are copied from the host to a device; "meta" is one without memory."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.device.type == "meta":
            self.bytes += sum(a.nbytes for a in args if isinstance(a, Tensor) and a.device.type == "cpu")
        return result


@pytest.mark.parametrize("count", [8, 32])
def test_bytes_of_frames_on_their_way(vlm, count):
    model, processor = vlm
    encoder = frame_encoder(copy.deepcopy(model).to("meta"), processor)
    frames = torch.randint(0, 256, (count, 48, 64, 3), dtype=torch.uint8)
    resized = encoder.resized(frames)
    assert resized.dtype == torch.uint8
    with torch.inference_mode(), Sent() as sent:
        assert encoder.encode(resized, 0).tokens.device.type == "meta"
    assert resized.nbytes == count * 3 * resized.shape[-1] * resized.shape[-2]
    assert resized.nbytes <= sent.bytes < resized.nbytes + 1024


def test_the_answer_is_that_of_pixels_normalized_on_the_host(vlm, video):
    model, processor = vlm
    encoder = frame_encoder(model, processor)
    resized = encoder.resized(video[:8])
    whole = processor.video_processor(videos=[torch.as_tensor(video[:8]).permute(0, 3, 1, 2)], return_tensors="pt",
                                      do_sample_frames=False)["pixel_values_videos"][0]  # fmt: skip
    with torch.inference_mode():
        tokens = encoder.encode(resized, 0).tokens
        if hasattr(encoder, "family"):
            expected = encoder.family.encode_frames(model, whole).flatten(0, 1)
        else:
            expected = model.model.get_video_features(whole, final=False).pooler_output[0]
    assert (tokens - expected).abs().max() <= 1e-5 * expected.abs().max()
    session = StreamSession(model, processor)
    session.add(video)
    assert session._intake.waiting is None or session._intake.waiting.pixels.dtype == torch.uint8
