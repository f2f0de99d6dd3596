"""The operators against loops over pixels, F.unfold and finite differences."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nbsupport.denoisers.filtering import (
    distance_from_identity,
    filter_pixels,
    identity_kernels,
    uncertainty_map,
)

SHAPES = [(1, 3, 5, 7), (2, 3, 4, 6), (2, 1, 1, 1), (1, 2, 2, 3), (3, 4, 1, 9), (1, 5, 3, 1)]
SIZES = [1, 3, 5]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(shape, size, **options):
    b, c, h, w = shape
    images, kernels = random(*shape), random(b, c * size**2, h, w, seed=1)
    return images.requires_grad_(options.get("images", False)), kernels.requires_grad_(
        options.get("kernels", False)
    )


def loop(images, kernels, size):
    b, c, h, w = images.shape
    taps, half = kernels.reshape(b, c, size, size, h, w), size // 2
    filtered = np.zeros_like(images)
    for n, channel, y, x in np.ndindex(images.shape):
        for row, column in np.ndindex(size, size):
            i, j = y + row - half, x + column - half
            if 0 <= i < h and 0 <= j < w:
                filtered[n, channel, y, x] += (
                    images[n, channel, i, j] * taps[n, channel, row, column, y, x]
                )
    return filtered


def unfolded(images, kernels, size):
    b, c, h, w = images.shape
    windows = F.unfold(images, size, padding=size // 2).view(b, c, size**2, h, w)
    return (windows * kernels.view(b, c, size**2, h, w)).sum(dim=2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_filtering_is_the_loop_over_pixels(shape, size):
    images, kernels = pair(shape, size)
    expected = loop(images.numpy(), kernels.numpy(), size)
    np.testing.assert_allclose(
        filter_pixels(images, kernels).numpy(), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("size", SIZES)
def test_identity_kernels_leave_the_images_alone(size):
    images = torch.rand(2, 3, 4, 6)
    assert torch.equal(filter_pixels(images, identity_kernels(images, size)), images)


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("column", range(3))
def test_a_single_tap_shifts_the_image(row, column):
    images = torch.rand(1, 2, 4, 5)
    kernels = torch.zeros(1, 2, 3, 3, 4, 5)
    kernels[:, :, row, column] = 1
    shifted = F.pad(images, (1, 1, 1, 1))[..., row : row + 4, column : column + 5]
    assert torch.equal(filter_pixels(images, kernels.flatten(1, 3)), shifted)


def test_colour_channels_are_not_mixed():
    images, kernels = pair((1, 3, 4, 4), 3)
    alone = [filter_pixels(images[:, [c]], kernels[:, 9 * c : 9 * c + 9]) for c in range(3)]
    assert torch.equal(filter_pixels(images, kernels), torch.cat(alone, dim=1))


@pytest.mark.parametrize("shape", [(2, 3, 3, 4), (1, 1, 1, 2)], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_those_of_finite_differences(shape, size):
    assert torch.autograd.gradcheck(filter_pixels, pair(shape, size, images=True, kernels=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_gradients_are_those_of_unfold(shape, size):
    inputs, upstream = pair(shape, size, images=True, kernels=True), random(*shape, seed=2)
    own = torch.autograd.grad(filter_pixels(*inputs), inputs, upstream)
    torch.testing.assert_close(own, torch.autograd.grad(unfolded(*inputs, size), inputs, upstream))


@pytest.mark.parametrize("wanted", ["images", "kernels"])
def test_one_argument_alone_gets_its_gradient(wanted):
    shape, number = (2, 3, 4, 5), ["images", "kernels"].index(wanted)
    inputs, both = pair(shape, 3, **{wanted: True}), pair(shape, 3, images=True, kernels=True)
    filter_pixels(*inputs).square().sum().backward()
    filter_pixels(*both).square().sum().backward()
    assert inputs[1 - number].grad is None
    assert torch.equal(inputs[number].grad, both[number].grad)


@pytest.mark.parametrize("size", SIZES)
def test_neither_pass_changes_its_inputs(size):
    inputs = pair((1, 3, 4, 5), size, images=True, kernels=True)
    before = [tensor.detach().clone() for tensor in inputs]
    filter_pixels(*inputs).sum().backward()
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, before, strict=True))


def test_the_layout_in_memory_does_not_matter():
    images, kernels = pair((2, 3, 4, 5), 3)
    plain = [images.requires_grad_(), kernels.requires_grad_()]
    strided = [
        images.detach().contiguous(memory_format=torch.channels_last).requires_grad_(),
        kernels.detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0).requires_grad_(),
    ]
    upstream = random(5, 4, 3, 2).permute(3, 2, 1, 0)
    torch.testing.assert_close(filter_pixels(*strided), filter_pixels(*plain))
    gradients = [
        torch.autograd.grad(filter_pixels(*inputs), inputs, upstream) for inputs in (plain, strided)
    ]
    torch.testing.assert_close(*gradients)


def test_one_kernel_expanded_over_all_pixels_gets_the_sum_of_the_gradients():
    images, kernel = random(1, 1, 4, 5), random(1, 9, 1, 1).requires_grad_()
    filter_pixels(images, kernel.expand(1, 9, 4, 5)).sum().backward()
    windows = F.unfold(images, 3, padding=1)
    torch.testing.assert_close(kernel.grad.flatten(), windows.sum(dim=(0, 2)))


def test_kernels_of_lower_precision_keep_it_in_their_gradient():
    images = torch.rand(1, 3, 4, 5, requires_grad=True)
    kernels = torch.rand(1, 27, 4, 5).bfloat16().requires_grad_()
    filtered = filter_pixels(images, kernels)
    filtered.sum().backward()
    assert (filtered.dtype, images.grad.dtype, kernels.grad.dtype) == (
        torch.float32,
        torch.float32,
        torch.bfloat16,
    )


def test_a_second_derivative_is_refused():
    images, kernels = pair((1, 1, 2, 2), 3, images=True, kernels=True)
    (gradient,) = torch.autograd.grad(
        filter_pixels(images, kernels).square().sum(), images, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    "shape",
    [(3, 27, 4, 5), (1, 27, 4, 5), (2, 27, 5, 5), (2, 27, 4, 4), (2, 28, 4, 5)],
    ids=["more kernels than images", "fewer", "height", "width", "channels"],
)
def test_kernels_that_do_not_fit_are_refused(shape, no_shape_checker):
    with pytest.raises(
        ValueError, match=r"\(2, 3, 4, 5\) expected kernels of shape \(2, 3·K·K, 4, 5\), got"
    ):
        filter_pixels(torch.rand(2, 3, 4, 5), torch.rand(shape))


@pytest.mark.parametrize("taps", [0, 2, 4, 8, 16])
def test_taps_that_are_no_odd_square_are_refused(taps):
    with pytest.raises(
        ValueError, match=f"filter_pixels: expected c·K·K channels .* K odd .* got {taps} taps"
    ):
        filter_pixels(torch.rand(1, 3, 4, 5), torch.rand(1, 3 * taps, 4, 5))


@pytest.mark.parametrize("size", [0, 2, 4, -1, -2])
def test_identity_kernels_are_of_odd_size(size):
    with pytest.raises(
        ValueError, match=f"identity_kernels: expected an odd kernel size 1, 3, 5, …, got {size}"
    ):
        identity_kernels(torch.rand(1, 3, 4, 5), size)


@pytest.mark.parametrize("size", SIZES)
def test_identity_kernels_are_one_in_the_middle(size):
    kernels = identity_kernels(torch.rand(2, 3, 4, 5, dtype=torch.float64), size).view(
        2, 3, size, size, 4, 5
    )
    assert kernels.dtype == torch.float64
    assert (kernels[:, :, size // 2, size // 2] == 1).all()
    assert kernels.sum() == 2 * 3 * 4 * 5


@pytest.mark.parametrize("offset", [0, -10], ids=["both signs", "all negative"])
def test_uncertainty_is_the_largest_entry_of_a_pixel(offset):
    kernels = random(2, 27, 3, 4).numpy() + offset
    uncertainty = uncertainty_map(torch.tensor(kernels))
    assert uncertainty.shape == (2, 1, 3, 4)
    for n, y, x in np.ndindex(2, 3, 4):
        assert uncertainty[n, 0, y, x] == max(kernels[n, tap, y, x] for tap in range(27))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_distance_from_identity_is_the_loop_over_taps(channels, size):
    kernels = random(2, channels * size**2, 2, 3)
    distance = distance_from_identity(kernels, channels)
    assert distance.shape == (2, 1, 2, 3)
    for n, y, x in np.ndindex(2, 2, 3):
        taps = kernels[n, :, y, x].view(channels, size**2).tolist()
        parts = [
            abs(tap - (number == size**2 // 2))
            for kernel in taps
            for number, tap in enumerate(kernel)
        ]
        assert float(distance[n, 0, y, x]) == pytest.approx(sum(parts) / channels)


def test_the_identity_is_at_no_distance_and_of_uncertainty_one():
    kernels = identity_kernels(torch.rand(1, 3, 4, 5))
    assert (distance_from_identity(kernels) == 0).all()
    assert (uncertainty_map(kernels) == 1).all()


@pytest.mark.parametrize(
    "kernels", [2, 12, 28], ids=["too few", "even", "not a multiple of the channels"]
)
def test_distance_from_identity_refuses_other_channels(kernels):
    with pytest.raises(ValueError, match="distance_from_identity: "):
        distance_from_identity(torch.rand(1, kernels, 4, 5))
