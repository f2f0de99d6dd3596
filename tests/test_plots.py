"""Drawing: the values that each figure shows, its colours, and that drawing leaves nothing behind."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from nbsupport.denoisers.baselines import BASELINES
from nbsupport.experiments.evaluation import COLUMNS
from nbsupport.experiments.methods import COLOURS, DASHES, DEFENCES, MARKERS, TABLES
from nbsupport.results import plots
from nbsupport.results.plots import (
    draw_bands,
    draw_curves,
    draw_defences,
    draw_kernels,
    draw_maps,
    draw_panels,
    draw_strip,
    draw_uncertainty,
    eps_axis,
    sheet,
)
from nbsupport.study import EPS

METHODS = list(dict.fromkeys(method for table in TABLES.values() for method in table))
FUSED = "PA-Filt(L_img)"


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


IMAGE, OTHER = rand(3, 13, 7), rand(3, 13, 7, seed=1)
MAP, KERNELS = rand(13, 7), rand(27, 13, 7) - 0.5
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
DRAWN = {
    "draw_curves": lambda: draw_curves(ROWS),
    "draw_strip": lambda: draw_strip([IMAGE, OTHER], ["one", "two"]),
    "draw_uncertainty": lambda: draw_uncertainty([IMAGE] * 13, [MAP] * 13, EPS, VALUES),
    "draw_panels": lambda: draw_panels(
        [[(IMAGE, "Î", {}), (MAP, "W", plots.SHARES)]] * 3, ["ε"] * 3
    ),
    "draw_maps": lambda: draw_maps(IMAGE, {"U": MAP, "distance": MAP}, limits=(0, 2)),
    "draw_kernels": lambda: draw_kernels({"ε": (IMAGE, KERNELS)}, {"red": (12, 6)}),
    "draw_bands": lambda: draw_bands(EPS, {"Filt(L_img)": VALUES, FUSED: VALUES}, "label"),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_drawing_leaves_nothing_behind_and_inputs_as_they_are(draw, tmp_path):
    given = [x.clone() for x in (IMAGE, OTHER, MAP, KERNELS)], VALUES.copy(), ROWS.copy()
    style = dict(plt.rcParams)
    draw().savefig(tmp_path / "figure.png")
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == style
    assert all(map(torch.equal, given[0], (IMAGE, OTHER, MAP, KERNELS)))
    assert np.array_equal(VALUES, given[1])
    pd.testing.assert_frame_equal(ROWS, given[2])


def test_no_figure_stays_open_after_an_error():
    with pytest.raises(ValueError, match="argument 2"):
        draw_strip([IMAGE], ["one", "too many"])
    with pytest.raises(ValueError, match="argument 2"):
        draw_uncertainty([IMAGE] * 13, [MAP] * 12, EPS, VALUES)
    assert plt.get_fignums() == []


def test_the_style_is_the_same_for_every_user():
    def found():
        with sheet():
            return {name: v for name, v in plt.rcParams.items() if not name.startswith("backend")}

    with plt.rc_context({"font.size": 40, "axes.grid": False, "lines.linewidth": 9}):
        other = found()
        assert plt.rcParams["font.size"] == 40
    assert other == found()


# -- curves over ε -------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ["pgd", "pgd-envelope"])
def test_a_line_is_a_methods_values_over_eps(attack):
    figure = draw_curves(ROWS, attack=attack, metrics=["ssim"])
    (axis,) = figure.axes
    line = next(line for line in axis.lines if line.get_color() == COLOURS["Filt(L_img)"])
    wanted = ROWS.query("method == 'Filt(L_img)' and metric == 'ssim' and attack == @attack")
    np.testing.assert_allclose(line.get_xdata(), EPS)
    np.testing.assert_allclose(line.get_ydata(), wanted["value"])
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(ROWS["method"])


def test_all_methods_can_be_drawn_together_and_only_the_baselines_are_dashed():
    (axis,) = draw_curves(tidy(*METHODS)).axes
    lines = [line for line in axis.lines if len(line.get_xdata())]
    assert [line.is_dashed() for line in lines] == [m in BASELINES for m in METHODS]


def test_a_method_looks_the_same_everywhere():
    curves = {FUSED: VALUES, "head_2": VALUES}
    flat = {name: values.mean(axis=1) for name, values in curves.items()}
    drawn = (
        draw_curves(tidy(*curves)),
        draw_bands(EPS, curves, ""),
        draw_defences(EPS, flat, flat, 20),
    )
    for figure in drawn:
        lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 13]
        looks = {(line.get_color(), line.get_marker()) for line in lines}
        assert looks == {(COLOURS[name], MARKERS[name]) for name in curves}


def test_infinite_psnr_leaves_a_gap():
    rows = tidy("attacked", metrics=("psnr",))
    rows.loc[rows["eps"] == 0, "value"] = np.inf
    figure = draw_curves(rows)
    figure.draw_without_rendering()
    assert np.isfinite(figure.axes[0].get_ylim()).all()


def test_both_attackers_stand_on_the_same_axes():
    eps, dashed, solid = (0.0, 0.05, 0.1), np.array([1.0, 0.9, 0.8]), np.array([1.0, 0.2, 0.0])
    worst = {"Adv": solid, "attacked": solid}
    (axis,) = draw_defences(eps, {"Adv": dashed, "attacked": solid}, worst, number=25).axes
    lines = {(line.get_linestyle(), line.get_color()): line for line in axis.lines}
    assert np.array_equal(lines["--", COLOURS["Adv"]].get_ydata(), dashed)
    assert np.array_equal(lines["-", COLOURS["Adv"]].get_ydata(), solid)
    low, high = axis.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(4 * (0.25 / 25) ** 0.5)  # two standard errors, both ways


def test_bands_are_the_median_and_the_middle_95_percent():
    axis = draw_bands(EPS, {FUSED: VALUES}, "mean W").axes[0]
    np.testing.assert_allclose(axis.lines[0].get_ydata(), np.median(VALUES, axis=1))
    drawn = axis.collections[0].get_paths()[0].vertices
    for eps, values in zip(EPS, VALUES, strict=True):
        heights = drawn[drawn[:, 0] == eps, 1]
        limits = np.quantile(values, [0.025, 0.975])
        np.testing.assert_allclose([heights.min(), heights.max()], limits)


@pytest.mark.parametrize("strengths", [EPS, (0.0, 0.05, 0.1, 0.3, 0.5), (0.0, 0.3)], ids=len)
def test_the_strengths_stand_apart_and_0_is_shown(strengths):
    axis = plt.figure().add_subplot()
    eps_axis(axis, strengths)
    drawn = axis.transData.transform([(eps, 0) for eps in strengths])
    places = axis.transAxes.inverted().transform(drawn)[:, 0]
    plt.close("all")
    assert (np.diff(places) > 0.03).all()
    assert (places > 0).all() and (places < 1).all()
    assert axis.get_xticks()[0] == 0


# -- images, maps and kernels --------------------------------------------------------------------


def shown(axis):
    return np.asarray(axis.images[0].get_array())


def test_maps_share_one_scale():
    uncertainty = draw_uncertainty([IMAGE] * 2, [MAP, MAP + 1], EPS[:2], VALUES[:2])
    limits = {axis.images[0].get_clim() for axis in uncertainty.axes[2:4]}
    assert limits == {(float(MAP.min()), float(MAP.max() + 1))}
    maps = draw_maps(IMAGE, {"U": MAP, "distance": 3 * MAP}, limits=(0, 2))
    assert {axis.images[0].get_clim() for axis in maps.axes[1:3]} == {(0, 2)}


def test_each_mark_stands_at_its_pixel_beside_its_three_kernels():
    pixels = {"red": (12, 6), "gold": (0, 3)}
    figure = draw_kernels({"weak": (IMAGE, KERNELS), "strong": (OTHER, -KERNELS)}, pixels)
    lines = [(sign, mark) for sign in (1, -1) for mark in pixels.items()]
    for number, (sign, (colour, (row, column))) in enumerate(lines):
        axes = figure.axes[4 * number : 4 * number + 4]
        (mark,) = axes[0].lines
        assert (mark.get_xdata(), mark.get_ydata()) == ([column], [row])
        assert mark.get_markeredgecolor() == colour
        for channel, y, x in np.ndindex(3, 3, 3):
            tap = float(sign * KERNELS[9 * channel + 3 * y + x, row, column])
            assert shown(axes[1 + channel])[y, x] == pytest.approx(tap)


@pytest.mark.parametrize("pixel", [(13, 0), (0, 7), (-1, 0), (0, -1)])
def test_a_pixel_outside_is_refused(pixel):
    with pytest.raises(IndexError, match="outside"):
        draw_kernels({"ε": (IMAGE, KERNELS)}, {"red": pixel})
    assert plt.get_fignums() == []


@pytest.mark.parametrize("methods", [(*TABLES[1], *TABLES[3], *TABLES[4]), DEFENCES])
def test_in_grey_print_markers_and_dashes_tell_methods_apart(methods):
    looks = [(MARKERS[method], DASHES.get(method)) for method in dict.fromkeys(methods)]
    assert len(set(looks)) == len(looks)
