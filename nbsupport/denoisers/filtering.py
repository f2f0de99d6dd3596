"""The paper's operators: pixel-wise filtering (eq. 7) and the uncertainty map (eq. 9).

Each pixel and colour channel has its own K×K kernel. A *tap* is one entry of a kernel; taps are
stored row by row.
"""

from collections.abc import Iterator
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..data.images import Images, Kernels, Map


class _FilterPixels(torch.autograd.Function):
    """One multiply-add per tap, in place: needs memory for one padded copy of the images only."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, kernels: Tensor) -> Tensor:
        ctx.save_for_backward(images, kernels)
        filtered = torch.zeros_like(images)
        for tap, window in _windows(_pad(images, kernels), kernels):
            filtered.addcmul_(window, kernels[:, :, tap])
        return filtered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (images, kernels), (gradient,) = ctx.saved_tensors, gradients
        to_images = to_kernels = None
        if ctx.needs_input_grad[1]:
            to_kernels = torch.empty_like(kernels)
            for tap, window in _windows(_pad(images, kernels), kernels):
                torch.mul(gradient, window, out=to_kernels[:, :, tap])
            del window  # frees the padded copy before the other gradient needs memory
        if ctx.needs_input_grad[0]:
            padded = _pad(torch.zeros_like(images), kernels)
            for tap, window in _windows(padded, kernels):
                window.addcmul_(gradient, kernels[:, :, tap])
            border = isqrt(kernels.shape[2]) // 2
            to_images = padded[..., border : -border or None, border : -border or None]
        return to_images, to_kernels


def _pad(images: Tensor, kernels: Tensor) -> Tensor:
    return F.pad(images, (isqrt(kernels.shape[2]) // 2,) * 4)


def _windows(padded: Tensor, kernels: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield each tap's number and the view of the padded images that it weights."""
    size, (height, width) = isqrt(kernels.shape[2]), kernels.shape[-2:]
    for tap in range(size * size):
        row, column = divmod(tap, size)
        yield tap, padded[..., row : row + height, column : column + width]


def _kernel_size(kernels: Tensor, channels: int) -> int:
    size = isqrt(kernels.shape[1] // channels)
    if kernels.shape[1] != channels * size**2 or size % 2 == 0:
        got = kernels.shape[1]
        raise ValueError(f"expected kernels of {channels}·K·K channels with K odd, got {got}")
    return size


def filter_pixels(images: Images, kernels: Kernels) -> Images:
    """Filter each pixel of each colour channel with its own kernel (eq. 7).

    `kernels` has c·K·K channels: all taps of the first colour channel, then of the second, and so
    on; K is odd. Kernels are not normalised, and images count as zero beyond their borders. The
    result is not clipped; it is differentiable (once) in both arguments. Raises `ValueError` if the
    shapes do not fit or K is even.

    >>> images = torch.rand(1, 3, 5, 7)
    >>> torch.equal(filter_pixels(images, identity_kernels(images, size=3)), images)
    True
    """
    b, c, h, w = images.shape
    shape = tuple(kernels.shape)
    if (shape[0], *shape[2:]) != (b, h, w):
        raise ValueError(f"expected kernels of shape ({b}, {c}·K·K, {h}, {w}), got {shape}")
    return _FilterPixels.apply(images, kernels.reshape(b, c, _kernel_size(kernels, c) ** 2, h, w))


def identity_kernels(images: Images, size: int = 5) -> Kernels:
    """Return kernels that leave `images` unchanged: 1 at the centre tap, 0 elsewhere.

    Raises `ValueError` if `size`, the K of the kernels, is not an odd positive number.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"identity_kernels: expected an odd kernel size 1, 3, 5, …, got {size}")
    b, c, h, w = images.shape
    kernels = images.new_zeros(b, c, size * size, h, w)
    kernels[:, :, size * size // 2] = 1
    return kernels.reshape(b, -1, h, w)


def uncertainty_map(kernels: Kernels) -> Map:
    """Return the largest signed entry of all kernels of a pixel (eq. 9); the identity gives 1."""
    return kernels.amax(dim=1, keepdim=True)


def distance_from_identity(kernels: Kernels) -> Map:
    """Return the L1 distance of a pixel's kernels from the identity, averaged over RGB.

    Raises `ValueError` if the kernels do not have 3·K·K channels with K odd.
    """
    identity = identity_kernels(kernels[:1, :3, :1, :1], _kernel_size(kernels, 3))
    return (kernels - identity).abs().sum(dim=1, keepdim=True) / 3
