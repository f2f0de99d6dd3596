"""``path/to/file.py:factory``: loaded, named, fingerprinted, put in the place of a study's classifier."""

import pytest
import torch
from PIL import Image
from torch import nn

from nbsupport.classifiers.custom import is_reference, load, name
from nbsupport.classifiers.models import predicted_classes
from nbsupport.experiments.artifacts import Artefacts
from nbsupport.experiments.evaluation import Evaluation
from nbsupport.experiments.fingerprints import fingerprint
from nbsupport.experiments.store import Store
from nbsupport.study import Study

TEXT = """
import torch
from torch import nn

import neighbour


class Mine(nn.Module):
    def __init__(self, classes):
        super().__init__()
        torch.manual_seed(neighbour.SEED)
        self.layer = nn.Linear(3, classes)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, images):
        return self.layer(self.scale * images.mean(dim=(2, 3)))


def factory():
    return Mine(3).eval()


def larger():
    return Mine(5).eval()


def training():
    return Mine(3)


def failing():
    return 1 / 0


def nothing():
    return None
"""


@pytest.fixture
def file(tmp_path):
    """A user's file, which imports its neighbour."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/neighbour.py").write_text("SEED = 3")
    path = tmp_path / "mine/model.py"
    path.write_text(TEXT)
    return path


@pytest.fixture
def tree(tmp_path):
    """Three classes of 8 images."""
    generator = torch.Generator().manual_seed(0)
    for label, word in enumerate(("ant", "bee", "cat")):
        (tmp_path / "tree" / word).mkdir(parents=True)
        for number in range(8):
            pixels = torch.randint(256, (11, 13, 3), generator=generator, dtype=torch.uint8)
            pixels[..., label] = 255
            Image.fromarray(pixels.numpy()).save(tmp_path / "tree" / word / f"{number}.png")
    return tmp_path / "tree"


def own(file, tree, factory="factory", **changes):
    study = Study.named(
        "folder", "smoke", data=str(tree), image_size=11, classifier=f"{file}:{factory}", **changes
    )
    return Artefacts(study)


# -- loaded --------------------------------------------------------------------------------------


def test_a_factory_is_called(file):
    torch.manual_seed(3)
    layer = nn.Linear(3, 3)
    images = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(load(f"{file}:factory")(images), layer(2 * images.mean(dim=(2, 3))))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "{file}:absent",
            r"classifier: model.py has no function 'absent'; it has: factory, larger, training, failing",
        ),
        (
            "{file}:failing",
            r"classifier: model.py:failing\(\) failed with ZeroDivisionError: division by zero",
        ),
        ("{file}:nothing", "classifier: expected an nn.Module from .*nothing, got NoneType"),
        ("{file}", "classifier: expected path/to/file.py:factory, got"),
        ("{file}:", "classifier: expected path/to/file.py:factory, got"),
        (
            "model.txt:factory",
            "classifier: expected path/to/file.py:factory, got 'model.txt:factory'",
        ),
    ],
)
def test_other_references_are_refused(reference, message, file):
    with pytest.raises(ValueError, match=message):
        load(reference.format(file=file))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"classifier: there is no file .*absent.py, named by"
    ):
        load(f"{tmp_path}/absent.py:factory")


def test_a_file_that_fails_is_named(file):
    file.write_text("import a_package_that_nobody_has")
    with pytest.raises(
        ValueError,
        match=r"classifier: model.py failed with ModuleNotFoundError: No module named 'a_pack",
    ):
        load(f"{file}:factory")


@pytest.mark.parametrize(
    ("text", "is_one"), [("a/b.py:f", True), ("b.py", True), ("resnet50", False), ("", False)]
)
def test_a_reference_is_told_from_an_architecture(text, is_one):
    assert is_reference(text) == is_one


# -- fingerprinted -------------------------------------------------------------------------------


def test_the_fingerprint_knows_no_place(file, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    copies = [path.rename(tmp_path / "elsewhere" / path.name) for path in file.parent.iterdir()]
    (tmp_path / "mine/neighbour.py").write_text("SEED = 3")
    file.write_text(TEXT)
    (moved,) = [path for path in copies if path.name == file.name]
    prints = [fingerprint(load(f"{path}:factory"), f"{path}:factory") for path in (file, moved)]
    assert prints[0] == prints[1]
    assert prints[0]["name"] == "model.py:factory"
    assert str(tmp_path) not in str(prints[0])


@pytest.mark.parametrize("what", ["weight", "buffer", "structure", "text"])
def test_whatever_changes_logits_changes_the_fingerprint(what, file):
    reference = f"{file}:factory"
    module = load(reference)
    before = fingerprint(module, reference)
    if what == "weight":
        module.layer.weight.data[0, 0] += 1e-6
    elif what == "buffer":  # which no state_dict has
        module.scale += 1
    elif what == "structure":
        module.extra = nn.ReLU()
    else:
        file.write_text(TEXT.replace("mean(dim=(2, 3))", "amax(dim=(2, 3))"))
    assert fingerprint(module, reference) != before


def test_a_module_of_a_notebook_has_one_too():
    class One(nn.Module):
        def forward(self, images):
            return images

    class Two(nn.Module):
        def forward(self, images):
            return images + 1

    Two.__name__ = Two.__qualname__ = "One"
    assert fingerprint(One())["name"] == name(One()) == "One"
    assert fingerprint(One()) == fingerprint(One())
    assert fingerprint(One()) != fingerprint(Two())


# -- in the place of a study's classifier --------------------------------------------------------


def test_it_is_attacked_and_defended(file, tree):
    artefacts = own(file, tree, steps=1)
    evaluation = Evaluation(artefacts)
    rows = evaluation.table(4, "attacked", "PA-Filt(L_img)_sl")
    assert (artefacts.study.train_images, artefacts.study.test_images) == (16, 8)
    assert set(rows["classifier"]) == {"model.py:factory"}
    expected = artefacts.classifier()(artefacts.images("test").images).argmax(dim=1)
    assert torch.equal(evaluation.measurement("attacked").predictions[0], expected)
    assert not (artefacts.store.home / "classifier").exists()


def test_keys_follow_it(file, tree):
    study = own(file, tree).attacked_specification("train")
    assert study == own(file, tree).attacked_specification("train")
    assert study["classifier"]["name"] == "model.py:factory"
    (file.parent / "neighbour.py").write_text("SEED = 4444")
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(__import__("sys").modules, "neighbour")
        assert own(file, tree).attacked_specification("train") != study
    assert str(file.parent) not in str(study)


def test_a_module_can_be_given_instead(tree, tmp_path):
    class Mine(nn.Module):
        def forward(self, images):
            return 5 * images.mean(dim=(2, 3)) - 2

    study = Study.named("folder", "smoke", data=str(tree), image_size=11)
    artefacts = Artefacts(study, Store(tmp_path / "store"), own=Mine().eval())
    images = artefacts.images("test").images
    assert torch.equal(artefacts.classifier()(images), 5 * images.mean(dim=(2, 3)) - 2)
    assert artefacts.study.classifier == artefacts.classifier_specification()["name"] == "Mine"


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("larger", "classifier: the data have 3 classes, but it returns 5 logits"),
        ("training", "it is in training mode"),
    ],
)
def test_it_is_tried_before_it_is_used(factory, message, file, tree):
    with pytest.raises(ValueError, match=message):
        own(file, tree, factory).attacked_specification("test")


def test_it_may_know_more_classes_where_the_data_leave_some_out(file, tree):
    for word, number in {"ant": "0", "bee": "2", "cat": "3"}.items():
        (tree / word).rename(tree / number)
    artefacts = own(file, tree, "larger")
    assert artefacts.images("test").labels.unique().tolist() == [0, 2, 3]
    words = predicted_classes(
        artefacts.classifier(), artefacts.images("test").images, artefacts.images("test").classes
    )
    assert set(words) <= set("01234")


def test_provenance_names_no_place(file, tree):
    specification = own(file, tree).study.specification()
    assert (specification["classifier"], specification["data"]) == ("model.py:factory", "tree")
