"""The style of figures: every method has its look, and looks differ for whoever sees or prints them."""

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from skimage.color import deltaE_ciede2000, rgb2lab

from nbsupport.denoisers.baselines import BASELINES
from nbsupport.experiments.methods import DEFENCES, TABLES
from nbsupport.results.style import COLOURS, DASHES, MARKERS, sheet

METHODS = list(dict.fromkeys(method for table in TABLES.values() for method in table))
TOGETHER = {
    "core": (*TABLES[1], *TABLES[3], *TABLES[4]),
    "adaptive": DEFENCES,
    "table 6": TABLES[6],
    "table 7": TABLES[7],
}
DRAWN = {f"table {number}": methods for number, methods in TABLES.items()} | {
    "notebook 12": (
        "attacked",
        "Filt(L_img)",
        "PA-Filt(L_img)",
        "Adv",
        "PA-Filt+Adv",
        "PA-Filt(L_adv)",
    ),
}
# Machado, Oliveira and Fernandes 2009: how a dichromat sees linear RGB
SEEN = {
    "anybody": np.eye(3),
    "protanope": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranope": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanope": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
together = pytest.mark.parametrize("methods", TOGETHER.values(), ids=TOGETHER)


def linear(colour):
    values = np.array(to_rgb(colour))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def as_seen(colour, by):
    values = (np.array(SEEN[by]) @ linear(colour)).clip(0, 1)
    shown = np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)
    return rgb2lab(shown[None, None])[0, 0]


def test_every_method_has_a_colour_and_a_marker():
    assert {*METHODS, *DEFENCES} <= set(COLOURS)
    assert set(COLOURS) == set(MARKERS)


@together
def test_colours_are_distinct_but_for_the_baselines(methods):
    own = [COLOURS[method] for method in dict.fromkeys(methods) if method not in BASELINES]
    grey = {COLOURS[method] for method in BASELINES}
    assert len(set(own)) == len(own)
    assert len(grey) == 1
    assert not grey & set(own)


@together
def test_in_grey_print_markers_and_dashes_tell_them_apart(methods):
    looks = [(MARKERS[method], DASHES.get(method)) for method in dict.fromkeys(methods)]
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize("by", SEEN)
@pytest.mark.parametrize("methods", DRAWN.values(), ids=DRAWN)
def test_colours_drawn_together_are_told_apart_by(by, methods):
    colours = {COLOURS[method] for method in methods}
    near = {
        pair: float(deltaE_ciede2000(*(as_seen(one, by) for one in pair)))
        for pair in combinations(colours, 2)
    }
    assert {pair: distance for pair, distance in near.items() if distance < 9} == {}


def test_no_colour_is_lost_on_white_paper():
    luminance = {
        method: linear(colour) @ [0.2126, 0.7152, 0.0722] for method, colour in COLOURS.items()
    }
    assert {method for method, value in luminance.items() if 1.05 / (value + 0.05) < 2} == set()


def test_the_baselines_differ_in_their_dashes():
    assert set(DASHES) == set(BASELINES)
    assert len(set(DASHES.values())) == len(BASELINES)


def test_the_sheet_is_the_same_for_every_user():
    def found():
        with sheet():
            return {
                name: value
                for name, value in plt.rcParams.items()
                if not name.startswith("backend")
            }

    with plt.rc_context({"font.size": 40, "axes.grid": False, "lines.linewidth": 9}):
        other = found()
        assert plt.rcParams["font.size"] == 40
    assert other == found()
    assert (other["font.size"], other["axes.grid"], other["svg.fonttype"]) == (9, True, "path")
