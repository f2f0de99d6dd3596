"""Any folder of images: ``<folder>/{train,test}/<class>/…``, or ``<folder>/<class>/…``, split here.

Every file that Pillow opens becomes RGB in [0, 1]: grayscale, palettes, 16 bits, transparency on
white, upright according to EXIF. The shorter side is resized (bilinear, antialiased), then the
centre is cut out. Class folders named by whole numbers give the class numbers; other names are
numbered in alphabetical order.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import make_dataset
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize, to_dtype

from .images import Images

SPLITS = ("train", "test")
ORDER_SEED = 0  # independent of a study's seed, so that no test image is ever trained on
LISTED = 20  # files or classes named in an error
Files = Sequence[tuple[Path, int]]
"""Files with their class numbers."""


@dataclass(frozen=True)
class Tree:
    """The files of a data set by split, in a fixed random order, and where they come from.

    ``specification["gaps"]``: class numbers are missing, so a classifier may have more classes.
    """

    root: Path
    classes: tuple[str, ...]
    files: dict[str, Files]
    specification: dict[str, Any]


def find(folder: str) -> Tree:
    """List the images below `folder`, without hidden files.

    Raises `FileNotFoundError` if there is no such folder, `ValueError` if it has no class folders,
    if a class is empty or in one split only, or if class numbers start at 1.
    """
    root = Path(folder).expanduser().absolute()
    if not folder or not root.is_dir():
        hint = "python -m nbsupport compute --study folder --data DIR names one (or NBSUPPORT_DATA)"
        raise FileNotFoundError(f"folder: expected a folder of images, got {folder!r}; {hint}")
    names = {split: list_classes(root / split) for split in SPLITS}
    if not any(names.values()):
        names = {"": list_classes(root)}
    if [] in names.values():
        expected = "<class>/<image>, or train/<class>/<image> and test/<class>/<image>"
        raise ValueError(f"folder: no class folders in {root} or one split; expected {expected}")
    number = _number_classes(names)
    files = {
        split: list_images(root / split, {name: number[name] for name in names[split]})
        for split in names
    }
    if "" in files:
        # shuffled within each class: every third image is then a third of each class, however small
        by_class = sorted(shuffle(files[""]), key=lambda file: file[1])
        files = hold_out(by_class, f"folder: {root}")
    by_number = {label: name for name, label in number.items()}
    classes = tuple(by_number.get(i, str(i)) for i in range(max(by_number) + 1))
    specification = {"classes": list(classes), "gaps": len(number) < len(classes)}
    return Tree(root, classes, {split: shuffle(files[split]) for split in SPLITS}, specification)


def list_classes(folder: Path) -> list[str]:
    """The names of the class folders, in alphabetical order."""
    if not folder.is_dir():
        return []
    entries = os.scandir(folder)
    return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def list_images(folder: Path, number: dict[str, int]) -> Files:
    """The files of each class folder, by name, with its class number; refuses empty folders."""

    def is_visible(path: str) -> bool:
        return not Path(path).name.startswith((".", "Thumbs.db"))

    try:
        found = make_dataset(folder, number, is_valid_file=is_visible)
    except FileNotFoundError as error:  # names the empty ones
        raise ValueError(f"folder: {folder}: {error}Fill or remove their folders") from None
    return [(Path(name), label) for name, label in found]


def shuffle(files: Files) -> Files:
    """Shuffle files that come sorted by name; the order depends on nothing but their number."""
    return tuple(files[i] for i in np.random.default_rng(ORDER_SEED).permutation(len(files)))


def hold_out(files: Files, place: str) -> dict[str, Files]:
    """Set every third file apart for testing."""
    if len(files) < 3:
        raise ValueError(f"{place}: {len(files)} images are too few to set some apart for testing")
    return {"train": [file for i, file in enumerate(files) if i % 3 < 2], "test": files[2::3]}


def digest(root: Path, files: Files) -> str:
    """Hash the names below `root`, the class numbers and the contents of files."""
    whole = sha256()
    for path, number in files:
        name = path.relative_to(root).as_posix()
        whole.update(f"{name}\0{number}\0{sha256(path.read_bytes()).hexdigest()}\0".encode())
    return whole.hexdigest()


def read(
    root: Path, files: Files, image_size: int, *, beside: Files = (), cropped: float = 1.0
) -> Images:
    """Decode files, in their order, the shorter side first resized to `image_size` × `cropped`.

    Files in `beside` are only opened. Raises one `ValueError` that lists all files of both that
    cannot be read.
    """
    images = torch.empty(len(files), 3, image_size, image_size)
    problems = {}
    for position, (path, _) in enumerate([*files, *beside]):
        try:
            if position < len(files):
                images[position] = _decode(path, image_size, cropped)
            else:
                Image.open(path).close()
        except Exception as error:  # broken files raise many types
            problems[path] = f"\n  {path.relative_to(root)}: {error}"
    if problems:
        lines = "".join(problems[path] for path in sorted(problems)[:LISTED])
        more = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        found = f"folder: cannot read {len(problems)} files below {root} as images"
        raise ValueError(f"{found}; repair or remove them:{lines}{more}")
    return images


def _decode(path: Path, image_size: int, cropped: float) -> Float[Tensor, "3 h w"]:
    with Image.open(path) as file:
        picture = ImageOps.exif_transpose(file)
    if picture.mode.startswith(("I", "F")):  # more than 8 bits, which Pillow's convert would clip
        values = np.asarray(picture).astype(np.float32) / (1 if picture.mode == "F" else 65535)
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"the range of mode {picture.mode} is unknown; save 8 or 16 bits")
        image = torch.from_numpy(values).expand(3, -1, -1)
    else:
        if "A" in picture.getbands() or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        image = to_dtype(pil_to_tensor(picture.convert("RGB")), torch.float32, scale=True)
    scaled = resize(image, [round(image_size * cropped)], antialias=True)
    return center_crop(scaled, [image_size]).clamp(0, 1)


def _number_classes(names: dict[str, list[str]]) -> dict[str, int]:
    """The class number of each class folder, from the names of the class folders in each split."""
    every = sorted(set().union(*names.values()))
    if not all(name.isdecimal() for name in every):
        if alone := [name for name in every if not all(name in each for each in names.values())]:
            got = f"only one of them has {', '.join(alone[:LISTED])}"
            raise ValueError(f"folder: train/ and test/ must have the same classes, but {got}")
        return {name: number for number, name in enumerate(every)}
    found = sorted(int(name) for name in every)
    if len(set(found)) < len(found):
        raise ValueError("folder: two class folders have the same number, as 1 and 01; merge them")
    if found == list(range(1, len(found) + 1)):  # with gaps they may be a part of more classes
        got = f"got folders named 1 to {found[-1]}; subtract 1 from each name"
        raise ValueError(f"folder: expected class numbers from 0, {got}")
    return {name: int(name) for name in every}
