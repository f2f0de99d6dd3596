"""How far robustness follows from smoothing: accuracy against the PSNR of denoised clean images."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..experiments.artifacts import Experiment
from ..experiments.evaluation import failure, measure, worst_case
from ..experiments.methods import BOTH_LOSSES, CLEAN_PSNR, ENVELOPE, TABLES
from ..study import short
from .tables import PUBLISHED, compared, published

TRAINED, BLUR, JPEG = "Filt(L_img)_as_published", "Gaussian blur", "JPEG"
SWEEPS: dict[str, tuple[float, ...]] = {
    BLUR: (0.3, 0.4, 0.5, 0.6, 0.8, 1.2),
    JPEG: (10, 20, 30, 40, 50, 60, 70, 75, 85, 95),
}
"""σ in pixels and qualities: simple defences over a parameter, as series of their own."""
DIAL = (20.0, 60.0, 200.0, 600.0)  # values of λ; much smaller ones leave images beyond recognition
STORED_AS = 70  # copies of JPEG quality 75 survive this and higher qualities nearly unchanged
# Half of a copy's coefficients lie midway between two steps of this quality, which are twice those
# of 75, so the faintest attack moves them. The baseline is therefore a quality of 40.
BETWEEN_STEPS = 50
VISIBLE = 15.0  # dB: below it little is to be recognised, as after the first steps of a training
METHODS = tuple(dict.fromkeys(x for number in (1, 2, 3, 4) for x in TABLES[number]))
COLUMNS = ["study", "classifier", "series", "method", "parameter", CLEAN_PSNR]
COLUMNS += ["attack", "eps", "accuracy", "n", "artefact", "seed"]


Point = tuple[Experiment, str, str, float]
"""An experiment, a series, a method, and the series' parameter: step, σ, quality, λ; or NaN."""


def list_points(experiment: Experiment) -> Iterator[Point]:
    """A training over its steps, the `SWEEPS`, and the methods of Tables 1 to 4.

    A failed training is no point. Its checkpoints are: they come from before its end. Those that
    leave less than `VISIBLE` dB of clean validation images are left out.
    """
    kept = experiment.trained(TRAINED).report["clean_psnr"]["kernels"].items()
    for step in sorted(int(step) for step, psnr in kept if psnr >= VISIBLE):
        yield experiment, TRAINED, f"{TRAINED}@{step}", step
    for name in SWEEPS:
        yield from _sweep(experiment, name)
    for method in METHODS:
        if not failure(experiment, method):
            yield experiment, "methods", method, np.nan


def _sweep(experiment: Experiment, name: str) -> Iterator[Point]:
    return ((experiment, name, f"{name} {value:g}", value) for value in SWEEPS[name])


def list_dial(experiment: Experiment) -> Iterator[Point]:
    """PA-Filt(L_img+KL) over λ beside no filter and the blur.

    Each λ is a training, and a failed one is no point.
    """
    yield experiment, "methods", "attacked", np.nan
    yield from _sweep(experiment, BLUR)
    for weight in DIAL:
        changed = experiment.changed(image_weight=weight)
        if not failure(changed, BOTH_LOSSES):
            yield changed, BOTH_LOSSES, BOTH_LOSSES, weight


def curve(
    experiment: Experiment,
    eps: Sequence[float] = (3e-3, 1e-2),
    points: Callable[[Experiment], Iterable[Point]] = list_points,
) -> pd.DataFrame:
    """One row per point, attack (gray-box, plain and in its worst case over ε' ≤ ε) and ε.

    ``clean PSNR`` in dB is the mean over the test images, ∞ where one stays as it is. The series
    *published* has Table 1 of the paper's group that is nearest to the study: without clean PSNR,
    and again with it where Table 2 has it, which is on DEV alone.
    ``artefact`` marks JPEG where it restores images that were stored as JPEG.
    Raises `ValueError` if the study does not evaluate an ε.
    """
    study, rows = experiment.study, list[dict[str, Any]]()
    strengths = study.evaluated_eps
    if not set(eps) <= set(strengths):
        there = ", ".join(map(short, strengths))
        raise ValueError(f"curve: expected ε among {there}, got {', '.join(map(short, eps))}")
    same = {"study": study.name, "classifier": study.classifier_name, "seed": study.seed}
    weaker = tuple(strength for strength in strengths if 0 < strength <= max(eps))
    for changed, series, method, parameter in points(experiment):
        swept = series != "methods"  # the tables have those at all strengths
        measured = measure(changed, method, eps=weaker if swept else None)
        point = same | {"series": series, "method": method, "parameter": parameter}
        point |= {CLEAN_PSNR: measured["psnr"][0].mean(), "n": measured["accuracy"].shape[1]}
        copies = study.images_from == "JPEG copies"
        special = parameter >= STORED_AS or parameter == BETWEEN_STEPS
        point["artefact"] = series == JPEG and copies and special
        accuracies = {"pgd": measured["accuracy"], ENVELOPE: worst_case(measured["accuracy"])}
        for attack, correct in accuracies.items():
            for each in eps:
                accuracy = correct[strengths.index(each)].mean()
                rows.append(point | {"attack": attack, "eps": each, "accuracy": accuracy})
    paper = _read_paper(*compared(1, study.classifier_name, study.name), eps)
    shown = {row["method"] for row in paper} & {row["method"] for row in rows}
    # the published row without a filter alone would compare with nothing
    paper = [row for row in paper if row["method"] in shown and len(shown) > 1]
    return pd.DataFrame(rows + paper, columns=COLUMNS).astype({"n": "Int64", "seed": "Int64"})


def _read_paper(classifier: str, data: str, eps: Sequence[float]) -> list[dict[str, Any]]:
    numbers = published(classifier, data)
    same: dict[str, Any] = {"study": data, "classifier": classifier, "series": PUBLISHED}
    clean = numbers.query("metric == 'psnr' and eps == 0").set_index("method")["value"]
    rows: Any = numbers[(numbers["table"] == 1) & numbers["eps"].isin(eps)]
    rows = rows.rename(columns={"value": "accuracy"})[["method", "eps", "accuracy"]]
    points = rows.assign(**{CLEAN_PSNR: rows["method"].map(clean)}).dropna()
    same |= {"attack": "pgd", "artefact": False}
    return [same | row for row in pd.concat([rows, points]).to_dict("records")]
