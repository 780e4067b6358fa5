"""A question about a file, streamed: the same words as generate gives through transformers' own processor."""

import time

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from worlds import ROOT
from worlds.ctd import write_video

from liteframe.answer import ask as ask_module
from liteframe.answer.ask import ask, read_resized
from liteframe.answer.frame_encoder import frame_encoder
from liteframe.answer.generate import stream_text
from liteframe.answer.session import StreamSession
from liteframe.cli.main import main
from liteframe.data.video.process import DecodeProcess
from liteframe.models.vlm.chat import question_prompt
from liteframe.models.vlm.load import load_video_llm

TOY = ROOT / "liteframe/toyworld/checkpoint"
QUESTION = "Which way does the red circle move?"


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("ask") / "a.mp4", frames=40, fps=8, seed=3)


@pytest.fixture(scope="module")
def loaded():
    return load_video_llm(TOY)


@pytest.fixture(scope="module")
def independent(video):
    """Words that transformers alone finds for chosen frames."""
    model = AutoModelForImageTextToText.from_pretrained(TOY).float().eval()
    processor = AutoProcessor.from_pretrained(TOY)

    def words(indices):
        with DecodeProcess() as decoder:
            frames = decoder.read(video, indices)
        shown = torch.as_tensor(frames).permute(0, 3, 1, 2).contiguous()
        inputs = processor(text=question_prompt(QUESTION), videos=[shown], return_tensors="pt", do_sample_frames=False)
        end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=16, eos_token_id=end)
        return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    return words


def test_streams_what_transformers_answers(loaded, video, independent):
    pieces = list(ask(*loaded, video, QUESTION, frames=4))
    assert "".join(pieces).strip() == independent([5, 15, 25, 35])
    assert any(pieces)


def test_span_and_rate(loaded, video, independent):
    # seconds 2 to 4 at 2 frames a second: four spans of 4 frames from frame 16 on, their middles
    found = "".join(ask(*loaded, video, QUESTION, frames=64, fps=2.0, start=2.0, end=4.0))
    assert found.strip() == independent([18, 22, 26, 30])


@pytest.mark.parametrize("overlap", [False, True])
def test_few_frames_are_held_at_the_size_of_the_file(loaded, tmp_path, monkeypatch, overlap):
    """A session that was shown all frames at once says the same; each reading keeps to the bytes that are allowed."""
    large = write_video(tmp_path / "large.mp4", frames=24, fps=8, size=256, seed=3)
    with DecodeProcess() as decoder:
        whole = decoder.read(large, list(range(24)))
        session = StreamSession(*loaded)
        session.add(whole)
        expected = session.ask(QUESTION, max_new_tokens=16).text
        monkeypatch.setattr(ask_module, "PART_BYTES", 5 * 256 * 256 * 3 + 100)
        sizes, read = [], DecodeProcess.read

        def counted(self, *args, **options):
            frames = read(self, *args, **options)
            sizes.append(frames.nbytes)
            return frames

        monkeypatch.setattr(DecodeProcess, "read", counted)
        encoder = frame_encoder(*loaded)
        parts = list(read_resized(encoder, decoder, large, list(range(24))))
        assert [len(part) for part in parts] == [5, 5, 5, 5, 4]
        assert torch.equal(torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2), encoder.resized(whole))
    assert "".join(ask(*loaded, large, QUESTION, frames=24, max_new_tokens=16, overlap=overlap)).strip() == expected
    assert max(sizes) <= ask_module.PART_BYTES


def test_command_prints_the_answer(video, independent, capsys):
    assert main(["ask", str(video), QUESTION, "--vlm", str(TOY), "--frames", "4"]) == 0
    assert capsys.readouterr().out.strip() == independent([5, 15, 25, 35])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames", "0"], "--frames and --max-new-tokens must be at least 1"),
        (["--fps", "0"], "--fps above 0"),
        (["--system", "see <IMG_CONTEXT>"], "the system message holds '<IMG_CONTEXT>'"),
        (["--start", "9"], "9"),
        (["--start", "nan"], "start is nan"),
        (["--end", "inf"], "end is inf"),
        (["--end", "nan"], "end is nan"),
        (["--memory", "window:8"], "a budget of 8 tokens is below one slot of this model, which has 16; give at least"),
        (["--frames", "40", "--max-new-tokens", "100000"], "use fewer frames or a shorter answer"),
    ],
)
def test_refusals(video, capsys, options, message):
    assert main(["ask", str(video), QUESTION, "--vlm", str(TOY), *options]) == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_asked_is_told_before_a_model_is_loaded(video, capsys, tmp_path):
    def ask_nobody(*words):
        assert main(["ask", *map(str, words), "--vlm", str(tmp_path / "no_model")]) == 2
        return capsys.readouterr().err

    assert "none.mp4" in ask_nobody(tmp_path / "none.mp4", QUESTION)
    assert "the span from 3.0 s to 2.0 s holds no frame" in ask_nobody(video, QUESTION, "--start", 3, "--end", 2)
    assert "there is no memory 'windows'" in ask_nobody(video, QUESTION, "--memory", "windows:64")
    assert "the question holds '<video>'" in ask_nobody(video, "What is in <video>?")


def test_error_inside_generate_reaches_the_caller(loaded, monkeypatch):
    model, processor = loaded

    def broken(**_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "generate", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(stream_text(model, processor.tokenizer, {}))


def test_who_stops_listening_stops_the_answer(loaded, monkeypatch):
    model, processor = loaded
    ended = []

    def endless(streamer, stopping_criteria, **_):
        streamer.on_finalized_text("red ")
        deadline = time.monotonic() + 20
        while not stopping_criteria(torch.zeros(1, 1, dtype=torch.long), None).all() and time.monotonic() < deadline:
            time.sleep(0.01)
        ended.append(time.monotonic() < deadline)
        streamer.end()

    monkeypatch.setattr(model, "generate", endless)
    words = stream_text(model, processor.tokenizer, {})
    assert next(words) == "red "
    words.close()
    assert ended == [True]
