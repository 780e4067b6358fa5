"""What stands before the tokens of a slot."""

import pytest

from liteframe import StreamSession, memories


def prompt(session):
    return session._lines.text(session._shown(""))


@pytest.mark.parametrize("kind", ["liteframe_internvl", "internvl", "liteframe_llava_onevision", "llava_onevision"])
def test_lines_of_slots(loaded, video, kind):
    model, processor = loaded[kind]
    times = [10 + second / 4 for second in range(6)]
    frames, seconds, none = (
        StreamSession(model, processor, fps=4.0, labels=labels) for labels in ("frames", "seconds", "none")
    )
    for session in (frames, seconds, none):
        session.add(video[:6], times)
    shown = frames._shown("")
    assert prompt(frames) == frames._encoder.video_text(shown.slots)
    lines = [frames._lines.line(shown, number, number == 0) for number in range(len(shown.slots))]
    assert "".join(lines) + frames._lines.end == prompt(frames)  # as a KV cache reads them
    count = shown.slots[0][2]
    spans = ["10.0-10.8 s", "11.0-11.2 s"] if kind.startswith("lite") else [f"{t:.1f}-{t:.1f} s" for t in times]
    if "internvl" in kind:
        body = f"<img>{'<IMG_CONTEXT>' * count}</img>"
        assert prompt(seconds) == "\n".join(f"{span}: {body}" for span in spans)
        assert prompt(none) == "\n".join([body] * len(spans))
    else:
        token = "<image>" if kind.startswith("lite") else "<video>"
        assert prompt(seconds) == "\n".join(f"{span}: {token * count}" for span in spans) + token
        assert prompt(none) == prompt(frames) == token * (len(spans) * count + 1)


def test_frames_without_times_come_at_the_rate(liteframe_vlm, video):
    session = StreamSession(*liteframe_vlm, fps=2.0, labels="seconds")
    session.add(video[:3])
    session.add(video[3:9])
    assert session._shown("").times == [(0.0, 1.5), (2.0, 3.5), (4.0, 4.0)]


def test_labels_of_what_is_kept_are_those_of_its_frames(liteframe_vlm, video, tmp_path):
    session = StreamSession(*liteframe_vlm, memories["window"](8), labels="seconds")
    session.add(video[:13])
    session.save(tmp_path / "saved")
    other = StreamSession(*liteframe_vlm, memories["window"](8), labels="seconds")
    other.load(tmp_path / "saved")
    for one in (session, other):
        one.add(video[13:15])
        assert prompt(one).count("<img>") == 2
        assert prompt(one).startswith("8.0-11.0 s: <img>")
        assert "\n12.0-14.0 s: <img>" in prompt(one)
    with pytest.raises(ValueError, match="labels 'seconds', this session has 'frames'"):
        StreamSession(*liteframe_vlm, memories["window"](8)).load(tmp_path / "saved")
