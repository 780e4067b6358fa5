"""encode_video: the frames asked for, in clips, one after another."""

import av
import numpy as np
import pytest
import torch

from liteframe import LiteFrameConfig, LiteFrameEncoder, encode_video
from liteframe.data.preprocess import FrameTransform
from liteframe.data.video.reader import VideoError, read_frames

CONFIG = LiteFrameConfig(
    dim=16, depth=2, heads=2, patch_size=4, image_size=16, teacher_dim=8, downsample={1: (2, 2, 2)}, clip_frames=4
)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """22 frames at 4 fps of a brightening square."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(22):
            frame = np.zeros((32, 48, 3), np.uint8)
            frame[8:24, i : i + 16] = 30 + 10 * i
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return LiteFrameEncoder(CONFIG)


def by_hand(encoder, path, indices, size=16):
    frames = FrameTransform(size, CONFIG.image_mean, CONFIG.image_std, "squash")(read_frames(path, indices))
    clips = [frames[i : i + 4] for i in range(0, len(frames), 4)]
    with torch.no_grad():
        return torch.cat([encoder(clip[None]) for clip in clips], 1)


@pytest.mark.parametrize(
    ("arguments", "indices"),
    [
        ({"fps": 4}, list(range(22))),
        ({}, [2, 6, 10, 14, 18]),
        ({"fps": 2, "start": 1.0, "end": 4.0}, [5, 7, 9, 11, 13, 15]),
        ({"frames": 100}, list(range(22))),
    ],
)
def test_frames_and_clips(encoder, video, arguments, indices):
    out = encode_video(encoder, video, **arguments)
    assert out.shape == (1, -(-len(indices) // 4) * 2 - (0 if len(indices) % 4 in (0, 3) else 1), 2, 2, 8)
    torch.testing.assert_close(out, by_hand(encoder, video, indices))
    assert not out.requires_grad


def test_budget_and_size(encoder, video):
    out = encode_video(encoder, video, frames=8, fps=4, size=(24, 16))
    assert out.shape == (1, 4, 3, 2, 8)
    assert encode_video(encoder, video, frames=8).shape == (1, 4, 2, 2, 8)


def test_errors_name_the_file_and_the_size(encoder, video, tmp_path):
    with pytest.raises(VideoError, match=r"nowhere.mp4"):
        encode_video(encoder, tmp_path / "nowhere.mp4")
    with pytest.raises(ValueError, match="18x18 pixels do not fit"):
        encode_video(encoder, video, size=18)


def test_dtype_of_the_encoder_is_used(video):
    encoder = LiteFrameEncoder(CONFIG).double()
    assert encode_video(encoder, video).dtype == torch.float64
