"""torchvision's classifiers from files of the format of their public weights, which the test makes."""

import pytest
import torch
import torchvision

from nbsupport.classifiers import public_weights
from nbsupport.data.benchmarks import Split, neurips
from nbsupport.experiments.artifacts import Artefacts
from nbsupport.experiments.store import Store
from nbsupport.study import Study

NAME, FILE = "mobilenet_v3_small", "mobilenet_v3_small-047dcff4.pth"


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """The file of a network with random weights, where torch.hub keeps what it has downloaded; and the network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    network = torchvision.models.get_model(NAME).eval()
    torch.save(network.state_dict(), tmp_path / "hub" / "checkpoints" / FILE)
    return network


def test_a_classifier_normalises_as_its_weights_want(weights):
    images = torch.rand(2, 3, 64, 64)
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    with torch.no_grad():
        assert torch.allclose(
            public_weights.load(NAME)(images), weights((images - mean) / std), atol=1e-5
        )
    assert public_weights.specification(NAME)["file"] == FILE
    assert public_weights.there(NAME)


def test_a_damaged_file_is_named(weights, tmp_path):
    path = tmp_path / "hub" / "checkpoints" / FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        FileNotFoundError, match=rf"{NAME}: its public weights could not be read .*Remove {path}"
    ):
        public_weights.load(NAME)


def test_what_cannot_be_downloaded_is_said(weights, tmp_path, monkeypatch):
    (tmp_path / "hub" / "checkpoints" / FILE).unlink()

    def unreachable(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(
        FileNotFoundError,
        match=r"no route to host.* or put there what https://download.pytorch.org",
    ):
        public_weights.load(NAME)
    assert not public_weights.there(NAME)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no classifier named 'resnet51'"):
        public_weights.load("resnet51")


def test_the_accuracy_is_printed_and_labels_from_1_are_refused(weights, capsys):
    classifier, images = (
        public_weights.load(NAME),
        torch.rand(40, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
    )
    classifier.network.classifier[-1].weight.data.mul_(30)  # so that classes differ between images
    labels = classifier(images).argmax(dim=1)
    assert public_weights.check(classifier, NAME, images, labels) == 1
    assert f"{NAME}: names 100.0% of 40 clean images" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"labels start at 0|labels or preprocessing are wrong"):
        public_weights.check(classifier, NAME, images, labels + 1)
    with pytest.raises(
        ValueError,
        match=r"it names only 0\.0% of 40 clean images; labels or preprocessing are wrong",
    ):
        public_weights.check(classifier, NAME, images, (labels + 500) % 1000)


def test_a_study_of_neurips_takes_the_public_classifier(weights, tmp_path, monkeypatch):
    study = Study.named("neurips2017dev", "smoke", classifier=NAME, image_size=64)
    classifier, images = public_weights.load(NAME), torch.rand(24, 3, 64, 64)
    split = Split(images, classifier(images).argmax(dim=1), ("a",) * 1000, {"data": "noise"})
    monkeypatch.setattr(neurips, "sizes", lambda: {"train": 12, "test": 6})
    monkeypatch.setattr(neurips, "form", lambda: "")
    monkeypatch.setattr(Artefacts, "images", lambda self, name: split)
    artefacts = Artefacts(study, Store(tmp_path / "home"))
    assert torch.equal(artefacts.classifier()(images), classifier(images))
    assert artefacts.classifier_specification() == public_weights.specification(NAME)
    assert artefacts.public("second") == "vgg16"
