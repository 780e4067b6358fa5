"""The rendered world shows what its scenes say, and its files decode to what was rendered."""

import av
import numpy as np
import pytest

from liteframe.toyworld.questions import CHANCE, QUESTION_TYPES, all_questions, one_of_each, write_toyworld
from liteframe.toyworld.scenes import COLOURS, FLASH_FRAMES, FRAMES, SIZE, render, scene_for, write_video


def _share_of(frame: np.ndarray, colour: str) -> np.ndarray:
    """Pixels of a frame that are nearer to a colour than 60 (Euclidean, RGB)."""
    return np.linalg.norm(frame.astype(float) - np.array(COLOURS[colour]), axis=-1) < 60


@pytest.mark.parametrize("index", range(8))
def test_pixels_agree_with_the_answers(index):
    scene = scene_for(5, index)
    frames = render(scene)
    assert frames.shape == (FRAMES, SIZE, SIZE, 3)
    answers = {q.text: q.answer for q in all_questions(scene)}
    seen_at = {}
    for mover in scene.movers:
        masks = [_share_of(frame, mover.colour) for frame in frames]
        seen = [t for t, mask in enumerate(masks) if mask.sum() > 20]
        seen_at[mover.colour] = seen[0]
        centres = {t: np.argwhere(masks[t]).mean(0)[::-1] for t in (seen[0], seen[-1])}
        dx, dy = centres[seen[-1]] - centres[seen[0]]
        # the arrow from first to last sighting, read off the pixels alone
        names = ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")
        assert answers[f"Which way does the {mover.colour} object move?"] == names
        assert max(abs(dx), abs(dy)) > 18
    first, second = sorted(seen_at, key=seen_at.get)
    assert answers[f"Which object appears first, the {second} one or the {first} one?"] == first
    star = [t for t, frame in enumerate(frames) if _share_of(frame, scene.flash.colour).sum() > 15]
    assert len(star) == FLASH_FRAMES
    assert answers["What colour is the star that flashes?"] == scene.flash.colour


def test_same_seed_same_file(tmp_path):
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", render(scene_for(3, 4)))
    # Two calls cannot show it: with x264's macroblock tree, about one of a hundred made another file.
    assert b"mbtree=0" in (tmp_path / "a.mp4").read_bytes()
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert not list(tmp_path.glob(".*"))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    assert frames.shape == (FRAMES, SIZE, SIZE, 3)
    assert np.abs(frames.astype(int) - render(scene_for(3, 4))).mean() < 5


def test_one_question_of_each_type_and_none_gives_another_away():
    for index in range(40):
        questions = one_of_each(scene_for(0, index), np.random.default_rng(index))
        assert sorted(q.kind for q in questions) == sorted(QUESTION_TYPES)
        by = {q.kind: q for q in questions}
        assert by["colour"].answer not in by["shape"].text
        assert by["shape"].answer not in by["colour"].text


def test_blind_guessing_scores_chance():
    rng = np.random.default_rng(0)
    right = {kind: [] for kind in QUESTION_TYPES}
    for index in range(400):
        scene = scene_for(9, index)
        movers = {m.colour for m in scene.movers}
        options = {
            "colour": list(COLOURS),
            "shape": ["circle", "square", "triangle", "cross"],
            "direction": ["left", "right", "up", "down"],
            "order": sorted(movers),
            "event": [c for c in COLOURS if c not in movers],
        }
        for question in all_questions(scene):
            assert question.answer in options[question.kind]
            right[question.kind].append(rng.choice(options[question.kind]) == question.answer)
    for kind, values in right.items():
        assert np.mean(values) == pytest.approx(CHANCE[kind], abs=0.07)


def test_folder_of_videos_and_rows(tmp_path):
    made = write_toyworld(tmp_path, train=2, test=1, seed=0)
    assert sorted(p.name for p in made.train_videos.iterdir()) == ["00000.mp4", "00001.mp4"]
    assert len(made.train_rows.read_text().splitlines()) == 2
    assert len(made.test_rows.read_text().splitlines()) == len(QUESTION_TYPES)
    assert (made.train_videos / "00000.mp4").read_bytes() != (made.test_videos / "00000.mp4").read_bytes()
