"""Several compressions in one student: block sums, upgrade, extraction, and all modes in one pass."""

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from worlds.students import TINY, make_student, student_config

from liteframe import LiteFrameConfig, LiteFrameEncoder, cost
from liteframe.cli.main import main
from liteframe.models.student.elastic import all_modes, load_one_mode, standard_modes, upgrade
from liteframe.models.student.mixers import block_sums

MODES = standard_modes(TINY["downsample"])
OTHER = {**MODES, "64t": {1: (2, 2, 2), 2: (4, 2, 1)}}
VIDEO = torch.randn(2, 8, 3, 64, 64, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def plain():
    return make_student().eval()


@pytest.fixture(scope="module")
def elastic():
    """Of noise in every kernel, not of an ordinary student's equal parts."""
    return make_student(student_config(modes=OTHER)).eval()


def summed_by_hand(kernel, stride):
    """Block sums in a loop over all taps, in float64."""
    sizes = [most // step for most, step in zip(kernel.shape[1:], stride, strict=True)]
    made = torch.zeros(len(kernel), *stride, dtype=torch.float64)
    for a in range(kernel.shape[1]):
        for b in range(kernel.shape[2]):
            for c in range(kernel.shape[3]):
                made[:, a // sizes[0], b // sizes[1], c // sizes[2]] += kernel[:, a, b, c].double()
    return made


@pytest.mark.parametrize("stride", [(2, 1, 1), (4, 1, 1), (2, 2, 2), (4, 2, 1), (1, 1, 1)])
def test_block_sums(stride):
    kernel = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(block_sums(kernel, stride), summed_by_hand(kernel, stride))


def test_block_sums_of_four_taps():
    kernel = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).view(1, 4, 1, 1)
    torch.testing.assert_close(block_sums(kernel, (2, 1, 1)).flatten(), torch.tensor([0.3, 0.7], dtype=torch.float64))
    assert block_sums(kernel, (1, 1, 1)).item() == pytest.approx(1)


def test_the_full_size_student_has_the_parameters_and_flops_of_the_design():
    """Parameters of the maximal kernels, FLOPs of each mode, and of a step with and without 4x, worked out apart."""
    modes = standard_modes({4: (2, 2, 2), 8: (2, 1, 1)})
    config = LiteFrameConfig(modes={**modes, "64t": {4: (2, 2, 2), 8: (4, 2, 1)}})
    assert (config.kernels, cost(config).params) == ({4: (2, 2, 2), 8: (4, 2, 2)}, 87_157_504)
    rows = {mode: cost(config.of_mode(mode)) for mode in config.modes}
    assert {mode: row.tokens_per_frame for mode, row in rows.items()} == {
        "4x": 64, "8x": 32, "16x": 16, "32x": 8, "64x": 4, "64t": 4,
    }  # fmt: skip
    assert [round(row.flops / 1e12, 2) for row in rows.values()] == [22.66, 18.88, 17.92, 17.44, 17.21, 17.20]
    assert cost(LiteFrameConfig(modes=modes), all_modes=True).flops / 1e12 == pytest.approx(28.1, abs=0.02)
    del modes["4x"]
    assert cost(LiteFrameConfig(modes=modes), all_modes=True).flops / 1e12 == pytest.approx(20.56, abs=0.005)


def test_flops_of_all_modes_are_those_that_torch_counts():
    config = student_config(modes=OTHER, temporal_mixer="none")
    with torch.device("meta"):
        encoder, video = LiteFrameEncoder(config), torch.empty(1, 8, 3, 64, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        all_modes(encoder, video)
    shared, own = cost(config, 8, 64, all_modes=True), cost(config, 8, 64)
    strided = 0  # depthwise convs run as additions, which torch's counter does not see
    for stride, frames, side in [((1, 2, 2), 8, 8), ((2, 2, 2), 8, 8)]:
        t, h, w = stride
        strided += 2 * 24 * (frames // t) * (side // h * side // w * t * h * w + t)
    for stride in [(2, 1, 1), (4, 1, 1), (2, 2, 2), (4, 2, 1)]:
        t, h, w = stride
        strided += 2 * 24 * (4 // t) * (4 // h * 4 // w * t * h * w + t)
    assert shared.flops + shared.attention_flops == counter.get_total_flops() + strided
    assert shared.flops > own.flops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_upgrade_changes_no_bit_of_the_output(plain, dtype):
    student = LiteFrameEncoder(plain.config).to(dtype).eval()
    student.load_state_dict(plain.state_dict())
    grown = upgrade(student, MODES)
    assert torch.equal(grown(VIDEO.to(dtype)), student(VIDEO.to(dtype)))
    again = grown.extract("16x")
    assert again.config == student.config
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in student.state_dict().items())


def test_a_conv_that_only_other_modes_have_starts_as_the_mean(plain):
    single = make_student(student_config(downsample={1: (2, 2, 2)})).eval()
    grown = upgrade(single, {"32x": {1: (2, 2, 2), 2: (2, 2, 1)}})
    assert list(grown.config.modes) == ["8x", "32x"]
    assert torch.equal(grown(VIDEO), single(VIDEO))
    assert torch.all(grown.downsample["2"].weight == 1 / 4)


@pytest.mark.parametrize("mode", OTHER)
def test_an_extracted_mode_is_the_elastic_student_in_it(elastic, mode, tmp_path):
    student = elastic.extract(mode)
    assert student.config == replace(elastic.config, downsample=OTHER[mode], modes={})
    student.save_pretrained(tmp_path)
    student, expected = LiteFrameEncoder.from_pretrained(tmp_path), elastic(VIDEO, mode=mode)
    t, h, w = elastic.config.windows[mode]
    assert student(VIDEO).shape == (2, 8 // t, 8 // h, 8 // w, 128)
    torch.testing.assert_close(student(VIDEO), expected, rtol=0, atol=0)
    with torch.no_grad():  # in the form that encodes fastest
        torch.testing.assert_close(elastic.for_inference()(VIDEO, mode), expected, rtol=1e-3, atol=1e-3)
    for name, weight in student.named_parameters():
        if "downsample" in name and "weight" in name:
            kernel = elastic.get_parameter(name)
            torch.testing.assert_close(weight.double(), summed_by_hand(kernel, weight.shape[1:]), rtol=1e-6, atol=1e-6)


def test_an_extracted_mode_has_weights_of_its_own(elastic):
    student = elastic.extract("8x")
    with torch.no_grad():
        student.head.weight.zero_()
    assert elastic.head.weight.any()


def test_all_modes_at_once_are_each_by_itself_with_the_same_gradients(elastic):
    student = LiteFrameEncoder(elastic.config).double()
    student.load_state_dict(elastic.state_dict())
    made = all_modes(student, VIDEO.double())
    assert list(made) == ["4x", "8x", "16x", "32x", "64x", "64t"]
    sum(tokens.square().mean() for tokens in made.values()).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    student.zero_grad()
    for mode, tokens in made.items():
        alone = student(VIDEO.double(), mode)
        torch.testing.assert_close(alone, tokens)
        alone.square().mean().backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name])
        assert parameter.grad.any()


def test_a_new_elastic_student_is_mean_pooling_in_each_mode():
    config = student_config(downsample={3: (4, 2, 2)}, modes={"64x": {3: (4, 4, 4)}, "4x": {3: (1, 2, 2)}})
    encoder = LiteFrameEncoder(config).double()
    plain = LiteFrameEncoder(student_config(downsample={}, temporal_mixer="none")).double()
    assert not plain.load_state_dict(encoder.state_dict(), strict=False).missing_keys
    frames = plain(VIDEO.double())  # [2,8,8,8,C]
    for mode, tokens in all_modes(encoder, VIDEO.double()).items():
        t, h, w = config.windows[mode]
        mean = frames.unflatten(3, (-1, w)).unflatten(2, (-1, h)).unflatten(1, (-1, t)).mean((2, 4, 6))
        torch.testing.assert_close(tokens, mean)


def test_modes_survive_json_and_are_sorted():
    config = student_config(modes={"64x": OTHER["64x"], "4x": OTHER["4x"]})
    assert list(config.modes) == ["4x", "16x", "64x"]  # its own, under its factor
    assert (config.default_mode, config.multiple, config.pixel_multiple) == ("16x", (4, 4, 4), (32, 32))
    assert LiteFrameConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert LiteFrameConfig.from_dict({k: v for k, v in student_config().to_dict().items() if k != "modes"}).modes == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modes": {"16x": {1: (2, 2, 2)}}}, r"modes\['16x'\] is .* give it a name"),
        ({"modes": {"16x": TINY["downsample"]}}, "nothing to choose"),
        ({"modes": {"a": {1: (2, 2, 2)}, "b": {1: (2, 2, 2)}}}, "'a' and 'b' are the same"),
        ({"modes": {"6x": {1: (3, 2, 2)}}}, r"modes\['16x'\]\[1\] is \(2, 2, 2\), which does not divide \(3, 2, 2\)"),
        ({"modes": {"8x": {9: (2, 2, 2)}}}, r"modes\['8x'\] block 9 is not within 1..depth=3"),
        ({"modes": {"auto": {1: (2, 2, 2)}}}, "'auto' cannot be a name"),
        ({"modes": {"8x": [2, 2, 2]}}, r"modes\['8x'\] must map block"),
        ({"modes": {"128x": {1: (2, 2, 2), 2: (8, 2, 1)}}}, "clip_frames=8 is not a multiple .* 16 of mode '128x'"),
        ({"modes": MODES, "image_size": 48, "patch_size": 8}, r"image_size=48 .* height stride of mode '64x' = 8 \* 4"),
    ],
)  # fmt: skip
def test_modes_that_cannot_be_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        student_config(**change)


def test_what_has_no_such_mode_says_what_it_has(plain, elastic):
    with pytest.raises(ValueError, match="'128x' is unknown: this encoder has 4x, 8x, 16x, 32x, 64x, 64t"):
        elastic(VIDEO, mode="128x")
    for refused in (lambda: plain.extract("8x"), lambda: plain(VIDEO, "8x"), lambda: all_modes(plain, VIDEO)):
        with pytest.raises(ValueError, match=r"one compression, \(4, 2, 2\), and no modes.*liteframe upgrade"):
            refused()
    with pytest.raises(ValueError, match=r"elastic already, with modes 4x, .*liteframe extract"):
        upgrade(elastic, MODES)
    with pytest.raises(ValueError, match=r"a clip of 6 frames .* 64x .4 frames"):
        all_modes(elastic, VIDEO[:, :6])
    assert elastic(VIDEO[:, :6], "4x").shape[1] == 6


def test_commands_upgrade_and_extract(plain, tmp_path, capsys):
    source, grown, out = (tmp_path / name for name in ("plain", "grown", "out"))
    plain.save_pretrained(source)
    assert main(["upgrade", str(source), str(grown)]) == 0
    assert main(["extract", str(grown), str(out), "--mode", "64x"]) == 0
    assert main(["info", str(grown)]) == 0
    said = capsys.readouterr().out
    assert "modes 4x, 8x, 16x, 32x, 64x; 16x is" in said
    assert "mode 64x" in said
    expected = upgrade(plain, MODES)(VIDEO, "64x")
    assert torch.equal(load_one_mode(grown, "64x")(VIDEO), expected)
    assert load_one_mode(source, None).config == plain.config
    with pytest.raises(ValueError, match=r"grown: the encoder is elastic, with modes 4x, .* name one with --mode"):
        load_one_mode(grown, None)
    assert torch.equal(LiteFrameEncoder.from_pretrained(out)(VIDEO), expected)
    (tmp_path / "modes.yaml").write_text("8x: {1: [2, 2, 2]}\n")
    assert main(["upgrade", str(source), str(tmp_path / "two"), "--modes", str(tmp_path / "modes.yaml")]) == 0
    for words, message in [
        (["extract", str(grown), str(out), "--mode", "8x"], "out exists"),
        (
            ["extract", str(grown), str(tmp_path / "no"), "--mode", "9x"],
            "mode '9x' is unknown: this encoder has 4x, 8x",
        ),
        (["extract", str(source), str(tmp_path / "no"), "--mode", "8x"], "has one compression"),
        (["upgrade", str(grown), str(tmp_path / "no")], "elastic already"),
        (["upgrade", str(source), str(tmp_path / "no"), "--modes", str(tmp_path / "none.yaml")], "no such file"),
    ]:
        assert main(words) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
