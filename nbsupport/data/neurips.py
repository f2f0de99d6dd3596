"""NeurIPS-2017DEV: a folder with ``images.csv`` and ``images/<ImageId>.png``, and ImageNet's images for training.

The set has no training part. The denoisers learn from ``imagenet/train/<wnid>/*`` in the same data
folder, five images per class; where that is not there, from two thirds of the set itself, and results are
measured on the other third. `find`'s specification says which.
"""

from collections import defaultdict
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd
import torch
from torchvision.models import ResNet50_Weights

from . import image_folder as folders
from .published import Source, home

NAME, WHOLE, CLASSES, PER_CLASS = "neurips2017dev", 1000, 1000, 5
CROPPED = 256 / 224  # ImageNet's public transform: the shorter side to 256, the centre of 224
GET = (
    "get the development set of the NIPS 2017 adversarial learning competition (on Kaggle: "
    "google-brain/nips-2017-adversarial-learning-development-set)"
)


def find(split: str, number: int | None, image_size: int) -> Source:
    """The first `number` images of a split; all where None. Classes are ImageNet's 1,000, numbered from 0.

    Raises
    ------
    FileNotFoundError
        If the set is not there.
    ValueError
        If ``images.csv`` is not what it should be, or ``imagenet/train`` is not made of 1,000 class folders.
    """
    root, parts, source = _parts(home())
    files = parts[split][:number]
    specification = {
        "data": NAME, "source": source, "split": split, "size": image_size, "cropped": CROPPED, "images": len(files),
        "there": there(), "gaps": True, "content": folders.digest(root, files),
    }  # fmt: skip
    read = partial(folders.read, root, files, image_size, cropped=CROPPED)
    classes = tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    return Source(read, torch.tensor([label for _, label in files]), classes, specification)


def sizes() -> dict[str, int]:
    """How many images each split has."""
    return {split: len(files) for split, files in _parts(home())[1].items()}


def there() -> int:
    """How many of the set's 1,000 images there are."""
    return len(_set(home()))


def form() -> str:
    """How many of the images there are, and what the denoisers learn from."""
    return f"{there():,} of {WHOLE:,} images; {_parts(home())[2]}"


@lru_cache(maxsize=2)
def _set(folder: Path) -> folders.Files:
    place = folder / NAME
    if not (place / "images.csv").is_file():
        raise FileNotFoundError(f"{NAME}: {place / 'images.csv'} is not there; {GET} and put images.csv and images/ "
                                f"into {place}, or set NBSUPPORT_DATA to the folder that has {NAME}/")  # fmt: skip
    listed = pd.read_csv(place / "images.csv", dtype={"ImageId": str})
    if missing := {"ImageId", "TrueLabel"} - set(listed.columns):
        raise ValueError(
            f"{NAME}: {place / 'images.csv'} has no column {', '.join(sorted(missing))}; {GET}"
        )
    labels = pd.to_numeric(listed["TrueLabel"], errors="coerce")
    if not labels.between(1, CLASSES).all():
        raise ValueError(
            f"{NAME}: expected every TrueLabel from 1 to {CLASSES} in {place / 'images.csv'}"
        )
    images, named = place / "images", zip(listed["ImageId"], labels, strict=True)
    files = sorted((images / f"{name}.png", int(label) - 1) for name, label in named)
    present = [(path, label) for path, label in files if path.is_file()]
    if not present:
        raise FileNotFoundError(
            f"{NAME}: none of the {len(files)} images of images.csv is in {images}; {GET}"
        )
    return folders.shuffled(present)


@lru_cache(maxsize=2)
def _parts(folder: Path) -> tuple[Path, dict[str, folders.Files], str]:
    """The common root, the files of each split, and where those for training come from."""
    files, imagenet = _set(folder), folder / "imagenet" / "train"
    if imagenet.is_dir():
        return folder, {"train": _imagenet(imagenet), "test": files}, "trained on imagenet/train"
    last = folders.TEST_EVERY - 1
    train = tuple(item for number, item in enumerate(files) if number % folders.TEST_EVERY != last)
    if not (train and files[last :: folders.TEST_EVERY]):
        raise ValueError(f"{NAME}: {len(files)} images are too few to set some apart for testing")
    parts = {"train": train, "test": files[last :: folders.TEST_EVERY]}
    return (
        folder,
        parts,
        f"trained on {folders.TEST_EVERY - 1} of {folders.TEST_EVERY} images of the set",
    )


def _imagenet(train: Path) -> folders.Files:
    wnids = sorted(path.name for path in train.iterdir() if path.is_dir())
    if len(wnids) != CLASSES:
        raise ValueError(f"{NAME}: expected {CLASSES} class folders in {train}, found {len(wnids)}")
    chosen = defaultdict(list)
    for label, wnid in enumerate(wnids):
        chosen[label] = sorted(path for path in (train / wnid).iterdir() if path.is_file())[
            :PER_CLASS
        ]
        if not chosen[label]:
            raise ValueError(f"{NAME}: no image in {train / wnid}")
    return folders.shuffled([(path, label) for label, paths in chosen.items() for path in paths])
