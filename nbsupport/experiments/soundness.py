"""Was the attack sound? Checks on an `Outcome`, each with a verdict; one that fails makes its row unreliable."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool

from .adaptive_evaluation import Outcome

Verdict = tuple[bool, str]
MISSED = 0.02  # of all images, how many may withstand an attack although they fall to an easier one
FLAT = 0.1  # of all that PGD gains, how much of it twice as many steps may gain


def _return(robust: Bool[np.ndarray, "harder n"]) -> tuple[bool, int]:
    """Whether next to no image that falls to one attack withstands a harder one, and the most that do."""
    most = int((~robust[:-1] & robust[1:]).sum(axis=1).max(initial=0))
    return most <= max(1, MISSED * robust.shape[1]), most


def _monotone_in_eps(outcome: Outcome) -> Verdict:
    passed, most = _return(outcome.white_box())
    return passed, f"at most {most} images fall at one ε and withstand the next"


def _monotone_in_steps(outcome: Outcome) -> Verdict:
    passed, most = _return(outcome.trace[1:])
    shares = zip(outcome.steps[1:], outcome.trace[1:].mean(axis=1), strict=True)
    text = ", ".join(f"{share:.3f} (n = {n})" for n, share in shares)
    return passed, f"accuracy at ε = {outcome.trace_eps:g}: {text}; at most {most} images come back"


def _not_weaker(attack: str, how: str) -> Callable[[Outcome], Verdict]:
    """The check that no image falls to `attack` and withstands those that follow the defence's gradients."""

    def check(outcome: Outcome) -> Verdict:
        missed = int((outcome.white_box() & ~outcome.robust[attack]).sum())
        return missed == 0, f"{missed} attacks succeed {how} and not with the defence's gradients"

    return check


def _flat(outcome: Outcome) -> Verdict:
    margins = outcome.margins.mean(axis=1)
    total, last = margins.max() - margins[0], margins[-1] - margins[-2]
    steps = f"from n = {outcome.steps[-2]} to {outcome.steps[-1]}"
    return bool(
        total > 0 and last <= FLAT * total
    ), f"the mean margin gains {last:.3f} {steps}, of {total:.3f} in all"


def _gradients(outcome: Outcome) -> Verdict:
    return (
        outcome.zero_gradients == 0,
        f"{outcome.zero_gradients:.1%} of the images have no gradient",
    )


def _logits(outcome: Outcome) -> Verdict:
    return outcome.logits, "logits" if outcome.logits else "probabilities"


def _deterministic(outcome: Outcome) -> Verdict:
    return (
        outcome.deterministic,
        "the same twice" if outcome.deterministic else "another answer each time",
    )


def _chance_at_half(outcome: Outcome) -> Verdict:
    """At ε = 0.5 every image can be made grey all over."""
    if 0.5 not in outcome.eps:
        return False, "ε = 0.5 was not attacked"
    robust, chance = outcome.white_box()[outcome.eps.index(0.5)], 1 / outcome.classes
    share, limit = float(robust.mean()), chance + 2 * (chance * (1 - chance) / len(robust)) ** 0.5
    return share <= limit, f"accuracy {share:.3f} at ε = 0.5, by chance {chance:.3f}"


CHECKS: dict[str, tuple[str, Callable[[Outcome], Verdict]]] = {
    "ε": ("a stronger attack succeeds more often", _monotone_in_eps),
    "n": ("a longer attack succeeds more often", _monotone_in_steps),
    "oblivious": (
        "who knows the denoiser is never weaker than who does not",
        _not_weaker("oblivious", "obliviously"),
    ),
    "Square": (
        "gradients are never worse than random search",
        _not_weaker("Square", "by random search"),
    ),
    "transfer": (
        "nor than attacks made on another classifier",
        _not_weaker("transfer", "from another classifier"),
    ),
    "flat": ("PGD gains, and with twice its steps nothing more", _flat),
    "gradient": ("every image has a gradient", _gradients),
    "logits": ("the classifier says logits", _logits),
    "deterministic": ("the defence says the same twice", _deterministic),
    "chance": ("at ε = 0.5 nothing beats chance", _chance_at_half),
}
"""A short name, what is expected, and the check."""


def verdicts(outcome: Outcome) -> dict[str, Verdict]:
    """For every check whether it passed, and what was found."""
    return {name: check(outcome) for name, (_, check) in CHECKS.items()}


def failed(outcome: Outcome) -> list[str]:
    """The names of the checks that failed; where there are any, the row is unreliable."""
    return [name for name, (passed, _) in verdicts(outcome).items() if not passed]
