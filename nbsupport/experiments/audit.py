"""The audit of the adaptive evaluation: every attack at some ε from scratch, and sanity checks.

It is far more expensive than `adaptive_evaluation`, so it looks at fewer images. It shares no step
with it: each ε of `audit_eps` is attacked from nothing, by the whole plan.
"""

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
from scipy import stats
from torch import Tensor
from tqdm.auto import tqdm

from ..attacks import adaptive
from ..attacks.adaptive import AUTOATTACK, Target, survive
from ..attacks.pgd import AttackedSet, prepare
from ..classifiers.custom import SATURATED
from ..data.images import write_atomically
from .adaptive_evaluation import Minimal, aim, gain, transferred
from .artifacts import VERSION, Experiment, once
from .evaluation import COLUMNS, groups, measure, worst_case
from .methods import COSTS, GAIN, TRANSFERRED, UNSEEN, WHITE_BOX, WORST, split_method
from .store import Tensors, depend_on

Attack = Callable[[float], Tensor]
TRACE = (10, 40, 100)  # numbers of PGD steps in the trace, before the study's and twice that
MISSED = 0.02  # the share of images that may fall to an attack and withstand a harder one
MISSED_IMAGES = 1  # the most that may fall to the audit only, at any ε
FLAT = 0.1  # the share of PGD's whole gain that doubling its steps may still gain


@dataclass(frozen=True)
class Audit:
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

    def gradient_based(self) -> Bool[np.ndarray, "strengths n"]:
        """Which images the attacks that follow the defence's gradients leave correct."""
        return self.robust["PGD"] & self.robust["AutoAttack"]

    def worst(self) -> Bool[np.ndarray, "strengths n"]:
        """Which images withstand every attack at every ε' ≤ ε."""
        attacks = [self.robust[name] for name in (*WHITE_BOX, *TRANSFERRED)]
        return worst_case(np.logical_and.reduce([self.envelope, *attacks]))


@once
def audit(experiment: Experiment, method: str) -> Audit:
    """A defence of the study under all attacks, kept in the store.

    Raises `ValueError` if there is no such method, or if the study's `audit_eps` are not among its
    strengths, or `audit_trace_eps` not among those.
    """
    study, strengths = experiment.study, experiment.study.audit_eps
    every = study.evaluated_eps
    if study.audit_trace_eps not in strengths or not set(strengths) <= set(every):
        raise ValueError(
            f"expected audit_trace_eps among audit_eps, and those among {every}, "
            f"got {study.audit_trace_eps} and {strengths}"
        )
    names = (split_method(method)[1], "standard", "second")
    networks = experiment.denoiser(method), *(experiment.classifier(name) for name in names)
    specification = depend_on(audit_specification(experiment, method), *networks)
    attack = partial(_attack, experiment, method)
    tensors, report = experiment.store.tensors(specification, attack)
    found, eps = {name: tensor.numpy() for name, tensor in tensors.items()}, (0.0, *strengths)
    gray_box = measure(experiment, method, split="adaptive")["accuracy"][:, : study.audit_images]
    return Audit(
        method=method,
        eps=eps,
        robust={name: found[name] for name in (*WHITE_BOX, *TRANSFERRED, *UNSEEN)},
        envelope=worst_case(gray_box)[[every.index(strength) for strength in eps]],
        norms={name[5:]: found[name] for name in sorted(found) if name.startswith("norm ")},
        trace=found["trace"],
        margins=found["margins"],
        trace_eps=study.audit_trace_eps,
        steps=tuple(report["steps"]),
    )


def audit_specification(experiment: Experiment, method: str) -> dict[str, Any]:
    """Everything that an audit depends on."""
    study = experiment.study
    sizes = ("images", "eps", "trace_eps", "steps", "restarts", "iterations", "queries")
    return {
        "kind": "audit", "name": method, "version": VERSION, "seed": study.seed,
        "method": experiment.specification(method),
        "data": experiment.images("audit").specification,
        "second": experiment.classifier_specification("second"),
        **{name: getattr(study, f"audit_{name}") for name in sizes},
    }  # fmt: skip


def _attack(experiment: Experiment, method: str, scratch: Path) -> Tensors:
    study, target = experiment.study, aim(experiment, method, "audit")
    images = target.images
    clean, tensors = target.withstands(images).cpu(), dict[str, Tensor]()
    attacks = dict(_attacks(experiment, target))
    total = len(attacks) * len(study.audit_eps)
    with tqdm(total=total, desc=f"attacking {method}", unit="attack") as bar:
        for name, attack in attacks.items():
            rows = [clean]
            for eps in study.audit_eps:
                rows.append(_keep(scratch / f"{name}-{eps}.json", attack, eps))
                bar.update()
            tensors[name] = torch.stack(rows)
    norms = adaptive.minimal_norms(target, steps=study.audit_iterations)
    tensors |= {f"norm {name}": values for name, values in norms.items()}
    most = study.audit_steps
    steps = (*(n for n in TRACE if n < most), most, 2 * most)
    trace, margins = adaptive.over_steps(target, study.audit_trace_eps, steps)
    return tensors | {"trace": trace, "margins": margins}, {"steps": [0, *steps]}


def _attacks(experiment: Experiment, target: Target) -> Iterator[tuple[str, Attack]]:
    """Each attack by name, as a function from ε to which images withstand it."""
    study, seed, images = experiment.study, experiment.study.seed, target.images
    limits: Any = {"iterations": study.audit_iterations, "queries": study.audit_queries}
    effort: Any = {"steps": study.audit_steps, "restarts": study.audit_restarts, "seed": seed}
    parts = adaptive.autoattack(*AUTOATTACK, seed=seed, **limits)
    square = adaptive.autoattack("square", seed=seed, **limits)
    yield "PGD", lambda eps: survive(target, eps, adaptive.plan_pgd(target, **effort))
    yield "AutoAttack", lambda eps: survive(target, eps, [parts])
    yield "Square", lambda eps: survive(target, eps, [square])

    def transfer(attacked: AttackedSet) -> Attack:
        return lambda eps: target.withstands(attacked.at(eps, len(images)).to(images))

    for name, attacked in transferred(experiment).items():
        yield name, transfer(attacked)

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


def check(minimal: Minimal, audit: Audit | None = None) -> dict[str, Verdict]:
    """For each of `CHECKS` whether it passed, and the finding; most need an audit."""
    blind, saturated, classes = minimal.zero_gradients, minimal.saturated, minimal.classes
    same = "the same twice" if minimal.deterministic else "it changes"
    share, chance = float(minimal.robust()[-1].mean()), 1 / classes
    limit = chance + 2 * (chance * (1 - chance) / len(minimal.smallest)) ** 0.5
    grey = minimal.eps[-1] >= 0.5  # where every image can be turned into uniform grey
    by_chance = f"accuracy {share:.3f} at ε = {minimal.eps[-1]:g}, by chance {chance:.3f}"
    found = {
        "gradient": (blind == 0, f"{blind:.1%} of the images have no gradient"),
        "saturation": (
            saturated <= SATURATED, f"{saturated:.1%} of the images leave no cross-entropy",
        ),
        "logits": (minimal.logits, "logits" if minimal.logits else "probabilities"),
        "deterministic": (minimal.deterministic, same),
        "chance": (grey and share <= limit, by_chance),
    }  # fmt: skip
    return found if audit is None else found | _check_audit(minimal, audit)


def _check_audit(minimal: Minimal, audit: Audit) -> dict[str, Verdict]:
    robust, trace, steps = audit.gradient_based(), audit.trace[1:], audit.steps[1:]
    shares = zip(steps, trace.mean(axis=1), strict=True)
    over_n = ", ".join(f"{share:.3f} (n = {n})" for n, share in shares)
    over_n = f"accuracy at ε = {audit.trace_eps:g}: {over_n}"
    margins = audit.margins.mean(axis=1)
    gained, last = margins.max() - margins[0], margins[-1] - margins[-2]
    flat = f"the mean margin gains {gained:.3f}, {last:.3f} of it from "
    flat += f"n = {audit.steps[-2]} to {audit.steps[-1]}"
    gap, number = max(find_gaps(minimal, audit)), len(audit.envelope[0])
    most = float(stats.beta.ppf(0.95, gap + 1, max(number - gap, 1)))  # Clopper-Pearson
    missed = f"at any ε at most {gap} of {number} images fall to the audit only; "
    missed += f"with 95 % confidence at most {most:.0%} of all images would"
    return {
        "audit": (gap <= MISSED_IMAGES, missed),
        "ε": _never_come_back(robust, "fall at one ε and withstand the next"),
        "n": _never_come_back(trace, f"fall at one n and withstand the next; {over_n}"),
        "oblivious": _no_weaker_than(audit, "oblivious", "gray-box"),
        "Square": _no_weaker_than(audit, "Square", "by random search"),
        "transfer": _no_weaker_than(audit, "transfer", "from another classifier"),
        "flat": (bool(gained > 0 and last <= FLAT * gained), flat),
    }


def find_gaps(minimal: Minimal, audit: Audit) -> list[int]:
    """At each ε of an audit, how many images fall to it and to none of the attacks before."""
    rows = [minimal.eps.index(eps) for eps in audit.eps]
    worst = audit.worst()
    robust = minimal.robust()[rows, : worst.shape[1]]
    return (robust & ~worst).sum(axis=1).tolist()


def _never_come_back(robust: Bool[np.ndarray, "harder n"], what: str) -> Verdict:
    """Whether hardly any image falls to an attack and withstands the next, harder one."""
    most = int((~robust[:-1] & robust[1:]).sum(axis=1).max(initial=0))
    return most <= max(1, MISSED * robust.shape[1]), f"at most {most} images {what}"


def _no_weaker_than(audit: Audit, attack: str, how: str) -> Verdict:
    missed = int((audit.gradient_based() & ~audit.robust[attack]).sum())
    return missed == 0, f"{missed} attacks succeed {how} but not with the defence's gradients"


# -- as tables -----------------------------------------------------------------------------------


def _add(
    lines: list[tuple[Any, ...]], method: str, n: int, attack: str, metric: str,
    values: Any, eps: Sequence[float | None] = (None,),
) -> None:  # fmt: skip
    pairs = zip(eps, values, strict=True)
    lines += [(method, attack, metric, each, float(value), n) for each, value in pairs]


def rows(
    experiment: Experiment, found: dict[str, Minimal], audits: dict[str, Audit]
) -> pd.DataFrame:
    """Tidy rows of defences by method: accuracies, gains, costs, and 1 or 0 per sanity check.

    A defence gains on its bare classifier: ``attacked``, or Adv, if that is among `found`.
    """
    study, lines = experiment.study, list[tuple[Any, ...]]()
    for method, each in found.items():
        add = partial(_add, lines, method, len(each.smallest))
        add(WORST, "accuracy", each.robust().mean(axis=1), each.eps)
        add("FMN", "accuracy", (each.first > np.array(each.eps)[:, None]).mean(axis=1), each.eps)
        add("oblivious", "accuracy", each.gray_box.mean(axis=1), each.eps)
        add("envelope", "accuracy", worst_case(each.gray_box).mean(axis=1), each.eps)
        _, classifier = split_method(method)
        bare = "attacked" if classifier == "standard" else classifier
        if bare in found and bare != method:
            other, alike = found[bare], groups(experiment, "adaptive")
            pairs = {
                WORST: (each.robust(), other.robust()),
                "envelope": (worst_case(each.gray_box), worst_case(other.gray_box)),
            }
            for attack, pair in pairs.items():
                gains = gain(*pair, alike, seed=study.seed)
                for metric, values in zip(GAIN, gains, strict=True):
                    add(attack, metric, values, each.eps)
        costs = (each.gradients, each.forwards, each.seconds)
        for metric, value in zip(COSTS, costs, strict=True):
            add("all", metric, [value])
        if audit := audits.get(method):
            add_few = partial(_add, lines, method, len(audit.envelope[0]))
            for attack, curve in audit.robust.items():
                add_few(f"audit: {attack}", "accuracy", curve.mean(axis=1), audit.eps)
            add_few("audit", "gap", find_gaps(each, audit), audit.eps)
            for attack, norms in audit.norms.items():
                add_few(attack, "median L2 norm", [np.median(norms)])
        for name, (passed, _) in check(each, audits.get(method)).items():
            add("all", f"check: {name}", [passed])
    same: dict[str, Any] = {"table": "adaptive", "study": study.name, "seed": study.seed}
    same |= {"classifier": study.classifier_name, "steps": study.steps}
    columns = ["method", "attack", "metric", "eps", "value", "n"]
    return pd.DataFrame(lines, columns=columns).assign(**same)[COLUMNS]
