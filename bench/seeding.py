"""Named random streams: each purpose draws from its own, so none can move another's numbers."""

import hashlib

import torch


def stream(seed: int, *purpose: str | int) -> torch.Generator:
    """A fresh generator for one purpose.

    Args:
        seed: the user's seed, any integer.
        purpose: what the numbers are for, such as `"victim", "batches", epoch`.

    Returns:
        A CPU generator whose state depends on the arguments alone, so that every device, process
        and order of execution sees the same draws.
    """
    text = "/".join(map(str, (seed, *purpose)))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def on_device(draws: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator on a device, seeded by a draw from one on the CPU.

    For numbers by the hundred thousand a step, which would take longer to move than to draw. They
    then differ between kinds of device, while a few numbers are better drawn on the CPU.
    """
    seed = int(torch.randint(2**62, (1,), generator=draws))
    return torch.Generator(device).manual_seed(seed)


def sent(drawn: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Numbers drawn on the CPU, on a device, which nobody waits for: from pinned memory."""
    if device.type == "cuda":
        return drawn.pin_memory().to(device, non_blocking=True)
    return drawn.to(device)
