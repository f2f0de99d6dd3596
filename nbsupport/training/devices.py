"""What the hardware has: bfloat16 for trainings, and memory for so many images at once."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

Result = TypeVar("Result")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware calculates with bfloat16, not only stores it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16"))


def precision(wanted: str, device: torch.device) -> str:
    """The precision of a training: ``bfloat16`` where it is wanted and the hardware has it, else ``float32``."""
    return "bfloat16" if wanted == "bfloat16" and has_bfloat16(device) else "float32"


def autocast(wanted: str, device: torch.device) -> AbstractContextManager[None]:
    """Within it, layers calculate in that precision; weights stay in float32."""
    return torch.autocast(
        device.type, torch.bfloat16, enabled=precision(wanted, device) == "bfloat16"
    )


def halving(run: Callable[[int], Result], at_once: int) -> Result:
    """What `run` returns for so many images at once, or for half as many until memory suffices.

    Accelerate's own loop empties all caches before each call, which costs a third of a second and
    the GPU its allocator's memory even where nothing was short.

    Raises
    ------
    RuntimeError
        That of the device, where even one image is too many; and any other of `run`'s at once.
    """
    while True:
        try:
            return run(at_once)
        except RuntimeError as error:
            if at_once == 1 or not should_reduce_batch_size(error):
                raise
        at_once //= 2  # after the handler, which keeps what was in memory alive
        clear_device_cache(garbage_collection=True)
