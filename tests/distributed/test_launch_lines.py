"""The other lines of docs/many_gpus.md, with two processes each, started at once."""

from distributed_world import documented, finish, free_port, report, start

SHORT = ["--trainer.max_steps", 1]


def slurm(rank, port):
    """What srun tells a task, as far as Lightning asks."""
    return {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "ctd", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NNODES": "1", "MASTER_PORT": str(port), "MASTER_ADDR": "127.0.0.1",
    }  # fmt: skip


def test_one_machine_and_slurm(config, tmp_path):
    port = free_port()
    one_machine = documented("torchrun --standalone", {"8": 2}, config, tmp_path / "torchrun", *SHORT)
    tasks = documented("srun", {"8": 2, "2": 1}, config, tmp_path / "slurm", *SHORT)
    processes = [start(*one_machine), *(start(*tasks, **slurm(rank, port)) for rank in range(2))]
    errors = [finish(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    for run in ("torchrun", "slurm"):
        # The first batch of four clips, and six for the statistics, however they are divided; three are held out.
        data = report(tmp_path / run)["data"]
        assert data["batch_size"] == 4
        assert data["clips_read"] + data["clips_failed"] == 4 + 6 + 2 * 3
