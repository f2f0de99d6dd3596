"""Images with labels, and the refusal of anything else."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from nbsupport.data.benchmarks import check_images, check_labels, load
from nbsupport.study import Study

both_splits = pytest.mark.parametrize("split", ["train", "test"])


def digits(split, number=None, **changes):
    return load(Study.named("digits", "smoke", **changes), split, number)


# -- digits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "number"), [("train", 1297), ("test", 500)])
def test_sizes_of_the_splits(split, number):
    part = digits(split)
    assert len(part) == len(part.images) == len(part.labels) == number


def test_no_image_is_in_both_splits_and_none_is_missing():
    train, test = (
        {image.numpy().tobytes() for image in digits(split, image_size=8).images}
        for split in ("train", "test")
    )
    assert not train & test
    assert len(train | test) == 1797  # scikit-learn's digits are all different


@both_splits
def test_labels_belong_to_their_images(split):
    source = load_digits()
    known = {
        image.tobytes(): label
        for image, label in zip(source.images.astype("float32"), source.target, strict=True)
    }
    part = digits(split, image_size=8)
    found = [known[image.numpy().tobytes()] for image in part.images[:, 0] * 16]
    assert part.labels.tolist() == found


@pytest.mark.parametrize("size", [1, 7, 8, 16, 33])
def test_images_of_any_size_are_rgb_in_0_to_1(size):
    images = digits("test", 50, image_size=size).images
    assert images.shape == (50, 3, size, size)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert torch.equal(images, images[:, :1].expand_as(images))


def test_the_whole_range_is_used():
    images = digits("test").images
    assert images.min() == 0
    assert images.max() == 1


def test_both_splits_hold_the_classes_in_equal_shares():
    counts = [torch.bincount(digits(split).labels) for split in ("train", "test")]
    expected = (counts[0] + counts[1]) * 500 / 1797
    assert (counts[1] - expected).abs().max() <= 1


def test_classes_are_the_ten_digits():
    part = digits("train")
    assert part.classes == tuple("0123456789")
    assert part.labels.dtype == torch.int64
    assert part.labels.unique().tolist() == list(range(10))


@both_splits
def test_a_split_is_always_the_same(split):
    first, again, other_seed = digits(split), digits(split), digits(split, seed=1)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert torch.equal(first.images, other_seed.images)


@both_splits
def test_fewer_images_are_the_first_ones(split):
    whole, part = digits(split), digits(split, 7)
    assert torch.equal(part.images, whole.images[:7])
    assert torch.equal(part.labels, whole.labels[:7])


def test_the_specification_says_what_is_in_it():
    specification = digits("train", 7, image_size=12).specification
    assert specification == {
        "data": "digits",
        "source": "sklearn.datasets.load_digits",
        "split": "train",
        "size": 12,
        "images": 7,
    }
    assert digits("train").specification["images"] == 1297


@pytest.mark.parametrize("number", [501, 0, -1])
def test_more_images_than_there_are_or_none_are_refused(number):
    with pytest.raises(
        ValueError, match=f"load: digits has 500 test images, but {number} were asked for"
    ):
        digits("test", number)


def test_an_unknown_split_is_refused():
    with pytest.raises(
        ValueError, match="load: expected the split 'train' or 'test', got 'validation'"
    ):
        digits("validation")


# -- check_images --------------------------------------------------------------------------------


def filled(*values):
    return torch.tensor(values).view(1, 3, 1, -1)


@pytest.mark.parametrize(
    "images",
    [
        filled(0.0, 0.5, 1.0),
        filled(0.0, 0.0, 0.0),
        torch.rand(2, 3, 1, 5).double(),
        torch.rand(1, 3, 3, 3).half(),
    ],
    ids=["whole range", "black", "double", "half"],
)
def test_images_pass(images):
    check_images(images, caller="test")


def test_any_number_of_channels_passes_where_it_does_not_matter():
    check_images(torch.rand(1, 1, 4, 4), caller="test", channels=None)


def test_images_that_need_a_gradient_pass():
    check_images(torch.rand(1, 3, 4, 4, requires_grad=True), caller="test")


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((1, 3, 4, 4)), TypeError, "expected a torch tensor of images, got ndarray"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), TypeError, r"got torch.uint8; .* images.float\(\) / 255$"),
        (torch.zeros(3, 4, 4), ValueError, r"\(b, c, h, w\), got \(3, 4, 4\); add .* with images\[None\]$"),
        (torch.zeros(4, 4), ValueError, r"\(b, c, h, w\), got \(4, 4\)$"),
        (torch.zeros(1, 1, 4, 4), ValueError, r"got images of \(1, 1, 4, 4\); .* images.expand\(-1, 3, -1, -1\)$"),
        (torch.zeros(1, 4, 4, 3), ValueError, r"\(1, 4, 4, 3\); .* images.permute\(0, 3, 1, 2\)$"),
        (torch.zeros(1, 4, 5, 5), ValueError, r"expected 3 colour channels, got images of \(1, 4, 5, 5\)$"),
        (torch.zeros(0, 3, 4, 4), ValueError, r"expected at least one image and one pixel, got \(0, 3, 4, 4\)$"),
        (torch.zeros(1, 3, 4, 0), ValueError, r"expected at least one image and one pixel, got \(1, 3, 4, 0\)$"),
        (filled(0.0, 200.0, 255.0), ValueError, r"finite values in \[0, 1\], got values from 0 to 255; divide by 255$"),
        (filled(-2.0, 0.0, 2.5), ValueError, "from -2 to 2.5; do not normalise, the classifier does$"),
        (filled(0.0, 0.5, 1.001), ValueError, "from 0 to 1.001$"),
        (filled(0.0, 0.5, torch.nan), ValueError, "expected finite values in .* nan"),
        (filled(0.0, 0.5, torch.inf), ValueError, "expected finite values in .* inf"),
        (filled(0.0, 0.5, -torch.inf), ValueError, "expected finite values in .* -inf"),
    ],
    ids=[
        "array", "8-bit", "no batch", "no batch, no channels", "grayscale", "channels last", "RGBA", "no image",
        "no pixel", "0 to 255", "normalised", "hardly too large", "NaN", "infinity", "-infinity",
    ],
)  # fmt: skip
def test_anything_else_is_refused(images, error, message, no_shape_checker):
    with pytest.raises(error, match=f"^test: .*{message}"):
        check_images(images, caller="test")


# -- check_labels --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_labels_pass(dtype):
    check_labels(
        torch.tensor([0, 9], dtype=dtype), images=torch.rand(2, 3, 4, 4), classes=10, caller="test"
    )


def test_labels_of_an_unknown_number_of_classes_pass():
    check_labels(torch.tensor([0, 999]), images=torch.rand(2, 3, 4, 4), classes=None, caller="test")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], r"expected 2 integer labels for 2 images, got torch.int64 of shape \(3,\)$"),
        ([[0], [1]], r"expected 2 integer labels for 2 images, got torch.int64 of shape \(2, 1\)$"),
        ([0.0, 1.0], r"expected 2 integer labels for 2 images, got torch.float32 of shape \(2,\)$"),
        ([True, False], "expected 2 integer labels for 2 images, got torch.bool"),
        ([0, 10], "expected labels from 0 to 9, got 0 to 10$"),
        ([-1, 3], "expected labels from 0 to 9, got -1 to 3$"),
        (
            [1, 10],
            "expected labels from 0 to 9, got 1 to 10; labels that start at 1 need labels - 1$",
        ),
        ([1, 12], "expected labels from 0 to 9, got 1 to 12$"),
    ],
    ids=[
        "too many",
        "a column",
        "floating-point",
        "boolean",
        "too large",
        "negative",
        "from 1",
        "from 1 to 12",
    ],
)
def test_other_labels_are_refused(labels, message, no_shape_checker):
    with pytest.raises(ValueError, match=f"^test: {message}"):
        check_labels(torch.tensor(labels), images=torch.rand(2, 3, 4, 4), classes=10, caller="test")


def test_negative_labels_are_refused_whatever_the_number_of_classes():
    with pytest.raises(ValueError, match=r"^test: expected labels from 0, got -1 to 3"):
        check_labels(
            torch.tensor([-1, 3]), images=torch.rand(2, 3, 4, 4), classes=None, caller="test"
        )
