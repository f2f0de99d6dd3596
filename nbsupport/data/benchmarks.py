"""The studies' data sets: photographs, CIFAR-10, SVHN, NeurIPS-2017DEV, or a folder of images.

torchvision downloads CIFAR-10 and SVHN on first use, unless an image folder stands in for them,
``cifar10/{train,test}/<class>/…``. NeurIPS-2017DEV has ``images.csv``, ``images/<ImageId>.png``
and no training split: denoisers learn from five images per class of ``imagenet/train/<wnid>/…``,
or else from two thirds of the set itself; the other third is for testing.
"""

import os
import tarfile
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock
from jaxtyping import UInt8
from torch import Tensor
from torchvision.datasets import CIFAR10, SVHN
from torchvision.models import ResNet50_Weights
from torchvision.transforms.v2.functional import resize

from ..study import Study, default_home
from . import image_folder, photographs
from .image_folder import SPLITS, Tree
from .images import Labels, Split

Pixels = UInt8[Tensor, "b c height width"]
OBJECTS = "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
CLASSES = {"cifar10": OBJECTS, "svhn": tuple("0123456789")}
OPEN = {"cifar10": lambda root, split, **o: CIFAR10(root, split == "train", **o), "svhn": SVHN}
FILES = {"cifar10": (CIFAR10.base_folder,), "svhn": ("train_32x32.mat", "test_32x32.mat")}
MEGABYTES = {"cifar10": 170, "svhn": 250}


def load(study: Study, split: str, number: int | None = None, skip: int = 0) -> Split:
    """Load `number` images of ``train`` or ``test`` after the first `skip`, or all that follow.

    Splits are shuffled in a fixed order, so the first images are a fair sample. They stay in memory
    until `fit_to_images` looks at the files again. Raises `ValueError` if there are fewer images
    or a file is refused, `FileNotFoundError` if files are missing and cannot be downloaded.
    """
    if split not in SPLITS or (number is not None and number < 1):
        got = f"{split!r} and {number}"
        raise ValueError(f"load: expected 'train' or 'test' and a positive number, got {got}")
    found = _load(study.name, _place(study), split, number, study.image_size, skip)
    if number and len(found) < number:
        there = f"{study.name} has {skip + len(found)} {split} images"
        number += skip
        raise ValueError(f"load: {there}, but {number} were asked for")
    return found


def fit_to_images(study: Study) -> Study:
    """Ask for no more images than there are, and name the source of the images for captions."""
    _load.cache_clear()
    if study.name == "photographs":
        return study
    tree = _find(study.name, _place(study))
    if tree is None:
        return replace(study, images_from="torchvision's files")
    source = tree.specification.get("source", "")
    if there := tree.specification.get("there"):
        source = f"{there:,} of 1,000 images; {source}"
    source = "JPEG copies" if source == "image tree (.jpg)" else source
    train, test = (len(tree.files[split]) for split in SPLITS)
    validation = min(study.validation_images, max(train // 5, 1))
    return replace(
        study, images_from=source, test_images=min(study.test_images, test),
        adaptive_images=min(study.adaptive_images, test),
        train_images=min(study.train_images, max(train - validation, 1)),
        validation_images=validation,
    )  # fmt: skip


def locate(study: Study) -> tuple[bool, str]:
    """Whether a study's images are there, and where, or how to get them; downloads nothing."""
    name, place = study.name, _place(study)
    if name == "photographs":
        return True, "its images come with scikit-image and scikit-learn"
    try:
        if _find(name, place):
            return True, f"its images are in {place if name == 'folder' else Path(place, name)}"
    except (ValueError, OSError) as error:
        return False, str(error)
    if all(Path(place, file).exists() for file in FILES[name]):
        return True, f"torchvision's files are in {place}"
    get = f"compute and run download about {MEGABYTES[name]} MB to {place}"
    return False, f"{get}; --data DIR names another place"


def _place(study: Study) -> str:
    """The folder of all data sets: ``NBSUPPORT_DATA``, or else ``data`` in the store."""
    if study.name == "folder":
        return study.data
    home = os.environ.get("NBSUPPORT_DATA") or default_home() / "data"
    return str(Path(home).expanduser().absolute())


@lru_cache(maxsize=4)
def _load(name: str, place: str, split: str, number: int | None, size: int, skip: int = 0) -> Split:
    if name == "photographs":
        return photographs.load(split, number, size, skip)
    specification, tree = {"data": name, "split": split, "size": size}, _find(name, place)
    chosen = slice(skip, skip + number if number else None)
    specification |= {"skip": skip} if skip else {}
    if tree is None:
        pixels, labels, source = _read_torchvision(name, place, split)
        pixels, labels = pixels[chosen].clone(), labels[chosen]
        specification |= {"source": source, "images": len(labels)}
        return Split(
            lambda: resize(pixels / 255, [size, size], antialias=True).clamp(0, 1),
            labels, CLASSES[name], specification,
        )  # fmt: skip
    files = tree.files[split][chosen]
    content = image_folder.digest(tree.root, files)
    specification |= {"content": content, "images": len(files)} | tree.specification
    labels = torch.tensor([label for _, label in files])
    cropped = tree.specification.get("cropped", 1.0)
    read = partial(image_folder.read, tree.root, files, size, cropped=cropped)
    every = [*tree.files["train"], *tree.files["test"]]
    # a folder is decoded now, so that broken files are refused before any work
    images = read(beside=every) if name == "folder" else read
    return Split(images, labels, tree.classes, specification)


def _find(name: str, place: str) -> Tree | None:
    """The files of a data set, unless it consists of arrays."""
    if name == "folder":
        return image_folder.find(place)
    if name == "neurips2017dev":
        return _find_neurips(Path(place))
    root = Path(place, name)
    if not (root / "train").is_dir():
        return None
    tree = image_folder.find(str(root))
    if tree.classes != CLASSES[name]:
        expected, got = (", ".join(classes) for classes in (CLASSES[name], tree.classes))
        raise ValueError(f"{name}: expected the classes {expected} in {root}, got {got}")
    kinds = sorted({path.suffix.lower() for files in tree.files.values() for path, _ in files})
    return replace(tree, specification={"source": f"image tree ({', '.join(kinds)})"})


def _read_torchvision(name: str, place: str, split: str) -> tuple[Pixels, Labels, str]:
    folder, names = Path(place), FILES[name]
    default_home().mkdir(parents=True, exist_ok=True)
    with FileLock(default_home() / f".{name}.lock"):  # `folder` may be read-only
        if not all((folder / file).exists() for file in names):
            print(f"{name}: downloading about {MEGABYTES[name]} MB to {folder}")
            try:
                for each in SPLITS:  # torchvision verifies checksums and replaces what is damaged
                    OPEN[name](folder, each, download=True)
            except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
                files = f"{', '.join(names)} or {name}/{{train,test}}/<class>/…"
                raise FileNotFoundError(
                    f"{name}: the download failed ({error}); try again, or set NBSUPPORT_DATA to a "
                    f"folder with {files}: python -m nbsupport compute --study {name}"
                ) from error
    try:
        found = OPEN[name](folder, split)
    except RuntimeError as error:
        hint = f"the next call downloads it after: rm -r {' '.join(str(folder / x) for x in names)}"
        raise ValueError(f"{name}: a file is damaged, its checksum is wrong; {hint}") from error
    pixels, source = torch.from_numpy(found.data), f"torchvision.datasets.{type(found).__name__}"
    if name == "cifar10":
        return pixels.permute(0, 3, 1, 2), torch.tensor(found.targets), source
    return pixels, torch.from_numpy(found.labels).long(), source


def _find_neurips(folder: Path) -> Tree:
    place, imagenet = folder / "neurips2017dev", folder / "imagenet" / "train"
    table, pictures = place / "images.csv", place / "images"
    if not table.is_file() or not any(pictures.glob("*.png")):
        where = "Kaggle: google-brain/nips-2017-adversarial-learning-development-set"
        hint = f"get them from {where}, or set NBSUPPORT_DATA to the folder that has them"
        raise FileNotFoundError(
            f"neurips2017dev: expected images.csv and images/ in {place}; {hint}"
        )
    listed = pd.read_csv(table, dtype=str).reindex(columns=["ImageId", "TrueLabel"])
    labels = pd.to_numeric(listed["TrueLabel"], errors="coerce")
    if not (labels.between(1, 1000) & listed["ImageId"].notna()).all():
        raise ValueError(f"{table}: expected columns ImageId and TrueLabel (1 to 1000)")
    paths = (pictures / f"{name}.png" for name in listed["ImageId"])
    files = sorted((path, int(label) - 1) for path, label in zip(paths, labels, strict=True))
    present = image_folder.shuffle([file for file in files if file[0].is_file()])
    if imagenet.is_dir():
        wnids = image_folder.list_classes(imagenet)
        if len(wnids) != 1000:
            raise ValueError(f"{imagenet}: expected 1000 class folders, got {len(wnids)}")
        every = image_folder.list_images(imagenet, {wnid: i for i, wnid in enumerate(wnids)})
        # the first five of each class
        train = [file for i, file in enumerate(every) if i < 5 or every[i - 5][1] != file[1]]
        splits = {"train": image_folder.shuffle(train), "test": present}
        source = "trained on imagenet/train"
    else:
        splits = image_folder.hold_out(present, "neurips2017dev")
        source = "trained on 2 of 3 images of the set"
    # ImageNet's public transform resizes the shorter side to 256 and cuts out the centre of 224
    specification = {"source": source, "there": len(present), "gaps": True, "cropped": 256 / 224}
    classes = tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    return Tree(folder, classes, splits, specification)
