"""Which configuration of a kernel runs: timed for the sizes at hand, in this process, never within a capture."""

from types import SimpleNamespace

import pytest
import torch
from liteframe_kernels import backend

triton = pytest.importorskip("triton")
from liteframe_kernels import launch  # noqa: E402 - needs triton
from liteframe_kernels.launch import TunedKernel  # noqa: E402 - as above


class Machine:
    """A GPU of paper: a kernel with blocks of 8 takes 1 ms a frame, one of 16 half of that and 20 ms to start."""

    def __init__(self):
        self.clock, self.ran, self.timed = 0.0, [], 0
        self.__name__ = "some_kernel"

    def __getitem__(self, grid):
        def run(*, T, BT, **rest):
            self.ran.append(BT)
            self.clock += T if BT == 8 else 20 + T / 2

        return run

    def get_benchmarker(self):
        def timed(call, *, quantiles, **rest):
            self.timed += 1
            began = self.clock
            call()
            return [self.clock - began] * len(quantiles)

        return timed


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Triton's driver is a Machine, its cache an empty folder."""
    machine = Machine()
    monkeypatch.setattr(triton.runtime.driver, "_active", machine)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    yield machine
    assert not list(tmp_path.iterdir())


def launcher(kernel):
    def launch(batch, frames, tokens, dtype=torch.float32):
        x = torch.empty(batch, frames, tokens, 4, dtype=dtype, device="meta")
        kernel.launch(lambda meta: batch * triton.cdiv(frames, meta["BT"]), x, T=frames, K=3)

    return launch


def tuned(machine):
    return TunedKernel(machine, [triton.Config({"BT": 8}), triton.Config({"BT": 16})], key=("K",))


def test_a_small_first_call_does_not_decide_for_a_large_one(machine):
    launch = launcher(tuned(machine))
    for frames, best in ((4, 8), (256, 16), (5, 8), (300, 16), (4, 8)):
        launch(1, frames, 10)
        assert machine.ran[-1] == best
    assert machine.timed == 4  # two configurations, two classes of sizes


@pytest.mark.parametrize("other", [(8, 4, 10), (1, 4, 90), (1, 4, 10, torch.bfloat16)])
def test_batch_tokens_and_dtype_are_timed_anew(machine, other):
    launch = launcher(tuned(machine))
    launch(1, 4, 10)
    assert machine.timed == 2
    launch(*other)
    assert machine.timed == 4


def test_each_process_times_for_itself(machine):
    for kernel in (tuned(machine), tuned(machine)):
        launcher(kernel)(1, 4, 10)
    assert machine.timed == 4


def test_a_first_call_in_a_capture_is_refused(machine, monkeypatch):
    capturing = [True]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    launch = launcher(tuned(machine))
    with pytest.raises(RuntimeError, match=r"some_kernel: .* run the model once on the same sizes before the capture"):
        launch(1, 4, 10)
    assert machine.ran == []
    capturing[0] = False
    launch(1, 4, 10)
    capturing[0] = True
    launch(1, 4, 10)
    assert machine.ran[-1] == 8


@pytest.mark.parametrize("capturing", [True, False])
def test_what_triton_says_in_a_capture_is_explained(machine, monkeypatch, capturing):
    """A kernel with one configuration is compiled and loaded on its first call, which CUDA does not capture either."""

    class Unloaded(Machine):
        def __getitem__(self, grid):
            def run(**arguments):
                raise RuntimeError("Triton Error [CUDA]: operation not permitted when stream is capturing")

            return run

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    launch = launcher(TunedKernel(Unloaded(), [triton.Config({"BT": 8})]))
    with pytest.raises(RuntimeError, match="before the capture" if capturing else "Triton Error"):
        launch(1, 4, 10)


def test_where_triton_cannot_compile_the_reference_takes_its_place_and_says_so(monkeypatch, caplog):
    tries = []

    def no_compiler():
        tries.append(1)
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(launch, "try_triton", no_compiler)
    monkeypatch.setattr(backend, "_untried", lambda x: False)
    backend._triton_runs.cache_clear()
    on_gpu = SimpleNamespace(is_cuda=True)
    try:
        assert [backend.use_triton("temporal_conv", on_gpu, None) for _ in range(2)] == [False, False]
    finally:
        backend._triton_runs.cache_clear()
    assert len(tries) == 1
    assert "Failed to find C compiler" in caplog.text
