"""Any folder of images: ``<folder>/{train,test}/<class>/…``, or ``<folder>/<class>/…``, split here.

Every file that Pillow opens becomes RGB in [0, 1]: grayscale, palettes, 16 bits, transparency on
white, upright according to EXIF. The shorter side is resized (bilinear, antialiased), then the
centre is cut out. Class folders that are all named by small numbers give the class numbers; other
names are numbered in alphabetical order, as torchvision's `ImageFolder` does.
"""

import contextlib
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import make_dataset
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize, to_dtype

from .images import Images

SPLITS = ("train", "test")
ORDER_SEED = 0  # independent of a study's seed, so that no test image is ever trained on
LISTED = 20  # files or classes named in an error
SMALL = 1000  # whole numbers below it are class numbers; larger ones are dates or ids, unless dense
TRAINING, TESTING = {"train", "training"}, {"test", "testing", "val", "valid", "validation"}
# what file managers, archives and network drives leave behind
HIDDEN = "__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini"
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF's orientations as Pillow's `Transpose`
DIM = 4095  # files of 16 bits that use no more than 12 look nearly black
Files = Sequence[tuple[Path, int]]
"""Files with their class numbers."""


@dataclass(frozen=True)
class Tree:
    """The files of a data set by split, in a fixed random order, and where they come from.

    ``specification["gaps"]``: class numbers are missing, so a classifier may have more classes.
    ``"other_order"``: numbered folders also have an order as text, which torchvision would take;
    pairs of a class number and that in the other order.
    """

    root: Path
    classes: tuple[str, ...]
    files: dict[str, Files]
    specification: dict[str, Any]


def find(folder: str) -> Tree:
    """List the images below `folder`, without hidden files and folders.

    Raises `FileNotFoundError` if there is no such folder; `ValueError` if its folders are not
    classes or splits of at least two classes each, if a class is empty or in one split only, or if
    class numbers start at 1.
    """
    root = Path(folder).expanduser().absolute()
    if not folder or not root.is_dir():
        hint = "python -m nbsupport compute --study folder --data DIR names one (or NBSUPPORT_DATA)"
        raise FileNotFoundError(f"folder: expected a folder of images, got {folder!r}; {hint}")
    names = {split: list_classes(root / split) for split in SPLITS}
    if not all(names.values()):
        names = {"": list_classes(root)}
    for split, found in names.items():
        if fault := _find_fault(root / split, found):
            expected = "<class>/<image>, or train/<class>/<image> and test/<class>/<image>"
            got = f"got the folders {readable(found) or 'none'} in {root / split}"
            raise ValueError(f"folder: expected {expected}, {got}; {fault}")
    number = _number_classes(names)
    files = {
        split: list_images(root / split, {name: number[name] for name in names[split]})
        for split in names
    }
    if "" in files:
        # shuffled within each class: every third image is then a third of each class, however small
        by_class = sorted(shuffle(files[""]), key=lambda file: file[1])
        files = hold_out(by_class, f"folder: {root}")
    by_number = {label: readable([name]) for name, label in number.items()}
    classes = tuple(by_number.get(i, str(i)) for i in range(max(by_number) + 1))
    specification = {"classes": list(classes), "gaps": len(number) < len(classes)}
    if all(name.isdecimal() for name in number):
        by_text = {name: i for i, name in enumerate(sorted(number))}
        by_value = {name: i for i, name in enumerate(sorted(number, key=int))}
        other = by_value if number == by_text else by_text
        if other != number:
            specification["other_order"] = [[number[name], other[name]] for name in sorted(number)]
    return Tree(root, classes, {split: shuffle(files[split]) for split in SPLITS}, specification)


def list_classes(folder: Path) -> list[str]:
    """The names of the class folders, in alphabetical order."""
    if not folder.is_dir():
        return []
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not is_hidden(e.name))


def is_hidden(name: str) -> bool:
    """Whether a name in a folder is not the user's own."""
    return name.startswith(".") or name.lower() in HIDDEN


def readable(names: list[str]) -> str:
    """The first names as text, with bytes that are not UTF-8 and line breaks escaped."""
    return ", ".join(repr(name)[1:-1] for name in names[:LISTED])


def list_images(folder: Path, number: dict[str, int]) -> Files:
    """The files of each class folder, by name, with its class number; refuses empty folders."""

    def is_visible(path: str) -> bool:
        return not any(map(is_hidden, Path(path).relative_to(folder).parts))

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
        is_readable = path.is_file() and os.access(path, os.R_OK)  # `read` refuses others
        content = sha256(path.read_bytes() if is_readable else b"").hexdigest()
        name = path.relative_to(root).as_posix()
        whole.update(os.fsencode(f"{name}\0{number}\0{content}\0"))
    return whole.hexdigest()


def read(
    root: Path, files: Files, image_size: int, *, beside: Files = (), cropped: float = 1.0
) -> Images:
    """Decode files, in their order, the shorter side first resized to `image_size` × `cropped`.

    Files in `beside` are only opened. Raises one `ValueError` that lists all files of both that
    cannot be read, or says by how much to scale 16-bit files that would all be nearly black.
    """
    images = torch.empty(len(files), 3, image_size, image_size)
    problems, brightest = {}, []
    for position, (path, _) in enumerate([*files, *beside]):
        try:
            if not path.is_file():
                raise OSError("a broken link, or no regular file")
            with warnings.catch_warnings(action="ignore"):  # of damaged metadata
                brightest += _measure_deep(path)
                if position < len(files):
                    images[position] = _decode(path, image_size, cropped)
        except Exception as error:  # broken files raise many types
            name = readable([path.relative_to(root).as_posix()])
            problems[path] = f"\n  {name}: {error}"
    if problems:
        lines = "".join(problems[path] for path in sorted(problems)[:LISTED])
        more = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        found = f"folder: cannot read {len(problems)} files below {root} as images"
        raise ValueError(f"{found}; repair or remove them:{lines}{more}")
    if brightest and (most := max(brightest)) <= DIM:
        bits = max(most.bit_length(), 8)
        found = f"the 16-bit files below {root} use {bits} bits and would be nearly black"
        raise ValueError(f"folder: {found}; multiply them by {65535 // (2**bits - 1)}")
    return images


def _measure_deep(path: Path) -> list[int]:
    """The largest value in a file of 16 bits, or nothing."""
    with Image.open(path) as file:
        if file.mode.startswith("I"):
            return [int(np.asarray(file).max())]
        # Pillow keeps 8 of the 16 bits of a colour
        return [257 * int(np.asarray(file).max())] if ";16" in str(file.tile) else []


def _decode(path: Path, image_size: int, cropped: float) -> Float[Tensor, "3 h w"]:
    with Image.open(path) as file:
        picture = _turn_upright(file)
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


def _turn_upright(file: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF orientation says, whatever else in its EXIF data is damaged."""
    file.load()
    with contextlib.suppress(Exception):  # no orientation, or damaged data, which raise many types
        return file.transpose(Image.Transpose(TURNS[file.getexif()[0x0112]]))
    return file.copy()


def _find_fault(place: Path, names: list[str]) -> str:
    """What is wrong if the folders of these names are splits, or lie a level from the classes."""
    inside = {name: list_classes(place / name) for name in names}
    first, *others = inside.values() or [[]]
    files = (x for x in place.glob("*/*") if x.is_file() and not is_hidden(x.name))
    if _are_splits(names) or inside.get("train") or inside.get("test"):
        return "only train/ and test/ can be splits, with class folders in both"
    if len(names) < 2:
        return "there must be two classes or more; if they lie a level lower, name that folder"
    if any(map(_are_splits, inside.values())):
        return "name one of them, or move train/ and test/ above the classes"
    if len(first) > 1 and all(each == first for each in others) and not any(files):
        return f"each of them holds {readable(first)}: name one of them"
    return ""


def _are_splits(names: list[str]) -> bool:
    words = {word for name in names for word in re.findall("[a-z]+", name.lower())}
    return bool(words & TRAINING and words & TESTING)


def _number_classes(names: dict[str, list[str]]) -> dict[str, int]:
    """The class number of each class folder, from the names of the class folders in each split."""
    every = sorted(set().union(*names.values()))
    numeric = all(name.isdecimal() for name in every)
    if not numeric or max(map(int, every)) >= max(SMALL, 2 * len(every)):
        if alone := [name for name in every if not all(name in each for each in names.values())]:
            got = f"only one of them has {readable(alone)}"
            raise ValueError(f"folder: train/ and test/ must have the same classes, but {got}")
        return {name: number for number, name in enumerate(every)}
    found = sorted(int(name) for name in every)
    if len(set(found)) < len(found):
        raise ValueError("folder: two class folders have the same number, as 1 and 01; merge them")
    if found == list(range(1, len(found) + 1)):  # with gaps they may be a part of more classes
        got = f"got folders named 1 to {found[-1]}; subtract 1 from each name"
        raise ValueError(f"folder: expected class numbers from 0, {got}")
    return {name: int(name) for name in every}
