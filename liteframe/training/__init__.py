"""What distilling and aligning share: command, run folder, checkpoints, signals, guard, schedule, report, plan."""
