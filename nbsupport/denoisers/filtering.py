"""The paper's operators: pixel-wise filtering (eq. 7) and the uncertainty map (eq. 9).

Pure functions of tensors. Every pixel and colour channel is filtered by a kernel of its own; a *tap*
is one entry of a kernel, and taps are stored row by row.
"""

from collections.abc import Iterator
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def _size(taps: int, of: str) -> int:
    """K for K·K taps; a ValueError where `taps` is not the square of an odd number."""
    size = isqrt(taps)
    if size * size != taps or size % 2 == 0:
        raise ValueError(
            f"{of}: expected c·K·K channels of kernels with K odd (1, 9, 25, … taps), got {taps} taps"
        )
    return size


class _FilterPixels(torch.autograd.Function):
    """One multiply-add per tap, in place: nothing is unfolded and nothing is stacked.

    Beside the results, at most one padded copy of the images is alive.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, kernels: Tensor) -> Tensor:
        ctx.save_for_backward(images, kernels)
        filtered = torch.zeros_like(images)
        for tap, window in _windows(images, kernels):
            filtered.addcmul_(window, kernels[:, :, tap])
        return filtered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        images, kernels = ctx.saved_tensors
        (gradient,) = gradients
        to_images = to_kernels = None
        if ctx.needs_input_grad[1]:
            to_kernels = torch.empty_like(kernels)
            for tap, window in _windows(images, kernels):
                torch.mul(gradient, window, out=to_kernels[:, :, tap])
            del window  # and with it the padded copy, before the other gradient takes its memory
        if ctx.needs_input_grad[0]:
            to_images = torch.zeros_like(images)
            for tap, pixels, neighbours in _neighbours(kernels):
                to_images[neighbours].addcmul_(gradient[pixels], kernels[:, :, tap][pixels])
        return to_images, to_kernels


def _windows(images: Tensor, kernels: Tensor) -> Iterator[tuple[int, Tensor]]:
    """For every tap its number and what it weighs: the shifted images, zero outside of their borders."""
    size, (height, width) = isqrt(kernels.shape[2]), kernels.shape[-2:]
    padded = F.pad(images, (size // 2,) * 4)
    for tap in range(size * size):
        row, column = divmod(tap, size)
        yield tap, padded[..., row : row + height, column : column + width]


def _neighbours(kernels: Tensor) -> Iterator[tuple[int, tuple[Any, ...], tuple[Any, ...]]]:
    """For every tap its number, the pixels that have a neighbour in its direction, and these neighbours."""
    size, (height, width) = isqrt(kernels.shape[2]), kernels.shape[-2:]
    for tap in range(size * size):
        rows = _overlap(tap // size - size // 2, height)
        columns = _overlap(tap % size - size // 2, width)
        pixels, neighbours = ((..., *slices) for slices in zip(rows, columns, strict=True))
        yield tap, pixels, neighbours


def _overlap(shift: int, length: int) -> tuple[slice, slice]:
    """The positions along a side that stay inside when shifted, and where they come to lie."""
    back, forth = (min(max(0, by), length) for by in (-shift, shift))
    return slice(back, length - forth), slice(forth, length - back)


def filter_pixels(
    images: Float[Tensor, "b c h w"], kernels: Float[Tensor, "b taps h w"]
) -> Float[Tensor, "b c h w"]:
    """Filter every pixel of every colour channel with its own kernel (eq. 7).

    Parameters
    ----------
    images
        Images of any range. Outside of their borders they count as zero.
    kernels
        c·K·K channels, seen as (b, c, K·K, h, w), taps row by row; K is odd and follows from the
        shape. Kernels are not normalised and colour channels are not mixed.

    Returns
    -------
    The filtered images, differentiable (once) in both arguments; not clipped.

    Raises
    ------
    ValueError
        If the shapes do not fit together, or K is even.

    Examples
    --------
    >>> images = torch.rand(1, 3, 5, 7)
    >>> torch.equal(filter_pixels(images, identity_kernels(images, size=3)), images)
    True
    """
    b, c, h, w = images.shape
    if kernels.shape[0] != b or kernels.shape[-2:] != images.shape[-2:] or kernels.shape[1] % c:
        raise ValueError(
            f"filter_pixels: for images of shape {tuple(images.shape)} expected kernels of shape "
            f"({b}, {c}·K·K, {h}, {w}), got {tuple(kernels.shape)}"
        )
    taps = _size(kernels.shape[1] // c, "filter_pixels") ** 2
    return _FilterPixels.apply(images, kernels.reshape(b, c, taps, h, w))


def identity_kernels(
    images: Float[Tensor, "b c h w"], size: int = 5
) -> Float[Tensor, "b taps h w"]:
    """Kernels that leave `images` as they are: the centre tap 1, the others 0.

    Raises
    ------
    ValueError
        If `size`, the K of the kernels, is not an odd positive number.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"identity_kernels: expected an odd kernel size 1, 3, 5, …, got {size}")
    b, c, h, w = images.shape
    kernels = images.new_zeros(b, c, size * size, h, w)
    kernels[:, :, size * size // 2] = 1
    return kernels.reshape(b, -1, h, w)


def uncertainty_map(kernels: Float[Tensor, "b taps h w"]) -> Float[Tensor, "b 1 h w"]:
    """The largest entry of all kernels of a pixel, sign included (eq. 9): 1 for the identity."""
    return kernels.amax(dim=1, keepdim=True)


def distance_from_identity(
    kernels: Float[Tensor, "b taps h w"], channels: int = 3
) -> Float[Tensor, "b 1 h w"]:
    """How far the kernels of a pixel are from the identity: the mean over channels of their L1 distance.

    Raises
    ------
    ValueError
        If the kernels do not have `channels`·K·K channels with K odd.
    """
    b, ckk, h, w = kernels.shape
    size = _size(ckk // channels if ckk % channels == 0 else 0, "distance_from_identity")
    identity = identity_kernels(kernels[:1, :channels, :1, :1], size)
    return (kernels - identity).abs().sum(dim=1, keepdim=True) / channels
