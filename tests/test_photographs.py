"""Patches of photographs: no pixel in both splits, normalised as defined, the same in every session."""

import numpy as np
import pytest
import torch

from nbsupport.data import photographs
from nbsupport.data.photographs import CONTRAST, SIZE, STARTS, cut, load


@pytest.fixture
def crops(monkeypatch):
    """All squares that `cut` takes out of photographs, before it resizes them."""
    found, resize = [], photographs.resize

    def record(images, size, antialias):
        assert antialias
        if images.ndim == 3:
            found.append((images * 255).round().long())
        return resize(images, size, antialias=antialias)

    monkeypatch.setattr(photographs, "resize", record)
    return found


def paint(monkeypatch, change):
    made = {name: change(pixels) for name, pixels in photographs.photographs().items()}
    monkeypatch.setattr(photographs, "photographs", lambda: made)


def number_pixels(pixels):
    """A smaller photograph whose channels are each pixel's row, column and number."""
    _, height, width = pixels[:, ::3, ::3].shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, rows * width + columns]).double()


def test_no_pixel_is_in_both_splits(crops, monkeypatch):
    paint(monkeypatch, number_pixels)
    seen = []
    for split, number in (("train", 1000), ("test", 500)):
        cut(split, number)
        assert len(crops) == number  # none is flat
        each = [set() for _ in STARTS]
        for position, (rows, columns, numbers) in enumerate(crops):
            height, width = rows.shape
            assert height == width
            assert (rows[:, 0].diff() == 1).all() and (columns[0].diff() == 1).all()
            each[position % len(STARTS)] |= {*numbers.flatten().tolist()}
        seen.append(each)
        crops.clear()
    for train, test in zip(*seen, strict=True):
        assert train and test and not train & test


def test_each_patch_has_the_defined_mean_and_contrast():
    for split in ("train", "test"):
        patches = cut(split, 60).double()
        inside = ((patches > 0) & (patches < 1)).flatten(1).all(dim=1)  # others were clipped
        assert inside.sum() > 20 and patches.shape[1:] == (3, SIZE, SIZE)
        values = patches[inside].numpy()
        np.testing.assert_allclose(values.mean(axis=(2, 3)), 0.5, atol=1e-6)
        deviations = values.reshape(len(values), -1).std(axis=1, ddof=1)
        np.testing.assert_allclose(deviations, CONTRAST, rtol=1e-5)


def test_classes_take_turns_and_fewer_patches_are_the_first_ones():
    whole, first = load("test"), load("test", 33)
    assert whole.labels.bincount().tolist() == [len(whole) // len(STARTS)] * len(STARTS)
    assert torch.equal(first.labels, whole.labels[:33])
    assert torch.equal(first.images, load("test", 40).images[:33])
    later = load("test", 20, skip=13)
    assert torch.equal(later.labels, first.labels[13:])
    assert torch.equal(later.images, first.images[13:])
    assert not torch.equal(load("train", 33).images, first.images)
    assert len(load("train", 7, skip=10**6)) == 0


def test_a_patch_shows_its_class(crops, monkeypatch):
    paint(monkeypatch, number_pixels)  # none is flat, and heights are the shorter sides
    monkeypatch.setattr(photographs, "SIDES", (0.3, 0.3))
    heights = [pixels.shape[1] for pixels in photographs.photographs().values()]
    labels = load("train", 20).labels
    cut("train", 20)
    assert [len(crop[0]) for crop in crops] == [int(0.3 * heights[label]) for label in labels]


def test_the_specification_depends_on_pixels_and_numbers(monkeypatch):
    before = load("test", 3).specification
    assert before == load("test", 3).specification
    monkeypatch.setattr(photographs, "CONTRAST", 0.2)
    assert load("test", 3).specification != before
    monkeypatch.undo()
    paint(monkeypatch, lambda pixels: pixels ^ 1)
    assert load("test", 3).specification["content"] != before["content"]
