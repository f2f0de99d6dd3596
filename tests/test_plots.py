"""Pictures: what is drawn where, and that drawing leaves nothing behind."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from nbsupport.denoisers.baselines import BASELINES
from nbsupport.denoisers.models import Additive, Filtering, PAFilter
from nbsupport.experiments.evaluation import COLUMNS, Evaluation
from nbsupport.experiments.measurement import Measurement
from nbsupport.experiments.methods import TABLES
from nbsupport.results import paper_figures as pictures
from nbsupport.results.adaptive_plot import draw_defences
from nbsupport.results.diagrams import draw_architectures, kernel_mosaic
from nbsupport.results.plots import (
    draw_bands,
    draw_before_after,
    draw_curves,
    draw_kernels,
    draw_maps,
    draw_parts,
    draw_strip,
    draw_uncertainty,
    eps_axis,
)
from nbsupport.results.style import COLOURS, MARKERS
from nbsupport.results.tables import short
from nbsupport.study import EPS, Study

METHODS = list(dict.fromkeys(method for table in TABLES.values() for method in table))
FUSED = "PA-Filt(L_img)"


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


IMAGE, OTHER, MAP, KERNELS = (
    rand(3, 13, 7),
    rand(3, 13, 7, seed=1),
    rand(13, 7),
    rand(27, 13, 7) - 0.5,
)
VALUES = np.random.default_rng(0).random((len(EPS), 20))


def tidy(*methods, metrics=("accuracy",)):
    rng = np.random.default_rng(0)
    rows = [
        (1, "digits", "small_resnet", method, attack, 40, eps, metric, rng.random(), 24, 0)
        for method in methods
        for metric in metrics
        for attack in ("pgd", "pgd-envelope")
        for eps in EPS
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


ROWS = tidy("attacked", "Filt(L_img)", "8-bit", "JPEG 75", metrics=("psnr", "ssim"))


def architectures():
    torch.manual_seed(0)
    additive, filtering, fused = (
        kind(width=2, kernel_size=3) for kind in (Additive, Filtering, PAFilter)
    )
    return draw_architectures(IMAGE, additive, filtering, fused)


# Each call, the number of its axes without colour bars, and of its colour bars.
DRAWN = {
    "draw_curves": (lambda: draw_curves(ROWS), 2, 0),
    "draw_strip": (
        lambda: draw_strip([IMAGE, OTHER, IMAGE], ["one", "two", "three"], "title"),
        3,
        0,
    ),
    "draw_before_after": (
        lambda: draw_before_after(IMAGE, OTHER, IMAGE, ["7", "1", "7"], 0.1, "Filt(L_img)"),
        4,
        0,
    ),
    "draw_uncertainty": (lambda: draw_uncertainty([IMAGE] * 13, [MAP] * 13, EPS, VALUES), 27, 1),
    "draw_parts": (
        lambda: draw_parts([{"label": "ε", "panels": [(IMAGE, "Î"), (MAP, "W")]}] * 3),
        6,
        0,
    ),
    "draw_maps": (lambda: draw_maps(IMAGE, {"U": MAP, "distance": MAP}, limits=(0, 2)), 3, 1),
    "draw_kernels": (
        lambda: draw_kernels({"ε": (IMAGE, KERNELS)}, {"red": (12, 6), "gold": (0, 0)}),
        8,
        1,
    ),
    "draw_bands": (lambda: draw_bands(EPS, {"Filt(L_img)": VALUES, FUSED: VALUES}, "label"), 1, 0),
    "draw_architectures": (architectures, 28, 0),
}
every_call = pytest.mark.parametrize(("draw", "axes", "bars"), DRAWN.values(), ids=DRAWN)
every_drawing = pytest.mark.parametrize("draw", [draw for draw, _, _ in DRAWN.values()], ids=DRAWN)


@every_call
def test_a_figure_with_its_axes(draw, axes, bars):
    figure = draw()
    assert isinstance(figure, Figure)
    labels = [axis.get_label() for axis in figure.axes]
    assert (len(labels) - labels.count("<colorbar>"), labels.count("<colorbar>")) == (axes, bars)


@every_drawing
def test_it_can_be_saved(draw, tmp_path):
    draw().savefig(tmp_path / "figure.png")


@every_drawing
def test_no_figure_stays_open(draw):
    draw()
    assert plt.get_fignums() == []


@every_drawing
def test_inputs_stay_as_they_are(draw):
    tensors, values, rows = (
        [x.clone() for x in (IMAGE, OTHER, MAP, KERNELS)],
        VALUES.copy(),
        ROWS.copy(),
    )
    draw()
    assert all(
        torch.equal(a, b) for a, b in zip(tensors, (IMAGE, OTHER, MAP, KERNELS), strict=True)
    )
    assert np.array_equal(values, VALUES)
    pd.testing.assert_frame_equal(rows, ROWS)


@every_drawing
def test_the_users_style_stays_as_it_is(draw):
    before = dict(plt.rcParams)
    draw()
    assert dict(plt.rcParams) == before


@pytest.mark.parametrize(
    "draw",
    [
        lambda: draw_strip([IMAGE], ["one", "too many"]),
        lambda: draw_uncertainty([IMAGE] * 13, [MAP] * 12, EPS, VALUES),
        lambda: draw_kernels({"ε": (IMAGE, KERNELS)}, {"red": (13, 0)}),
    ],
    ids=["draw_strip", "draw_uncertainty", "draw_kernels"],
)
def test_no_figure_stays_open_after_an_error_either(draw):
    with pytest.raises((ValueError, IndexError)):
        draw()
    left = plt.get_fignums()
    plt.close("all")
    assert left == []


# -- curves over ε -------------------------------------------------------------------------------


def test_both_attackers_stand_on_the_same_axes():
    eps, dashed, solid = (0.0, 0.05, 0.1), np.array([1.0, 0.9, 0.8]), np.array([1.0, 0.2, 0.0])
    figure = draw_defences(
        eps, {"Adv": dashed, "attacked": solid}, {"Adv": solid, "attacked": solid}, number=25
    )
    lines = {
        (line.get_linestyle(), line.get_color()): line
        for line in figure.axes[0].lines
        if len(line.get_xdata()) == 3
    }
    assert np.array_equal(lines["--", COLOURS["Adv"]].get_ydata(), dashed)
    assert np.array_equal(lines["-", COLOURS["Adv"]].get_ydata(), solid)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["0", "5e-2", "1e-1"]
    low, high = figure.axes[0].containers[0].lines[2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(
        4 * (0.25 / 25) ** 0.5
    )  # two standard errors of a half, both ways
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Adv", "attacked"]


def drawn_lines(axis):
    return [line for line in axis.lines if len(line.get_xdata())]


def test_only_the_baselines_are_dashed():
    dashed = [line.is_dashed() for line in drawn_lines(draw_curves(tidy(*METHODS)).axes[0])]
    assert dashed == [method in BASELINES for method in METHODS]


def test_a_method_looks_the_same_everywhere():
    curves = {FUSED: VALUES, "head_2": VALUES}
    flat = {name: values.mean(axis=1) for name, values in curves.items()}
    axes = [draw_curves(tidy(*curves)).axes[0], draw_bands(EPS, curves, "").axes[0]]
    axes.append(draw_defences(EPS, flat, flat, number=20).axes[0])
    for axis in axes:
        looks = {
            (line.get_color(), line.get_marker())
            for line in drawn_lines(axis)
            if len(line.get_xdata()) == 13
        }
        assert looks == {(COLOURS[name], MARKERS[name]) for name in curves}


def test_a_line_per_method_in_each_panel():
    for axis in draw_curves(ROWS).axes:
        assert len(drawn_lines(axis)) == 4


@pytest.mark.parametrize("attack", ["pgd", "pgd-envelope"])
def test_a_line_is_a_methods_values_over_eps(attack):
    figure = draw_curves(ROWS, attack=attack, metrics=["ssim"])
    line = next(line for line in figure.axes[0].lines if line.get_color() == COLOURS["Filt(L_img)"])
    own = ROWS[
        (ROWS["method"] == "Filt(L_img)") & (ROWS["metric"] == "ssim") & (ROWS["attack"] == attack)
    ]
    np.testing.assert_allclose(line.get_xdata(), EPS)
    np.testing.assert_allclose(line.get_ydata(), own["value"])


def test_panels_are_the_metrics():
    assert [axis.get_ylabel() for axis in draw_curves(ROWS).axes] == ["PSNR (dB)", "SSIM"]


def test_the_legend_names_every_method_once():
    (legend,) = draw_curves(ROWS).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "attacked",
        "Filt(L_img)",
        "8-bit",
        "JPEG 75",
    ]


def test_all_methods_of_a_table_can_be_drawn_together():
    (axis,) = draw_curves(tidy(*METHODS)).axes
    assert len(drawn_lines(axis)) == len(METHODS)


def test_infinite_psnr_leaves_a_gap():
    rows = tidy("attacked", metrics=("psnr",))
    rows.loc[rows["eps"] == 0, "value"] = np.inf
    figure = draw_curves(rows)
    figure.draw_without_rendering()
    assert np.isfinite(figure.axes[0].get_ylim()).all()


@pytest.mark.parametrize(
    "axis",
    [
        lambda: draw_curves(ROWS).axes[1],
        lambda: draw_bands(EPS, {FUSED: VALUES}, "").axes[0],
        lambda: draw_uncertainty([IMAGE] * 13, [MAP] * 13, EPS, VALUES).axes[26],
        lambda: draw_defences(EPS, {FUSED: VALUES[:, 0]}, {FUSED: VALUES[:, 1]}, number=20).axes[0],
    ],
    ids=["draw_curves", "draw_bands", "draw_uncertainty", "draw_defences"],
)
def test_eps_is_logarithmic_and_0_is_shown(axis):
    axis = axis()
    assert axis.get_xscale() == "symlog"
    assert axis.get_xlim()[0] <= 0 < EPS[-1] <= axis.get_xlim()[1]
    assert (
        dict(
            zip(
                axis.get_xticks(), [text.get_text() for text in axis.get_xticklabels()], strict=True
            )
        )[0]
        == "0"
    )


@pytest.mark.parametrize("strengths", [EPS, (0.0, 0.05, 0.1, 0.3, 0.5), (0.0, 0.3)], ids=len)
def test_the_strengths_stand_apart(strengths):
    axis = plt.figure().add_subplot()
    eps_axis(axis, strengths)
    places = axis.transAxes.inverted().transform(
        axis.transData.transform([(eps, 0) for eps in strengths])
    )[:, 0]
    plt.close("all")
    assert (np.diff(places) > 0.03).all()
    assert (places > 0).all() and (places < 1).all()


def test_bands_are_the_median_and_the_middle_95_percent():
    axis = draw_bands(EPS, {FUSED: VALUES}, "mean W").axes[0]
    np.testing.assert_allclose(axis.lines[0].get_ydata(), np.median(VALUES, axis=1))
    drawn = axis.collections[0].get_paths()[0].vertices
    for eps, values in zip(EPS, VALUES, strict=True):
        heights = drawn[drawn[:, 0] == eps, 1]
        np.testing.assert_allclose(
            [heights.min(), heights.max()], np.quantile(values, [0.025, 0.975])
        )


# -- images --------------------------------------------------------------------------------------


def shown(axis):
    return np.asarray(axis.images[0].get_array())


def test_an_image_is_shown_as_it_is():
    figure = draw_strip([IMAGE, OTHER], ["one", "two"])
    np.testing.assert_array_equal(shown(figure.axes[1]), OTHER.permute(1, 2, 0))
    assert [axis.get_title() for axis in figure.axes] == ["one", "two"]


def test_before_and_after_show_the_perturbation_from_minus_eps_to_eps():
    figure = draw_before_after(IMAGE, OTHER, IMAGE, ["7", "1", "9"], 0.3, "Filt(L_img)")
    difference = figure.axes[2].images[0]
    np.testing.assert_allclose(difference.get_array(), (OTHER - IMAGE).mean(dim=0))
    assert difference.get_clim() == (-0.3, 0.3)
    words = [figure.axes[column].get_title().split("“")[1] for column in (0, 1, 3)]
    assert words == ["7”", "1”", "9”"]


def test_uncertainty_maps_share_one_scale():
    figure = draw_uncertainty([IMAGE] * 2, [MAP, MAP + 1], EPS[:2], VALUES[:2])
    limits = {axis.images[0].get_clim() for axis in figure.axes[2:4]}
    assert limits == {(float(MAP.min()), float(MAP.max() + 1))}


def test_maps_share_the_given_scale():
    figure = draw_maps(IMAGE, {"U": MAP, "distance": 3 * MAP}, limits=(0, 2))
    assert {axis.images[0].get_clim() for axis in figure.axes[1:3]} == {(0, 2)}


def test_a_weight_is_drawn_from_0_to_1():
    figure = draw_parts([{"label": "ε", "panels": [(IMAGE, "Î"), (MAP / 2, "W")]}])
    assert figure.axes[1].images[0].get_clim() == (0, 1)
    assert figure.axes[0].get_ylabel() == "ε"


# -- kernels -------------------------------------------------------------------------------------


def test_each_mark_has_its_three_kernels():
    pixels = {"red": (12, 6), "gold": (0, 3)}
    figure = draw_kernels({"weak": (IMAGE, KERNELS), "strong": (OTHER, -KERNELS)}, pixels)
    lines = [(sign, place) for sign in (1, -1) for place in pixels.values()]
    for number, (sign, (row, column)) in enumerate(lines):
        for channel, y, x in np.ndindex(3, 3, 3):
            tap = float(sign * KERNELS[9 * channel + 3 * y + x, row, column])
            assert shown(figure.axes[4 * number + 1 + channel])[y, x] == pytest.approx(tap)


def test_a_mark_stands_at_its_pixel():
    (mark,) = draw_kernels({"ε": (IMAGE, KERNELS)}, {"red": (12, 5)}).axes[0].lines
    assert (mark.get_xdata(), mark.get_ydata()) == ([5], [12])
    assert mark.get_markeredgecolor() == "red"


@pytest.mark.parametrize("pixel", [(13, 0), (0, 7), (-1, 0), (0, -1), (6, 12)])
def test_a_pixel_outside_is_refused(pixel):
    with pytest.raises(IndexError, match=r"is outside of the 13 × 7 image"):
        draw_kernels({"ε": (IMAGE, KERNELS)}, {"red": pixel})


@pytest.mark.parametrize(
    ("height", "width", "size"), [(16, 16, 3), (13, 7, 5), (33, 224, 5), (4, 4, 1)]
)
@pytest.mark.parametrize("pixels", [2, 4])
def test_a_mosaic_is_made_of_the_green_kernels_of_evenly_spaced_pixels(height, width, size, pixels):
    kernels = rand(3 * size**2, height, width)
    mosaic = kernel_mosaic(kernels, pixels)
    side = pixels * (size + 1) - 1
    expected = torch.full((side, side), torch.nan)
    for i, j, y, x in np.ndindex(pixels, pixels, size, size):
        row, column = i * (height - 1) // (pixels - 1), j * (width - 1) // (pixels - 1)
        expected[i * (size + 1) + y, j * (size + 1) + x] = kernels[
            size**2 + y * size + x, row, column
        ]
    torch.testing.assert_close(mosaic, expected, rtol=0, atol=0, equal_nan=True)


# -- pictures of the smoke study -----------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluation(artefacts):
    return Evaluation(artefacts)


def crafted(clean, attacked):
    """An evaluation of which only the attacked row is known: right or wrong, clean and at ε = 0.1."""
    right = torch.zeros(3, len(clean), dtype=torch.long)
    right[0], right[2] = torch.tensor(clean), torch.tensor(attacked)
    zeros = torch.zeros(right.shape)
    measurement = Measurement(
        right, torch.ones(len(clean), dtype=torch.long), zeros, zeros, zeros, {}
    )
    evaluation = object.__new__(Evaluation)
    evaluation.study = Study.named("digits", "smoke", eps=(0.0, 0.01, 0.1))
    evaluation.measurement = {"attacked": measurement}.__getitem__
    return evaluation


def test_fooled_are_the_first_that_were_right_and_are_wrong():
    evaluation = crafted(clean=[1, 1, 0, 1, 1, 1], attacked=[1, 0, 0, 0, 1, 0])
    assert pictures.fooled(evaluation, 0.1, 2) == [1, 3]


def test_others_follow_in_their_order():
    evaluation = crafted(clean=[1, 1, 0, 1, 1, 1], attacked=[1, 0, 0, 0, 1, 0])
    assert pictures.fooled(evaluation, 0.1, 5) == [1, 3, 5, 0, 2]


def test_no_more_than_there_are():
    assert pictures.fooled(crafted(clean=[1, 1], attacked=[1, 0]), 0.1, 9) == [1, 0]


def test_image_choices_are_labelled_with_number_and_true_class(evaluation):
    labels = evaluation.artefacts.images("test").labels
    choices = pictures.image_choices(evaluation, [5, 2])
    assert choices == {f"no. {image}, “{labels[image]}”": image for image in (5, 2)}
    assert list(choices.values()) == [5, 2]


@pytest.mark.parametrize("method", ["attacked", "Filt(L_img)", "PA-Filt(L_img)_m", "JPEG 75"])
def test_before_after_shows_the_measured_image_and_words(method, evaluation):
    figure = pictures.before_after(evaluation, method, 3, 0.3)
    artefacts, row = evaluation.artefacts, EPS.index(0.3)
    denoised = artefacts.denoiser(method)(artefacts.attacked("test").at(0.3)[3:4])[0]
    np.testing.assert_allclose(shown(figure.axes[3]), denoised.permute(1, 2, 0), atol=1e-6)
    predictions = [
        evaluation.measurement("attacked").predictions[0, 3],
        evaluation.measurement("attacked").predictions[row, 3],
        evaluation.measurement(method).predictions[row, 3],
    ]
    assert [figure.axes[column].get_title()[-3:] for column in (0, 1, 3)] == [
        f"“{word}”" for word in predictions
    ]


def test_architectures_show_what_flows_through_them(evaluation):
    figure = pictures.architectures(evaluation, 2, 0.1)
    artefacts = evaluation.artefacts
    hat = artefacts.attacked("test").at(0.1)[2:3]
    drawn = {axis.get_title(): shown(axis) for axis in figure.axes if axis.images}
    parts = artefacts.denoiser(FUSED).parts(hat)
    np.testing.assert_allclose(drawn["W"], parts.weight[0, 0], atol=1e-6)
    np.testing.assert_allclose(drawn["U_m"], parts.uncertainty_m[0, 0], atol=1e-6)
    np.testing.assert_allclose(drawn["(c) attacked Î"], hat[0].permute(1, 2, 0))


def test_uncertainty_shows_the_maps_that_are_measured(evaluation):
    figure = pictures.uncertainty(evaluation, 4)
    measured = evaluation.measurement("Filt(L_img)").extra["uncertainty"]
    means = [shown(axis).mean() for axis in figure.axes if axis.images and shown(axis).ndim == 2][
        : len(EPS)
    ]
    np.testing.assert_allclose(means, measured[:, 4], rtol=1e-5)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == [short(eps) for eps in EPS]


def test_parts_show_the_measured_psnr(evaluation):
    figure = pictures.parts(evaluation, 1, (0.0, 0.3))
    titles = [[axis.get_title() for axis in figure.axes[6 * row : 6 * row + 6]] for row in range(2)]
    for column, method in ((1, "attacked"), (2, f"{FUSED}_sl"), (3, f"{FUSED}_m"), (5, FUSED)):
        psnr = evaluation.measurement(method).psnr[EPS.index(0.3), 1]
        assert titles[1][column].endswith(f"{psnr:.1f} dB")
    assert not any("dB" in title for title in titles[0][:2])  # the clean image has no finite PSNR
    assert titles[0][4].startswith("W\nmean ")


def test_kernels_are_those_of_the_method(evaluation):
    figure = pictures.kernels(evaluation, "head_2", 0, (0.001, 0.3), {"red": (8, 7)})
    hat = evaluation.artefacts.attacked("test").at(0.3)[:1]
    expected = evaluation.artefacts.denoiser("head_2").kernels(hat)[0, :, 8, 7].view(3, 3, 3)
    for channel in range(3):
        np.testing.assert_allclose(shown(figure.axes[5 + channel]), expected[channel], atol=1e-6)


@pytest.mark.parametrize("method", ["Add(L_img)", "attacked", FUSED, "8-bit"])
def test_kernels_of_a_method_that_does_not_filter_are_refused(method, evaluation):
    with pytest.raises(ValueError, match="expected a method that filters, got"):
        pictures.kernels(evaluation, method, 0, (0.1,), {"red": (8, 7)})


def test_the_pictures_leave_no_figure_open(evaluation):
    pictures.parts(evaluation, 0, (0.1,))
    pictures.uncertainty(evaluation, 0)
    assert plt.get_fignums() == []
