"""The simple defences against NumPy, Pillow, SciPy and scikit-image."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage.restoration import denoise_tv_chambolle

from nbsupport.denoisers.baselines import BASELINES, Baseline

every_baseline = pytest.mark.parametrize("name", BASELINES)


@pytest.fixture
def images():
    """Smooth images with some noise, two of them, of odd sizes."""
    random = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(random.random((2, 3, 21, 27)), (0, 0, 3, 3))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return torch.tensor(
        (smooth + 0.05 * random.normal(size=smooth.shape)).clip(0, 1), dtype=torch.float32
    )


def test_8_bit_is_the_nearest_of_256_values(images):
    expected = np.rint(images.numpy() * 255) / 255
    np.testing.assert_allclose(Baseline("8-bit")(images).numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("sign", [-1, 1])
def test_8_bit_erases_what_is_below_half_a_step(sign):
    images = (torch.arange(1, 255) / 255).view(1, 1, 2, 127).expand(1, 3, 2, 127)
    assert torch.equal(Baseline("8-bit")(images + sign * 0.99 / 510), images)


def test_jpeg_is_pillows_of_quality_75(images):
    decoded = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(
            file, "JPEG", quality=75
        )
        decoded.append(np.asarray(Image.open(file)).transpose(2, 0, 1) / 255)
    # Two builds of libjpeg may round differently, but no quality other than 75 comes this close.
    assert np.abs(Baseline("JPEG 75")(images).numpy() - np.stack(decoded)).mean() < 0.5 / 255


def test_median_is_scipys(images):
    expected = ndimage.median_filter(images.numpy(), size=(1, 1, 3, 3), mode="nearest")
    np.testing.assert_array_equal(Baseline("median 3x3")(images).numpy(), expected)


def test_blur_is_scipys(images):
    expected = ndimage.gaussian_filter(
        images.numpy(), (0, 0, 0.6, 0.6), radius=(0, 0, 1, 1), mode="nearest"
    )
    np.testing.assert_allclose(Baseline("Gaussian blur")(images).numpy(), expected, atol=1e-6)


def test_total_variation_is_scikit_images_on_each_image(images):
    expected = [
        denoise_tv_chambolle(i, weight=0.1, channel_axis=-1)
        for i in images.permute(0, 2, 3, 1).numpy()
    ]
    np.testing.assert_allclose(
        Baseline("total variation")(images).permute(0, 2, 3, 1).numpy(),
        np.stack(expected),
        atol=1e-6,
    )


@every_baseline
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 7), (16, 16)], ids=str)
def test_images_of_any_size_stay_images_of_that_size(name, size):
    images = torch.rand(2, 3, *size)
    denoised = Baseline(name)(images)
    assert denoised.shape == images.shape
    assert denoised.dtype == images.dtype
    assert denoised.min() >= 0
    assert denoised.max() <= 1


@every_baseline
@pytest.mark.parametrize("value", [0.0, 51 / 255, 1.0])
def test_a_uniform_gray_image_stays_as_it_is(name, value):
    images = torch.full((1, 3, 9, 10), value)
    torch.testing.assert_close(Baseline(name)(images), images, atol=1e-6, rtol=0)


@every_baseline
def test_no_baseline_changes_its_input(name, images):
    before = images.clone()
    Baseline(name)(images)
    assert torch.equal(images, before)


@every_baseline
def test_what_is_no_image_is_refused(name):
    with pytest.raises(ValueError, match="Baseline: expected finite values"):
        Baseline(name)(torch.full((1, 3, 4, 4), 255.0))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no baseline named 'wavelet'; there are: 8-bit, JPEG 75"):
        Baseline("wavelet")
