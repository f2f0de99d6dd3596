"""NeurIPS-2017DEV from a folder that the test makes: labels from 1, incomplete, with and without ImageNet."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from nbsupport.data.benchmarks import fitted, load, neurips
from nbsupport.study import Study

LABELS = [1, 1000, 389, 327, 2, 7, 5, 6, 3]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Nine images of a list of twelve."""
    images = tmp_path / neurips.NAME / "images"
    images.mkdir(parents=True)
    names = [f"{number:04x}" for number in range(12)]
    for name in names[:9]:
        value = int(name, 16) * 20
        Image.fromarray(np.full((30, 30, 3), value, dtype=np.uint8)).save(images / f"{name}.png")
    pd.DataFrame({"ImageId": names, "TrueLabel": [*LABELS, 4, 4, 4]}).to_csv(
        images.parent / "images.csv", index=False
    )
    monkeypatch.setenv("NBSUPPORT_DATA", str(tmp_path))
    _forget()
    return tmp_path


def _forget():
    neurips._set.cache_clear()
    neurips._parts.cache_clear()


def study(**changes):
    return Study.named("neurips2017dev", "smoke", **changes)


def test_labels_start_at_1_in_the_file(data):
    for split in ("train", "test"):
        part = load(study(), split)
        for image, label in zip(part.images, part.labels, strict=True):
            assert label == LABELS[round(float(image.mean()) * 255 / 20)] - 1


def test_a_third_is_for_testing_and_never_trained_on(data):
    parts = {split: load(study(), split) for split in ("train", "test")}
    assert (
        {split: len(part) for split, part in parts.items()}
        == neurips.sizes()
        == {"train": 6, "test": 3}
    )
    values = {
        split: {round(float(image.mean()) * 255) for image in part.images}
        for split, part in parts.items()
    }
    assert not values["train"] & values["test"]
    assert len(values["train"] | values["test"]) == 9
    assert parts["test"].specification["source"] == "trained on 2 of 3 images of the set"
    assert parts["test"].specification["there"] == neurips.there() == 9


def test_a_study_asks_for_no_more_than_there_is(data):
    assert (fitted(study()).train_images, fitted(study()).test_images) == (6, 3)
    assert fitted(study()).images_from.startswith("9 of 1,000 images; trained on")


def test_classes_have_imagenets_names(data):
    assert load(study(), "test").classes[388] == "giant panda"


def test_imagenet_is_trained_on_where_it_is(data):
    for number in range(1000):
        folder = data / "imagenet" / "train" / f"n{number:08}"
        folder.mkdir(parents=True)
        for position in range(6 if number == 3 else 1):
            (folder / f"{position}.JPEG").write_bytes(b"not decoded")
    parts = {split: load(study(), split) for split in ("train", "test")}
    assert len(parts["test"]) == 9
    assert torch.bincount(parts["train"].labels).tolist() == [
        5 if number == 3 else 1 for number in range(1000)
    ]
    assert parts["train"].specification["source"] == "trained on imagenet/train"


def test_part_of_imagenet_is_refused(data):
    (data / "imagenet" / "train" / "n01440764").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"expected 1000 class folders in .*imagenet/train, found 1"
    ):
        load(study(), "train")


@pytest.mark.parametrize("label", [0, 1001, "panda", ""])
def test_impossible_labels_are_refused(label, data):
    pd.DataFrame({"ImageId": ["0000"], "TrueLabel": [label]}).to_csv(
        data / neurips.NAME / "images.csv", index=False
    )
    with pytest.raises(ValueError, match="expected every TrueLabel from 1 to 1000"):
        load(study(), "test")


def test_a_list_of_something_else_is_refused(data):
    pd.DataFrame({"ImageId": ["0000"], "label": [1]}).to_csv(
        data / neurips.NAME / "images.csv", index=False
    )
    with pytest.raises(ValueError, match="has no column TrueLabel"):
        load(study(), "test")


@pytest.mark.parametrize("missing", ["list", "images"])
def test_where_nothing_is_it_is_said_how_to_get_it(missing, data):
    folder = data / neurips.NAME
    if missing == "list":
        (folder / "images.csv").unlink()
    for path in (folder / "images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="nips-2017-adversarial-learning-development-set"):
        load(study(), "test")
