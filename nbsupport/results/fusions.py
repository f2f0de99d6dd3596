"""What a fusion of Ĩ_sl and Ĩ_m could gain, and how C learns best: one factor changed at a time.

Everything here is measured on validation images: the default is chosen by it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..experiments.artifacts import Experiment
from ..experiments.evaluation import groups, measure, standard_error
from ..training.denoisers import find_collapse, training_seed
from .seeds import SEEDS, retrain

FUSED, PARTS = "PA-Filt(L_img)", ("PA-Filt(L_img)_sl", "PA-Filt(L_img)_m")
VARIANTS: dict[str, dict[str, Any]] = {
    "loss: mean": {"fusion": "mean"},
    "loss: balanced": {"fusion": "balanced"},
    "loss: KL": {"fusion": "kl"},
    "loss: regret": {"fusion": "regret"},
    "start: PyTorch's": {"fusion_start": "default"},
    "rate: 2.5e-4": {"fusion_learning_rate": 2.5e-4},
    "rate: 1e-3": {"fusion_learning_rate": 1e-3},
    "inputs: all": {"fusion_inputs": "all"},
    "inputs: all, loss: KL": {"fusion_inputs": "all", "fusion": "kl"},
    "inputs: all, loss: regret": {"fusion_inputs": "all", "fusion": "regret"},
}
"""The changes of a study that each variant makes."""


def _accuracy(experiment: Experiment, method: str) -> np.ndarray:
    return measure(experiment, method, split="validation")["accuracy"]


def headroom(experiment: Experiment) -> pd.DataFrame:
    """Accuracy at each ε of both parts, the better part at each ε, and the better for each image.

    The last is what a fusion that chooses between whole images could reach.
    """
    sl, m = (_accuracy(experiment, part) for part in PARTS)
    columns = {PARTS[0]: sl.mean(axis=1), PARTS[1]: m.mean(axis=1)}
    columns["better part at each ε"] = np.maximum(*columns.values())
    columns["better part for each image"] = (sl | m).mean(axis=1)
    return pd.DataFrame(columns, index=pd.Index(experiment.study.eps, name="ε"))


def compare(experiment: Experiment, seeds: Sequence[int] = SEEDS) -> pd.DataFrame:
    """One row per variant and seed of the denoisers.

    ``accuracy`` is the mean over ε, ``gain`` that above the better single part with its paired
    standard error over images, ``weight_std`` the standard deviation of W, and ``collapsed`` says
    whether the training failed.
    """
    rows = []
    for start in retrain(experiment, seeds):
        parts = [_accuracy(start, part).mean(axis=0) for part in PARTS]
        better = max(parts, key=np.mean)
        for variant, changes in VARIANTS.items():
            changed = start.changed(**changes)
            report, fused = changed.report(FUSED), _accuracy(changed, FUSED).mean(axis=0)
            gain = fused - better
            rows.append({
                "variant": variant, "seed": training_seed(start.study),
                "accuracy": fused.mean(), "gain": gain.mean(),
                "error": float(standard_error(gain, groups(changed, "validation"))),
                "weight_std": report["weight_std"],
                "collapsed": find_collapse(report) is not None, "n": len(gain),
            })  # fmt: skip
    return pd.DataFrame(rows)
