"""Drawing: the values that a figure shows, and that it leaves nothing behind."""

import itertools
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from small import rand, tidy

from nbsupport.experiments.methods import COLOURS, GAIN
from nbsupport.results import plots
from nbsupport.results.plots import (
    draw_bands,
    draw_curves,
    draw_defences,
    draw_gains,
    draw_panels,
    draw_strip,
)
from nbsupport.study import EPS

FUSED = "PA-Filt(L_img)"


IMAGE, OTHER, MAP = rand(3, 13, 7), rand(3, 13, 7, seed=1), rand(13, 7)
VALUES = np.random.default_rng(0).random((len(EPS), 20))


ROWS = tidy("attacked", "Filt(L_img)", "8-bit", "JPEG 40", metrics=("psnr", "ssim"))
PANELS = [[(IMAGE, "Î", {}), "→", (MAP, "W", plots.SHARES)], [(OTHER, "Î", {})]]
DRAWN = {
    "curves": lambda: draw_curves(ROWS),
    "strip": lambda: draw_strip([IMAGE, OTHER], ["one", "two"]),
    "panels": lambda: draw_panels(PANELS, ["ε"] * 2, bar="W"),
    "bands": lambda: draw_bands(EPS, {"Filt(L_img)": VALUES, FUSED: VALUES}, "label"),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_drawing_leaves_nothing_behind_and_inputs_as_they_are(draw, tmp_path):
    given = [x.clone() for x in (IMAGE, OTHER, MAP)], VALUES.copy(), ROWS.copy()
    style = dict(plt.rcParams)
    draw().savefig(tmp_path / "figure.png")
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == style
    assert all(map(torch.equal, given[0], (IMAGE, OTHER, MAP)))
    assert np.array_equal(VALUES, given[1])
    pd.testing.assert_frame_equal(ROWS, given[2])


# -- curves over ε -------------------------------------------------------------------------------


def test_a_line_is_a_methods_values_over_eps():
    attack = "pgd-envelope"
    figure = draw_curves(ROWS, attack=attack, metrics=["ssim"])
    (axis,) = figure.axes
    line = next(line for line in axis.lines if line.get_color() == COLOURS["Filt(L_img)"])
    wanted = ROWS.query("method == 'Filt(L_img)' and metric == 'ssim' and attack == @attack")
    np.testing.assert_allclose(line.get_xdata(), EPS)
    np.testing.assert_allclose(line.get_ydata(), wanted["value"])
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named == {name.replace("attacked", "no filter") for name in ROWS["method"]}


def adaptive(*methods):
    """Tidy rows of an adaptive evaluation at three strengths; the values tell rows apart."""
    places = itertools.product(
        methods, [("worst", "accuracy"), ("envelope", "accuracy"), *(("worst", x) for x in GAIN)],
        (0.0, 0.05, 0.1),
    )  # fmt: skip
    lines = [(method, *place, eps) for method, place, eps in places]
    rows = pd.DataFrame(lines, columns=["method", "attack", "metric", "eps"])
    return rows.assign(value=np.linspace(0, 1, len(rows)))


def values(rows, method, attack, metric):
    chosen = (rows["method"] == method) & (rows["attack"] == attack) & (rows["metric"] == metric)
    return rows[chosen]["value"].to_numpy()


def test_each_defence_has_a_panel_with_both_attackers_and_no_filter():
    rows = adaptive("attacked", "Adv", "Filt(L_img)", FUSED, "JPEG 40", "JPEG 20")
    methods = ["Adv", "Filt(L_img)", FUSED, "JPEG 40", "JPEG 20"]
    figure = draw_defences(rows, methods)
    assert [axis.get_title() for axis in figure.axes] == methods
    for axis, method in zip(figure.axes, methods, strict=True):
        expected = itertools.product(("envelope", "worst"), ("attacked", method))
        for line, (attack, name) in zip(axis.lines, expected, strict=True):
            assert np.array_equal(line.get_ydata(), values(rows, name, attack, "accuracy"))
            assert line.get_linestyle() == ("--" if attack == "envelope" else "-")


def test_gains_are_curves_with_their_intervals():
    rows = adaptive("JPEG 20", FUSED)
    (axis,) = draw_gains(rows, ["JPEG 20", FUSED]).axes
    for band, method in zip(axis.collections, ["JPEG 20", FUSED], strict=True):
        line = next(line for line in axis.lines if line.get_label() == method)
        assert np.array_equal(line.get_ydata(), values(rows, method, "worst", "gain"))
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.min() == values(rows, method, "worst", "gain, low").min()
        assert heights.max() == values(rows, method, "worst", "gain, high").max()


def test_bands_are_the_median_and_the_middle_95_percent():
    axis = draw_bands(EPS, {FUSED: VALUES}, "mean W").axes[0]
    np.testing.assert_allclose(axis.lines[0].get_ydata(), np.median(VALUES, axis=1))
    drawn = axis.collections[0].get_paths()[0].vertices
    for eps, values in zip(EPS, VALUES, strict=True):
        heights = drawn[drawn[:, 0] == eps, 1]
        limits = np.quantile(values, [0.025, 0.975])
        np.testing.assert_allclose([heights.min(), heights.max()], limits)


# -- panels --------------------------------------------------------------------------------------


def test_each_panel_stands_in_its_row_and_column():
    figure = draw_panels(PANELS, bar="W")
    image, text, weight, other, _, _, bar = figure.axes
    for axis, pixels in ((image, IMAGE), (weight, MAP), (other, OTHER)):
        expected = pixels.permute(1, 2, 0) if pixels.ndim == 3 else pixels
        np.testing.assert_array_equal(axis.images[0].get_array(), expected)
    assert [each.get_text() for each in text.texts] == ["→"]
    assert weight.images[0].get_clim() == bar.get_ylim() == (0, 1)  # of shares


@pytest.mark.parametrize("names", [("$5_$10", r"$\frac{$"), ("猫 ไทย", "😀")])
def test_class_names_are_drawn_as_they_are(names, tmp_path):
    figure = draw_strip([IMAGE, OTHER], names)
    with plt.rc_context({"svg.fonttype": "none"}):  # letters stay letters
        figure.savefig(tmp_path / "x.svg")
    drawn = ElementTree.parse(tmp_path / "x.svg").iter("{http://www.w3.org/2000/svg}text")
    assert {"".join(text.itertext()) for text in drawn} >= {*names}
