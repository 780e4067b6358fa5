"""The job of docs/many_gpus.md, its two tasks started as SLURM does."""

from worlds.processes import documented, finish, fork, free_port, report


def slurm(rank, port):
    """What srun tells a task, as far as Lightning asks."""
    return {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "ctd", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NNODES": "1", "MASTER_PORT": str(port), "MASTER_ADDR": "127.0.0.1",
    }  # fmt: skip


def test_slurm(config, tmp_path):
    port = free_port()
    task = documented("srun", {"8": 2, "2": 1}, config, tmp_path / "run", "--trainer.max_steps", 1)
    tasks = [fork(*task, **slurm(rank, port)) for rank in range(2)]
    errors = [finish(process) for process in tasks]
    assert [process.returncode for process in tasks] == [0, 0], errors
    # Two processes share a batch of four clips, six for the statistics, and three held out (with the average and not).
    data = report(tmp_path / "run")["data"]
    assert data["batch_size"] == 4
    assert data["clips_read"] + data["clips_failed"] == 4 + 6 + 2 * 3
