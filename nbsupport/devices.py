"""In which precision the work is done: bfloat16 for trainings where the hardware has it."""

from contextlib import AbstractContextManager

import torch


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
