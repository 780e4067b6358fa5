"""A Video LLM whose encoder sees frames in their own aspect ratio: batches, answers, streams, exports, prompts."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from liteframe_export.card import encoder_card, write_graph_folder
from liteframe_export.hf_encoder import save_encoder
from liteframe_serving.prompts import image_ids, pixels, regrouped, video_ids
from PIL import Image
from transformers import AutoVideoProcessor
from worlds.ctd import write_video
from worlds.students import make_student, student_config
from worlds.vlms import answer_about, make_internvl

from liteframe import StreamSession
from liteframe.align.batch import FeatureCache, collate_samples
from liteframe.align.conversation_files import load_conversations
from liteframe.align.conversation_rows import MediaItem
from liteframe.align.datamodule import ChatDataModule
from liteframe.align.dataset import ConversationDataset
from liteframe.cli.main import main
from liteframe.data.preprocess import FrameTransform
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.vlm.chat import question_prompt
from liteframe.models.vlm.load import load_video_llm

QUESTION = "Which way does the red circle move?"
SHAPES = {"square": (64, 64), "film": (36, 86), "phone": (96, 54)}
SIZES = {"square": (64, 64), "film": (32, 96), "phone": (96, 32)}  # 2, 1x3 and 3x1 tokens of 32 pixels


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aspect")
    vlm = make_internvl(folder / "vlm")
    encoder = make_student(student_config(resize="aspect", merge_size=2), seed=1)
    encoder.save_pretrained(folder / "encoder")
    rows = []
    for number, (name, shape) in enumerate(SHAPES.items()):
        write_video(folder / f"{name}.mp4", frames=12, size=shape, seed=number)
        turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ("left", "up", "down")[number]}]
        rows.append({"video": f"{name}.mp4", "conversations": turns})
    tall = np.random.default_rng(0).integers(0, 256, (90, 50, 3), dtype=np.uint8)
    Image.fromarray(tall).save(folder / "tall.png")
    turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "right"}]
    rows.append({"image": "tall.png", "conversations": turns})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, processor = load_video_llm(vlm, encoder=folder / "encoder")
    return SimpleNamespace(folder=folder, vlm=vlm, encoder=folder / "encoder", model=model, processor=processor)


def frames_of(world, name, count=10):
    with DecodeProcess() as decoder:
        return decoder.read(world.folder / f"{name}.mp4", list(range(count)))


def test_videos_of_several_shapes_are_each_what_they_are_alone(world):
    model, processor = world.model, world.processor
    videos = {name: frames_of(world, name) for name in SHAPES}
    inputs = processor(text="<video><video><video>", videos=list(videos.values()))
    assert [tuple(video.shape[-2:]) for video in inputs["pixel_values_videos"]] == list(SIZES.values())
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 3 * (4 + 3 + 3)
    with torch.inference_mode():
        together = model.model.get_video_features(**{n: inputs[n] for n in ("pixel_values_videos", "video_frames")})
        for (name, video), features in zip(videos.items(), together.pooler_output, strict=True):
            pixels_ = processor(text="<video>", videos=[video])["pixel_values_videos"]
            assert pixels_.shape == (10, 3, *SIZES[name])
            alone = model.model.get_video_features(pixels_).pooler_output[0]
            torch.testing.assert_close(features, alone, atol=1e-4, rtol=1e-4)
        logits = model(**inputs).logits
    assert logits.isfinite().all()
    with pytest.raises(ValueError, match=r"video_frames=\[1, 2\] must be"):
        model.model.get_video_features([torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 32, 96)], [1, 2])


@pytest.mark.parametrize("name", SHAPES)
def test_asked_about_a_file_and_a_stream(world, name, capsys):
    argv = ["ask", str(world.folder / f"{name}.mp4"), QUESTION, "--frames", "12", "--max-new-tokens", "4"]
    assert main([*argv, "--vlm", str(world.vlm), "--encoder", str(world.encoder)]) == 0
    frames = frames_of(world, name, 12)
    expected = answer_about(world.model, world.processor, frames, QUESTION, max_new_tokens=4)
    assert capsys.readouterr().out.strip() == expected
    inputs = world.processor(text=question_prompt(QUESTION), videos=[frames])
    with torch.inference_mode():
        whole = world.model(**inputs).logits[0, -1].log_softmax(-1)
    session = StreamSession(world.model, world.processor)
    for start in range(0, 12, 5):
        session.add(frames[start : start + 5])
    words = ["left", "up", "down"]
    ids = world.processor.tokenizer.convert_tokens_to_ids(words)
    torch.testing.assert_close(session.score(QUESTION, words), whole[ids], atol=1e-3, rtol=1e-4)


def test_a_stream_keeps_its_shape(world, tmp_path):
    session = StreamSession(world.model, world.processor)
    session.add(frames_of(world, "film", 9))
    session.save(tmp_path / "session")
    continued = StreamSession(world.model, world.processor)
    continued.load(tmp_path / "session")
    for one in (session, continued):
        with pytest.raises(ValueError, match=r"96x54 pixels .* encoded at 96x32, but this video's so far at 32x96"):
            one.add(frames_of(world, "phone", 1))
        one.add(frames_of(world, "film", 1))
        assert one.frames == 10
    session.reset()
    session.add(frames_of(world, "phone", 1))
    with pytest.raises(ValueError, match=r"8x400 pixels .* too elongated"):
        StreamSession(world.model, world.processor).add(np.zeros((1, 8, 400, 3), np.uint8))


def test_pictures_of_two_shapes_are_no_video(world, tmp_path):
    data = ConversationDataset([], world.processor, budgets=[8], fps=(1.0, 1.0))
    files = []
    for shape in ((40, 40), (90, 30)):
        files.append(str(tmp_path / f"{shape[0]}.png"))
        Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(files[-1])
    with pytest.raises(VideoError, match=r"90.png: shape: is a frame of 96x32 pixels .* and the first .* of 64x64"):
        data.media.read(MediaItem("frames", tuple(files)), 8, 1.0)


def test_a_batch_of_conversations_holds_several_sizes(world):
    """Three videos and a picture: what the language model reads of each is as long as its placeholders."""
    rows = load_conversations(str(world.folder / "rows.jsonl"), Counter())
    processor, model = world.processor, world.model
    data = ConversationDataset(rows, processor, budgets=[8], fps=(8.0, 8.0))
    batch = collate_samples([data[0, i] for i in range(4)], processor.tokenizer.pad_token_id, processor.image_token_id)
    assert [tuple(video.shape) for video in batch.pixels] == [
        (8, 3, 64, 64), (8, 3, 32, 96), (8, 3, 96, 32), (1, 3, 96, 32),
    ]  # fmt: skip
    module = ChatDataModule(processor, "rows", [8])
    pixels_ = module.on_after_batch_transfer(batch, 0).pixels
    assert all(torch.equal(one, processor.normalized(two)) for one, two in zip(pixels_, batch.pixels, strict=True))
    features = FeatureCache().features(model.model, batch._replace(pixels=pixels_)).pooler_output
    assert [len(f) for f in features] == batch.placeholders == [8, 6, 6, 3]
    known = ConversationDataset(rows, processor, budgets=[8], fps=(8.0, 8.0), cached=[batch.media_keys[3]])
    known.media._shapes = data.media._shapes
    assert known[0, 3].input_ids == data[0, 3].input_ids
    assert known[0, 3].media[0].pixels is None


def test_exported_encoder_prepares_frames_as_it_was_trained(world, tmp_path):
    encoder = LiteFrameEncoder.from_pretrained(world.encoder)
    save_encoder(encoder, tmp_path)
    processor = AutoVideoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    config = encoder.config
    transform = FrameTransform(64, config.image_mean, config.image_std, config.resize, config.pixel_multiple)
    for name, size in SIZES.items():
        frames = frames_of(world, name)
        found = processor(videos=[frames], return_tensors="pt")["pixel_values_videos"]
        assert found.shape == (1, 10, 3, *size)
        torch.testing.assert_close(found[0], transform(frames), atol=1e-6, rtol=0)
    parity = {"max_abs_difference": 0.0, "tolerance": 1, "reloaded_with": {}}
    card = encoder_card("it", config, 1, {}, parity)
    assert "in their own aspect ratio (`aspect`): at most 64 squared pixels, height a multiple of 32" in card
    assert "# [1,T,3,32,96]" in card  # of the 360x640 frames of its snippet


def test_graphs_bring_the_rule(world, tmp_path):
    parity = {
        "max_relative_difference": 0.0,
        "tolerance": 1,
        "dtype": "float32",
        "runtime": {},
        "threads": 1,
        "cases": [],
    }
    config = student_config(resize="aspect", merge_size=2)
    write_graph_folder(world.encoder, config, tmp_path / "out", lambda folder: parity, "", "nothing", "float32")
    found: dict = {}
    exec((tmp_path / "out" / "frame_size.py").read_text(), found)  # a stranger's way: nothing of LiteFrame
    saved = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    budget = (saved["size"]["height"], saved["size"]["width"])
    assert found["frame_size"](360, 640, budget, saved["resize"], tuple(saved["multiple"])) == (32, 96)


def test_servers_get_the_prompts_of_the_sizes(world):
    processor = world.processor
    videos = [frames_of(world, name, 9) for name in ("film", "phone", "square")]
    still = np.array(Image.open(world.folder / "tall.png"))
    found = pixels(processor, videos, [still, videos[2][0]])
    assert [tuple(video.shape) for video in found["pixel_values_videos"]] == [
        (9, 3, 32, 96), (9, 3, 96, 32), (9, 3, 64, 64),
    ]  # fmt: skip
    assert [tuple(image.shape) for image in found["pixel_values"]] == [(3, 96, 32), (3, 64, 64)]
    for video, given in zip(videos, found["pixel_values_videos"], strict=True):
        expected = processor(text="<video>", videos=[video])["input_ids"][0].tolist()
        assert video_ids(processor, 9, size=tuple(given.shape[-2:])) == expected
        assert len(expected) <= len(video_ids(processor, 9))  # what a server reserves
    expected = processor(text=processor.image_token, images=[still])["input_ids"][0].tolist()
    assert image_ids(processor, (96, 32)) == expected
    # vLLM hands over one tensor, a stack, a list of videos, or frames of several requests one by one.
    one, two = torch.zeros(2, 3, 32, 96), torch.ones(3, 3, 96, 32)
    for given, counts in (
        ([one, two], [2, 3]),
        ([*one, *two], [2, 3]),
        (torch.cat([one, one]), [2, 2]),
        (one[None], [2]),
    ):
        videos = regrouped(given, torch.tensor(counts))
        assert [len(video) for video in videos] == counts
        assert torch.equal(videos[0], one)
