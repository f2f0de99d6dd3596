"""The protocol: every defence is attacked once, as its specification says, and an interruption loses nothing."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from small import STUDY, SmallArtefacts, evaluation, linear, outcome, rows
from torch import nn

from nbsupport.attacks import adaptive, pgd
from nbsupport.denoisers.baselines import Baseline
from nbsupport.experiments import adaptive_evaluation as protocol
from nbsupport.experiments.adaptive_evaluation import KNOWING, TRANSFERRED, UNSEEN, Protocol, _kept
from nbsupport.experiments.evaluation import Evaluation

CHEAP = dataclasses.replace(
    STUDY, adaptive_steps=3, adaptive_iterations=2, adaptive_queries=5, adaptive_images=6
)
EPS = (0.0, 0.02, 0.1, 0.5)
NAMES = (*KNOWING, *TRANSFERRED, *UNSEEN)


def small(home, study=CHEAP):
    return Protocol(evaluation(home, study=study, blurred=Baseline("Gaussian blur")))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small(tmp_path_factory.mktemp("protocol"))


@pytest.fixture(scope="module")
def found(made):
    return made.outcome("blurred")


# -- what is in an outcome -----------------------------------------------------------------------


def test_every_attack_has_a_row_per_strength_and_a_column_per_image(found):
    assert set(found.robust) == set(NAMES)
    assert found.eps == EPS
    assert all(
        rows.shape == (4, 6) and rows.dtype == bool
        for rows in [*found.robust.values(), found.envelope]
    )
    assert set(found.norms) == {"DeepFool", "C&W", "L2-PGD"}
    assert all(values.shape == (6,) for values in found.norms.values())
    assert (found.steps, found.trace.shape, found.margins.shape) == ((0, 3, 6), (3, 6), (3, 6))
    assert (found.trace_eps, found.classes) == (0.1, 4)


def test_the_first_row_is_for_clean_images(made, found):
    artefacts = made.evaluation.artefacts
    part = artefacts.images("test")
    right = (
        artefacts.victim(Baseline("Gaussian blur")(part.images[:6])).argmax(dim=1)
        == part.labels[:6]
    )
    assert not right.all()
    for robust in [*found.robust.values(), found.trace]:
        assert robust[0].tolist() == right.tolist()


def defended(made, images):
    artefacts = made.evaluation.artefacts
    labels = artefacts.images("test").labels[: len(images)]
    return (artefacts.victim(Baseline("Gaussian blur")(images)).argmax(dim=1) == labels).tolist()


@pytest.mark.parametrize(("name", "seed"), [("oblivious", 0), ("transfer", 1)])
def test_transferred_attacks_are_made_on_the_bare_classifier_and_on_the_second(
    made, found, name, seed
):
    part = made.evaluation.artefacts.images("test")
    for row, eps in enumerate(EPS[1:], 1):
        attacked = pgd(linear(seed), part.images[:6], part.labels[:6], eps, steps=CHEAP.steps)
        assert found.robust[name][row].tolist() == defended(made, attacked)


def test_fgsm_is_one_step_of_the_signed_gradient_on_the_bare_classifier(made, found):
    part, victim = made.evaluation.artefacts.images("test"), made.evaluation.artefacts.victim
    inputs = part.images[:6].clone().requires_grad_()
    torch.nn.functional.cross_entropy(victim(inputs), part.labels[:6]).backward()
    for row, eps in enumerate(EPS[1:], 1):
        attacked = (inputs + eps * inputs.grad.sign()).clamp(0, 1).detach()
        assert found.robust["FGSM"][row].tolist() == defended(made, attacked)


def test_noise_is_uniform_or_gaussian_of_the_same_strength(made, monkeypatch):
    seen = []
    monkeypatch.setattr(
        protocol,
        "withstands",
        lambda defence, x, y: seen.append(x) or torch.ones(6, dtype=torch.bool),
    )
    artefacts = made.evaluation.artefacts
    images, labels = artefacts.images("test").images[:6], artefacts.images("test").labels[:6]
    jobs = dict(made._jobs(artefacts.denoiser("blurred"), artefacts.classifier(), images, labels))
    for eps in (0.1, 0.5):
        seen.clear()
        jobs["uniform noise"](eps), jobs["Gaussian noise"](eps), jobs["uniform noise"](eps)
        uniform, gaussian, again = (each - images for each in seen)
        assert torch.equal(uniform, again)
        assert all(each.min() >= 0 and each.max() <= 1 for each in seen)
        if eps == 0.1:  # where nothing is clipped
            assert uniform.abs().max() <= 0.1 + 1e-6 and uniform.abs().max() > 0.098
            assert float(uniform.std()) == pytest.approx(0.1 / 3**0.5, rel=0.05)
            assert float(gaussian.std()) == pytest.approx(0.1 / 3**0.5, rel=0.05)
            assert float(gaussian.abs().max()) > 0.15


def test_the_three_that_know_get_what_the_study_says(made, monkeypatch):
    calls = []

    def spy(name):
        def attack(denoiser, classifier, images, labels, eps, **options):
            calls.append((name, denoiser, len(images), eps, options))
            return torch.ones(len(images), dtype=torch.bool)

        return attack

    for name in ("pgd_through", "autoattack"):
        monkeypatch.setattr(adaptive, name, spy(name))
    artefacts = made.evaluation.artefacts
    part, denoiser = artefacts.images("test"), artefacts.denoiser("blurred")
    jobs = dict(made._jobs(denoiser, artefacts.classifier(), part.images[:6], part.labels[:6]))
    for name in KNOWING:
        jobs[name](0.1)
    limits = {"seed": 0, "iterations": 2, "queries": 5}
    assert calls == [
        ("pgd_through", denoiser, 6, 0.1, {"seed": 0, "steps": 3, "restarts": 1}),
        ("autoattack", denoiser, 6, 0.1, {"attacks": ["apgd-ce", "apgd-t", "fab-t"], **limits}),
        ("autoattack", denoiser, 6, 0.1, {"attacks": ["square"], **limits}),
    ]


def test_the_envelope_is_that_of_all_strengths_of_the_study(tmp_path):
    study = dataclasses.replace(CHEAP, adaptive_eps=(0.1,))
    made = small(tmp_path, study)
    correct = np.array(
        [[1, 1, 1, 1, 1, 0], [1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1], [1, 1, 0, 1, 1, 1]], dtype=bool
    )
    whole = np.concatenate([correct, np.ones((4, 18), dtype=bool)], axis=1)
    made.evaluation.measurement = lambda method: type(
        "Measured", (), {"correct": staticmethod(lambda: whole)}
    )
    assert made.outcome("attacked").envelope.tolist() == [[1, 1, 1, 1, 1, 0], [1, 0, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(3, (3, 6)), (10, (10, 20)), (40, (10, 40, 80)), (400, (10, 40, 100, 400, 800))],
)
def test_the_trace_goes_to_twice_the_largest_n(tmp_path, steps, expected, monkeypatch):
    made = small(tmp_path, dataclasses.replace(CHEAP, adaptive_steps=steps))
    monkeypatch.setattr(adaptive, "pgd", lambda network, x, y, eps, **options: x)
    found = made.outcome("attacked")
    assert found.steps == (0, *expected)
    assert len(found.trace) == len(found.margins) == 1 + len(expected)


# -- the worst case ------------------------------------------------------------------------------


def test_the_worst_is_the_and_with_everything_and_never_rises():
    rng = np.random.default_rng(0)
    curves = {name: rng.random((4, 100)) < 0.9 for name in NAMES}
    given = outcome(robust=curves, envelope=rng.random((4, 100)) < 0.9)
    worst = given.worst()
    judged = [
        given.envelope,
        *(curves[name] for name in ("PGD", "AutoAttack", "Square", "oblivious", "transfer")),
    ]
    for row, image in np.ndindex(4, 100):
        assert worst[row, image] == all(
            curve[weaker, image] for curve in judged for weaker in range(row + 1)
        )
    assert (np.diff(worst.astype(int), axis=0) <= 0).all()
    assert 0 < worst[-1].sum() < worst[0].sum()


@pytest.mark.parametrize("name", UNSEEN)
def test_noise_and_fgsm_are_not_among_everything(name):
    assert (outcome(robust={name: rows(0, 0, 0, 0)}).worst() == outcome().worst()).all()


@pytest.mark.parametrize("name", [*KNOWING, *TRANSFERRED])
def test_each_attack_counts(name):
    assert not outcome(robust={name: rows(90, 0, 0, 0)}).worst()[1:].any()


def test_the_white_box_is_pgd_or_autoattack():
    given = outcome(robust={"PGD": rows(90, 60, 30, 5), "AutoAttack": rows(90, 50, 40, 0)})
    assert (given.white_box() == rows(90, 50, 30, 0)).all()


# -- kept ----------------------------------------------------------------------------------------


def test_what_was_found_is_not_attacked_again(tmp_path):
    calls = []

    def attack(eps):
        calls.append(eps)
        return torch.tensor([True, False, eps > 0.2])

    first, second = (_kept(tmp_path / "PGD-0.1.json", attack, 0.1) for _ in range(2))
    assert calls == [0.1]
    assert first.dtype == second.dtype == torch.bool
    assert first.tolist() == second.tolist() == [True, False, False]
    assert _kept(tmp_path / "PGD-0.3.json", attack, 0.3).tolist() == [True, False, True]
    assert json.loads((tmp_path / "PGD-0.1.json").read_text()) == [True, False, False]


class Interrupted(BaseException):
    """As KeyboardInterrupt, which nothing but the test catches."""


def interrupting(monkeypatch, after):
    """Count attacks through the defence; stop before the one numbered `after`."""
    calls = []

    def wrap(name):
        honest = getattr(adaptive, name)

        def attack(denoiser, classifier, images, labels, eps, **options):
            if len(calls) == after:
                raise Interrupted
            calls.append((options.get("attacks", "PGD")[0], eps))
            return honest(denoiser, classifier, images, labels, eps, **options)

        return attack

    for name in ("pgd_through", "autoattack"):
        monkeypatch.setattr(adaptive, name, wrap(name))
    return calls


def equal(a, b):
    first, second = dataclasses.asdict(a), dataclasses.asdict(b)
    np.testing.assert_equal(first, second)
    return True


@pytest.mark.parametrize("after", [0, 1, 4, 8])
def test_an_interrupted_protocol_goes_on_where_it_was(tmp_path, found, monkeypatch, after):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        interrupting(patch, after)
        small(tmp_path).outcome("blurred")
    calls = interrupting(monkeypatch, None)
    assert equal(small(tmp_path).outcome("blurred"), found)
    every = [(name, eps) for name in ("P", "apgd-ce", "square") for eps in EPS[1:]]
    assert calls == every[after:]


def test_a_second_session_attacks_nothing(made, found, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("attacked again")

    for name in ("pgd_through", "autoattack", "over_steps", "minimal_norms", "zero_gradients"):
        monkeypatch.setattr(adaptive, name, never)
    again = small(made.evaluation.artefacts.store.home)
    assert equal(again.outcome("blurred"), found)
    assert again.outcome("blurred") is again.outcome("blurred")


# -- specifications ------------------------------------------------------------------------------

CHANGES = dict(
    adaptive_images=7,
    adaptive_eps=(0.1,),
    adaptive_steps=4,
    adaptive_restarts=2,
    adaptive_iterations=3,
)
CHANGES |= dict(adaptive_queries=6, seed=1)


@pytest.mark.parametrize("change", CHANGES.items(), ids=str)
def test_an_outcome_changes_with(change, tmp_path):
    other = small(tmp_path, dataclasses.replace(CHEAP, **dict([change])))
    assert other.specification("blurred") != small(tmp_path).specification("blurred")


def test_it_names_the_defence_and_both_classifiers(artefacts):
    specification = Protocol(Evaluation(artefacts)).specification("Filt+Adv")
    assert specification["method"] == artefacts.specification("Filt+Adv")
    assert specification["method"]["classifier"] == artefacts.classifier_specification("Adv")
    assert specification["classifier"] == artefacts.classifier_specification("standard")
    assert specification["second"] == artefacts.classifier_specification("second")
    assert specification["data"] == artefacts.images("test").specification


# -- which classifier ----------------------------------------------------------------------------


class TwoClassifiers(SmallArtefacts):
    """``Adv`` answers the same to everything."""

    def _classifier(self, name="standard"):
        if name != "Adv":
            return super()._classifier(name)
        constant = linear(scale=1e-3)
        constant.network[1].bias.data[2] = 10
        return constant

    def denoiser(self, method):
        return nn.Identity()


def test_a_combination_is_attacked_with_its_own_classifier(tmp_path):
    made = Protocol(Evaluation(TwoClassifiers(tmp_path, study=CHEAP)))
    found, labels = made.outcome("Filt+Adv"), made.evaluation.artefacts.images("test").labels[:6]
    for name in NAMES:
        assert found.robust[name].tolist() == [(labels == 2).tolist()] * 4, name


@pytest.mark.parametrize("method", ["attacked", "PA-Filt(L_img)", "JPEG 75", "Filt+FPD"])
def test_real_defences_go_through_the_protocol(artefacts, method):
    study = dataclasses.replace(
        artefacts.study, adaptive_images=2, adaptive_eps=(0.1,), adaptive_steps=1
    )
    assert study.adaptive_queries == 4
    changed = type(artefacts)(study, artefacts.store)
    found = Protocol(Evaluation(changed)).outcome(method)
    assert found.classes == 10 and found.logits
    assert not found.worst()[0][~found.robust["PGD"][0]].any()
