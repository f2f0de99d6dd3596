"""The operators against loops over pixels and finite differences."""

import numpy as np
import pytest
import torch

from nbsupport.denoisers.filtering import (
    distance_from_identity,
    filter_pixels,
    identity_kernels,
    uncertainty_map,
)

SHAPES = [(2, 3, 4, 6), (3, 4, 1, 9)]
SIZES = [1, 3, 5]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(shape, size, images=False, kernels=False):
    b, c, h, w = shape
    taps = random(b, c * size**2, h, w, seed=1)
    return random(*shape).requires_grad_(images), taps.requires_grad_(kernels)


def loop(images, kernels, size):
    b, c, h, w = images.shape
    taps, half = kernels.reshape(b, c, size, size, h, w), size // 2
    filtered = np.zeros_like(images)
    for n, channel, y, x in np.ndindex(images.shape):
        for row, column in np.ndindex(size, size):
            i, j = y + row - half, x + column - half
            if 0 <= i < h and 0 <= j < w:
                tap = taps[n, channel, row, column, y, x]
                filtered[n, channel, y, x] += images[n, channel, i, j] * tap
    return filtered


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_filtering_is_the_loop_over_pixels(shape, size):
    images, kernels = pair(shape, size)
    expected = torch.from_numpy(loop(images.numpy(), kernels.numpy(), size))
    torch.testing.assert_close(filter_pixels(images, kernels), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_finite_differences(shape):
    assert torch.autograd.gradcheck(filter_pixels, pair(shape, 3, images=True, kernels=True))


@pytest.mark.parametrize("wanted", ["images", "kernels"])
def test_one_argument_alone_gets_its_gradient(wanted):
    shape, number = (2, 3, 4, 5), ["images", "kernels"].index(wanted)
    inputs, both = pair(shape, 3, **{wanted: True}), pair(shape, 3, images=True, kernels=True)
    filter_pixels(*inputs).square().sum().backward()
    filter_pixels(*both).square().sum().backward()
    assert inputs[1 - number].grad is None
    assert torch.equal(inputs[number].grad, both[number].grad)


def test_the_layout_in_memory_does_not_matter():
    def turn(x):
        return x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)

    plain, upstream = pair((2, 3, 4, 5), 3, images=True, kernels=True), random(2, 3, 4, 5, seed=2)
    strided = [turn(x.detach()).requires_grad_() for x in plain]
    torch.testing.assert_close(filter_pixels(*strided), filter_pixels(*plain))
    expected = torch.autograd.grad(filter_pixels(*plain), plain, upstream)
    found = torch.autograd.grad(filter_pixels(*strided), strided, turn(upstream))
    torch.testing.assert_close(found, expected)


def test_kernels_of_lower_precision_keep_it_in_their_gradient():
    images = torch.rand(1, 3, 4, 5, requires_grad=True)
    kernels = torch.rand(1, 27, 4, 5).bfloat16().requires_grad_()
    filtered = filter_pixels(images, kernels)
    filtered.sum().backward()
    assert filtered.dtype == images.grad.dtype == torch.float32
    assert kernels.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("offset", [0, -10], ids=["both signs", "all negative"])
def test_uncertainty_is_the_largest_entry_of_a_pixel(offset):
    kernels = random(2, 27, 3, 4).numpy() + offset
    uncertainty = uncertainty_map(torch.tensor(kernels))
    assert uncertainty.shape == (2, 1, 3, 4)
    for n, y, x in np.ndindex(2, 3, 4):
        assert uncertainty[n, 0, y, x] == max(kernels[n, tap, y, x] for tap in range(27))


# another batch, another height; not 3·K·K, or K even
BAD = [(3, 27, 4, 5), (2, 27, 5, 5), (2, 28, 4, 5), (2, 12, 4, 5)]


@pytest.mark.parametrize("shape", BAD, ids=str)
def test_kernels_that_do_not_fit_are_refused(shape, no_shape_checker):
    with pytest.raises(ValueError, match="expected kernels of"):
        filter_pixels(torch.rand(2, 3, 4, 5), torch.rand(shape))
    if shape[1] != 27:
        with pytest.raises(ValueError, match="expected kernels of"):
            distance_from_identity(torch.rand(shape))
    with pytest.raises(ValueError, match="odd kernel size"):
        identity_kernels(torch.rand(1, 3, 4, 5), 2)


def test_distance_from_identity_is_the_loop_over_taps():
    kernels = random(2, 27, 2, 3)
    distance = distance_from_identity(kernels)
    assert distance.shape == (2, 1, 2, 3)
    for n, y, x in np.ndindex(2, 2, 3):
        taps = enumerate(kernels[n, :, y, x].tolist())
        total = sum(abs(tap - (i % 9 == 4)) for i, tap in taps)
        assert float(distance[n, 0, y, x]) == pytest.approx(total / 3)
