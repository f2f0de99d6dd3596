"""Images in [0, 1] with labels: the aliases of their shapes, and the checks at the edge."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

Images = Float[Tensor, "b c h w"]
Labels = Int[Tensor, "b"]
AnyLabels = Integer[Tensor, "b"] | Integer[np.ndarray, "b"] | Sequence[SupportsIndex]
Kernels = Float[Tensor, "b taps h w"]
Map = Float[Tensor, "b 1 h w"]
Logits = Float[Tensor, "b classes"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64,
            torch.uint8, torch.uint16, torch.uint32, torch.uint64)  # fmt: skip
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(eq=False, repr=False)
class Split:
    """The training or test part of a data set.

    `source` may be a function, which decodes images when they are first needed. Labels are class
    numbers from 0; there are as many logits as names in `classes`. `specification` says where the
    images come from; keys and provenance contain it.
    """

    source: Images | Callable[[], Images]
    labels: Labels
    classes: tuple[str, ...]
    specification: dict[str, Any]

    @cached_property
    def images(self) -> Images:
        """Values in [0, 1]."""
        return self.source if isinstance(self.source, Tensor) else self.source()

    def __len__(self) -> int:
        return len(self.labels)


def check_images(images: Tensor, *, caller: str, channels: int | None = 3) -> None:
    """Refuse anything but a batch of floating-point images in [0, 1].

    `caller` opens the message; with `channels` None, any number passes. Raises `TypeError` for
    other types, `ValueError` for other shapes and for values outside [0, 1].
    """
    if not isinstance(images, Tensor) or images.dtype not in FLOATS:
        got = getattr(images, "dtype", type(images).__name__)
        hint = "convert 8 bits with images.float() / 255"
        if isinstance(images, np.ndarray):
            got, hint = f"a NumPy array of {got}", "convert it with torch.as_tensor(images)"
        raise TypeError(f"{caller}: expected a floating-point tensor of images, got {got}; {hint}")
    shape = tuple(images.shape)
    if len(shape) != 4:
        hint = "; add the batch dimension with images[None]" if len(shape) == 3 else ""
        raise ValueError(f"{caller}: expected images of shape (b, c, h, w), got {shape}{hint}")
    if channels is not None and shape[1] != channels:
        hint = "; make grayscale RGB with images.expand(-1, 3, -1, -1)" if shape[1] == 1 else ""
        hint = "; move them with images.permute(0, 3, 1, 2)" if shape[3] == channels else hint
        raise ValueError(f"{caller}: expected {channels} colour channels, got {shape}{hint}")
    if 0 in shape:
        raise ValueError(f"{caller}: expected at least one image and one pixel, got {shape}")
    if torch.compiler.is_compiling():  # a graph that is traced or exported has no values yet
        return
    low, high = torch.aminmax(images.detach())
    if not (low >= 0 and high <= 1):  # NaN fails every comparison, so it is refused as well
        hint = "; divide by 255" if 2 < high <= 255 else ""
        hint = "; do not normalise, the classifier does" if low < 0 else hint
        got = f"got {low:g} to {high:g}{hint}"
        raise ValueError(f"{caller}: expected finite values in [0, 1], {got}")


def check_labels(labels: AnyLabels, *, images: Tensor, classes: int | None, caller: str) -> Labels:
    """Return labels of any integer type, array or list as int64 on the device of `images`.

    Raises `ValueError` unless there is one integer from 0 to `classes` − 1 per image.
    """
    given: Any = labels
    with contextlib.suppress(ValueError):  # of lists of different lengths, which stay a list
        given = labels if isinstance(labels, Tensor) else np.asarray(labels)
    if isinstance(given, np.ndarray) and given.dtype.kind in "iu":
        given = torch.from_numpy(given.astype(np.int64))
    dtype, shape = getattr(given, "dtype", "a list"), tuple(getattr(given, "shape", ()))
    if dtype not in INTEGERS or shape != images.shape[:1]:
        got = f"{dtype} of shape {shape}"
        raise ValueError(f"{caller}: expected {len(images)} integer labels, got {got}")
    numbers = given.to(images.device, torch.int64)
    low, high = (int(value) for value in torch.aminmax(numbers))
    if low < 0 or (classes is not None and high >= classes):
        hint = "; labels that start at 1 need labels - 1" if low == 1 and high == classes else ""
        upto = f" to {classes - 1}" if classes else ""
        raise ValueError(f"{caller}: expected labels from 0{upto}, got {low} to {high}{hint}")
    return numbers


@contextlib.contextmanager
def room(place: Path) -> Iterator[None]:
    """Turn the `OSError` of a full disk or a used-up quota into one that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(
            error.errno,
            f"the disk is full: cannot write to {place}; nothing finished is lost: free some "
            "space, or name another folder in NBSUPPORT_HOME, and run again",
        ) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it into place in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
