"""What passes as images and labels, and files that are written whole or not at all."""

import errno

import numpy as np
import pytest
import torch

from nbsupport.data.images import check_images, check_labels, room, write_atomically


def filled(*values):
    return torch.tensor(values).view(1, 3, 1, -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_images_pass(dtype):
    images = filled(0.0, 0.5, 1.0).to(dtype).requires_grad_()
    check_images(images, caller="test")
    check_images(images[:, :1], caller="test", channels=None)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([0.0], TypeError, "list"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.complex64), TypeError, "complex64"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), TypeError, r"images.float\(\) / 255"),
        (torch.zeros(3, 4, 4), ValueError, r"images\[None\]"),
        (torch.zeros(1, 1, 4, 4), ValueError, r"images.expand\(-1, 3, -1, -1\)"),
        (torch.zeros(1, 4, 4, 3), ValueError, r"images.permute\(0, 3, 1, 2\)"),
        (torch.zeros(0, 3, 4, 4), ValueError, "at least one image"),
        (filled(0.0, 200.0, 255.0), ValueError, "divide by 255"),
        (filled(-2.0, 0.0, 2.5), ValueError, "do not normalise"),
        (filled(0.0, 0.5, torch.nan), ValueError, "finite"),
    ],
)
def test_other_images_are_refused(images, error, message, no_shape_checker):
    with pytest.raises(error, match=f"^test: .*{message}"):
        check_images(images, caller="test")


@pytest.mark.parametrize("kind", ["int64", "int8", ">u2", "uint32"])
def test_labels_pass_as_int64(kind):
    images, array = torch.rand(2, 3, 4, 4), np.array([9, 0], dtype=kind)
    for labels in (array, array[::-1][::-1], array.tolist(), list(array)):
        found = check_labels(labels, images=images, classes=10, caller="test")
        assert found.dtype == torch.int64 and found.tolist() == [9, 0]


@pytest.mark.parametrize("labels", [None, ["a", "b"], [[0], [1, 2]], [2**70, 0]], ids=str)
def test_what_is_no_integer_is_refused(labels, no_shape_checker):
    with pytest.raises(ValueError, match=r"^test: expected 2 integer labels"):
        check_labels(labels, images=torch.rand(2, 3, 4, 4), classes=10, caller="test")


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 1, 2], 10, r"2 integer labels.* \(3,\)"),
        ([0.0, 1.0], 10, "torch.float32"),
        ([0, 10], 10, "from 0 to 9, got 0 to 10$"),
        ([-1, 3], None, "from 0, got -1 to 3$"),
        ([1, 10], 10, "labels - 1"),
    ],
)
def test_other_labels_are_refused(labels, classes, message, no_shape_checker):
    images = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match=f"^test: .*{message}"):
        check_labels(torch.tensor(labels), images=images, classes=classes, caller="test")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("before")
    write_atomically(path, lambda temporary: temporary.write_text("after"))

    def half(temporary):
        temporary.write_text("af")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, half)
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_with_a_remedy(tmp_path, number):
    message = rf"the disk is full: .* {tmp_path}; .* NBSUPPORT_HOME"
    with pytest.raises(OSError, match=message) as caught, room(tmp_path):
        raise OSError(number, "as the system words it")
    assert caught.value.errno == number
    with pytest.raises(PermissionError, match=r"^\[Errno 13\] not yours$"), room(tmp_path):
        raise PermissionError(errno.EACCES, "not yours")
