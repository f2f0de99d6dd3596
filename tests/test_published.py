"""CIFAR-10 and SVHN from files of torchvision's format, downloaded by torchvision's code; or from an image tree."""

import functools
import hashlib
import http.server
import pickle
import tarfile
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, SVHN

from nbsupport.data.benchmarks import fitted, load, published
from nbsupport.study import Study

BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
PER_BATCH = 4


def md5(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """The data folder, empty."""
    monkeypatch.setenv("NBSUPPORT_DATA", str(tmp_path / "data"))
    published._torchvision.cache_clear()
    published._tree.cache_clear()
    return tmp_path / "data"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and keeps silent."""

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    """The address of a web server of the test's folder."""
    handler = functools.partial(Quiet, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@pytest.fixture
def cifar(tmp_path, server, monkeypatch):
    """CIFAR-10's archive with four images per batch, where torchvision looks for it, and its pixels by split."""
    generator, folder = np.random.default_rng(0), tmp_path / "made" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    pixels = {}
    for name in BATCHES:
        pixels[name] = generator.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8)
        labels = [(number + len(pixels)) % 10 for number in range(PER_BATCH)]
        (folder / name).write_bytes(pickle.dumps({"data": pixels[name], "labels": labels}))
    (folder / "batches.meta").write_bytes(
        pickle.dumps({"label_names": list(published.CLASSES["cifar10"])})
    )
    archive = tmp_path / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "url", f"{server}/{archive.name}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(folder / name)] for name in BATCHES[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[BATCHES[5], md5(folder / BATCHES[5])]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(folder / "batches.meta")})
    return archive, pixels


@pytest.fixture
def svhn(tmp_path, server, monkeypatch):
    """SVHN's two files with six images each, where torchvision looks for them; its 0 is stored as 10."""
    generator, split_list, pixels = np.random.default_rng(0), {}, {}
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        pixels[split] = generator.integers(0, 256, (32, 32, 3, 6), dtype=np.uint8)
        savemat(
            path,
            {"X": pixels[split], "y": np.array([[10], [1], [2], [9], [10], [5]], dtype=np.uint8)},
        )
        split_list[split] = [f"{server}/{path.name}", path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", split_list)
    return pixels


def part(name, split="train", number=None, **changes):
    return load(Study.named(name, "smoke", **changes), split, number)


def left(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_cifar10_is_downloaded_once(cifar, data, capsys):
    archive, pixels = cifar
    train = part("cifar10")
    assert "cifar10: downloading about 170 MB" in capsys.readouterr().out
    archive.unlink()
    published._torchvision.cache_clear()
    test = part("cifar10", "test", 3)
    whole = np.concatenate([pixels[name] for name in BATCHES[:5]]).reshape(-1, 3, 32, 32)
    assert torch.equal(train.images, torch.from_numpy(whole).float() / 255)
    assert torch.equal(
        test.images, torch.from_numpy(pixels["test_batch"].reshape(-1, 3, 32, 32)[:3]).float() / 255
    )
    assert train.labels[:5].tolist() == [1, 2, 3, 4, 2]
    assert test.specification == {
        "data": "cifar10", "split": "test", "size": 32, "source": "torchvision.datasets.CIFAR10", "images": 3,
    }  # fmt: skip
    assert left(data) == [CIFAR10.base_folder]


def test_svhn_counts_from_0(svhn, data):
    test = part("svhn", "test")
    assert test.labels.tolist() == [0, 1, 2, 9, 0, 5]
    assert torch.equal(
        test.images, torch.from_numpy(svhn["test"].transpose(3, 2, 0, 1).copy()).float() / 255
    )
    assert len(part("svhn")) == 6
    assert left(data) == ["test_32x32.mat", "train_32x32.mat"]


def test_other_sizes_are_resized(cifar):
    images = part("cifar10", "test", image_size=16).images
    assert images.shape == (PER_BATCH, 3, 16, 16)
    assert torch.allclose(
        images.mean(dim=(2, 3)), part("cifar10", "test").images.mean(dim=(2, 3)), atol=0.02
    )


@pytest.mark.parametrize("damage", ["truncated", "altered", "absent"])
def test_a_failed_download_leaves_nothing(damage, cifar, data):
    archive, _ = cifar
    content = archive.read_bytes()
    if damage == "absent":
        archive.unlink()
    else:
        altered = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
        archive.write_bytes(content[: len(content) // 2] if damage == "truncated" else altered)
    with pytest.raises(
        FileNotFoundError, match=r"cifar10: the download failed .* Try again: python -m nbsupport"
    ):
        part("cifar10")
    assert left(data) == []
    archive.write_bytes(content)
    assert len(part("cifar10")) == 5 * PER_BATCH


def test_what_a_killed_download_left_is_removed(cifar, data):
    (data / f"{published.PARTIAL}killed").mkdir(parents=True)
    (data / f"{published.PARTIAL}killed" / "half.tar.gz").write_bytes(b"half")
    part("cifar10")
    assert left(data) == [CIFAR10.base_folder]


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch"])
def test_a_damaged_file_is_named_and_not_used(file, cifar, data):
    part("cifar10")
    damaged = data / CIFAR10.base_folder / file
    damaged.write_bytes(damaged.read_bytes()[:-1])
    published._torchvision.cache_clear()
    with pytest.raises(ValueError, match=f"cifar10: a file is damaged or missing.*rm -r {data}"):
        part("cifar10", "test" if file == "test_batch" else "train")


def tree(data, classes=published.CLASSES["cifar10"], suffix="jpg"):
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            (data / "cifar10" / split / name).mkdir(parents=True)
            for number in range(2):
                picture = Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                picture.save(data / "cifar10" / split / name / f"{number}.{suffix}")


def test_an_image_tree_is_taken_instead(data, cifar):
    tree(data, suffix="png")
    train = part("cifar10")
    assert train.specification["source"] == "image tree (.png)"
    assert sorted(train.labels.tolist()) == sorted([*range(10)] * 2)
    files = published.tree("cifar10").files["train"]
    for image, (path, label) in zip(train.images, files, strict=True):
        pixels = torch.from_numpy(np.asarray(Image.open(path)).transpose(2, 0, 1).copy())
        assert torch.allclose(image * 255, pixels.float(), atol=1e-3)
        assert published.CLASSES["cifar10"][label] == path.parent.name


@pytest.mark.parametrize(
    ("suffix", "form"), [("jpg", "JPEG copies"), ("png", "an image tree of .png")]
)
def test_a_study_says_what_its_images_are(data, suffix, form):
    study = Study.named("cifar10", "smoke")
    assert fitted(study).images_from == "torchvision's files"
    tree(data, suffix=suffix)
    assert fitted(study) == replace(study, images_from=form)


def test_nothing_is_decoded_before_it_is_needed(data, monkeypatch):
    tree(data)
    monkeypatch.setattr(published.folders, "read", lambda *arguments: pytest.fail("decoded"))
    assert len(part("cifar10", number=7)) == 7


def test_an_image_tree_with_other_classes_is_refused(data):
    tree(data, classes=("cat", "dog"))
    with pytest.raises(
        ValueError, match=r"cifar10: expected the classes airplane, .* got cat, dog"
    ):
        part("cifar10")


def test_more_than_there_is_cannot_be_had(svhn):
    with pytest.raises(ValueError, match="svhn has 6 test images, but 7 were asked for"):
        part("svhn", "test", 7)
