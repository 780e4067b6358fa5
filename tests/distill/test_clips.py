import json

import av
import numpy as np
import pytest
import torch
from PIL import Image

from liteframe.data.manifest import VideoEntry
from liteframe.data.preprocess import FrameFormat, decode_size
from liteframe.data.video.errors import VideoError
from liteframe.data.video.reader import read_frames
from liteframe.data.video.sampling import dense_clip
from liteframe.data.video.timeline import Timeline
from liteframe.distill.clip_view import Augmentation, ClipView, crop_box, draw_view
from liteframe.distill.clips import ClipDataset, collate_clips, dress

FORMAT = FrameFormat((32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "squash")


def write(path, frames, fps=10, width=48, height=32):
    rng = np.random.default_rng(frames)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        base = np.asarray(Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize((width, height)))
        for t in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(base, 3 * t, axis=1).copy(), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [write(folder / "long.mp4", 40), write(folder / "short.mp4", 5)]


def dataset(videos, **kwargs):
    return ClipDataset([VideoEntry(video) for video in videos], FORMAT, clip_frames=8, min_fps=5, **kwargs)


def dressed(*clips):
    return dress(collate_clips(clips), FORMAT.transform())


def test_middle_clip_without_augmentation(videos):
    clip = dataset(videos)[0, 0]
    frames = read_frames(videos[0], dense_clip(Timeline.constant_rate(40, 10.0), n=8, min_fps=5))
    small = torch.nn.functional.interpolate(
        torch.from_numpy(frames).permute(0, 3, 1, 2).float(), (32, 32), mode="bicubic", antialias=True
    )
    expected = (small.clamp(0, 255) / 255 - 0.5) / 0.25
    batch = dressed(clip)
    assert batch.video.shape == (1, 8, 3, 32, 32)
    # The transform rounds to uint8 after resizing.
    assert (batch.video[0] - expected).abs().max() < 1.1 / 255 / 0.25
    assert batch.frame_mask.all()
    assert (batch.paths, batch.keys, batch.targets) == ([videos[0]], [(0, 0)], None)


def test_workers_ship_bytes_of_clips_of_any_size(videos):
    wide = ClipDataset([VideoEntry(videos[0])], FORMAT, clip_frames=8, augment=Augmentation())
    clips = [wide[epoch, 0] for epoch in range(3)]
    assert len({clip.frames.shape for clip in clips}) == 3
    raw = collate_clips(clips)
    assert raw.frames.dtype == torch.uint8
    assert raw.frames.numel() == sum(clip.frames.numel() for clip in clips)
    batch = dress(raw, FORMAT.transform())
    for clip, video in zip(clips, batch.video, strict=True):
        assert torch.equal(FORMAT.transform()(clip.frames), video)
    assert batch.keys == [(0, 0), (1, 0), (2, 0)]


def test_view_alone_brings_the_clip_back(videos, tmp_path):
    """The view survives JSON and needs neither seed nor augmentation settings to give the same bytes."""
    source = dataset(videos, augment=Augmentation(flip=1.0), seed=7)
    view = source.view((3, 0))
    again = ClipView.from_dict(json.loads(json.dumps(view.to_dict())))
    assert again == view
    assert view.flip
    assert np.array_equal(dataset(videos).frames(again), source[3, 0].frames)
    top, left, height, width = view.box
    by_hand = read_frames(videos[0], view.indices)[:, top : top + height, left : left + width][:, :, ::-1]
    assert np.array_equal(by_hand, source[3, 0].frames)


def test_crop_of_another_file_is_an_error(videos):
    with pytest.raises(VideoError, match="32x48 pixels, less than the crop of 30x40 at 8,0"):
        dataset(videos).frames(ClipView(videos[0], (0, 1), (32, 32), box=(8, 0, 30, 40)))


def test_a_video_of_another_shape_than_its_batch_is_a_bad_one(videos):
    """Its list told of another size: it is counted and named, and the clips beside it are batched."""
    data = dataset(videos, sizes=[(32, 32), (16, 32)])
    good, bad = data[0, 0], data[0, 1]
    assert isinstance(bad, VideoError)
    assert "has frames of 32x48 now; the run began with clips of 16x32" in str(bad)
    assert bad.remedy == "run `liteframe scan` again; the manifest does not fit the file"
    batch = dressed(good, bad)
    assert batch.video.shape == (1, 8, 3, 32, 32)
    assert [failure["path"] for failure in batch.failures] == [videos[1]]


def test_key_decides_the_clip(videos):
    one, two = (dataset(videos, augment=Augmentation(), seed=7) for _ in range(2))
    assert torch.equal(one[3, 0].frames, two[3, 0].frames)
    assert one.view((3, 0)) == one[3, 0].view
    assert one.view((3, 0)) != one.view((4, 0))
    other = dataset(videos, augment=Augmentation(), seed=8)
    assert one.view((3, 0)) != other.view((3, 0))


def test_short_video_repeats_its_last_frame_and_says_so(videos):
    clip = dataset(videos)[0, 1]
    assert clip.view.frame_mask == (True,) * 5 + (False,) * 3
    assert dressed(clip).frame_mask.tolist() == [list(clip.view.frame_mask)]
    assert torch.equal(clip.frames[5], clip.frames[4])
    assert not torch.equal(clip.frames[4], clip.frames[3])


def test_failures_travel_through_collate(videos, tmp_path):
    (tmp_path / "empty.mp4").touch()
    entries = [VideoEntry(videos[0]), VideoEntry(str(tmp_path / "empty.mp4")), VideoEntry(videos[0], start=100.0)]
    data = ClipDataset(entries, FORMAT, clip_frames=8)
    items = [data[0, index] for index in range(3)]
    assert [type(item) for item in items[1:]] == [VideoError, VideoError]
    batch = dressed(*items)
    assert batch.video.shape == (1, 8, 3, 32, 32)
    assert batch.paths == [videos[0]]
    assert [(failure["kind"], failure["path"]) for failure in batch.failures] == [
        ("empty", str(tmp_path / "empty.mp4")), ("index", videos[0]),
    ]  # fmt: skip
    assert "manifest" in batch.failures[1]["remedy"]
    nothing = dressed(*items[1:])
    assert (len(nothing.video), nothing.paths, len(nothing.failures)) == (0, [], 2)


def test_manifest_rows_are_not_probed(videos):
    """frames=16 of the 40: the clip must come from those."""
    entry = VideoEntry(videos[0], frames=8, fps=10.0, width=48, height=32, breaks=((0, 0.0), (8, 0.8)))
    clip = ClipDataset([entry], FORMAT, clip_frames=8, min_fps=5)[0, 0]
    first = ClipDataset([VideoEntry(videos[0], end=0.8)], FORMAT, clip_frames=8, min_fps=5)[0, 0]
    assert torch.equal(clip.frames, first.frames)


@pytest.mark.parametrize(
    ("height", "width", "wanted", "expected"),
    [(2160, 3840, (448, 448), (896, 1593)), (480, 854, (448, 448), None), (64, 64, (32, 32), None),
     (1000, 100, (28, 56), None), (100, 1000, (28, 14), (56, 560))],
)  # fmt: skip
def test_huge_frames_are_shrunk_by_the_decoder(height, width, wanted, expected):
    assert decode_size(height, width, wanted) == expected


def test_crop_boxes_stay_inside_and_keep_their_area():
    settings, rng = Augmentation((0.3, 0.9), (0.8, 1.25)), np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(500):
        top, left, height, width = crop_box(100, 200, settings, rng)
        assert top >= 0
        assert left >= 0
        assert top + height <= 100
        assert left + width <= 200
        areas.append(height * width / 20000)
        ratios.append(width / height / 2)
    assert 0.28 < min(areas) < 0.35
    assert 0.85 < max(areas) < 0.92
    assert 0.75 < min(ratios) < 0.85
    assert 1.2 < max(ratios) < 1.32


def test_one_crop_and_flip_for_all_frames():
    frames = np.broadcast_to(np.arange(20, dtype=np.uint8)[None, None, :, None], (4, 10, 20, 3))
    flips = 0
    for seed in range(40):
        box, flip = draw_view(10, 20, Augmentation(flip=0.5), np.random.default_rng(seed))
        out = ClipView("a.mp4", (0, 1, 2, 3), (8, 8), box=box, flip=flip).cut(frames)
        assert out.shape[1:3] == box[2:]
        assert (out == out[:1]).all()
        steps = np.diff(out[0, 0, :, 0].astype(int))
        assert (steps == (-1 if flip else 1)).all()
        flips += flip
    assert 8 < flips < 32
    box, flip = draw_view(10, 20, Augmentation((1, 1), (1, 1), 0), np.random.default_rng(0))
    assert (box, flip) == ((0, 0, 10, 20), False)
    assert np.array_equal(ClipView("a.mp4", (0,), (8, 8)).cut(frames), frames)


@pytest.mark.parametrize(
    ("field", "value"), [("crop_area", (0, 1)), ("crop_area", (0.9, 0.5)), ("crop_ratio", (0, 1)), ("flip", 1.5)]
)
def test_bad_augmentation_names_the_field(field, value):
    with pytest.raises(ValueError, match=f"augment.{field}"):
        Augmentation(**{field: value})
