"""Image trees: ``<folder>/{train,test}/<class>/…``, or ``<folder>/<class>/…``, split here once and for all.

Any file that Pillow opens becomes RGB in [0, 1]: grayscale, palettes, 16 bits, transparency on white,
turned as its EXIF says. The shorter side is resized (bilinear, antialiased), the centre cut out.

Names of class folders that are whole numbers are class numbers; others are numbered in alphabetical order.
Without ``train`` and ``test``, every third image of the classes in their order is for testing.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import make_dataset
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize, to_dtype

SPLITS = ("train", "test")
TEST_EVERY = 3  # of a tree without splits
ORDER_SEED = 0  # the order never changes with a study's seed: no test image is ever trained on
LISTED = 20  # files named in an error
REMEMBERED = 5000  # images: more are decoded again where they are asked for again, which is rare
Files = tuple[tuple[Path, int], ...]
GIVE = "name one: python -m nbsupport compute --study folder --data DIR (or set NBSUPPORT_DATA)"


@dataclass(frozen=True)
class Tree:
    """The files of an image tree.

    Attributes
    ----------
    root
        The folder.
    classes
        Their names, by class number.
    files
        For each split its files and their class numbers, shuffled once and for all.
    gaps
        Whether class numbers are left out, as in a part of a larger data set. A classifier may then
        know more classes than there are here.
    """

    root: Path
    classes: tuple[str, ...]
    files: dict[str, Files]
    gaps: bool


def find(folder: str) -> Tree:
    """The files below `folder`; hidden ones do not count.

    Raises
    ------
    FileNotFoundError
        If no folder is named, or it does not exist.
    ValueError
        If it holds no class folders, a class is empty or in one split only, or class numbers start at 1.
    """
    root = Path(folder).expanduser().absolute()
    if not folder or not root.is_dir():
        what = f"{folder} is none" if folder else "none was named"
        raise FileNotFoundError(f"folder: expected a folder of images, {what}; {GIVE}")
    parts = {split: root / split for split in SPLITS if _folders(root / split)}
    if len(parts) == 1:
        raise ValueError(
            f"folder: {root} has {next(iter(parts))}/ alone; add the other of train/ and test/, or neither"
        )
    names = {part: _folders(part) for part in parts.values() or [root]}
    every = sorted(set().union(*names.values()))
    if not every:
        raise ValueError(f"folder: {root} holds no class folders; expected {root.name}/<class>/<image>, or the same "
                         "below train/ and test/")  # fmt: skip
    numbered = all(name.isdecimal() for name in every)
    if not numbered and (
        alone := [name for name in every if not all(name in there for there in names.values())]
    ):
        raise ValueError(
            f"folder: train/ and test/ differ in their classes: {_listed(alone)} in one of them only"
        )
    number = {name: int(name) if numbered else position for position, name in enumerate(every)}
    _check_numbers(sorted(number.values()), numbered)
    listed = {part: _list(part, {name: number[name] for name in names[part]}) for part in names}
    if parts:
        files = {split: shuffled(listed[part]) for split, part in parts.items()}
    else:
        # shuffled within each class, so that every third of the whole is a third of each, also of tiny classes
        mixed = sorted(shuffled(listed[root]), key=lambda item: item[1])
        last = TEST_EVERY - 1
        files = {
            "train": shuffled([item for i, item in enumerate(mixed) if i % TEST_EVERY != last])
        }
        files["test"] = shuffled(mixed[last::TEST_EVERY])
    if not all(files.values()):
        raise ValueError(
            f"folder: {len(files['train'])} images below {root} are too few to set some apart for testing"
        )
    classes = {position: name for name, position in number.items()}
    top = max(classes) + 1
    return Tree(
        root, tuple(classes.get(i, str(i)) for i in range(top)), files, gaps=len(classes) < top
    )


def digest(root: Path, files: Files) -> str:
    """A hash of names, classes and contents; where the tree lies does not matter."""
    return _digest(root, files, _stamps(files))


def read(
    root: Path, files: Files, image_size: int, *, beside: Files = (), cropped: float = 1.0
) -> Float[Tensor, "n 3 h w"]:
    """The images of `files`, in their order.

    Parameters
    ----------
    root, files
        Of a `Tree`.
    image_size
        Height and width.
    beside
        Files that are tried but not decoded.
    cropped
        How much larger the shorter side is before the centre is cut out.

    Raises
    ------
    ValueError
        If files cannot be read as images: one error for all of them.
    """
    known = _read if len(files) <= REMEMBERED else _read.__wrapped__
    return known(root, files, beside, image_size, cropped, _stamps((*files, *beside)))


def _stamps(files: Files) -> tuple[tuple[int, int], ...]:
    """What changes where a file does, for what is remembered of files."""
    return tuple(
        (status.st_size, status.st_mtime_ns) for path, _ in files for status in [path.stat()]
    )


@lru_cache(maxsize=8)
def _digest(root: Path, files: Files, stamps: tuple[tuple[int, int], ...]) -> str:
    whole = sha256()
    for path, number in files:
        name = path.relative_to(root).as_posix()
        whole.update(f"{name}\0{number}\0{sha256(path.read_bytes()).hexdigest()}\0".encode())
    return whole.hexdigest()


@lru_cache(maxsize=4)
def _read(
    root: Path,
    files: Files,
    beside: Files,
    image_size: int,
    cropped: float,
    stamps: tuple[tuple[int, int], ...],
) -> Tensor:
    every, images = (
        [path for path, _ in (*files, *beside)],
        torch.empty(len(files), 3, image_size, image_size),
    )
    try:
        for path in every:
            Image.open(path).close()
        for position, (path, _) in enumerate(files):
            images[position] = _decode(path, image_size, cropped)
    except (
        Exception
    ):  # whatever Pillow meets in a broken file; all are decoded only now, to name all at once
        problems = {
            path: reason for path in every if (reason := _problem(path, image_size, cropped))
        }
        if not problems:  # then it was no file's fault
            raise
        lines = [f"{path.relative_to(root)}: {reason}" for path, reason in sorted(problems.items())]
        raise ValueError(
            f"folder: {len(problems)} of {len(every)} files below {root} cannot be read as images; mend or remove "
            "them:\n  "
            + "\n  ".join(
                lines[:LISTED]
                + ([f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else [])
            )
        ) from None
    return images


def _problem(path: Path, image_size: int, cropped: float) -> str:
    try:
        _decode(path, image_size, cropped)
    except Exception as error:  # see above
        return "no image that Pillow knows" if "cannot identify" in str(error) else str(error)
    return ""


def _decode(path: Path, image_size: int, cropped: float) -> Float[Tensor, "3 h w"]:
    with Image.open(path) as file:
        picture = ImageOps.exif_transpose(file)
    if picture.mode.startswith(("I", "F")):  # which Pillow would clip to 8 bits
        values = np.asarray(picture).astype(np.float32) / (1 if picture.mode == "F" else 65535)
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                f"its pixels (mode {picture.mode}) have no known range; save it with 8 or 16 bits"
            )
        image = torch.from_numpy(values).expand(3, -1, -1)
    else:
        if "A" in picture.getbands() or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        image = to_dtype(pil_to_tensor(picture.convert("RGB")), torch.float32, scale=True)
    return center_crop(
        resize(image, [round(image_size * cropped)], antialias=True), [image_size]
    ).clamp(0, 1)


def _folders(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    return sorted(
        entry.name
        for entry in os.scandir(path)
        if entry.is_dir() and not entry.name.startswith(".")
    )


def _list(part: Path, number: dict[str, int]) -> list[tuple[Path, int]]:
    files = make_dataset(
        part,
        number,
        is_valid_file=lambda name: not Path(name).name.startswith((".", "Thumbs.db")),
        allow_empty=True,
    )
    if empty := sorted(
        name for name in number if number[name] not in {label for _, label in files}
    ):
        raise ValueError(
            f"folder: no image in the class folders {_listed(empty)} of {part}; fill or remove them"
        )
    return [(Path(name), label) for name, label in files]


def shuffled(files: list[tuple[Path, int]]) -> Files:
    """In an order that depends on nothing but their number, for files that come sorted by name."""
    return tuple(files[i] for i in np.random.default_rng(ORDER_SEED).permutation(len(files)))


def _check_numbers(numbers: list[int], numbered: bool) -> None:
    if len(set(numbers)) < len(numbers):
        raise ValueError(
            "folder: two class folders stand for the same number, such as 1 and 01; merge them"
        )
    if numbered and numbers == list(
        range(1, len(numbers) + 1)
    ):  # with gaps they may be a part of more classes
        raise ValueError(
            f"folder: expected class numbers from 0, got folders named 1 to {numbers[-1]}; subtract 1 from each name"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (
        f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    )
