"""Films: what is known of them is in their pixels, questions are read as sessions read, files are as OVO-Bench's."""

import json

import numpy as np
import pytest
import torch
from rich.progress import Progress
from worlds.students import make_student
from worlds.vlms import stir

from liteframe.answer.prefill import whole_prompt
from liteframe.answer.session import StreamSession
from liteframe.models.vlm.attach import attach_encoder, processor_for
from liteframe.models.vlm.load import load_video_llm
from liteframe.toyworld import film_pretrain
from liteframe.toyworld.film_files import ANNOTATIONS, CHOICES, QUESTIONS, VIDEOS, write_films
from liteframe.toyworld.film_pretrain import FilmPacker, film_loss
from liteframe.toyworld.films import (
    FPS,
    PRESENT,
    TASKS,
    UNABLE,
    Film,
    film_for,
    film_questions,
    film_words,
    questions_at,
)
from liteframe.toyworld.model import build_model, build_processor, build_tokenizer
from liteframe.toyworld.scenes import COLOURS, FRAMES

SCENES = 4


@pytest.fixture(scope="module")
def film():
    return film_for(3, 0, SCENES)


@pytest.fixture(scope="module")
def places(film):
    """Where each color is on each frame: the mean column, NaN where it is not there; {color: [T]}."""
    frames = film.frames().astype(np.float32)
    found = {}
    for colour, value in COLOURS.items():
        near = np.linalg.norm(frames - np.float32(value), axis=-1) < 45  # [T,H,W]
        count = near.sum((1, 2))
        columns = (near.sum(1) * np.arange(near.shape[2])).sum(1) / np.maximum(count, 1)
        found[colour] = np.where(count > 20, columns, np.nan)
    return found


@pytest.fixture(scope="module")
def asked(film):
    rng = np.random.default_rng(0)
    return [q for _ in range(8) for q in film_questions(film, rng)]


def test_what_is_known_is_in_the_pixels(film, places, asked):
    assert {q.task for q in asked} == set(TASKS)
    assert {q.answer for q in asked if q.task in ("SSR", "CRR")} == {"Yes", "No"}
    for question in asked:
        seen = FPS * question.second
        then = (
            slice(seen - FPS, seen)
            if question.about is None
            else slice(FPS * question.about, FPS * question.about + FPS)
        )
        assert then.stop <= seen
        assert question.answer in question.candidates
        there = {colour for colour, columns in places.items() if not np.isnan(columns[then]).all()}
        if question.task in ("EPM", "HLD", "ATR") and question.answer != UNABLE:
            assert question.answer in there
        if question.task == "OJR":
            assert question.text.split()[4] in there
        if question.task == "STU":
            scene = film.scenes[film.scene_at(question.second)]
            (colour,) = [m.colour for m in scene.movers if m.shape in question.text]
            assert {"left": True, "right": False}[question.answer] == (np.nanmean(places[colour][then]) < 32)


def test_what_comes_first_and_how_often(film, places, asked):
    """Stars by their colors, which no shape of their scene has; order of appearance by the first frame of a color."""
    stars = []  # frames that show them
    for number, scene in enumerate(film.scenes):
        columns = places[scene.flash.colour][FRAMES * number : FRAMES * number + FRAMES]
        frames = FRAMES * number + np.flatnonzero(~np.isnan(columns))
        stars.append((scene.flash.colour, frames[0], frames[-1]))
        assert len(frames) == 3
    for question in asked:
        seen = FPS * question.second
        over = [colour for colour, _, last in stars if last < seen]
        if question.task == "REC":
            assert int(question.answer) == len(over)
        if question.task == "CRR":
            assert (question.answer == "Yes") == (question.text.split()[2] in over)
        if question.task == "SSR":
            assert (question.answer == "Yes") == any(first < seen and last >= seen - 4 for _, first, last in stars)
        if question.task == "ASI":
            things = [tuple(part.split()[1:3]) for part in question.text.split(",")[1].strip(" ?").split(" or ")]
            shown = [[(m.colour, m.shape) for m in scene.movers] for scene in film.scenes]
            when = [next(i for i, scene in enumerate(shown) if thing in scene) for thing in things]
            assert question.answer == things[int(when[1] < when[0])][0]
            assert when[0] != when[1]


def test_the_past_is_before_the_scene_that_runs(film, asked):
    for question in asked:
        assert question.past == (question.task not in PRESENT)
        if question.about is not None:
            assert film.scene_at(question.about + 1) < film.scene_at(question.second)
    hallucinated = [q.answer == UNABLE for q in asked if q.task == "HLD"]
    assert 0.2 < np.mean(hallucinated) < 0.8


def test_packed_questions_are_read_as_a_session_reads_them(film):
    """The tokens, and the answers' log-probabilities, against a session that was shown the same frames."""
    tokenizer = build_tokenizer(film_words())
    torch.manual_seed(0)
    vlm = build_model(tokenizer).eval()
    stir(vlm.model, 0.2, but=vlm.lm_head.weight)
    student = make_student(seed=1).eval()
    model = attach_encoder(vlm, student)
    processor = processor_for(build_processor(tokenizer), model.config)
    session = StreamSession(model, processor, fps=FPS, labels="seconds")
    packer = FilmPacker(tokenizer, 3, range(1), 0)
    packed, shown, _ = packer.draw(1, 1, 1, 0)
    frames = Film((packer.scenes[0],)).frames()[: 4 * len(packed.frames)]
    session.add(frames)
    with torch.inference_mode():
        pixels = session._encoder.pixels(session._encoder.resized(frames))
        tower = model.model.vision_tower
        features = torch.cat([tower(clip[None]).last_hidden_state for clip in pixels.split(8)], dim=1)  # [1,S,h,w,C]
        loss, right = film_loss(vlm, features, packed, shown)
        losses = []
        for words, labels in zip(packed.questions[0], packed.labels[0], strict=True):
            begin = int((labels != -100).nonzero()[0])
            assert tokenizer.unk_token_id not in words
            text = " ".join(tokenizer.convert_ids_to_tokens(words[:begin])).split(" <|im_end|>")[0]
            whole = whole_prompt(session.model, tokenizer, session._lines, session._shown(""), text, None)
            assert whole.ids[0].tolist() == [*packed.prefix[0].tolist(), *words[:begin].tolist()]
            answer = labels[labels != -100]
            embedded = torch.cat([whole.embeddings, model.get_input_embeddings()(answer)[None]], dim=1)
            logits = model.lm_head(model.model.language_model(inputs_embeds=embedded).last_hidden_state[0])
            spoken = logits[-len(answer) - 1 : -1]
            losses.append(torch.nn.functional.cross_entropy(spoken, answer, reduction="none"))
    assert right.shape == (1, 24)
    assert float(loss) == pytest.approx(float(torch.cat(losses).mean()), rel=0.02)  # bfloat16 in training


def test_the_command_writes_a_model_that_sessions_ask(tmp_path, monkeypatch, film):
    """One step; the teacher with WAP behind it encodes as the features that were trained on."""
    monkeypatch.setattr(film_pretrain, "HELD_OUT", 4)
    accuracy = film_pretrain.held_out_accuracy
    shorter = {1: 1, 2: 1, 4: 1, 8: 1}  # scenes: what is tried here takes seconds
    monkeypatch.setattr(film_pretrain, "held_out_accuracy", lambda *given: accuracy(*given[:3], shorter[given[3]], 4))
    assert film_pretrain.main([str(tmp_path / "out"), "--scenes", "8", "--steps", "1"]) == 0
    record = json.loads((tmp_path / "out/pretraining.json").read_text())
    assert set(record["held-out accuracy by scenes and task"]) == {"1", "2", "4", "8"}
    model, processor = film_pretrain.load_film_model(tmp_path / "out")
    session = StreamSession(model, processor, fps=FPS, labels="seconds")
    frames = film.frames()[:FRAMES]
    session.add(frames)
    assert session.size().tokens == 64
    features = film_pretrain.pooled_features(str(tmp_path / "out"), frames[None], Progress(disable=True))  # [1,S,h,w,C]
    with torch.inference_mode():
        shuffled = load_video_llm(tmp_path / "out")[0].model.pixel_shuffle(features[0].float())  # [S,2,2,4C]
        tokens = model.model.multi_modal_projector(shuffled.flatten(0, 2))  # [64,D]
    torch.testing.assert_close(session.memory.context("").tokens, tokens, atol=0.02, rtol=0.02)  # stored in float16
    scores = session.score("What colour is the circle now?", tuple(COLOURS))
    assert torch.isfinite(scores).all()


def test_files_are_those_of_ovo_bench(tmp_path):
    count = write_films(tmp_path, scenes=(2,), films=2, seconds=2, seed=1)
    items = json.loads((tmp_path / ANNOTATIONS).read_text())
    assert [item["id"] for item in items] == list(range(count))
    assert {item["task"] for item in items} == set(TASKS)
    for item in items:
        assert (tmp_path / VIDEOS / item["video"]).is_file()
        if item["task"] in CHOICES:
            assert item["options"][item["gt"]] == item["answer"]
            assert 2 <= len(item["options"]) <= 4
        if item["task"] == "REC":
            assert all(i["count"] == sum(end <= i["realtime"] for end in item["end_times"]) for i in item["test_info"])
        if item["task"] == "CRR":
            assert all(i["type"] == (i["realtime"] >= item["clue_time"]) for i in item["test_info"])
        if item["task"] == "SSR":
            spans = list(zip(item["start_time"], item["end_time"], strict=True))
            for info in item["test_info"]:
                assert info["type"] == any(start < info["realtime"] < end for start, end in spans)
    rows = [json.loads(line) for line in (tmp_path / QUESTIONS).read_text().splitlines()]
    assert {row["type"] for row in rows} == set(TASKS)
    before = (tmp_path / ANNOTATIONS).read_bytes()
    assert write_films(tmp_path, scenes=(2,), films=2, seconds=2, seed=1) == count
    assert (tmp_path / ANNOTATIONS).read_bytes() == before
    with pytest.raises(ValueError, match="films of 1 scenes"):
        write_films(tmp_path, scenes=(1,))


def test_a_film_may_begin_at_any_second():
    scenes = film_for(0, 0, 2).scenes
    now, later = Film(scenes), Film(scenes, 100)
    one = questions_at(now, 14, np.random.default_rng(5))
    other = questions_at(later, 114, np.random.default_rng(5))
    assert [(q.task, q.answer) for q in one] == [(q.task, q.answer) for q in other]
    assert [q.about + 100 for q in one if q.about] == [q.about for q in other if q.about]
