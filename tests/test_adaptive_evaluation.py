"""Every defence is attacked once, an interruption loses nothing, and every sanity check sees a broken defence."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from small import EPS, IMAGES, STUDY, SmallExperiment, linear, outcome, rows
from torch import nn

from nbsupport.attacks import adaptive
from nbsupport.attacks.adaptive import Target
from nbsupport.attacks.pgd import pgd
from nbsupport.denoisers.baselines import Baseline
from nbsupport.experiments import adaptive_evaluation as module
from nbsupport.experiments.adaptive_evaluation import evaluate_adaptively, failed_checks
from nbsupport.experiments.artifacts import Experiment
from nbsupport.experiments.evaluation import COLUMNS
from nbsupport.experiments.methods import CHECKS

EFFORT = dict(adaptive_steps=3, adaptive_iterations=2, adaptive_queries=5, adaptive_images=6)
CHEAP = dataclasses.replace(STUDY, **EFFORT)
NAMES = (*module.WHITE_BOX, *module.TRANSFERRED, *module.UNSEEN)


def small(home, **changes):
    study = dataclasses.replace(CHEAP, **changes)
    return SmallExperiment(home, study=study, blurred=Baseline("Gaussian blur"))


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """An experiment of which a blurring defence was attacked."""
    experiment = small(tmp_path_factory.mktemp("attacked"))
    evaluate_adaptively(experiment, "blurred")
    return experiment


@pytest.fixture(scope="module")
def found(attacked):
    return evaluate_adaptively(attacked, "blurred")


def defended(experiment, images):
    labels = experiment.images("test").labels[: len(images)]
    return (experiment.victim(Baseline("Gaussian blur")(images)).argmax(dim=1) == labels).tolist()


def equal(a, b):
    np.testing.assert_equal(dataclasses.asdict(a), dataclasses.asdict(b))
    return True


# -- in an outcome -------------------------------------------------------------------------------


def test_every_attack_has_a_row_per_strength_from_clean_and_a_column_per_image(attacked, found):
    assert set(found.robust) == set(NAMES) and found.eps == (0.0, 0.02, 0.1, 0.5)
    curves = [*found.robust.values(), found.envelope]
    assert all(curve.shape == (4, 6) and curve.dtype == bool for curve in curves)
    clean = defended(attacked, attacked.images("test").images[:6])
    assert not all(clean)
    assert all(curve[0].tolist() == clean for curve in [*curves, found.trace])
    assert set(found.norms) == {"DeepFool", "C&W", "L2-PGD"}
    assert all(values.shape == (6,) for values in found.norms.values())
    assert (found.steps, found.trace.shape, found.margins.shape) == ((0, 3, 6), (3, 6), (3, 6))
    assert (found.trace_eps, found.classes) == (0.1, 4)


@pytest.mark.parametrize(("name", "seed"), [("oblivious", 0), ("transfer", 1)])
def test_transferred_attacks_are_those_on_the_bare_and_on_the_second_classifier(
    attacked, found, name, seed
):
    part = attacked.images("test")
    for row, eps in enumerate(found.eps[1:], 1):
        images = pgd(linear(seed), part.images[:6], part.labels[:6], eps, steps=CHEAP.steps)
        assert found.robust[name][row].tolist() == defended(attacked, images)


def test_fgsm_is_one_step_of_the_signed_gradient_on_the_bare_classifier(attacked, found):
    part = attacked.images("test")
    inputs = part.images[:6].clone().requires_grad_()
    nn.functional.cross_entropy(attacked.victim(inputs), part.labels[:6]).backward()
    for row, eps in enumerate(found.eps[1:], 1):
        images = (inputs + eps * inputs.grad.sign()).clamp(0, 1).detach()
        assert found.robust["FGSM"][row].tolist() == defended(attacked, images)


def jobs_of(experiment):
    part = experiment.images("test")
    networks = experiment.denoiser("blurred"), experiment.classifier()
    return dict(module._attacks(experiment, Target(*networks, part.images[:6], part.labels[:6])))


def test_noise_is_uniform_or_gaussian_of_the_same_standard_deviation(attacked, monkeypatch):
    seen, images = [], attacked.images("test").images[:6]

    def spy(target, x):
        seen.append(x - images)
        return torch.ones(6, dtype=torch.bool)

    monkeypatch.setattr(Target, "withstands", spy)
    jobs = jobs_of(attacked)
    for name in ("uniform noise", "Gaussian noise", "uniform noise"):
        jobs[name](0.1)
    uniform, gaussian, again = seen
    assert torch.equal(uniform, again)
    assert 0.098 < uniform.abs().max() <= 0.1 + 1e-6 and gaussian.abs().max() > 0.15
    for noise in (uniform, gaussian):
        assert float(noise.std()) == pytest.approx(0.1 / 3**0.5, rel=0.05)
    jobs["Gaussian noise"](0.5)
    assert all((images + noise).min() >= 0 and (images + noise).max() <= 1 for noise in seen)


def test_white_box_attacks_get_the_studys_effort(attacked, monkeypatch):
    calls = []

    def spy(name):
        def attack(target, eps, **options):
            calls.append((name, target.denoiser, len(target.images), eps, options))
            return torch.ones(len(target.images), dtype=torch.bool)

        return attack

    for name in ("pgd_through", "autoattack"):
        monkeypatch.setattr(adaptive, name, spy(name))
    jobs, denoiser = jobs_of(attacked), attacked.denoiser("blurred")
    for name in module.WHITE_BOX:
        jobs[name](0.1)
    limits, auto = {"seed": 0, "iterations": 2, "queries": 5}, ["apgd-ce", "apgd-t", "fab-t"]
    assert calls == [
        ("pgd_through", denoiser, 6, 0.1, {"seed": 0, "steps": 3, "restarts": 1}),
        ("autoattack", denoiser, 6, 0.1, {"attacks": auto, **limits}),
        ("autoattack", denoiser, 6, 0.1, {"attacks": ["square"], **limits}),
    ]


def test_the_gray_box_worst_case_is_over_all_strengths_of_the_study(tmp_path, monkeypatch):
    correct = [[1, 1, 1, 1, 1, 0], [1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1], [1, 1, 0, 1, 1, 1]]
    whole = np.concatenate([np.array(correct, dtype=bool), np.ones((4, 18), dtype=bool)], axis=1)
    monkeypatch.setattr(module, "measure", lambda experiment, method: {"accuracy": whole})
    study = small(tmp_path, adaptive_eps=(0.1,), unseen_eps=())
    envelope = evaluate_adaptively(study, "attacked").envelope
    assert envelope.tolist() == [[1, 1, 1, 1, 1, 0], [1, 0, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("steps", "expected"), [(40, (10, 40, 80)), (200, (10, 40, 100, 200, 400))]
)
def test_the_trace_goes_to_twice_the_largest_n(tmp_path, steps, expected, monkeypatch):
    monkeypatch.setattr(adaptive, "pgd", lambda network, x, y, eps, **options: x)
    found = evaluate_adaptively(small(tmp_path, adaptive_steps=steps), "attacked")
    assert found.steps == (0, *expected)
    assert len(found.trace) == len(found.margins) == 1 + len(expected)


def test_strengths_that_the_study_lacks_are_refused(tmp_path):
    for change in (dict(adaptive_eps=(0.1, 0.2)), dict(adaptive_trace_eps=0.2)):
        with pytest.raises(ValueError, match="adaptive_eps"):
            evaluate_adaptively(small(tmp_path, **change), "blurred")


def test_the_worst_case_is_over_all_attacks_but_noise_and_all_weaker_strengths():
    rng = np.random.default_rng(0)
    curves = {name: rng.random((4, 100)) < 0.9 for name in NAMES}
    given = outcome(robust=curves, envelope=rng.random((4, 100)) < 0.9)
    judged = [given.envelope, *(curves[name] for name in (*module.WHITE_BOX, *module.TRANSFERRED))]
    worst = given.worst()
    for row, image in np.ndindex(4, 100):
        expected = all(curve[weaker, image] for curve in judged for weaker in range(row + 1))
        assert worst[row, image] == expected
    assert 0 < worst[-1].sum() < worst[0].sum()
    for name in module.UNSEEN:
        assert (outcome(robust={name: rows(0, 0, 0, 0)}).worst() == outcome().worst()).all()


# -- kept ----------------------------------------------------------------------------------------


def interrupting(monkeypatch, after):
    """Count attacks through the defence; stop before the one numbered `after`."""
    calls = []

    def wrap(name):
        honest = getattr(adaptive, name)

        def attack(target, eps, **options):
            if len(calls) == after:
                raise KeyboardInterrupt
            calls.append((options.get("attacks", ["PGD"])[0], eps))
            return honest(target, eps, **options)

        return attack

    for name in ("pgd_through", "autoattack"):
        monkeypatch.setattr(adaptive, name, wrap(name))
    return calls


@pytest.mark.parametrize("after", [0, 4])
def test_an_interrupted_evaluation_goes_on_with_the_next_attack(
    tmp_path, found, monkeypatch, after
):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupting(patch, after)
        evaluate_adaptively(small(tmp_path), "blurred")
    calls = interrupting(monkeypatch, None)
    assert equal(evaluate_adaptively(small(tmp_path), "blurred"), found)
    every = [(name, eps) for name in ("PGD", "apgd-ce", "square") for eps in found.eps[1:]]
    assert calls == every[after:]


def test_a_second_session_attacks_nothing(attacked, found, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("attacked again")

    for name in ("pgd_through", "autoattack", "over_steps", "minimal_norms", "zero_gradients"):
        monkeypatch.setattr(adaptive, name, never)
    assert evaluate_adaptively(attacked, "blurred") is found
    assert equal(evaluate_adaptively(small(attacked.store.home), "blurred"), found)


def test_other_weights_of_any_network_are_attacked_anew(attacked, monkeypatch):
    calls, other = interrupting(monkeypatch, None), small(attacked.store.home)
    other.victim = linear(5)
    evaluate_adaptively(other, "blurred")
    assert len(calls) == 9


CHANGES = dict(adaptive_images=7, adaptive_eps=(0.1,), adaptive_steps=4, adaptive_restarts=2)
CHANGES |= dict(adaptive_queries=6, adaptive_iterations=3, seed=1)


def test_an_outcome_changes_with_the_studys_effort_and_names_its_networks(tmp_path, experiment):
    same = module.outcome_specification(small(tmp_path), "blurred")
    for name, value in CHANGES.items():
        assert module.outcome_specification(small(tmp_path, **{name: value}), "blurred") != same
    found = module.outcome_specification(experiment, "Filt+Adv")
    assert found["method"] == experiment.specification("Filt+Adv")
    assert found["second"] == experiment.classifier_specification("second")
    assert found["data"] == experiment.images("test").specification


class TwoClassifiers(SmallExperiment):
    """``Adv`` answers the same to everything."""

    def classifier(self, name="standard"):
        if name != "Adv":
            return super().classifier(name)
        constant = linear(scale=1e-3)
        constant.network[1].bias.data[2] = 10
        return constant

    def denoiser(self, method):
        return nn.Identity()


def test_a_combination_is_attacked_with_its_classifier(tmp_path):
    experiment = TwoClassifiers(tmp_path, study=CHEAP)
    found, labels = evaluate_adaptively(experiment, "Filt+Adv"), experiment.split.labels[:6]
    for name in NAMES:
        assert found.robust[name].tolist() == [(labels == 2).tolist()] * 4, name


@pytest.mark.parametrize("method", ["PA-Filt(L_img)", "JPEG 50", "Filt+FPD"])
def test_real_defences_are_attacked(experiment, method):
    changes = dict(adaptive_images=2, adaptive_eps=(0.1,), adaptive_steps=1, adaptive_trace_eps=0.1)
    changed = Experiment(dataclasses.replace(experiment.study, **changes), experiment.store)
    found = evaluate_adaptively(changed, method)
    assert found.classes == 10 and found.logits
    assert not found.worst()[0][~found.robust["PGD"][0]].any()


# -- sanity checks of crafted outcomes -----------------------------------------------------------


def white_box(*counts, **robust):
    """PGD and AutoAttack leave these numbers of images; all other attacks leave all that are right."""
    kept = {"PGD": rows(*counts), "AutoAttack": rows(*counts)}
    kept |= {name: rows(90, 90, 90, 90) for name in ("Square", "oblivious", "transfer")}
    return outcome(robust=kept | robust)


def only(image, at):
    """All are right, but one image at one strength."""
    correct = rows(90, 90, 90, 90)
    correct[at, image] = False
    return correct


def margins(*values):
    return dict(margins=np.array(values, dtype=float)[:, None].repeat(IMAGES, 1))


BROKEN = [
    ("ε", white_box(90, 40, 50, 5)),
    ("n", outcome(trace=rows(90, 40, 50, 40))),
    ("oblivious", white_box(90, 60, 30, 5, oblivious=only(3, 2))),
    ("Square", white_box(90, 60, 30, 5, Square=only(3, 2))),
    ("transfer", white_box(90, 60, 30, 5, transfer=only(3, 2))),
    ("flat", outcome(**margins(-3, 0, 1, 1.5))),
    ("flat", outcome(**margins(-3, -3, -3, -3))),
    ("flat", outcome(steps=(0, 4), trace=rows(90, 40), **margins(-3, 2))),
    ("gradient", outcome(zero_gradients=1 / IMAGES)),
    ("saturation", outcome(saturated=0.2)),
    ("logits", outcome(logits=False)),
    ("deterministic", outcome(deterministic=False)),
    ("chance", white_box(90, 60, 30, 17)),
    ("chance", outcome(eps=(0.0, 0.03, 0.1, 0.4))),
]
SOUND = {
    "everything": outcome(),
    "ε: one image in fifty": white_box(90, 40, 42, 5),
    "n: one image in fifty": outcome(trace=rows(90, 40, 42, 40)),
    "n: clean images do not count": outcome(trace=rows(10, 40, 39, 39)),
    "either gradient attack suffices": outcome(
        robust={"PGD": rows(90, 80, 80, 80), "AutoAttack": rows(90, 80, 50, 5)}
        | {"Square": rows(90, 90, 90, 90)}
    ),
    "saturation: a tenth": outcome(saturated=0.1),
    "flat: a tenth": outcome(**margins(0, 5, 9, 10)),
    "chance: two standard errors above": white_box(90, 60, 30, 16),
}


@pytest.mark.parametrize(("name", "broken"), BROKEN, ids=lambda value: str(value)[:13])
def test_exactly_the_check_of_the_broken_property_fails(name, broken):
    assert failed_checks(broken) == [name]


def test_sampling_error_is_sound_and_every_check_is_broken_here():
    for case, given in SOUND.items():
        assert failed_checks(given) == [], case
    assert {name for name, _ in BROKEN} == set(CHECKS) == set(module.check(outcome()))


# -- sanity checks of real defences --------------------------------------------------------------


class Defence(nn.Module):
    """A denoiser that is a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """From a defence to the sanity checks that fail for it."""
    home = tmp_path_factory.mktemp("checks")

    @functools.cache
    def attack(name, **changes):
        study = dataclasses.replace(STUDY, **changes)
        experiment = SmallExperiment(home / f"{name}{changes}", study=study)
        experiment.denoisers |= {
            "sound": Baseline("8-bit"),
            "blurred": Baseline("Gaussian blur"),
            "rounding": Defence(lambda x: (x * 255).round() / 255),  # no straight-through gradient
            "noise": Defence(lambda x: (x + 0.05 * torch.randn_like(x)).clamp(0, 1)),
            "constant": Defence(lambda x: x.detach() + 0 * x),
            "batch": Defence(lambda x: (x + 0.2 * (x.mean(dim=0) - x.mean())).clamp(0, 1)),
        }
        return set(failed_checks(evaluate_adaptively(experiment, name)))

    return attack


@pytest.mark.parametrize("name", ["attacked", "sound", "blurred"])
def test_sound_attacks_on_real_defences_pass(broken, name):
    assert broken(name) == set()


@pytest.mark.parametrize("name", ["rounding", "constant"])
def test_a_hidden_gradient_is_noticed(broken, name):
    assert broken(name) == {"gradient", "oblivious", "Square"}


@pytest.mark.parametrize("name", ["noise", "batch"])
def test_a_defence_that_is_random_or_depends_on_the_batch_is_noticed(broken, name):
    assert "deterministic" in broken(name)


def test_saturated_logits_are_noticed(tmp_path):
    experiment = SmallExperiment(tmp_path, study=CHEAP, classifier=linear(scale=10_000))
    assert "saturation" in failed_checks(evaluate_adaptively(experiment, "attacked"))


def test_too_few_steps_are_noticed(broken):
    assert broken("attacked", adaptive_steps=8) == {"flat"}


def test_probabilities_are_noticed_or_refused(tmp_path, monkeypatch):
    softmax = SmallExperiment(tmp_path)
    softmax.victim.network = nn.Sequential(softmax.victim.network, nn.Softmax(dim=1))
    with pytest.raises(ValueError, match="probabilities"):
        evaluate_adaptively(softmax, "attacked")
    monkeypatch.setattr(module, "are_probabilities", lambda logits: True)
    assert "logits" in failed_checks(evaluate_adaptively(SmallExperiment(tmp_path), "attacked"))


# -- as tables -----------------------------------------------------------------------------------

BOTH = [outcome(), dataclasses.replace(outcome(logits=False, zero_gradients=0.5), method="8-bit")]


def test_tidy_rows_hold_accuracies_median_norms_and_checks(tmp_path):
    experiment = SmallExperiment(tmp_path)
    tidy, study = module.rows(experiment, BOTH), experiment.study
    assert list(tidy) == COLUMNS and not tidy.drop(columns="value").duplicated().any()
    same = {"table": "adaptive", "study": "photographs", "classifier": "small_resnet", "seed": 0}
    same |= {"steps": study.adaptive_steps, "n": study.adaptive_images}
    assert all((tidy[column] == value).all() for column, value in same.items())
    index = ["metric", "attack", "eps"]
    for given, broken in zip(BOTH, (set(), {"logits", "gradient"}), strict=True):
        values = tidy[tidy["method"] == given.method].set_index(index)["value"]
        curves = given.robust | {"envelope": given.envelope, "worst": given.worst()}
        for name, curve in curves.items():
            line = [values["accuracy", name, eps] for eps in EPS]
            assert line == pytest.approx(curve.mean(axis=1))
        rest = dict(zip(values.index.droplevel("eps"), values, strict=True))
        norms = {"L2-PGD": np.inf, "DeepFool": 1.0, "C&W": 1.0}
        assert {name: rest["median L2 norm", name] for name in norms} == norms
        for name in CHECKS:
            assert rest[f"check: {name}", "all"] == float(name not in broken)
        assert len(values) == len(curves) * len(EPS) + 3 + len(CHECKS)
