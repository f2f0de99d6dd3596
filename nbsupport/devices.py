"""Where the work is done, and in which precision: the first GPU or the CPU, through Accelerate."""

from contextlib import AbstractContextManager
from functools import cache

import torch
from accelerate import Accelerator


@cache
def accelerator() -> Accelerator:
    """This process among all that were started together."""
    return Accelerator()


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
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(wanted, device) == "bfloat16")
