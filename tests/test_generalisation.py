"""Other strengths and another classifier: every accuracy against a loop over single images."""

import pytest
from small import SmallExperiment

from nbsupport.attacks.pgd import AttackedSet, ratios
from nbsupport.denoisers.baselines import Baseline
from nbsupport.experiments.methods import GENERALISED, split_method
from nbsupport.results import generalisation
from nbsupport.results.generalisation import generalise

FAILED, EPS = "PA-Filt(L_img+KL)", (0.01, 0.02, 0.3)  # of these the study has 0.02
DENOISERS = {"Add(L_img)": "8-bit", "Filt(L_img)": "Gaussian blur 1", "PA-Filt(L_img)": "JPEG 20"}


class Experiment(SmallExperiment):
    """The same denoisers before either classifier."""

    def denoiser(self, method):
        name, _ = split_method(method)
        return self.denoisers.get(name) or Baseline(DENOISERS.get(name, name))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return Experiment(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def rows(experiment):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generalisation, "failure", lambda _, method: "!" * (method == FAILED))
        return generalise(experiment, EPS)


def count(experiment, method, victim):
    """How many images are right at each ε, and at it and all weaker ones that were attacked."""
    test, classifier = experiment.images("test"), experiment.classifier(victim)
    found = ratios(classifier, test.images, test.labels, EPS, steps=experiment.study.steps)
    attacked = AttackedSet(test.images, test.labels, found, (0.0, *EPS))
    plain, worst, right = {}, {}, [True] * len(test.images)
    for eps in attacked.eps:
        denoised = [experiment.denoiser(method)(image[None]) for image in attacked.at(eps)]
        found = [int(experiment.classifier(victim)(image).argmax()) for image in denoised]
        correct = [a == b for a, b in zip(found, test.labels.tolist(), strict=True)]
        right = [a and b for a, b in zip(right, correct, strict=True)]
        plain[eps], worst[eps] = sum(correct), sum(right)
    return plain, worst


@pytest.mark.parametrize("victim", ["standard", "second"])
@pytest.mark.parametrize("method", [name for name in GENERALISED if name != FAILED])
def test_accuracies_are_counts_of_single_images(method, victim, rows, experiment):
    architecture = {"standard": "small_resnet", "second": "half_vgg16"}[victim]
    part = rows[(rows["method"] == method) & (rows["classifier"] == architecture)]
    assert len(part) == 2 * (1 + len(EPS)) and set(part["n"]) == {24}
    assert FAILED not in set(rows["method"])
    plain, worst = count(experiment, method, victim)
    for row in part.itertuples():
        expected = {"pgd": plain, "pgd-envelope": worst}[row.attack][row.eps]
        assert row.value == pytest.approx(expected / 24)
