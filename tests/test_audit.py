"""Every defence is audited once, an interruption loses nothing, and every sanity check sees a broken defence."""

import dataclasses

import numpy as np
import pytest
import torch
from small import IMAGES, STUDY, Call, SmallExperiment, audited, linear, minimal, rows
from torch import nn

from nbsupport.attacks import adaptive
from nbsupport.attacks.pgd import pgd
from nbsupport.denoisers.baselines import Baseline
from nbsupport.experiments import audit as module
from nbsupport.experiments.adaptive_evaluation import aim, evaluate_adaptively
from nbsupport.experiments.audit import audit, check
from nbsupport.experiments.methods import CHECKS

EFFORT = dict(audit_steps=3, audit_iterations=2, audit_queries=5, audit_images=6, audit_restarts=1)
EFFORT |= dict(audit_trace_eps=0.1)
CHEAP = dataclasses.replace(STUDY, **EFFORT)
NAMES = (*module.WHITE_BOX, *module.TRANSFERRED, *module.UNSEEN)


def small(home, **changes):
    study = dataclasses.replace(CHEAP, **changes)
    return SmallExperiment(home, study=study, blurred=Baseline("Gaussian blur"))


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """An experiment of which a blurring defence was attacked."""
    experiment = small(tmp_path_factory.mktemp("attacked"))
    audit(experiment, "blurred")
    return experiment


@pytest.fixture(scope="module")
def found(attacked):
    return audit(attacked, "blurred")


def defended(experiment, images):
    labels = experiment.images("test").labels[: len(images)]
    return (experiment.victim(Baseline("Gaussian blur")(images)).argmax(dim=1) == labels).tolist()


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
    assert found.trace_eps == 0.1


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
    return dict(module._attacks(experiment, aim(experiment, "blurred", "audit")))


def test_noise_is_uniform_or_gaussian_of_the_same_standard_deviation(attacked, monkeypatch):
    seen, images = [], attacked.images("test").images[:6]

    def spy(target, x):
        seen.append(x - images)
        return torch.ones(6, dtype=torch.bool)

    monkeypatch.setattr(adaptive.Target, "withstands", spy)
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
        def plan(*arguments, **options):
            calls.append((name, *(each for each in arguments if isinstance(each, str)), options))
            return []

        return plan

    for name in ("plan_pgd", "autoattack"):
        monkeypatch.setattr(adaptive, name, spy(name))
    monkeypatch.setattr(module, "survive", lambda target, eps, attacks: (len(target.images), eps))
    jobs = jobs_of(attacked)
    assert [jobs[name](0.1) for name in module.WHITE_BOX] == [(6, 0.1)] * 3
    limits = {"seed": 0, "iterations": 2, "queries": 5}
    autoattack = [("autoattack", *parts, limits) for parts in (adaptive.AUTOATTACK, ["square"])]
    assert calls == [*autoattack, ("plan_pgd", {"steps": 3, "restarts": 1, "seed": 0})]


def test_the_gray_box_worst_case_is_over_all_strengths_of_the_study(tmp_path, monkeypatch):
    correct = [[1, 1, 1, 1, 1, 0], [1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1], [1, 1, 0, 1, 1, 1]]
    whole = np.concatenate([np.array(correct, dtype=bool), np.ones((4, 18), dtype=bool)], axis=1)
    monkeypatch.setattr(module, "measure", lambda *_, split: {"accuracy": whole})
    study = small(tmp_path, audit_eps=(0.1,), unseen_eps=())
    envelope = audit(study, "attacked").envelope
    assert envelope.tolist() == [[1, 1, 1, 1, 1, 0], [1, 0, 1, 1, 0, 0]]


def test_the_trace_goes_to_twice_the_largest_n(tmp_path, monkeypatch):
    monkeypatch.setattr(adaptive, "pgd", lambda network, x, y, eps, **options: x)
    found = audit(small(tmp_path, audit_steps=200), "attacked")
    assert found.steps == (0, 10, 40, 100, 200, 400)
    assert len(found.trace) == len(found.margins) == 6


def test_strengths_that_the_study_lacks_are_refused(tmp_path):
    for change in (dict(audit_eps=(0.1, 0.2)), dict(audit_trace_eps=0.2)):
        with pytest.raises(ValueError, match="audit_eps"):
            audit(small(tmp_path, **change), "blurred")


def test_the_worst_case_is_over_all_attacks_but_noise_and_all_weaker_strengths():
    rng = np.random.default_rng(0)
    curves = {name: rng.random((4, 100)) < 0.9 for name in NAMES}
    given = audited(robust=curves, envelope=rng.random((4, 100)) < 0.9)
    judged = [given.envelope, *(curves[name] for name in (*module.WHITE_BOX, *module.TRANSFERRED))]
    worst = given.worst()
    for row, image in np.ndindex(4, 100):
        expected = all(curve[weaker, image] for curve in judged for weaker in range(row + 1))
        assert worst[row, image] == expected
    assert 0 < worst[-1].sum() < worst[0].sum()
    for name in module.UNSEEN:
        assert (audited(robust={name: rows(0, 0, 0, 0)}).worst() == audited().worst()).all()


# -- kept ----------------------------------------------------------------------------------------


def interrupting(monkeypatch, after):
    """Count white-box attacks at a strength; stop before the one numbered `after`."""
    calls, honest = [], module.survive

    def attack(target, eps, attacks):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(eps)
        return honest(target, eps, attacks)

    monkeypatch.setattr(module, "survive", attack)
    return calls


def test_an_interrupted_evaluation_goes_on_with_the_next_attack(tmp_path, found, monkeypatch):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupting(patch, 4)
        audit(small(tmp_path), "blurred")
    calls = interrupting(monkeypatch, None)
    again = audit(small(tmp_path), "blurred")
    np.testing.assert_equal(dataclasses.asdict(again), dataclasses.asdict(found))
    assert calls == (3 * [*found.eps[1:]])[4:]


def test_other_weights_of_any_network_are_attacked_anew(attacked, monkeypatch):
    calls, other = interrupting(monkeypatch, None), small(attacked.store.home)
    other.victim = linear(5)
    audit(other, "blurred")
    assert len(calls) == 9


CHANGES = dict(audit_images=7, audit_eps=(0.1,), audit_steps=4, audit_restarts=2)
CHANGES |= dict(audit_queries=6, audit_iterations=3, seed=1)


def test_an_audit_changes_with_the_studys_effort_and_names_its_networks(tmp_path, experiment):
    same = module.audit_specification(small(tmp_path), "blurred")
    for name, value in CHANGES.items():
        assert module.audit_specification(small(tmp_path, **{name: value}), "blurred") != same
    found = module.audit_specification(experiment, "Filt+Adv")
    assert found["method"] == experiment.specification("Filt+Adv")
    assert found["second"] == experiment.classifier_specification("second")
    assert found["data"] == experiment.images("audit").specification


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
    found, labels = audit(experiment, "Filt+Adv"), experiment.split.labels[:6]
    for name in NAMES:
        assert found.robust[name].tolist() == [(labels == 2).tolist()] * 4, name


# -- sanity checks of crafted evaluations --------------------------------------------------------


def failed(found, audit=None):
    return [name for name, (passed, _) in check(found, audit).items() if not passed]


def white_box(*counts, **robust):
    """PGD and AutoAttack leave these numbers of images; all other attacks leave all that are right."""
    kept = {"PGD": rows(*counts), "AutoAttack": rows(*counts)}
    kept |= {name: rows(90, 90, 90, 90) for name in ("Square", "oblivious", "transfer")}
    return audited(robust=kept | robust)


def only(image, at):
    """All are right, but one image at one strength."""
    correct = rows(90, 90, 90, 90)
    correct[at, image] = False
    return correct


def margins(*values):
    return dict(margins=np.array(values, dtype=float)[:, None].repeat(IMAGES, 1))


def larger(*images):
    """The evaluation missed these images at ε = .1, where the audit finds them."""
    smallest = minimal().smallest.copy()
    smallest[[*images]] = 0.3
    return minimal(smallest=smallest)


FIRST = np.arange(IMAGES)
BROKEN = [
    ("audit", larger(40, 41), audited()),
    ("ε", minimal(), white_box(90, 50, 53, 5)),
    ("n", minimal(), audited(trace=rows(90, 40, 50, 40))),
    ("oblivious", minimal(), audited(robust={"oblivious": only(3, 2)})),
    ("Square", minimal(), audited(robust={"Square": only(3, 2)})),
    ("transfer", minimal(), audited(robust={"transfer": only(3, 2)})),
    ("flat", minimal(), audited(**margins(-3, 0, 1, 1.5))),
    ("flat", minimal(), audited(**margins(-3, -3, -3, -3))),
    ("flat", minimal(), audited(steps=(0, 4), trace=rows(90, 40), **margins(-3, 2))),
    ("gradient", minimal(zero_gradients=1 / IMAGES), None),
    ("saturation", minimal(saturated=0.2), None),
    ("logits", minimal(logits=False), None),
    ("deterministic", minimal(deterministic=False), None),
    ("chance", minimal(smallest=np.where(FIRST < 17, np.inf, 0.02)), None),
    ("chance", minimal(eps=(0.0, 0.03, 0.1, 0.4)), None),
]
SOUND = {
    "everything": (minimal(), audited()),
    "audit: one image": (larger(40), audited()),
    "ε: one image in fifty": (minimal(), white_box(90, 58, 60, 5)),
    "n: one image in fifty": (minimal(), audited(trace=rows(90, 40, 42, 40))),
    "n: clean images do not count": (minimal(), audited(trace=rows(10, 40, 39, 39))),
    "saturation: a tenth": (minimal(saturated=0.1), None),
    "flat: a tenth": (minimal(), audited(**margins(0, 5, 9, 10))),
    "chance: two errors above": (minimal(smallest=np.where(FIRST < 16, np.inf, 0.02)), None),
}


@pytest.mark.parametrize(("name", "found", "audit"), BROKEN, ids=lambda value: str(value)[:13])
def test_exactly_the_check_of_the_broken_property_fails(name, found, audit):
    others = {"audit"} if name == "ε" else set()  # a clumsy attack also leaves a gap
    assert set(failed(found, audit)) - others == {name}


def test_sampling_error_is_sound_and_every_check_is_broken_here():
    for case, given in SOUND.items():
        others = {"audit"} if case.startswith("ε") else set()
        assert set(failed(*given)) <= others, case
    assert {name for name, *_ in BROKEN} == set(CHECKS) == set(check(minimal(), audited()))


# -- sanity checks of real defences --------------------------------------------------------------


@pytest.fixture
def broken(tmp_path):
    """From a defence to the sanity checks that fail for it."""

    def attack(name, **changes):
        study = dataclasses.replace(STUDY, audit_trace_eps=0.1, **changes)
        experiment = SmallExperiment(tmp_path / name, study=study)
        experiment.denoisers |= {
            "sound": Baseline("8-bit"),
            "rounding": Call(lambda x: (x * 255).round() / 255),  # no straight-through gradient
        }
        return set(failed(evaluate_adaptively(experiment, name), audit(experiment, name)))

    return attack


def test_a_sound_attack_passes_and_a_hidden_gradient_or_too_few_steps_are_noticed(broken):
    assert broken("sound") == set()
    assert broken("rounding") >= {"gradient", "oblivious", "Square"}
    assert broken("attacked", audit_steps=8) == {"flat"}


def test_saturated_logits_are_noticed(tmp_path):
    experiment = SmallExperiment(tmp_path, classifier=linear(scale=10_000))
    assert "saturation" in failed(evaluate_adaptively(experiment, "attacked"))


def test_probabilities_are_refused(tmp_path):
    softmax = SmallExperiment(tmp_path)
    softmax.victim.network = nn.Sequential(softmax.victim.network, nn.Softmax(dim=1)).eval()
    with pytest.raises(ValueError, match="probabilities"):
        evaluate_adaptively(softmax, "attacked")
