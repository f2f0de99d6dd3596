"""The adaptive evaluation: every attack on a defence, and sanity checks of the attacks."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from ..attacks import adaptive
from ..attacks.adaptive import AUTOATTACK, Target
from ..attacks.pgd import prepare
from ..classifiers.custom import SATURATED
from ..classifiers.models import are_probabilities, is_saturated
from ..data.images import write_atomically
from .artifacts import VERSION, Experiment, Strengths, once
from .evaluation import COLUMNS, measure, worst_case
from .methods import TRANSFERRED, UNSEEN, WHITE_BOX, WORST, split_method
from .store import Tensors, depend_on

Attack = Callable[[float], Tensor]
TRACE = (10, 40, 100)  # numbers of PGD steps in the trace, before the study's and twice that
MISSED = 0.02  # the share of images that may fall to an attack and withstand a harder one
FLAT = 0.1  # the share of PGD's whole gain that doubling its steps may still gain


@dataclass(frozen=True)
class Outcome:
    """One defence under all attacks: axis 0 is ε, from 0, or the steps; axis 1 the image."""

    method: str
    eps: tuple[float, ...]
    robust: dict[str, Bool[np.ndarray, "strengths n"]]  # which images each attack leaves correct
    envelope: Bool[np.ndarray, "strengths n"]  # gray-box, worst case over all the study's ε' ≤ ε
    norms: dict[str, Float[np.ndarray, "n"]]  # per L2 attack the smallest norm that succeeds
    steps: tuple[int, ...]  # numbers of PGD steps in the trace, from 0
    trace: Bool[np.ndarray, "steps n"]  # which images withstand each, at trace_eps
    margins: Float[np.ndarray, "steps n"]  # the margins that each reaches
    trace_eps: float
    zero_gradients: float  # share of images without any gradient
    saturated: float  # share of clean images whose cross-entropy rounds to 0
    deterministic: bool  # the same logits twice, alone and in a batch
    logits: bool  # logits, not probabilities
    classes: int

    def gradient_based(self) -> Bool[np.ndarray, "strengths n"]:
        """Which images the attacks that follow the defence's gradients leave correct."""
        return self.robust["PGD"] & self.robust["AutoAttack"]

    def worst(self) -> Bool[np.ndarray, "strengths n"]:
        """Which images withstand every attack at every ε' ≤ ε."""
        attacks = [self.robust[name] for name in (*WHITE_BOX, *TRANSFERRED)]
        return worst_case(np.logical_and.reduce([self.envelope, *attacks]))


@once
def evaluate_adaptively(experiment: Experiment, method: str) -> Outcome:
    """A defence of the study under all attacks, kept in the store.

    Raises `ValueError` if there is no such method, if the study's `adaptive_eps` are not among its
    strengths, or if `adaptive_trace_eps` is not among those.
    """
    study, strengths = experiment.study, experiment.study.adaptive_eps
    every = study.evaluated_eps
    if study.adaptive_trace_eps not in strengths or not set(strengths) <= set(every):
        raise ValueError(
            f"expected adaptive_trace_eps among adaptive_eps, and those among {every}, "
            f"got {study.adaptive_trace_eps} and {strengths}"
        )
    names = (split_method(method)[1], "standard", "second")
    networks = experiment.denoiser(method), *(experiment.classifier(name) for name in names)
    specification = depend_on(outcome_specification(experiment, method), *networks)
    attack = partial(_attack, experiment, method)
    tensors, report = experiment.store.tensors(specification, attack)
    found, eps = {name: tensor.numpy() for name, tensor in tensors.items()}, (0.0, *strengths)
    gray_box = measure(experiment, method)["accuracy"][:, : study.adaptive_images]
    return Outcome(
        method=method,
        eps=eps,
        robust={name: found[name] for name in (*WHITE_BOX, *TRANSFERRED, *UNSEEN)},
        envelope=worst_case(gray_box)[[every.index(strength) for strength in eps]],
        norms={name[5:]: found[name] for name in sorted(found) if name.startswith("norm ")},
        trace=found["trace"],
        margins=found["margins"],
        trace_eps=study.adaptive_trace_eps,
        **report | {"steps": tuple(report["steps"])},
    )


def outcome_specification(experiment: Experiment, method: str) -> dict[str, Any]:
    """Everything that an outcome depends on."""
    study = experiment.study
    sizes = ("images", "eps", "trace_eps", "steps", "restarts", "iterations", "queries")
    return {
        "kind": "adaptive", "name": method, "version": VERSION, "seed": study.seed,
        "method": experiment.specification(method), "data": experiment.images("test").specification,
        "second": experiment.classifier_specification("second"),
        **{name: getattr(study, f"adaptive_{name}") for name in sizes},
    }  # fmt: skip


def _attack(experiment: Experiment, method: str, scratch: Path) -> Tensors:
    study, device, test = experiment.study, experiment.device, experiment.images("test")
    images, labels = (x[: study.adaptive_images].to(device) for x in (test.images, test.labels))
    networks = experiment.denoiser(method), experiment.classifier(split_method(method)[1])
    target = Target(*networks, images, labels)
    clean, tensors = target.withstands(images).cpu(), dict[str, Tensor]()
    attacks = dict(_attacks(experiment, target))
    total = len(attacks) * len(study.adaptive_eps)
    with tqdm(total=total, desc=f"attacking {method}", unit="attack") as bar:
        for name, attack in attacks.items():
            rows = [clean]
            for eps in study.adaptive_eps:
                rows.append(_keep(scratch / f"{name}-{eps}.json", attack, eps))
                bar.update()
            tensors[name] = torch.stack(rows)
    norms = adaptive.minimal_norms(target, steps=study.adaptive_iterations)
    tensors |= {f"norm {name}": values for name, values in norms.items()}
    most = study.adaptive_steps
    steps = (*(n for n in TRACE if n < most), most, 2 * most)
    trace, margins = adaptive.over_steps(target, study.adaptive_trace_eps, steps)
    with torch.no_grad():
        logits, again = target.defence(images), target.defence(images)
        alone = torch.cat([target.defence(image[None]) for image in images])
    same = torch.equal(logits, again) and torch.allclose(logits, alone, rtol=1e-3, atol=1e-3)
    return tensors | {"trace": trace, "margins": margins}, {
        "steps": [0, *steps], "zero_gradients": adaptive.zero_gradients(target),
        "saturated": float(is_saturated(logits, labels).float().mean()),
        "deterministic": same, "logits": not are_probabilities(logits), "classes": logits.shape[1],
    }  # fmt: skip


def _attacks(experiment: Experiment, target: Target) -> Iterator[tuple[str, Attack]]:
    """Each attack by name, as a function from ε to which images withstand it."""
    study, seed, images = experiment.study, experiment.study.seed, target.images
    limits: Any = {"iterations": study.adaptive_iterations, "queries": study.adaptive_queries}
    limits["seed"] = seed
    effort: Any = {"steps": study.adaptive_steps, "restarts": study.adaptive_restarts}
    auto = adaptive.autoattack
    yield "PGD", lambda eps: adaptive.pgd_through(target, eps, seed=seed, **effort)
    yield "AutoAttack", lambda eps: auto(target, eps, attacks=AUTOATTACK, **limits)
    yield "Square", lambda eps: auto(target, eps, attacks=["square"], **limits)

    def transfer(source: str, eps: Strengths) -> Attack:
        attacked = experiment.attacked("test", None, eps, source)
        return lambda eps: target.withstands(attacked.at(eps, len(images)).to(images))

    # from the standard classifier at all strengths of the study, which the tables need anyway
    yield "oblivious", transfer("standard", None)
    yield "transfer", transfer("second", study.adaptive_eps)

    bare = foolbox.PyTorchModel(prepare(experiment.classifier(), images[:2]), bounds=(0, 1))
    criterion = foolbox.criteria.Misclassification(target.labels)
    fgsm = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    attack = partial(torch.enable_grad()(fgsm.run), bare, images, criterion)
    yield "FGSM", lambda eps: target.withstands(attack(epsilon=eps))

    def add(noise: Tensor) -> Attack:
        noise = noise.to(images)
        return lambda eps: target.withstands((images + eps * noise).clamp(0, 1))

    gaussian = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    uniform = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
    yield "Gaussian noise", add(gaussian / 3**0.5)  # the uniform noise's standard deviation
    yield "uniform noise", add(uniform * 2 - 1)


def _keep(path: Path, attack: Attack, eps: float) -> Bool[Tensor, "n"]:
    """The images that an attack leaves correct; an interrupted run's result where there is one."""
    if not path.exists():
        found = json.dumps(attack(eps).tolist())
        write_atomically(path, lambda file: file.write_text(found, encoding="utf-8"))
    return torch.tensor(json.loads(path.read_text(encoding="utf-8")), dtype=torch.bool)


# -- sanity checks: one that fails makes its row unreliable --------------------------------------

Verdict = tuple[bool, str]


def check(outcome: Outcome) -> dict[str, Verdict]:
    """For each of `CHECKS` whether it passed, and the finding."""
    robust, trace, steps = outcome.gradient_based(), outcome.trace[1:], outcome.steps[1:]
    shares = zip(steps, trace.mean(axis=1), strict=True)
    over_n = ", ".join(f"{share:.3f} (n = {n})" for n, share in shares)
    over_n = f"accuracy at ε = {outcome.trace_eps:g}: {over_n}"
    margins = outcome.margins.mean(axis=1)
    gained, last = margins.max() - margins[0], margins[-1] - margins[-2]
    flat = f"the mean margin gains {gained:.3f}, {last:.3f} of it from "
    flat += f"n = {outcome.steps[-2]} to {outcome.steps[-1]}"
    blind = outcome.zero_gradients
    return {
        "ε": _never_come_back(robust, "fall at one ε and withstand the next"),
        "n": _never_come_back(trace, f"fall at one n and withstand the next; {over_n}"),
        "oblivious": _no_weaker_than(outcome, "oblivious", "gray-box"),
        "Square": _no_weaker_than(outcome, "Square", "by random search"),
        "transfer": _no_weaker_than(outcome, "transfer", "from another classifier"),
        "flat": (bool(gained > 0 and last <= FLAT * gained), flat),
        "gradient": (blind == 0, f"{blind:.1%} of the images have no gradient"),
        "saturation": (
            outcome.saturated <= SATURATED,
            f"{outcome.saturated:.1%} of the images leave no cross-entropy",
        ),
        "logits": (outcome.logits, "logits" if outcome.logits else "probabilities"),
        "deterministic": (
            outcome.deterministic,
            "the same twice" if outcome.deterministic else "it changes",
        ),
        "chance": _chance_at_half(outcome),
    }


def _never_come_back(robust: Bool[np.ndarray, "harder n"], what: str) -> Verdict:
    """Whether hardly any image falls to an attack and withstands the next, harder one."""
    most = int((~robust[:-1] & robust[1:]).sum(axis=1).max(initial=0))
    return most <= max(1, MISSED * robust.shape[1]), f"at most {most} images {what}"


def _no_weaker_than(outcome: Outcome, attack: str, how: str) -> Verdict:
    missed = int((outcome.gradient_based() & ~outcome.robust[attack]).sum())
    return missed == 0, f"{missed} attacks succeed {how} but not with the defence's gradients"


def _chance_at_half(outcome: Outcome) -> Verdict:
    if 0.5 not in outcome.eps:  # where every image can be turned into uniform grey
        return False, "ε = 0.5 was not attacked"
    robust = outcome.gradient_based()[outcome.eps.index(0.5)]
    share, chance = float(robust.mean()), 1 / outcome.classes
    limit = chance + 2 * (chance * (1 - chance) / len(robust)) ** 0.5
    return share <= limit, f"accuracy {share:.3f} at ε = 0.5, by chance {chance:.3f}"


def failed_checks(outcome: Outcome) -> list[str]:
    """The sanity checks that failed; a row with any is unreliable."""
    return [name for name, (passed, _) in check(outcome).items() if not passed]


# -- as tables -----------------------------------------------------------------------------------


def rows(experiment: Experiment, outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Tidy rows: accuracy per attack and ε, median L2 norms, and 1 or 0 per sanity check."""
    study, lines = experiment.study, list[tuple[str, str, str, float | None, float]]()
    for outcome in outcomes:
        curves = {**outcome.robust, "envelope": outcome.envelope, WORST: outcome.worst()}
        for attack, curve in curves.items():
            for eps, robust in zip(outcome.eps, curve, strict=True):
                lines.append((outcome.method, attack, "accuracy", eps, robust.mean()))
        for attack, norms in outcome.norms.items():
            lines.append((outcome.method, attack, "median L2 norm", None, float(np.median(norms))))
        for name, (passed, _) in check(outcome).items():
            lines.append((outcome.method, "all", f"check: {name}", None, float(passed)))
    same: dict[str, Any] = {"table": "adaptive", "study": study.name, "seed": study.seed}
    same |= {"classifier": study.classifier_name, "steps": study.adaptive_steps}
    frame = pd.DataFrame(lines, columns=["method", "attack", "metric", "eps", "value"])
    return frame.assign(**same, n=study.adaptive_images)[COLUMNS]
