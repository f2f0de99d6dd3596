"""The simple defences against NumPy, Pillow, SciPy and scikit-image."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage.restoration import denoise_tv_chambolle

from nbsupport.denoisers.baselines import BASELINES, Baseline


@pytest.fixture
def images():
    """Smooth images with some noise, two of them, of odd sizes."""
    random = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(random.random((2, 3, 21, 27)), (0, 0, 3, 3))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    noisy = (smooth + 0.05 * random.normal(size=smooth.shape)).clip(0, 1)
    return torch.tensor(noisy, dtype=torch.float32)


def test_8_bit_is_the_nearest_of_256_values(images):
    expected = np.rint(images.numpy() * 255) / 255
    np.testing.assert_allclose(Baseline("8-bit")(images).numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("quality", [1, 50, 95])
def test_jpeg_is_pillows_of_that_quality(quality, images):
    decoded = []
    for image in images:
        file = io.BytesIO()
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(file)).transpose(2, 0, 1) / 255)
    # Two builds of libjpeg may round differently, but no other quality comes this close.
    found = Baseline(f"JPEG {quality}")(images).numpy()
    assert np.abs(found - np.stack(decoded)).mean() < 0.5 / 255


def test_median_is_scipys(images):
    expected = ndimage.median_filter(images.numpy(), size=(1, 1, 3, 3), mode="nearest")
    np.testing.assert_array_equal(Baseline("median 3x3")(images).numpy(), expected)


@pytest.mark.parametrize(
    ("name", "sigma", "limits"),
    [
        ("Gaussian blur", 0.6, {"radius": (0, 0, 1, 1)}),  # 3×3
        ("Gaussian blur 0.3", 0.3, {"truncate": 8}),
        ("Gaussian blur 1.5", 1.5, {"truncate": 8}),
    ],
)
def test_blur_is_scipys_and_a_sweep_cuts_nothing_off(name, sigma, limits, images):
    options = dict(mode="nearest", **limits)
    expected = ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma), **options)
    np.testing.assert_allclose(Baseline(name)(images).numpy(), expected, atol=1e-4)


def test_total_variation_is_scikit_images_on_each_image(images):
    last = images.permute(0, 2, 3, 1).numpy()
    expected = [denoise_tv_chambolle(image, weight=0.1, channel_axis=-1) for image in last]
    found = Baseline("total variation")(images).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-6)


@pytest.mark.parametrize("name", [*BASELINES, "Gaussian blur 1.5"])
@pytest.mark.parametrize("size", [(1, 1), (5, 7)], ids=str)
def test_images_of_any_size_stay_images_of_that_size(name, size):
    images = torch.rand(2, 3, *size)
    before, denoised = images.clone(), Baseline(name)(images)
    assert denoised.shape == images.shape and denoised.dtype == images.dtype
    assert denoised.min() >= 0 and denoised.max() <= 1
    assert torch.equal(images, before)


def test_values_above_1_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match="Baseline: expected finite values"):
        Baseline("JPEG 40")(torch.full((1, 3, 4, 4), 255.0))
    with pytest.raises(ValueError, match="'wavelet'"):
        Baseline("wavelet")
