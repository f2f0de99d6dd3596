"""The data sets: photographs, CIFAR-10 and SVHN as torchvision downloads them, NeurIPS-2017DEV."""

import pickle
import shutil
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, SVHN
from torchvision.datasets.utils import calculate_md5 as md5

from nbsupport.data import photographs
from nbsupport.data.benchmarks import CLASSES, fit_to_images, load, locate
from nbsupport.study import Study

BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
PER_BATCH = 4


def part(name, split="train", number=None, **changes):
    return load(fit_to_images(Study.named(name, "smoke", **changes)), split, number)


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """The data folder, empty."""
    monkeypatch.setenv("NBSUPPORT_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_photographs_of_their_own_size_are_their_patches():
    test = part("photographs", "test", 20, image_size=32)
    assert torch.equal(test.images, photographs.cut("test", 20))
    assert [test.classes[label] for label in test.labels[:10]] == [*photographs.STARTS]
    with pytest.raises(ValueError, match=r"has \d+ test images, but 10001"):
        part("photographs", "test", 10001)


@pytest.mark.parametrize(("split", "number"), [("test", 0), ("validation", None)])
def test_other_splits_and_numbers_are_refused(split, number):
    with pytest.raises(ValueError, match=f"load: .*({split}|{number})"):
        part("photographs", split, number)


@pytest.fixture
def server(tmp_path):
    """The address of a web server of the test's folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@pytest.fixture
def cifar(tmp_path, server, monkeypatch):
    """CIFAR-10's archive where torchvision downloads it, and the pixels of its small batches."""
    folder, pixels = tmp_path / "made" / CIFAR10.base_folder, {}
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in BATCHES:
        pixels[name] = generator.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8)
        labels = [(number + len(pixels)) % 10 for number in range(PER_BATCH)]
        (folder / name).write_bytes(pickle.dumps({"data": pixels[name], "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CLASSES["cifar10"])}))
    archive = tmp_path / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, CIFAR10.base_folder)
    sums = [[path, md5(folder / path)] for path in BATCHES]
    monkeypatch.setattr(CIFAR10, "url", f"{server}/{archive.name}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(folder / "batches.meta")})
    return archive, pixels


@pytest.fixture
def svhn(tmp_path, server, monkeypatch):
    """SVHN's two files where torchvision downloads them, six images each; its 0 is stored as 10."""
    generator, split_list, pixels = np.random.default_rng(0), {}, {}
    labels = np.array([[10], [1], [2], [9], [10], [5]], dtype=np.uint8)
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        pixels[split] = generator.integers(0, 256, (32, 32, 3, 6), dtype=np.uint8)
        savemat(path, {"X": pixels[split], "y": labels})
        split_list[split] = [f"{server}/{path.name}", path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", split_list)
    return pixels


def test_cifar10_is_downloaded_once(cifar, capsys):
    archive, pixels = cifar
    assert not locate(Study.named("cifar10"))[0]
    train = part("cifar10")
    assert "cifar10: downloading about 170 MB" in capsys.readouterr().out
    assert locate(Study.named("cifar10"))[0]
    archive.unlink()
    test = part("cifar10", "test", 3)
    whole = np.concatenate([pixels[name] for name in BATCHES[:5]]).reshape(-1, 3, 32, 32)
    first = pixels["test_batch"].reshape(-1, 3, 32, 32)[:3]
    assert torch.equal(train.images, torch.from_numpy(whole).float() / 255)
    assert torch.equal(test.images, torch.from_numpy(first).float() / 255)
    assert train.labels[:5].tolist() == [1, 2, 3, 4, 2]
    source = {"data": "cifar10", "source": "torchvision.datasets.CIFAR10"}
    assert test.specification == source | {"split": "test", "size": 32, "images": 3}


def test_svhn_counts_from_0(svhn):
    test = part("svhn", "test")
    assert test.labels.tolist() == [0, 1, 2, 9, 0, 5]
    expected = torch.from_numpy(svhn["test"].transpose(3, 2, 0, 1).copy()).float() / 255
    assert torch.equal(test.images, expected)
    with pytest.raises(ValueError, match="6 test images, but 7"):
        part("svhn", "test", 7)


@pytest.mark.parametrize("absent", [False, True])
def test_a_failed_download_is_reported_and_repeated(absent, cifar):
    archive, _ = cifar
    content = archive.read_bytes()
    archive.unlink() if absent else archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(FileNotFoundError, match=r"download failed .*: python -m"):
        part("cifar10")
    archive.write_bytes(content)
    assert len(part("cifar10")) == 5 * PER_BATCH


def test_a_damaged_file_is_not_used_until_it_is_removed(cifar, data):
    folder, split, name = data / CIFAR10.base_folder, "train", "data_batch_3"
    part("cifar10")
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"cifar10: a file is damaged.* rm -r {folder}$"):
        part("cifar10", split)
    shutil.rmtree(folder)
    assert len(part("cifar10", split))


def test_two_at_once_download_once(cifar, capsys):
    with ThreadPoolExecutor(2) as pool:
        lengths = list(pool.map(lambda split: len(part("cifar10", split)), ("train", "test")))
    assert lengths == [5 * PER_BATCH, PER_BATCH]
    assert capsys.readouterr().out.count("downloading") == 1


def tree(data, classes=CLASSES["cifar10"], suffix="jpg"):
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            (data / "cifar10" / split / name).mkdir(parents=True)
            for number in range(2):
                picture = Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                picture.save(data / "cifar10" / split / name / f"{number}.{suffix}")


def test_an_image_tree_takes_their_place(data):
    tree(data, suffix="png")
    train = part("cifar10")
    assert train.labels.bincount().tolist() == [2] * 10
    later = load(fit_to_images(Study.named("cifar10", "smoke")), "train", 5, skip=3)
    assert torch.equal(later.images, train.images[3:8])
    assert torch.equal(later.labels, train.labels[3:8])
    found = {(image * 255).round().byte().numpy().tobytes() for image in train.images}
    paths = (data / "cifar10" / "train").rglob("*.png")
    assert found == {np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes() for path in paths}


@pytest.mark.parametrize(("suffix", "form"), [("jpg", "JPEG copies"), ("png", "image tree (.png)")])
def test_a_study_names_the_source_of_its_images(data, suffix, form):
    study = Study.named("cifar10", "smoke", train_images=20, test_images=20)
    assert fit_to_images(study) == replace(study, images_from="torchvision's files")
    tree(data, suffix=suffix)
    split = dict(train_images=16, validation_images=4)  # of 20
    assert fit_to_images(study) == replace(study, images_from=form, **split)
    assert locate(study) == (True, f"its images are in {data / 'cifar10'}")


def test_an_image_tree_with_other_classes_is_refused(data):
    tree(data, classes=("cat", "dog"))
    with pytest.raises(ValueError, match=r"cifar10: expected the classes .* got cat, dog"):
        part("cifar10")
    assert not locate(Study.named("cifar10"))[0]


LABELS = [1, 1000, 389, 327, 2, 7, 5, 6, 3]


@pytest.fixture
def neurips(data):
    """Nine images of a list of twelve; labels count from 1."""
    images = data / "neurips2017dev" / "images"
    images.mkdir(parents=True)
    names = [f"{number:04x}" for number in range(12)]
    for number, name in enumerate(names[:9]):
        Image.fromarray(np.full((30, 30, 3), number * 20, np.uint8)).save(images / f"{name}.png")
    table = pd.DataFrame({"ImageId": names, "TrueLabel": [*LABELS, 4, 4, 4]})
    table.to_csv(images.parent / "images.csv", index=False)
    return images.parent


def test_a_third_is_for_testing_and_never_trained_on(neurips):
    numbers = []
    for split in ("train", "test"):
        each = part("neurips2017dev", split)
        here = [round(float(image.mean()) * 255 / 20) for image in each.images]
        assert each.labels.tolist() == [LABELS[number] - 1 for number in here]
        assert each.classes[388] == "giant panda"
        numbers += here
    assert sorted(numbers) == list(range(9))
    study = fit_to_images(Study.named("neurips2017dev", "smoke"))
    assert (study.train_images, study.validation_images, study.test_images) == (5, 1, 3)
    assert study.images_from == "9 of 1,000 images; trained on 2 of 3 images of the set"


def test_imagenet_is_trained_on_where_it_is(neurips):
    for number in range(1000):
        folder = neurips.parent / "imagenet" / "train" / f"n{number:08}"
        folder.mkdir(parents=True)
        for position in range(6 if number == 3 else 1):
            (folder / f"{position}.JPEG").write_bytes(b"not decoded")
    train, test = (part("neurips2017dev", split) for split in ("train", "test"))
    assert len(test) == 9
    assert train.labels.bincount().tolist() == [5 if n == 3 else 1 for n in range(1000)]
    assert train.specification["source"] == "trained on imagenet/train"


def test_a_part_of_imagenet_is_refused(neurips):
    (neurips.parent / "imagenet" / "train" / "n01440764").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"imagenet/train: .* 1000 class folders, got 1"):
        part("neurips2017dev")


@pytest.mark.parametrize("entry", [("TrueLabel", 0), ("no", 1)])
def test_impossible_labels_are_refused(entry, neurips):
    column, label = entry
    table = pd.DataFrame({"ImageId": ["0000"], column: [label]})
    table.to_csv(neurips / "images.csv", index=False)
    with pytest.raises(ValueError, match="TrueLabel"):
        part("neurips2017dev", "test")


@pytest.mark.parametrize("missing", ["images.csv", "images"])
def test_a_missing_set_says_how_to_get_it(missing, neurips):
    (neurips / missing).rename(neurips / "elsewhere")
    with pytest.raises(FileNotFoundError, match="NBSUPPORT_DATA"):
        part("neurips2017dev", "test")
