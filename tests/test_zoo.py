"""Robust classifiers from elsewhere: a file's, RobustBench's, and the authors' of FD and FPD."""

import re
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import nn

from nbsupport.classifiers import feature_pyramid
from nbsupport.classifiers.custom import ZOO, load
from nbsupport.classifiers.feature_pyramid import FeaturePyramidDecoder
from nbsupport.classifiers.models import SmallResNet
from nbsupport.experiments.artifacts import Experiment
from nbsupport.experiments.evaluation import failures, measure, table
from nbsupport.results.seeds import retrain
from nbsupport.results.tables import caption


@pytest.fixture
def robustbench(experiment, monkeypatch):
    """A stand-in for RobustBench, whose networks compare images with the mean of each class."""
    utils, test = ModuleType("robustbench.utils"), experiment.images("test")
    answers = torch.eye(10)[test.labels]
    strong, weak = (nn.Sequential(nn.Flatten(), nn.Linear(768, 10)) for _ in range(2))
    # the smallest weights that are right on all of these few images, so also near them
    strong[1].weight.data = 9 * (torch.linalg.pinv(test.images.flatten(1) - 0.5) @ answers).T
    strong[1].bias.data = -0.5 * strong[1].weight.data.sum(dim=1)
    weak[1].weight.data, weak[1].bias.data = -strong[1].weight.data, -strong[1].bias.data
    networks, calls = {"Strong": strong, "Weak": weak}, []

    def load_model(model_name, model_dir="./models", dataset="cifar10", threat_model="Linf"):
        calls.append((dataset, threat_model))
        return networks[model_name]

    utils.load_model = load_model
    monkeypatch.setitem(sys.modules, "robustbench", ModuleType("robustbench"))
    monkeypatch.setitem(sys.modules, "robustbench.utils", utils)
    return networks, calls


def test_a_robustbench_network_makes_the_rows_of_adv(experiment, robustbench, monkeypatch):
    monkeypatch.setitem(ZOO, "photographs", "cifar10")  # whose artifacts are there already
    (networks, calls), study = robustbench, replace(experiment.study, robust="robustbench:Strong")
    made = Experiment(study, experiment.store)
    assert failures(made, ("Adv",)) == []
    rows, attacked = table(made, 5, "attacked", "Adv", "Filt+Adv"), made.attacked("test")
    rows = rows[(rows["attack"] == "pgd") & (rows["steps"] == study.steps)]
    for method, denoiser in {"Adv": nn.Identity(), "Filt+Adv": made.denoiser("Filt+Adv")}.items():
        values = rows[rows["method"] == method].set_index("eps")["value"]
        for eps in attacked.eps:
            with torch.no_grad():
                classes = networks["Strong"](denoiser(attacked.at(eps))).argmax(dim=1)
            assert values[eps] == pytest.approx((classes == attacked.labels).float().mean().item())
    assert calls == [("cifar10", "Linf")]  # loaded once
    assert "`robustbench:Strong` as Adv" in caption("table5", made.study)

    weak = Experiment(replace(study, robust="robustbench:Weak"), experiment.store)
    (reason,) = failures(weak, ("Adv", "Filt+Adv"))
    assert reason.startswith("Adv: it is not robust") and table(weak, 5, "Adv").empty


MODEL = """
import torch
from torch import nn

def factory():
    torch.manual_seed(SEED)
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 10)).eval()
"""


def test_a_file_is_used_in_table_5_alone_and_its_weights_are_in_the_keys(experiment, tmp_path):
    def made(seed):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "model.py").write_text(MODEL.replace("SEED", str(seed)))
        study = replace(experiment.study, robust=f"{folder}/model.py:factory")
        return Experiment(study, experiment.store)

    one, other = made(1), made(2)
    keys = [each.classifier_specification("Adv") for each in (one, other, experiment)]
    assert keys[0] != keys[1] and keys[0]["name"] == keys[1]["name"] == "model.py:factory"
    assert keys[0].keys() & keys[2].keys() >= {"kind", "name", "trained"}  # notebook 09 shows it
    assert str(tmp_path) not in f"{keys} {one.study.specification()}"
    for method in ("Filt(L_img)", "Filt+FD", "PA-Filt+Adv"):
        same = one.specification(method) == experiment.specification(method)
        assert same == (method != "PA-Filt+Adv")
    images = one.images("test")
    right = load(one.study.robust)(images.images).argmax(dim=1) == images.labels
    assert (measure(one, "Adv")["accuracy"][0] == right.numpy()).all()
    assert retrain(one, (1,))[0].classifier_specification("Adv") == keys[0]


def test_the_authors_weights_take_the_place_of_fpd(experiment, tmp_path, monkeypatch):
    """A narrow network stands in for their ResNet-50 on images of 64 × 64."""
    torch.manual_seed(0)
    source, narrow = (FeaturePyramidDecoder(SmallResNet(10, width=4), width=16) for _ in range(2))
    monkeypatch.setattr(feature_pyramid, "build", lambda *given: narrow)
    weights = {}
    for name, tensor in source.state_dict().items():
        for ours, theirs in feature_pyramid.AUTHORS_NAMES.items():
            name = re.sub(ours, theirs, name)
        weights[name] = tensor
    del weights[""]  # mean and standard deviation
    torch.save({"state_dict": weights}, tmp_path / "svhn.pth")
    changes = {"image_size": 64, "robust": f"fpd:{tmp_path}/svhn.pth"}
    made = Experiment(replace(experiment.study, **changes), experiment.store)
    images, decoder = torch.rand(4, 3, 64, 64), made.classifier("FPD")
    assert torch.equal(decoder(images), source.eval()(images))
    assert made.specification("Filt+FPD")["classifier"]["name"] == "fpd:svhn.pth"


@pytest.mark.parametrize(
    ("reference", "study", "size", "message"),
    [
        ("robustbench:Strong", "photographs", 32, "cifar10 and neurips2017dev, got 'photographs'"),
        ("robustbench:None", "cifar10", 32, r"load_model\('None'\) failed with KeyError"),
        ("fd:absent.npz", "neurips2017dev", 224, "facebookresearch/ImageNet-Adversarial-Training"),
        ("fpd:absent.pth", "svhn", 32, "--image-size 64"),
        ("resnet50", "cifar10", 32, "robustbench:NAME, fd:FILE or fpd:FILE, got 'resnet50'"),
    ],
)
def test_what_cannot_be_loaded_is_refused(reference, study, size, message, robustbench):
    with pytest.raises((ValueError, FileNotFoundError), match=rf"^classifier: [^\n]*{message}"):
        load(reference, study, size)


def test_robustbench_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "robustbench", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"pip install git\+https://github.com/RobustBench"):
        load("robustbench:Strong", "cifar10", 32)
