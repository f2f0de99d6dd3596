"""Numbers beside numbers: intervals, differences and their colours."""

import numpy as np
import pandas as pd
import pytest
from test_tables import tidy

from nbsupport.experiments.evaluation import COLUMNS
from nbsupport.results.comparison import (
    Cell,
    against_published,
    apart,
    both_attackers,
    number,
    share,
    wilson,
)
from nbsupport.results.tables import published


def closed_form(share, number, z=1.959963984540054):
    centre = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z / (1 + z**2 / number) * (share * (1 - share) / number + z**2 / (4 * number**2)) ** 0.5
    return max(centre - half, 0), min(centre + half, 1)


@pytest.mark.parametrize("images", [1, 32, 500])
def test_wilsons_interval_is_that_of_the_closed_form(images):
    for right in {0, 1, images // 3, images // 2, images - 1, images}:
        np.testing.assert_allclose(
            wilson(right / images, images), closed_form(right / images, images), atol=1e-9
        )


def test_a_share_of_other_images_is_refused():
    with pytest.raises(ValueError, match=r"expected a share of 32 images, got 0\.5123"):
        wilson(0.5123, 32)


def test_an_accuracy_has_its_interval_under_it():
    assert share(0.852, 500) == Cell("0.852", "0.818–0.880")


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [
        (np.nan, "psnr", ""),
        (np.inf, "psnr", "∞"),
        (31.4159, "psnr", "31.42"),
        (0.98765, "ssim", "0.988"),
    ],
)
def test_numbers_are_printed_as_in_the_tables(value, metric, text):
    assert number(value, metric) == text


@pytest.mark.parametrize(
    ("ours", "theirs", "images", "text", "tone"),
    [
        (0.852, 0.860, 500, "−0.008", 0),  # within the interval
        (0.002, 0.0, 500, "+0.002", 0),  # and so is what rounds to it
        (0.852, 0.918, 500, "−0.066", -1),
        (0.852, 0.752, 500, "+0.100", 2),
        (0.852, 0.252, 500, "+0.600", 3),
        (0.250, 0.850, 32, "−0.600", -3),
        (0.5, 0.5, 32, "0.000", 0),
    ],
)
def test_a_difference_has_a_sign_and_a_colour_where_it_is_clear(ours, theirs, images, text, tone):
    assert apart(ours, theirs, "accuracy", images) == Cell(text, tone=tone)


@pytest.mark.parametrize(
    ("ours", "theirs", "text", "tone"),
    [
        (30.0, 30.3, "−0.30", 0),
        (30.0, 29.0, "+1.00", 1),
        (20.0, 24.0, "−4.00", -2),
        (50.0, 30.0, "+20.00", 3),
    ],
)
def test_decibels_have_limits_of_their_own(ours, theirs, text, tone):
    assert apart(ours, theirs, "psnr", None) == Cell(text, tone=tone)


@pytest.mark.parametrize("pair", [(np.inf, 30.0), (30.0, np.nan), (np.inf, np.inf)])
def test_where_one_is_not_finite_there_is_no_difference(pair):
    assert apart(*pair, "psnr", None) == Cell()


@pytest.fixture
def rows():
    shares = tidy("attacked", "Filt(L_img)", "8-bit")
    return shares.assign(value=(shares["value"] * shares["n"]).round() / shares["n"])


def test_measured_published_and_difference_stand_under_each_other(rows):
    found = against_published(rows)
    assert [block.method for block in found.blocks] == ["attacked", "Filt(L_img)", "8-bit"]
    lines = {line.source: line.cells for line in found.blocks[1].lines}
    ours = (
        rows[(rows["method"] == "Filt(L_img)") & (rows["attack"] == "pgd")]
        .sort_values("eps")["value"]
        .to_numpy()
    )
    theirs = published("resnet50", "neurips2017dev").query(
        "table == 1 and method == 'Filt(L_img)' and steps == 40"
    )
    theirs = theirs.sort_values("eps")["value"].to_numpy()
    for source, values in {"measured": ours, "published": theirs}.items():
        assert [cell.text for cell in lines[source]] == [
            f"{value:.3f}" for value in (*values, values.mean())
        ]
    signed = [float(cell.text.replace("−", "-")) for cell in lines["difference"]]
    np.testing.assert_allclose(
        signed, [*(ours - theirs), ours.mean() - theirs.mean()], atol=5.01e-4
    )
    assert found.heads[0] == "ε = 0"
    assert found.heads[-1] == "mean"


def test_a_method_that_the_paper_has_not_has_no_difference(rows):
    sources = [line.source for line in against_published(rows).blocks[2].lines]
    assert sources == ["measured", "envelope"]


def test_an_envelope_that_says_nothing_new_is_left_out(rows):
    plain = rows[rows["attack"] == "pgd"]
    same = pd.concat([plain, plain.assign(attack="pgd-envelope")])
    assert not any(
        line.source == "envelope"
        for block in against_published(same).blocks
        for line in block.lines
    )


def row(method, attack, eps, metric, value):
    return ["adaptive", "digits", "small_resnet", method, attack, 400, eps, metric, value, 32, 0]


def test_both_attackers_stand_beside_each_other():
    curves = {"oblivious": (1.0, 0.9375), "worst": (1.0, 0.375), "PGD": (1.0, 0.5)}
    found = [
        row("Adv", name, 0.1 * k, "accuracy", pair[k])
        for name, pair in curves.items()
        for k in (0, 1)
    ]
    found += [row("Adv", "all", None, "check: flat", 0.0), row("Adv", "all", None, "check: ε", 1.0)]
    strengths, (line,) = both_attackers(pd.DataFrame(found, columns=COLUMNS))
    assert strengths == ["0", "1e-1"]
    assert [cell.text for cell in line.cells] == ["1.000", "1.000", "0.938", "0.375"]
    assert [cell.tone for cell in line.cells] == [0, 0, 0, -3]
    assert (line.method, line.failed) == ("Adv", ["flat"])
