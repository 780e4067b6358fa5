"""The device that a command computes on."""

import torch


def find_device(name: str | None) -> torch.device:
    """The named device ("cpu", "cuda", "cuda:1", ...), or the first GPU where there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    count = torch.cuda.device_count()
    if name is None:
        return torch.device("cuda" if count else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name} is no device; cpu, cuda, or cuda:1 for the second GPU") from error
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"only {count} CUDA device{'s' if count > 1 else ''}" if count else "no CUDA device"
        raise ValueError(f"--device {name}: PyTorch finds {found} here; use --device {'cuda:0' if count else 'cpu'}")
    return device
