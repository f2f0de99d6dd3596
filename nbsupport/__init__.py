"""AdvFilter in notebooks: predictive filtering against adversarial attacks, measured.

`study` says what is to be run, `artefacts` makes and keeps everything expensive, `evaluation`
measures, `claims` judges, `plots`, `pictures`, `widgets` and `figures` show. CONTRIBUTING.md lists all
modules; each imports only from those above it there. `defend` puts a trained denoiser before a
classifier; `load_pretrained` gives those that come with the package.
"""

import ctypes
import os
import platform

# OpenMP's threads spin while they wait for each other, which starves every other process on the same cores. They
# give up soon here: `make bench` compares this with sleeping at once and with spinning longer. Read when torch loads.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# The C library asks the system for every large tensor anew, and the system fills its pages with zeros first,
# which took half of an attack's time on photographs. So it keeps a gigabyte of what is freed (M_MMAP_MAX: no
# mappings of their own; M_TRIM_THRESHOLD: from when on memory goes back).
if platform.libc_ver()[0] == "glibc":
    ctypes.CDLL(None).mallopt(-4, 0)
    ctypes.CDLL(None).mallopt(-1, 2**30)

import torch

__version__ = "0.1.0"

# Small weights and gradients become denormal numbers, on which a CPU is several times slower.
torch.set_flush_denormal(True)
# Attacks and their evaluation compare perturbations of 1e-4, which TF32's ten bits would swallow.
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False

from .denoisers.defended import defend  # noqa: E402  (it imports all of the above)
from .denoisers.pretrained import load_pretrained  # noqa: E402

__all__ = ["defend", "load_pretrained"]
