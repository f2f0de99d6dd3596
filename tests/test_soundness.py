"""Every check on an attack passes where the attack is sound, and is seen to fail where its subject is broken."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from small import IMAGES, STUDY, evaluation, outcome, rows
from torch import nn

from nbsupport.attacks import adaptive
from nbsupport.denoisers.baselines import Baseline
from nbsupport.experiments import adaptive_evaluation as protocol
from nbsupport.experiments.adaptive_evaluation import Protocol
from nbsupport.experiments.soundness import CHECKS, failed, verdicts

# -- crafted outcomes ----------------------------------------------------------------------------


def test_a_sound_outcome_passes_every_check():
    assert failed(outcome()) == []
    assert list(verdicts(outcome())) == list(CHECKS)


def white_box(*counts, **robust):
    """PGD and AutoAttack leave these numbers of images; the attacks that know less leave all that is right."""
    kept = {"PGD": rows(*counts), "AutoAttack": rows(*counts)}
    kept |= {name: rows(90, 90, 90, 90) for name in ("Square", "oblivious", "transfer")}
    return outcome(robust=kept | robust)


def only(image, at):
    """All are right, but one image at one strength."""
    correct = rows(90, 90, 90, 90)
    correct[at, image] = False
    return correct


def shifted(number):
    """At the second strength as many images come back as fall."""
    correct = rows(90, 40, 40, 5)
    correct[2] = np.roll(correct[1], number)
    return correct


BROKEN = {
    "ε": {
        "a stronger attack misses more than chance": white_box(90, 40, 50, 5),
        "of none right, three": white_box(90, 0, 3, 3),
        "as many fall as come back": white_box(
            90, 40, 40, 5, PGD=shifted(3), AutoAttack=shifted(3)
        ),
    },
    "n": {
        "a longer attack is weaker": outcome(trace=rows(90, 40, 50, 40)),
        "of none right, three": outcome(trace=rows(90, 0, 0, 3)),
    },
    "oblivious": {
        "one image falls obliviously alone": white_box(90, 60, 30, 5, oblivious=only(3, 2)),
        "at the first strength": white_box(90, 60, 30, 5, oblivious=only(59, 1)),
    },
    "Square": {
        "one image falls to random search alone": white_box(90, 60, 30, 5, Square=only(3, 2))
    },
    "transfer": {
        "one image falls from another classifier alone": white_box(
            90, 60, 30, 5, transfer=only(3, 2)
        )
    },
    "flat": {
        "PGD still gains": outcome(
            margins=np.array([[-3.0], [0.0], [1.0], [1.5]]).repeat(IMAGES, 1)
        ),
        "all in its last run": outcome(
            margins=np.array([[-3.0], [-3.0], [-3.0], [-2.0]]).repeat(IMAGES, 1)
        ),
        "PGD gains nothing": outcome(margins=np.full((4, IMAGES), -3.0)),
        "a single run": outcome(
            steps=(0, 4), margins=np.array([[-3.0], [2.0]]).repeat(IMAGES, 1), trace=rows(90, 40)
        ),
    },
    "gradient": {
        "one image has none": outcome(zero_gradients=1 / IMAGES),
        "all": outcome(zero_gradients=1.0),
    },
    "logits": {"probabilities": outcome(logits=False)},
    "deterministic": {"another answer each time": outcome(deterministic=False)},
    "chance": {
        "too many withstand": white_box(90, 60, 30, 17),
        "0.5 was not attacked": outcome(eps=(0.0, 0.03, 0.1, 0.4)),
    },
}
CASES = [(check, case) for check, cases in BROKEN.items() for case in cases]


def test_every_check_is_broken_here():
    assert set(BROKEN) == set(CHECKS)


@pytest.mark.parametrize(("check", "case"), CASES, ids=str)
def test_exactly_the_check_of_what_is_broken_fails(check, case):
    broken = BROKEN[check][case]
    assert failed(broken) == [check]
    assert {name for name, (passed, _) in verdicts(broken).items() if not passed} == {check}


BARELY = {
    "ε: one image in fifty": white_box(90, 40, 42, 5),
    "ε: as many of none": white_box(90, 0, 2, 2),
    "ε: and as many fall": white_box(90, 40, 40, 5, PGD=shifted(2), AutoAttack=shifted(2)),
    "n: one image in fifty": outcome(trace=rows(90, 40, 42, 40)),
    "n: what clean images add": outcome(trace=rows(10, 40, 39, 39)),
    "oblivious: what Square finds alone, it need not": white_box(90, 60, 30, 5),
    "flat: a tenth": outcome(margins=np.array([[0.0], [5.0], [9.0], [10.0]]).repeat(IMAGES, 1)),
    "flat: a loss": outcome(margins=np.array([[0.0], [5.0], [9.0], [8.0]]).repeat(IMAGES, 1)),
    "chance: two standard errors above": white_box(90, 60, 30, 16),
}


@pytest.mark.parametrize("case", BARELY)
def test_what_sampling_explains_is_sound(case):
    assert failed(BARELY[case]) == []


def test_either_of_the_two_attacks_that_follow_gradients_will_do():
    one, other = rows(90, 80, 80, 80), rows(90, 80, 50, 5)
    assert (
        failed(outcome(robust={"PGD": one, "AutoAttack": other, "Square": rows(90, 90, 90, 90)}))
        == []
    )
    assert (
        failed(outcome(robust={"PGD": other, "AutoAttack": one, "Square": rows(90, 90, 90, 90)}))
        == []
    )


@pytest.mark.parametrize(
    ("broken", "check", "text"),
    [
        (white_box(90, 40, 50, 5), "ε", "at most 10 images fall at one ε and withstand the next"),
        (outcome(), "ε", "at most 0 images fall at one ε and withstand the next"),
        (
            outcome(),
            "n",
            "accuracy at ε = 0.1: 0.500 (n = 10), 0.400 (n = 40), 0.390 (n = 400); at most 0 images",
        ),
        (
            white_box(90, 60, 30, 5, oblivious=only(3, 2)),
            "oblivious",
            "1 attacks succeed obliviously and not",
        ),
        (
            white_box(90, 60, 30, 5, Square=only(3, 2)),
            "Square",
            "1 attacks succeed by random search and not",
        ),
        (
            white_box(90, 60, 30, 5, transfer=only(3, 2)),
            "transfer",
            "1 attacks succeed from another classifier",
        ),
        (outcome(), "flat", "the mean margin gains 0.100 from n = 40 to 400, of 3.100 in all"),
        (outcome(zero_gradients=0.25), "gradient", "25.0% of the images have no gradient"),
        (outcome(logits=False), "logits", "probabilities"),
        (outcome(deterministic=False), "deterministic", "another answer each time"),
        (outcome(), "chance", "accuracy 0.050 at ε = 0.5, by chance 0.100"),
    ],
)
def test_a_verdict_says_what_was_found(broken, check, text):
    assert verdicts(broken)[check][1].startswith(text)


# -- real defences -------------------------------------------------------------------------------


class Rounding(nn.Module):
    """Hides its gradient, as 8-bit rounding does where nobody goes straight through."""

    def forward(self, images):
        return (images * 255).round() / 255


class Noise(nn.Module):
    """Another answer each time."""

    def forward(self, images):
        return (images + 0.05 * torch.randn_like(images)).clamp(0, 1)


class Constant(nn.Module):
    """Leaves images as they are, and has a gradient that is 0."""

    def forward(self, images):
        return images.detach() + 0 * images


class OfTheBatch(nn.Module):
    """What it answers for an image depends on the others."""

    def forward(self, images):
        return (images + 0.2 * (images.mean(dim=0) - images.mean())).clamp(0, 1)


class Recovers(nn.Module):
    """Undoes strong attacks, and only those: it remembers the clean images."""

    def __init__(self, clean):
        super().__init__()
        self.clean = clean

    def forward(self, images):
        known = self.clean[
            (images[:, None] - self.clean[None]).flatten(2).norm(dim=2).argmin(dim=1)
        ]
        distance = (images - known).abs().amax(dim=(1, 2, 3), keepdim=True)
        return torch.where(distance > 0.09, known, images)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("soundness")


@pytest.fixture(scope="module")
def failures(home):
    """From a defence to the checks that fail for it."""

    @functools.cache
    def attack(name, **changes):
        study = dataclasses.replace(STUDY, **changes)
        made = evaluation(home / f"{name}{changes}", study=study)
        clean = made.artefacts.images("test").images
        made.artefacts.denoisers |= {
            "sound": Baseline("8-bit"),
            "blurred": Baseline("Gaussian blur"),
            "rounding": Rounding(),
            "noise": Noise(),
            "constant": Constant(),
            "batch": OfTheBatch(),
            "recovers": Recovers(clean),
        }
        return set(failed(Protocol(made).outcome(name)))

    return attack


@pytest.mark.parametrize("name", ["attacked", "sound", "blurred"])
def test_sound_attacks_on_real_defences_pass(failures, name):
    assert failures(name) == set()


def test_rounding_without_straight_through_is_noticed(failures):
    assert failures("rounding") == {"gradient", "oblivious", "Square"}


def test_a_defence_with_a_zero_gradient_is_noticed(failures):
    assert failures("constant") == {"gradient", "oblivious", "Square"}


def test_a_random_defence_is_noticed(failures):
    assert "deterministic" in failures("noise")


def test_so_is_one_that_depends_on_the_batch(failures):
    assert "deterministic" in failures("batch")


def test_too_few_steps_are_noticed(failures):
    assert failures("attacked", adaptive_steps=8) == {"flat"}


def test_a_defence_that_is_stronger_against_stronger_attacks_is_noticed(failures, monkeypatch):
    assert failures("recovers") == {
        "flat"
    }  # FAB stays below what it undoes; PGD does not, and gains nothing
    clean = lambda denoiser, classifier, x, y, eps, **options: adaptive.withstands(classifier, x, y)  # noqa: E731
    monkeypatch.setattr(adaptive, "autoattack", clean)
    assert "ε" in failures("recovers", eps=(0.0, 0.03, 0.1, 0.5), adaptive_eps=(0.03, 0.1, 0.5))
    assert "chance" in failures("recovers", seed=1)


def test_a_longer_attack_that_goes_wrong_is_noticed(failures, monkeypatch):
    honest = adaptive.pgd

    def clumsy(network, images, labels, eps, *, steps, **options):
        return (
            images if steps > 40 else honest(network, images, labels, eps, steps=steps, **options)
        )

    monkeypatch.setattr(adaptive, "pgd", clumsy)
    assert "n" in failures("attacked", seed=1)


def test_probabilities_are_noticed_where_they_come_through(home, monkeypatch):
    monkeypatch.setattr(protocol, "are_probabilities", lambda logits: True)
    assert "logits" in failed(Protocol(evaluation(home / "probabilities")).outcome("attacked"))


def test_a_softmax_is_noticed(home):
    made = evaluation(home / "softmax")
    softmax = nn.Sequential(made.artefacts.victim.network, nn.Softmax(dim=1))
    made.artefacts.victim.network = softmax
    with pytest.raises(ValueError, match="it returns probabilities"):
        Protocol(made).outcome("attacked")
