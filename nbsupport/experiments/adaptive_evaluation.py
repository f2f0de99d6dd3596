"""The adaptive evaluation: for every image the smallest ε at which a defence falls.

Minimal-norm attacks find a first ε for all images at once. Where their runs disagree, an ensemble
attacks at the largest ε of the study below it, and goes down as long as it succeeds. So one run
gives the accuracy at every ε, and that never rises with ε. `audit` checks it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..attacks.adaptive import Target, descend, minimal_eps, plan_ensemble, zero_gradients
from ..attacks.pgd import AttackedSet
from ..classifiers.models import are_probabilities, is_saturated
from ..data.images import Images
from ..study import Study
from .artifacts import VERSION, Experiment, once
from .evaluation import measure, resample
from .methods import TRANSFERRED, split_method
from .store import Tensors, depend_on, hash_tensors

BLOCK = 100  # images that are attacked, and stored, together


@dataclass(frozen=True)
class Minimal:
    """The smallest ε per image of one defence: 0 if it is wrong anyway, ∞ if no attack succeeds."""

    method: str
    eps: tuple[float, ...]  # of the study, from 0
    smallest: Float[np.ndarray, "n"]
    first: Float[np.ndarray, "n"]  # by the minimal-norm attacks alone
    gray_box: Bool[np.ndarray, "strengths n"]  # which images the gray-box attacker leaves correct
    gradients: float  # per image, as the next two
    forwards: float
    seconds: float
    zero_gradients: float  # share of images without any gradient
    saturated: float  # share of clean images whose cross-entropy rounds to 0
    deterministic: bool  # the same logits twice, alone and in a batch
    logits: bool  # logits, not probabilities
    classes: int

    def robust(self) -> Bool[np.ndarray, "strengths n"]:
        """Which images withstand all attacks at each ε."""
        return self.smallest > np.array(self.eps)[:, None]


def aim(experiment: Experiment, method: str, split: str) -> Target:
    """The images of a split behind a method's denoiser and classifier."""
    part, classifier = experiment.images(split), experiment.classifier(split_method(method)[1])
    images, labels = (x.to(experiment.device) for x in (part.images, part.labels))
    return Target(experiment.denoiser(method), classifier, images, labels)


def transferred(experiment: Experiment) -> dict[str, AttackedSet]:
    """Attacks on the bare classifier and on a second one, at all strengths of the study."""
    names = "standard", "second"
    found = (experiment.attacked("adaptive", classifier=name) for name in names)
    return dict(zip(TRANSFERRED, found, strict=True))


@once
def evaluate_adaptively(experiment: Experiment, method: str) -> Minimal:
    """A defence of the study under attacks that know it, kept in the store in blocks of images.

    Raises `ValueError` if there is no such method.
    """
    number, blocks = len(experiment.images("adaptive")), []
    with tqdm(total=number, desc=f"attacking {method}", unit="image") as bar:
        for start in range(0, number, BLOCK):
            blocks.append(attack_block(experiment, method, start))
            bar.update(len(blocks[-1][0]["smallest"]))
    found: Any = {
        name: np.concatenate([x[name] for x, _ in blocks]) for name in ("smallest", "first")
    }
    facts = pd.DataFrame([report for _, report in blocks])
    sizes = np.array([len(x["smallest"]) for x, _ in blocks]) / number
    for name in ("gradients", "forwards", "seconds", "zero_gradients", "saturated"):
        found[name] = float(facts[name] @ sizes)
    found |= {name: bool(facts[name].all()) for name in ("deterministic", "logits")}
    return Minimal(
        method=method, eps=experiment.study.evaluated_eps, classes=int(facts["classes"].max()),
        gray_box=measure(experiment, method, split="adaptive")["accuracy"], **found,
    )  # fmt: skip


def attack_block(
    experiment: Experiment, method: str, start: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attack the images from `start` on; return their ε as arrays, and what it took per image.

    Its key names the images of the block alone, so studies of different sizes share blocks.
    """
    names = (split_method(method)[1], "standard", "second")
    networks = experiment.denoiser(method), *(experiment.classifier(name) for name in names)
    specification = depend_on(minimal_specification(experiment, method), *networks)
    part = experiment.images("adaptive")
    block = {"images": part.images, "labels": part.labels}
    block = {name: tensor[start : start + BLOCK] for name, tensor in block.items()}
    specification["data"] = hash_tensors(block)
    tensors, report = experiment.store.tensors(
        specification, partial(_attack, experiment, method, start)
    )
    return {name: tensor.numpy() for name, tensor in tensors.items()}, report


def minimal_specification(experiment: Experiment, method: str) -> dict[str, Any]:
    """Everything that the smallest ε of a method's images depend on."""
    study = experiment.study
    return {
        "kind": "minimal", "name": method, "version": VERSION, "seed": study.seed, "block": BLOCK,
        "method": experiment.specification(method), "eps": list(study.evaluated_eps),
        "data": experiment.images("adaptive").specification,
        "second": experiment.classifier_specification("second"),
        **{name: getattr(study, f"adaptive_{name}") for name in ("steps", "iterations", "queries")},
    }  # fmt: skip


def find_smallest(
    target: Target, study: Study, others: Sequence[tuple[float, Images]] = ()
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """The smallest ε of each image, and what the minimal-norm attacks alone found.

    `others` are images in the place of the target's that were attacked otherwise, with their ε.
    """
    first = minimal_eps(target, steps=study.adaptive_steps).double()
    transferred = torch.full_like(first[0], torch.inf)
    for eps, images in others:
        fooled = ~target.withstands(images.to(target.images))
        transferred[fooled] = transferred[fooled].clamp(max=eps)
    plan = partial(
        plan_ensemble, steps=study.steps, iterations=study.adaptive_iterations,
        queries=study.adaptive_queries, seed=study.seed,
    )  # fmt: skip
    found = torch.stack([*first, transferred.masked_fill(first[0] == 0, 0.0)])
    return descend(target, found, study.evaluated_eps[1:], plan), first.amin(dim=0)


def _attack(experiment: Experiment, method: str, start: int, scratch: Path) -> Tensors:
    study = experiment.study
    whole = aim(experiment, method, "adaptive")
    rows = torch.arange(start, min(start + BLOCK, len(whole.images)))
    target = whole.select(rows.to(whole.images.device))
    sets, strengths = transferred(experiment).values(), study.evaluated_eps[1:]
    others = [
        (eps, attacked.pick(torch.full_like(rows, attacked.eps.index(eps)), rows))
        for attacked, eps in product(sets, strengths)
    ]
    begun, cost = time.monotonic(), target.cost  # the other attacks serve every defence
    smallest, first = find_smallest(target, study, others)
    with torch.no_grad():
        logits = target.defence(target.images)
    return {"smallest": smallest, "first": first}, {
        "gradients": cost.gradients / len(rows), "forwards": cost.forwards / len(rows),
        "seconds": (time.monotonic() - begun) / len(rows),
        "zero_gradients": zero_gradients(target),
        "saturated": float(is_saturated(logits, target.labels).float().mean()),
        "deterministic": target.deterministic, "logits": not are_probabilities(logits),
        "classes": logits.shape[1],
    }  # fmt: skip


# -- against the bare classifier ------------------------------------------------------------------


def gain(
    robust: Bool[np.ndarray, "strengths n"], bare: Bool[np.ndarray, "strengths n"],
    groups: Int[np.ndarray, "n"], *, seed: int = 0, resamples: int = 2000,
) -> Float[np.ndarray, "3 strengths"]:  # fmt: skip
    """By how much a defence is above the bare classifier at each ε, and the 95 % interval of that.

    Paired: both are measured on the same images, whose groups are resampled together (`resample`).
    """
    measured = robust.astype(float) - bare
    extra = np.broadcast_to([1.0, -1.0], (len(measured), 2))
    difference = np.concatenate([measured, extra], axis=1)
    drawn = resample(groups, seed, resamples)
    low, high = np.quantile(difference @ (drawn / drawn.sum(axis=0)), (0.025, 0.975), axis=1)
    return np.stack([measured.mean(axis=1), low, high])
