"""The figures of a study show what was measured, and the frames of the slider are those images."""

import numpy as np
import pytest
import torch

from nbsupport.attacks.adaptive import chain
from nbsupport.attacks.pgd import pgd
from nbsupport.experiments.artifacts import Experiment
from nbsupport.experiments.evaluation import measure
from nbsupport.results import paper_figures
from nbsupport.results.paper_figures import lay_out_kernels, render_frames
from nbsupport.study import Study

FUSED, IMAGE = "PA-Filt(L_img)", 3


def shown(axis):
    return np.asarray(axis.images[0].get_array())


# -- which images --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clean", "attacked", "number", "expected"),
    [
        ([1, 1, 0, 1, 1, 1], [1, 0, 0, 0, 1, 0], 5, [1, 3, 5, 0, 2]),
        ([1, 1], [1, 0], 9, [1, 0]),
    ],
)
def test_fooled_images_come_first(clean, attacked, number, expected, monkeypatch):
    right = np.array([clean, [0] * len(clean), attacked], dtype=bool)
    measured = {"attacked": {"accuracy": right}}
    monkeypatch.setattr(paper_figures, "measure", lambda experiment, method: measured[method])
    experiment = object.__new__(Experiment)
    experiment.study = Study.named("photographs", "smoke", eps=(0.0, 0.01, 0.1), unseen_eps=())
    assert paper_figures.find_fooled(experiment, 0.1, number) == expected


# -- figures -------------------------------------------------------------------------------------


def test_before_after_shows_the_measured_image_and_words(experiment):
    method = "PA-Filt(L_img)_m"
    figure = paper_figures.show_before_after(experiment, method, IMAGE, 0.3)
    hat = experiment.attacked("test").at(0.3)[IMAGE : IMAGE + 1]
    denoised = experiment.denoiser(method)(hat)[0]
    np.testing.assert_allclose(shown(figure.axes[3]), denoised.permute(1, 2, 0), atol=1e-6)
    perturbation, clean = figure.axes[2].images[0], experiment.images("test").images[IMAGE]
    logits = experiment.classifier()(torch.stack([clean, hat[0], denoised]))
    words = [experiment.images("test").classes[label] for label in logits.argmax(dim=1)]
    row = experiment.study.evaluated_eps.index(0.3)
    np.testing.assert_allclose(perturbation.get_array(), (hat[0] - clean).mean(dim=0), atol=1e-6)
    assert perturbation.get_clim() == (-0.3, 0.3)
    titles = [figure.axes[column].get_title().splitlines()[1] for column in (0, 1, 3)]
    psnr = [measure(experiment, name)["psnr"][row, IMAGE] for name in ("attacked", method)]
    assert titles[0] == f"“{words[0]}”"  # no PSNR against itself
    assert titles[1:] == [f"“{w}”, {v:.1f} dB" for w, v in zip(words[1:], psnr, strict=True)]


def test_both_attackers_are_shown_before_and_after_the_denoiser(experiment):
    figure = paper_figures.show_both_attackers(experiment, "Filt(L_img)", IMAGE, 0.1)
    test, study = experiment.images("test"), experiment.study
    classifier, denoiser = experiment.classifier(), experiment.denoiser("Filt(L_img)")
    images, labels = test.images[IMAGE : IMAGE + 1], test.labels[IMAGE : IMAGE + 1]
    for column, network in ((1, classifier), (3, chain(denoiser, classifier))):
        hat = pgd(network, images, labels, 0.1, steps=study.steps, seed=study.seed)
        for axis, image in ((column, hat), (column + 1, denoiser(hat))):
            drawn = shown(figure.axes[axis])
            np.testing.assert_allclose(drawn, image[0].permute(1, 2, 0), atol=1e-6)


def test_architectures_show_what_the_networks_predict(experiment):
    figure = paper_figures.show_architectures(experiment, 2, 0.1)
    hat = experiment.attacked("test").at(0.1)[2:3]
    drawn = {axis.get_title(): shown(axis) for axis in figure.axes if axis.images}
    parts = experiment.denoiser(FUSED).parts(hat)
    np.testing.assert_allclose(drawn["W"], parts.weight[0, 0], atol=1e-6)
    np.testing.assert_allclose(drawn["U_m"], parts.uncertainty_m[0, 0], atol=1e-6)
    np.testing.assert_allclose(drawn["Ĩ_sl"], parts.sl[0].permute(1, 2, 0).clamp(0, 1), atol=1e-6)
    np.testing.assert_allclose(drawn["(c) attacked Î"], hat[0].permute(1, 2, 0))
    residual = (experiment.denoiser("Add(L_img)")(hat) - hat)[0].mean(dim=0)
    np.testing.assert_allclose(shown(figure.axes[2]), residual, atol=1e-6)


def test_each_mark_stands_at_its_pixel_beside_its_three_kernels(experiment):
    pixels = {"red": (8, 7), "gold": (0, 15)}
    figure = paper_figures.show_kernels(experiment, "head_2", 0, (0.001, 0.3), pixels)
    for number, eps in enumerate((0.001, 0.3)):
        image, *axes = figure.axes[7 * number : 7 * number + 7]
        marks = {x.get_markeredgecolor(): (*x.get_ydata(), *x.get_xdata()) for x in image.lines}
        assert marks == pixels
        kernels = experiment.denoiser("head_2").kernels(experiment.attacked("test").at(eps)[:1])
        places = [(c, *pixel) for pixel in pixels.values() for c in range(3)]
        for axis, (channel, row, column) in zip(axes, places, strict=True):
            taps = kernels[0, 9 * channel : 9 * channel + 9, row, column]
            np.testing.assert_allclose(shown(axis), taps.view(3, 3), atol=1e-6)


@pytest.mark.parametrize(
    ("method", "pixel", "word"),
    [("head_2", (0, 16), "outside"), ("head_2", (-1, 0), "outside"), (FUSED, (8, 7), "filters")],
)
def test_kernels_outside_or_of_no_filter_are_refused(method, pixel, word, experiment):
    with pytest.raises(IndexError if word == "outside" else ValueError, match=word):
        paper_figures.show_kernels(experiment, method, 0, (0.1,), {"red": pixel})


def test_green_kernels_of_evenly_spaced_pixels_are_laid_out():
    height, width, size, pixels = 13, 7, 5, 3
    kernels = torch.rand(1, 3 * size**2, height, width)
    found = lay_out_kernels(kernels, pixels)
    side = pixels * (size + 1) - 1
    expected = torch.full((side, side), torch.nan)
    for i, j, y, x in np.ndindex(pixels, pixels, size, size):
        row, column = i * (height - 1) // (pixels - 1), j * (width - 1) // (pixels - 1)
        tap = kernels[0, size**2 + y * size + x, row, column]
        expected[i * (size + 1) + y, j * (size + 1) + x] = tap
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


# -- frames --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames(experiment):
    return render_frames(experiment, IMAGE)


@pytest.mark.parametrize("row", [0, 5, 13])
def test_frame_k_is_the_image_under_strength_k(row, frames, experiment):
    (pixels, index), clean = frames, experiment.images("test").images[IMAGE]
    size, attacked = index["size"], experiment.attacked("test")
    hat = attacked.at(experiment.study.evaluated_eps[row])[IMAGE]
    methods = f"{FUSED}_sl", f"{FUSED}_m", FUSED
    images = [clean, hat, *(experiment.denoiser(method)(hat[None])[0] for method in methods)]
    for column, image in zip((0, 1, 2, 3, 5), images, strict=True):
        place = np.s_[row * size : (row + 1) * size, column * size : (column + 1) * size]
        expected = (255 * image.double().clamp(0, 1)).permute(1, 2, 0).numpy()
        assert np.abs(pixels[place] - expected).max() <= 0.5 + 1e-3, index["names"][column]


def test_words_and_notes_are_those_that_are_measured(frames, experiment):
    pixels, index = frames
    words, notes = (np.array(index[name]) for name in ("words", "notes"))
    for column, method in ((1, "attacked"), (2, f"{FUSED}_sl"), (3, f"{FUSED}_m"), (5, FUSED)):
        right = measure(experiment, method)["accuracy"][:, IMAGE]
        assert [*(words[:, column] == index["truth"])] == [*right]
    assert set(words[:, 4]) == {None}  # W is no image
    measured = measure(experiment, FUSED)
    psnr, weight = measured["psnr"][:, IMAGE], measured["weight"][:, IMAGE]
    assert [*notes[:, 5]] == [f"{value:.1f} dB" for value in psnr]
    assert [*notes[:, 4]] == [f"mean {value:.2f}" for value in weight]
    assert pixels.shape == (len(words) * index["size"], 6 * index["size"], 3)
    assert (index["image"], index["eps"]) == (IMAGE, experiment.study.evaluated_eps)
    test = experiment.images("test")
    assert index["truth"] == test.classes[test.labels[IMAGE]]
