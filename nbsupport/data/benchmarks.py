"""Images in [0, 1] with their labels, and the refusal of anything else."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..study import Study
from . import image_folder as folders
from . import neurips, published

DIGITS_TEST = 500  # of the 1,797 digits; the remaining 1,297 are for training
SPLIT_SEED = 0  # the split never changes with a study's seed: no test image is ever trained on


class Split:
    """One part of a data set.

    Parameters
    ----------
    images
        Values in [0, 1], or a function that decodes them when they are first needed.
    labels
        Class numbers from 0.
    classes
        The names of the classes; their number is the number of logits.
    specification
        Where the images come from, for keys and provenance.
    """

    def __init__(
        self,
        images: Float[Tensor, "n c h w"] | Callable[[], Float[Tensor, "n c h w"]],
        labels: Int[Tensor, "n"],
        classes: tuple[str, ...],
        specification: dict[str, Any],
    ) -> None:
        self._images, self.labels, self.classes, self.specification = (
            images,
            labels,
            classes,
            specification,
        )

    @cached_property
    def images(self) -> Float[Tensor, "n c h w"]:
        """Values in [0, 1]."""
        return self._images if isinstance(self._images, Tensor) else self._images()

    def __len__(self) -> int:
        return len(self.labels)


def check_images(images: Tensor, *, caller: str, channels: int | None = 3) -> None:
    """Refuse what is not a batch of images in [0, 1].

    Parameters
    ----------
    images
        What came.
    caller
        Who asks; opens the message.
    channels
        The number of colour channels, or None for any.

    Raises
    ------
    TypeError
        If it is not a tensor of floating-point numbers.
    ValueError
        If the shape is not (b, channels, h, w) with h and w above 0, or a value is not finite or
        outside of [0, 1].
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"{caller}: expected a torch tensor of images, got {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(
            f"{caller}: expected floating-point images in [0, 1], got {images.dtype}; 8-bit images become "
            "such with images.float() / 255"
        )
    if images.ndim != 4:
        hint = "; add the batch dimension with images[None]" if images.ndim == 3 else ""
        raise ValueError(
            f"{caller}: expected images of shape (b, c, h, w), got {tuple(images.shape)}{hint}"
        )
    if channels is not None and images.shape[1] != channels:
        hint = (
            "; a grayscale image becomes RGB with images.expand(-1, 3, -1, -1)"
            if images.shape[1] == 1
            else ""
        )
        hint = (
            "; move the channels with images.permute(0, 3, 1, 2)"
            if images.shape[3] == channels
            else hint
        )
        raise ValueError(
            f"{caller}: expected {channels} colour channels, got images of {tuple(images.shape)}{hint}"
        )
    if 0 in images.shape:
        raise ValueError(
            f"{caller}: expected at least one image and one pixel, got {tuple(images.shape)}"
        )
    if (
        torch.compiler.is_compiling()
    ):  # while a graph is traced or exported there are no values to look at
        return
    low, high = (float(value) for value in torch.aminmax(images.detach()))
    if not (low >= 0 and high <= 1):  # also refuses NaN, which compares with nothing
        hint = "; divide by 255" if 2 < high <= 255 else ""
        hint = "; do not normalise, the classifier does" if low < 0 else hint
        raise ValueError(
            f"{caller}: expected finite values in [0, 1], got values from {low:g} to {high:g}{hint}"
        )


def check_labels(labels: Tensor, *, images: Tensor, classes: int | None, caller: str) -> None:
    """Refuse labels that do not fit the images or the classifier.

    Raises
    ------
    ValueError
        If there is not one integer per image, or one lies outside of 0 … classes − 1.
    """
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"{caller}: expected {len(images)} integer labels for {len(images)} images, got {labels.dtype} of "
            f"shape {tuple(labels.shape)}"
        )
    low, high = (int(value) for value in torch.aminmax(labels))
    if low < 0 or (classes is not None and high >= classes):
        hint = "; labels that start at 1 need labels - 1" if low == 1 and high == classes else ""
        upto = f" to {classes - 1}" if classes else ""
        raise ValueError(f"{caller}: expected labels from 0{upto}, got {low} to {high}{hint}")


def load(study: Study, split: str, number: int | None = None) -> Split:
    """The first `number` images of a split (all where None) at the study's image size.

    Images of a split are shuffled once and for all, so its first images are a fair sample.

    Raises
    ------
    ValueError
        If `split` is neither ``train`` nor ``test``, or holds fewer than `number` images, or files are
        refused, see `nbsupport.data.image_folder`, `nbsupport.data.published`, `nbsupport.data.neurips`.
    FileNotFoundError
        If the data are not there and cannot be downloaded.
    """
    if split not in ("train", "test"):
        raise ValueError(f"load: expected the split 'train' or 'test', got {split!r}")
    found = LOADERS[study.name](study, split, number if number is None or number > 0 else None)
    if number is not None and not 0 < number <= len(found):
        raise ValueError(
            f"load: {study.name} has {len(found)} {split} images, but {number} were asked for"
        )
    return found


def fitted(study: Study) -> Study:
    """The study, asking for no more images than there are in a folder, and saying what they are.

    Data sets of `nbsupport.data.published` are known to suffice.
    """
    if study.name in published.CLASSES:
        return replace(study, images_from=published.form(study.name))
    if study.name == "folder":
        there, form = (
            {split: len(files) for split, files in folders.find(study.data).files.items()},
            "",
        )
    elif study.name == neurips.NAME:
        there, form = neurips.sizes(), neurips.form()
    else:
        return study
    wanted = {split: f"{split}_images" for split in there}
    sizes = {name: min(getattr(study, name), there[split]) for split, name in wanted.items()}
    return replace(study, images_from=form, **sizes)


def _folder(study: Study, split: str, number: int | None) -> Split:
    """An image tree, of which no more is decoded than is asked for; its place does not matter for keys."""
    tree = folders.find(study.data)
    files = tree.files[split][:number]
    every = tuple(file for part in tree.files.values() for file in part)
    images = folders.read(tree.root, files, study.image_size, beside=every)
    content = folders.digest(tree.root, files)
    specification = {"data": "folder", "content": content, "split": split, "size": study.image_size}
    specification |= {"classes": list(tree.classes), "gaps": tree.gaps, "images": len(files)}
    return Split(images, torch.tensor([label for _, label in files]), tree.classes, specification)


def _published(study: Study, split: str, number: int | None) -> Split:
    return Split(*published.find(study.name, split, number, study.image_size))


def _neurips(study: Study, split: str, number: int | None) -> Split:
    return Split(*neurips.find(split, number, study.image_size))


def _digits(study: Study, split: str, number: int | None) -> Split:
    """scikit-learn's 8×8 digits, embedded there, resized (bilinear) and repeated to RGB."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits, size = load_digits(), study.image_size
    parts = train_test_split(
        digits.images / 16,
        digits.target,
        test_size=DIGITS_TEST,
        random_state=SPLIT_SEED,
        stratify=digits.target,
    )
    pixels, labels = parts[split == "test"][:number], parts[2 + (split == "test")][:number]
    images = torch.tensor(pixels, dtype=torch.float32)[:, None]
    images = F.interpolate(images, (size, size), mode="bilinear").clamp(0, 1).repeat(1, 3, 1, 1)
    specification = {
        "data": "digits",
        "source": "sklearn.datasets.load_digits",
        "split": split,
        "size": size,
    }
    specification["images"] = len(labels)
    return Split(images, torch.tensor(labels), tuple("0123456789"), specification)


LOADERS = {
    "digits": _digits,
    "cifar10": _published,
    "svhn": _published,
    neurips.NAME: _neurips,
    "folder": _folder,
}
