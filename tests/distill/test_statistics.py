import multiprocessing
import os
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist

from liteframe.distill.statistics import ChannelStatistics, RunningStatistics


def features(count=600, channels=6, seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, channels)) @ rng.normal(size=(channels, channels))
    # A channel whose mean dwarfs its spread, as massive activations have.
    return mixed * [1, 1, 100, 1, 1, 1e-3] + [0, 5, 0, -3, 1e4, 0]


def test_against_numpy_in_any_batching():
    data = features()
    running = RunningStatistics(6)
    for part in np.split(data, [1, 50, 50, 400]):
        running.update(torch.from_numpy(part))
    statistics = running.freeze()
    assert statistics.count == 600
    np.testing.assert_allclose(statistics.mean, data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, data.std(0), rtol=1e-9)
    norms = np.linalg.norm(data, axis=1)
    np.testing.assert_allclose(statistics.norm_mean_std, [norms.mean(), norms.std()], rtol=1e-6)


def test_a_file_gives_the_same_and_another_one_is_refused():
    running = RunningStatistics(6)
    running.update(torch.from_numpy(features()))
    statistics = running.freeze()
    again = ChannelStatistics.from_bytes(statistics.to_bytes(), 6)
    assert torch.equal(again.mean, statistics.mean)
    assert torch.equal(again.std, statistics.std)
    assert (again.count, again.norm_mean_std) == (statistics.count, statistics.norm_mean_std)
    with pytest.raises(ValueError, match="does not fit 5 channels"):
        ChannelStatistics.from_bytes(statistics.to_bytes(), 5)
    with pytest.raises(ValueError, match="not the statistics of a target cache"):
        ChannelStatistics.from_bytes(b"something else", 6)


def _rank(rank, port, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    running = RunningStatistics(6)
    data = torch.from_numpy(features())
    # The second rank starts with a batch of which every clip failed.
    for part in [data[:200]] if rank == 0 else [data[:0], data[200:]]:
        running.update(part)
    statistics = running.freeze()
    results.put((statistics.count, statistics.mean.tolist(), statistics.std.tolist()))
    dist.destroy_process_group()


def test_two_ranks_measure_what_one_would():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, port, results)) for rank in range(2)]
    for process in ranks:
        process.start()
    answers = [results.get(timeout=60) for _ in ranks]
    for process in ranks:
        process.join(30)
        assert process.exitcode == 0
    data = features()
    assert answers[0] == answers[1]
    assert answers[0][0] == 600
    np.testing.assert_allclose(answers[0][1], data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(answers[0][2], data.std(0), rtol=1e-9)
