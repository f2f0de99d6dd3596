"""AdvFilter in notebooks: predictive filtering against adversarial attacks, measured.

The public face: `load_pretrained`, `samples`, `wrap`, `defend`, `evaluate`, `explore`, and the
wings, each of which imports only from those before it. All are imported when they are first used.
"""

import importlib
import os
from typing import Any

# OpenMP's threads spin while they wait for each other, which starves other processes on the same
# cores. Here they give up soon (`make bench` compares). PyTorch reads this when it is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__version__ = "0.1.0"
_PUBLIC = {
    "defend": "denoisers.defended",
    "evaluate": "experiments.evaluation",
    "explore": "interactive.explorer",
    "load_pretrained": "denoisers.pretrained",
    "samples": "denoisers.pretrained",
    "wrap": "classifiers.custom",
}
_WINGS = {"data", "classifiers", "denoisers", "attacks", "training"}
_WINGS |= {"experiments", "interactive", "results"}
__all__ = [*_PUBLIC, "setup"]


def __getattr__(name: str) -> Any:
    if name in _WINGS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC, *_WINGS])


def setup() -> None:
    """Tune this process for the study: the command line, notebooks and workers call it once.

    On Linux the C library keeps a gigabyte of freed memory for the next tensors, which halves the
    time of attacks on photographs. Denormal numbers count as zero, since they slow a CPU down.
    """
    import ctypes
    import platform

    import torch

    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: large blocks get no mappings of their own,
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD: and are given back from a gigabyte on
    torch.set_flush_denormal(True)
