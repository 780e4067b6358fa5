"""RTD: its decoders, that the least of them is CTD on plain means, and a run that throws its decoder away."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from liteframe import LiteFrameConfig, LiteFrameEncoder, weighted_average_pool
from liteframe.cli.main import main
from liteframe.distill.cache import TargetCache
from liteframe.distill.objectives import objectives
from liteframe.distill.objectives.rtd import DECODERS, spread
from liteframe.distill.statistics import RunningStatistics
from liteframe.distill.targets import TargetSettings
from liteframe.training.sharded import full_state_dict


def made(name, channels=6):
    """An objective in float64 that knows the statistics of noise."""
    torch.manual_seed(0)
    objective, running = (
        objectives[name](channels, TargetSettings(clipping="none"), "mse", (4, 2, 2)),
        RunningStatistics(channels),
    )
    running.update(2 + 3 * torch.randn(200, channels))
    objective.fit(running.freeze())
    for part in objective.modules().values():
        part.double()
    return objective


def test_repeat_is_ctd_on_the_plain_mean():
    patches, mask = torch.randn(2, 8, 4, 4, 6, dtype=torch.float64), torch.ones(2, 8, dtype=torch.bool)
    tokens = [torch.randn(2, 2, 2, 2, 6, dtype=torch.float64, requires_grad=True)]
    tokens.append(tokens[0].detach().clone().requires_grad_())
    rtd, ctd = made("rtd_repeat"), made("ctd")
    dense = rtd.targets(patches, mask)
    pooled = ctd.targets(weighted_average_pool(patches, kernel=ctd.pooling), mask[:, ::4])
    assert (rtd.pooling, ctd.pooling) == ((1, 1, 1), (4, 2, 2))
    losses = rtd.loss(tokens[0], dense).per_clip, ctd.loss(tokens[1], pooled).per_clip
    for loss in losses:
        loss.sum().backward()
    torch.testing.assert_close(tokens[0].grad, tokens[1].grad, rtol=1e-12, atol=1e-14)
    mean = ctd.decoded(pooled.values).repeat_interleave(4, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    spreads = (dense.values - mean).square().mean((1, 2, 3, 4))  # what no token can say
    torch.testing.assert_close(losses[0], losses[1] + spreads, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "count"), [("repeat", 0), ("linear", 16_793_600), ("transformer", 13_668_864)])
def test_parameters_of_the_decoders_at_the_size_of_the_paper(name, count):
    with torch.device("meta"):
        decoder = DECODERS[name](1024, (4, 2, 2))
    assert sum(weight.numel() for weight in decoder.parameters()) == count


def test_members_of_a_window_lie_in_it_in_raster_order():
    patches = torch.arange(8 * 4 * 6).view(1, 8, 4, 6, 1)
    members = patches.unflatten(3, (3, 2)).unflatten(2, (2, 2)).unflatten(1, (2, 4))  # [1,2,4,2,2,3,2,1]
    members = members.permute(0, 1, 3, 5, 2, 4, 6, 7)  # [1,2,2,3,4,2,2,1]
    assert members[0, 1, 1, 2, :, :, :, 0].flatten().tolist() == [
        t * 24 + y * 6 + x for t in range(4, 8) for y in (2, 3) for x in (4, 5)
    ]
    assert torch.equal(spread(members), patches)


@pytest.mark.parametrize("name", ["linear", "transformer"])
def test_a_decoder_can_tell_the_places_of_a_window_apart(name):
    torch.manual_seed(0)
    decoder, tokens = DECODERS[name](8, (4, 2, 2)), torch.randn(1, 1, 2, 2, 8)
    for weight in decoder.parameters():
        nn.init.normal_(weight)
    decoded = decoder(tokens)  # [1,4,4,4,8]
    assert decoded.shape == (1, 4, 4, 4, 8)
    assert len({tuple(place) for place in decoded[0, :, :2, :2].reshape(16, 8).tolist()}) == 16
    moved = decoder(torch.cat([tokens[:, :, :1] + 1, tokens[:, :, 1:]], 2)) - decoded
    assert moved[:, :, :2].any()
    if name == "linear":
        assert not moved[:, :, 2:].any()  # a window hears of its own token alone


def test_a_run_trains_the_decoder_and_leaves_an_encoder_of_compressed_tokens(fit, tmp_path, monkeypatch):
    from liteframe.distill.module import CTDModule

    seen = {}
    original = CTDModule.on_train_batch_start

    def keep(self, batch, batch_idx):
        seen.setdefault("start", full_state_dict(self.objective.decoder))
        seen["module"] = self
        original(self, batch, batch_idx)

    monkeypatch.setattr(CTDModule, "on_train_batch_start", keep)
    fit("--run", tmp_path / "run", "--model.objective", "rtd_linear", "--trainer.max_steps", 2)
    weight = "layer.weight"
    module = seen["module"]
    assert not torch.equal(module.objective.decoder.state_dict()[weight], seen["start"][weight])
    encoder = LiteFrameEncoder.from_pretrained(tmp_path / "run" / "encoder")
    assert isinstance(encoder.config, LiteFrameConfig)
    assert not any("decoder" in name for name in load_file(tmp_path / "run" / "encoder" / "model.safetensors"))
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    assert torch.equal(saved[f"decoder.{weight}"], module.objective.decoder.state_dict()[weight])
    video = torch.randn(1, 8, 3, 64, 64)
    tokens = encoder(video)
    assert tokens.shape == (1, 2, 4, 4, 32)
    # What validation compares is the decoded video, in the teacher's space.
    with torch.no_grad():
        said = module.predict_raw(video)
        standard = module.objective.normalizer.standardizer
        torch.testing.assert_close(
            said, standard.inverse(module.objective.decoder(standard(tokens))), atol=1e-4, rtol=1e-4
        )
    assert said.shape == (1, 8, 8, 8, 32)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["figures"]["val/token_cosine"] > -1


def test_a_cache_of_rtd_holds_dense_features_and_is_no_cache_of_ctd(fit, tiny_config, tmp_path):
    words = ["cache", "build", "-o", tmp_path / "cache", "--views", 1, "--config", tiny_config,
             "--model.objective", "rtd_repeat", "--model.target.statistics_clips", 2]  # fmt: skip
    assert main([*map(str, words)]) == 0
    assert TargetCache.open(tmp_path / "cache").settings.target_shape == (8, 8, 8, 32)
    same = ["--model.target.statistics_clips", 2, "--data.cache", tmp_path / "cache", "--trainer.max_steps", 1]
    fit("--run", tmp_path / "run", "--model.objective", "rtd_repeat", *same)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["steps"] == 1
    with pytest.raises(ValueError, match=r"compression is \(1, 1, 1\) there and \(4, 2, 2\) here"):
        fit("--run", tmp_path / "ctd", *same)


def test_a_student_divided_over_devices_is_refused(fit, tmp_path, monkeypatch):
    monkeypatch.setattr("liteframe.distill.module.is_sharded", lambda model: True)
    with pytest.raises(ValueError, match="fsdp2 divides a student and no decoder of rtd: use ddp"):
        fit("--run", tmp_path / "run", "--model.objective", "rtd_linear")


def test_an_unknown_objective_is_refused(fit, tmp_path):
    with pytest.raises(ValueError, match="choose one of ctd, rtd, rtd_linear, rtd_repeat"):
        fit("--run", tmp_path / "run", "--model.objective", "rtd_mlp")
