"""AdvFilter in notebooks: predictive filtering against adversarial attacks, measured.

`study` says what is to be run, `artefacts` makes and keeps everything expensive, `evaluation`
measures, `claims` judges, `plots`, `pictures`, `widgets` and `figures` show. CONTRIBUTING.md lists all
modules; each imports only from those above it there. `defend` puts a trained denoiser before a classifier.
"""

import os

# OpenMP's threads wait for each other by spinning, which makes everything many times slower as soon
# as another process, such as a second notebook, wants the same cores. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

__version__ = "0.1.0"

# Small weights and gradients become denormal numbers, on which a CPU is several times slower.
torch.set_flush_denormal(True)
# Attacks and their evaluation compare perturbations of 1e-4, which TF32's ten bits would swallow.
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False

from .defence import defend  # noqa: E402  (it imports all of the above)

__all__ = ["defend"]
