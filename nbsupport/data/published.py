"""CIFAR-10 and SVHN: torchvision's own files, downloaded on first use, or an image tree in their place.

They lie in the folder `home`, named by ``NBSUPPORT_DATA``. An image tree ``cifar10/{train,test}/<class>/…``
there is taken before torchvision's files; the specification of every result says which it was.
"""

import os
import shutil
import tarfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.datasets import CIFAR10, SVHN
from torchvision.transforms.v2.functional import resize

from ..experiments.store import default_home
from . import image_folder as folders

CLASSES = {
    "cifar10": (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    "svhn": tuple("0123456789"),
}
KINDS = {"cifar10": CIFAR10, "svhn": SVHN}
MEGABYTES = {"cifar10": 170, "svhn": 250}
SPLITS: dict[str, dict[str, dict[str, Any]]] = {
    "cifar10": {"train": {"train": True}, "test": {"train": False}},
    "svhn": {"train": {"split": "train"}, "test": {"split": "test"}},
}
FILES = {"cifar10": (CIFAR10.base_folder,), "svhn": ("train_32x32.mat", "test_32x32.mat")}
PARTIAL = ".download-"


class Source(NamedTuple):
    """A part of a data set, its images not yet decoded."""

    read: Callable[[], Float[Tensor, "n 3 h w"]]
    labels: Int[Tensor, "n"]
    classes: tuple[str, ...]
    specification: dict[str, Any]


def home() -> Path:
    """The data folder: ``NBSUPPORT_DATA``, or else ``data`` in the store."""
    return Path(os.environ.get("NBSUPPORT_DATA") or default_home() / "data").expanduser().absolute()


def is_tree(name: str) -> bool:
    """Whether an image tree lies where it takes the place of torchvision's files."""
    return (home() / name / "train").is_dir()


def tree(name: str) -> folders.Tree | None:
    """The image tree that takes the place of torchvision's files, if there is one.

    Raises
    ------
    ValueError
        If it is refused (`nbsupport.data.image_folder`) or its classes are not those of the data set.
    """
    if not is_tree(name):
        return None
    found = _tree(str(home() / name))
    if found.classes != CLASSES[name]:
        raise ValueError(
            f"{name}: expected the classes {', '.join(CLASSES[name])} in {found.root}, got {', '.join(found.classes)}"
        )
    return found


_tree = lru_cache(maxsize=2)(folders.find)


def there(name: str) -> bool:
    """Whether the data set need not be downloaded."""
    return is_tree(name) or all((home() / file).exists() for file in FILES[name])


def form(name: str) -> str:
    """What the images are: torchvision's own, or what kind of files lies in their place."""
    found = tree(name)
    if found is None:
        return "torchvision's files"
    kinds = _suffixes(found.files["train"] + found.files["test"])
    return (
        "JPEG copies" if set(kinds) <= {".jpg", ".jpeg"} else f"an image tree of {', '.join(kinds)}"
    )


def _suffixes(files: folders.Files) -> list[str]:
    return sorted({path.suffix.lower() for path, _ in files})


def find(name: str, split: str, number: int | None, image_size: int) -> Source:
    """The first `number` images of a split of ``cifar10`` or ``svhn``; all where None.

    Raises
    ------
    ValueError
        If a file is damaged, or an image tree is refused.
    FileNotFoundError
        If nothing is there and the download fails; of which nothing is kept then.
    """
    specification: dict[str, Any] = {"data": name, "split": split, "size": image_size}
    if found := tree(name):
        files = found.files[split][:number]
        source = f"image tree ({', '.join(_suffixes(files))})"
        specification |= {"source": source, "content": folders.digest(found.root, files)}
        labels = torch.tensor([label for _, label in files])
        read = partial(folders.read, found.root, files, image_size)
    else:
        dataset = _torchvision(name, split, home())
        raw = torch.from_numpy(
            dataset.data[:number]
        )  # (n, h, w, 3) for CIFAR-10, (n, 3, h, w) for SVHN
        images = raw.permute(0, 3, 1, 2) if raw.shape[-1] == 3 else raw
        targets = dataset.targets if isinstance(dataset, CIFAR10) else dataset.labels
        specification["source"] = f"torchvision.datasets.{type(dataset).__name__}"
        labels, read = (
            torch.as_tensor(targets[:number]).long(),
            partial(_scaled, images, image_size),
        )
    return Source(read, labels, CLASSES[name], specification | {"images": len(labels)})


def _scaled(images: Tensor, image_size: int) -> Float[Tensor, "n 3 h w"]:
    scaled = images.float() / 255
    if scaled.shape[-1] == image_size:
        return scaled
    return resize(scaled, [image_size, image_size], antialias=True).clamp(0, 1)


@lru_cache(maxsize=2)
def _torchvision(name: str, split: str, folder: Path) -> CIFAR10 | SVHN:
    kind, options = KINDS[name], SPLITS[name][split]
    if not there(name):
        _download(name, folder)
    try:
        return kind(folder, download=False, **options)
    except RuntimeError as error:
        files = " ".join(str(folder / file) for file in FILES[name])
        raise ValueError(
            f"{name}: a file is damaged or missing, its checksum is not torchvision's. Remove what is there, and the "
            f"next call downloads it again: rm -r {files}"
        ) from error


def _download(name: str, folder: Path) -> None:
    """Into a folder of its own first, so that an interrupted or damaged download leaves nothing behind."""
    kind = KINDS[name]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        for left in folder.glob(f"{PARTIAL}*"):  # of a process that was killed
            shutil.rmtree(left)
        if there(name):  # another process was faster
            return
        print(f"{name}: downloading about {MEGABYTES[name]} MB to {folder}")
        with TemporaryDirectory(prefix=PARTIAL, dir=folder) as place:
            try:
                for options in SPLITS[name].values():
                    kind(place, download=True, **options)
            except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
                raise FileNotFoundError(
                    f"{name}: the download failed ({error}), and nothing of it was kept. Try again: "
                    f"python -m nbsupport compute --study {name}; or set NBSUPPORT_DATA to a folder with torchvision's "
                    f"files ({', '.join(FILES[name])}), or with {name}/train/<class>/… and {name}/test/<class>/…"
                ) from error
            for file in FILES[name]:
                Path(place, file).rename(folder / file)
