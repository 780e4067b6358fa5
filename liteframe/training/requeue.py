"""SLURM: put the job back into the queue when it was told to stop."""

import os
import subprocess
import sys

from lightning.fabric.plugins.environments import SLURMEnvironment

PATIENCE = 30.0


def job_id() -> str | None:
    """The batch job that this process belongs to, as `scontrol` names it; None outside of one."""
    if SLURMEnvironment.job_id() is None:  # interactive jobs cannot be requeued
        return None
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def requeue() -> None:
    """Requeue this process's job and say what came of it; nothing outside SLURM."""
    job = job_id()
    if job is None:
        return
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        outcome = "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        outcome = str(error)
    told = f"job {job} is requeued" if not outcome else f"job {job} is NOT requeued: {' '.join(command)}: {outcome}"
    print(told, file=sys.stderr, flush=True)


def slurm_plugins() -> list[SLURMEnvironment]:
    """SLURM without Lightning's own requeueing, which saves from inside a signal handler."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
