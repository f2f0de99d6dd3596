"""The tables: every number stands where it belongs, beside the published one, in every rendering."""

import itertools

import numpy as np
import pandas as pd
import pytest
from nbconvert.filters import markdown2html
from small import EPS as STRENGTHS
from small import SmallExperiment, outcome, rows

from nbsupport.experiments import adaptive_evaluation
from nbsupport.experiments.evaluation import COLUMNS
from nbsupport.results import tables
from nbsupport.results.tables import (
    adaptive_table,
    caption,
    compared,
    document,
    headline,
    over_steps,
    published,
    style,
    styled,
    swept,
    to_markdown,
    to_text,
    views,
    wide_table,
    wilson,
    with_differences,
)
from nbsupport.study import EPS, Study, short

SWEPT, SWEEP = (0.3, 0.05), (10, 30, 50, 70, 90)
STUDY = Study.named("digits", "smoke", seed=7)
HEADS = [short(eps) for eps in EPS]


def tidy(*methods, table=1, metrics=("accuracy",), eps=EPS, seed=0):
    """Random rows in the form of `nbsupport.experiments.evaluation.table`; accuracies are shares of 24 images."""
    rng = np.random.default_rng(seed)
    same = {"table": table, "study": "digits", "classifier": "small_resnet", "n": 24, "seed": 7}
    attacks = {method: ["pgd", "pgd-envelope"] for method in methods}
    if "Adv" in methods:
        attacks["Adv"].append("pgd-on-itself")
    places = [
        {"method": method, "attack": attack, "eps": strength, "metric": metric, "steps": 40}
        for method in methods
        for metric in metrics
        for attack in attacks[method]
        for strength in eps
    ]
    over = {"attack": "pgd", "metric": "accuracy"}
    places += [
        over | {"method": method, "eps": strength, "steps": n}
        for method in methods * (table == 5)
        for strength in SWEPT
        for n in SWEEP
    ]
    values = [same | place | {"value": rng.integers(25) / 24} for place in places]
    return pd.DataFrame(values, columns=COLUMNS)


def value(rows, **place):
    """The one value of the rows whose columns are as in `place`."""
    (found,) = rows[(rows[list(place)] == pd.Series(place)).all(axis=1)]["value"]
    return found


def cells(text):
    """The lines of the Markdown tables in a text, each a list of its cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines]


# -- published -----------------------------------------------------------------------------------


def test_all_701_numbers_of_the_paper_are_there_once():
    numbers = published()
    assert len(numbers) == 701 and numbers["value"].notna().all()
    assert not numbers.drop(columns="value").duplicated().any()


@pytest.mark.parametrize(
    ("table", "threat_model", "dataset", "method", "metric", "steps", "eps", "expected"),
    [
        (1, "vgg16", "neurips2017dev", "Filt(L_img)", "accuracy", 40, 0.3, 0.140),
        (1, "resnet50", "cifar10", "Add(L_sem)", "accuracy", 40, 5e-4, 0.87),
        (2, "resnet50", "neurips2017dev", "Filt(L_img)", "psnr", 40, 0.5, 20.770),
        (3, "resnet50", "neurips2017dev", "head_3", "accuracy", 40, 3e-4, 0.798),
        (4, "resnet50", "neurips2017dev", "PA-Filt(L_img)_m", "accuracy", 40, 0.3, 0.247),
        (5, "resnet50", "neurips2017dev", "Adv", "accuracy", 90, 0.3, 0.178),
        (6, "resnet50", "svhn", "Add+FPD", "accuracy", 40, 0.5, 0.567),
        (7, "resnext101", "neurips2017dev", "Filt+FD", "accuracy", 40, 0.3, 0.692),
    ],
)
def test_numbers_are_as_printed(table, threat_model, dataset, method, metric, steps, eps, expected):
    place = dict(table=table, threat_model=threat_model, dataset=dataset, method=method)
    assert value(published(), **place, metric=metric, steps=steps, eps=eps) == expected


@pytest.mark.parametrize(
    ("number", "classifier", "data", "expected"),
    [
        (1, "resnet20", "cifar10", ("resnet50", "cifar10")),
        (1, "vgg16", "neurips2017dev", ("vgg16", "neurips2017dev")),
        (4, "vgg16", "neurips2017dev", ("resnet50", "neurips2017dev")),
        (7, "resnet20", "cifar10", ("resnext101", "neurips2017dev")),
    ],
)
def test_the_nearest_published_numbers_are_compared(number, classifier, data, expected):
    assert compared(number, classifier, data) == expected
    study = Study.named(data, "smoke", classifier=classifier, images_from="JPEG copies")
    text = caption(f"table{number}", study)
    assert f"{tables.NAMES[expected[0]]} on {tables.NAMES[expected[1]]}" in text
    assert ("other images" in text) == (expected[1] != data)
    assert ("another network" in text) == (expected[0] != classifier)


# -- wide tables ---------------------------------------------------------------------------------


def test_every_number_over_eps_stands_where_it_belongs():
    rows = tidy("head_4", "attacked", "8-bit", table=3)
    table = wide_table(rows)
    assert list(table.columns) == [*HEADS, "mean"]
    assert list(table.index.unique("method")) == ["head_4", "no filter", "8-bit"]
    for (method, source), line in table.iterrows():
        raw = "attacked" if method == "no filter" else method
        for eps in EPS:
            if source == "published":
                expected = value(published(*tables.PAPER), table=3, method=raw, eps=eps)
            else:
                attack = {"measured": "pgd", "worst case": "pgd-envelope"}[source]
                expected = value(rows, method=raw, attack=attack, eps=eps)
            assert line[short(eps)] == expected
        assert line["mean"] == pytest.approx(np.mean(line[HEADS]))
    assert ("8-bit", "published") not in table.index


def test_table_2_has_both_metrics():
    table = wide_table(tidy("Add(L_img)", "Filt(L_img)", table=2, metrics=("psnr", "ssim")))
    assert list(table.index.unique("metric")) == ["PSNR (dB)", "SSIM"]
    assert table.loc[("PSNR (dB)", "Filt(L_img)", "published"), "5e-1"] == 20.770


def test_a_strength_that_the_paper_lacks_is_missing_there():
    table = wide_table(tidy("attacked", eps=(0.0, 0.2)))
    assert np.isnan(table.loc[("no filter", "published"), "2e-1"])
    assert np.isnan(table.loc[("no filter", "measured"), "1e-1"])


def test_a_robust_classifier_has_a_line_where_it_is_attacked_itself():
    rows = tidy("attacked", "Adv", "Filt+Adv", table=5)
    table = wide_table(rows)
    assert [*table.loc["Adv"].index] == ["measured", "worst case", "attacked itself", "published"]
    assert [*table.loc["Filt+Adv"].index] == ["measured", "worst case", "published"]
    for eps in EPS:
        expected = value(rows, method="Adv", attack="pgd-on-itself", eps=eps)
        assert table.loc[("Adv", "attacked itself"), short(eps)] == expected


def test_every_number_over_n_stands_where_it_belongs():
    rows = tidy("attacked", "Adv", table=5)
    assert swept(rows) == [0.3, 0.05]
    table = over_steps(rows, 0.3)
    assert list(table.columns) == list(SWEEP)
    for (method, source), line in table.iterrows():
        numbers = (
            published(*tables.PAPER) if source == "published" else rows[rows["attack"] == "pgd"]
        )
        raw = "attacked" if method == "no filter" else method
        for steps, number in line.items():
            assert number == value(numbers, table=5, method=raw, steps=steps, eps=0.3)
    assert {source for _, source in over_steps(rows, 0.05).index} == {"measured"}
    pd.testing.assert_frame_equal(wide_table(rows), wide_table(rows[rows["steps"] == 40]))


def test_the_summary_shows_a_small_a_middle_and_a_large_strength(monkeypatch):
    def rows(experiment, number):
        found = tidy("attacked", *["Filt(L_img)"] * (number == 4), eps=(0.0, 0.01, 0.03, 0.1, 0.3))
        shown = (found["method"] == "attacked") & (found["attack"] == "pgd")
        found.loc[shown, "value"] = [0.9, 0.88, 0.7, 0.4, 0.02]
        return found

    monkeypatch.setattr(tables, "table", rows)
    head, bare, filtered = tables.summarize(SmallExperiment.__new__(SmallExperiment)).splitlines()
    assert head.split() == ["accuracy", "at", "ε", "=", "0", "3e-2", "1e-1", "3e-1"]
    assert bare.split() == ["no", "filter", "0.900", "0.700", "0.400", "0.020"]
    assert len(filtered.split()) == 1 + 4


# -- the adaptive evaluation ---------------------------------------------------------------------

SOUND = outcome(robust={"PGD": rows(90, 60, 31, 5), "AutoAttack": rows(90, 62, 29, 5)})
BROKEN = outcome(method="8-bit", logits=False, zero_gradients=0.5)
BARE = outcome(method="attacked", robust={"oblivious": rows(90, 84, 55, 30)})


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory):
    experiment = SmallExperiment(tmp_path_factory.mktemp("tables"), study=STUDY)
    return adaptive_evaluation.rows(experiment, [BARE, SOUND, BROKEN])


def test_every_number_of_the_adaptive_evaluation_stands_where_it_belongs(adaptive):
    table = adaptive_table(adaptive, 0.1)
    assert list(table.index) == ["no filter", "Filt(L_img*)", "8-bit"]
    line, at = table.loc["Filt(L_img*)"], "accuracy at ε = 1e-1"
    expected = {
        ("", "clean"): 0.9,
        (at, "gray-box"): 0.6,
        (at, "PGD"): 0.31,
        (at, "AutoAttack"): 0.29,
        (at, "Square"): 0.5,
        (at, "transfer"): 0.8,
        (at, "worst case"): 0.29,
        ("worst case at ε", "3e-2"): 0.6,
        ("worst case at ε", "5e-1"): 0.05,
        ("unseen, ε = 1e-1", "FGSM"): 0.7,
        ("median L2 norm", "DeepFool"): 1.0,
        ("median L2 norm", "L2-PGD"): np.inf,
    }
    assert {place: line[place] for place in expected} == expected
    at_another = adaptive_table(adaptive, 0.03)["accuracy at ε = 3e-2", "PGD"]
    assert at_another["Filt(L_img*)"] == 0.6


def test_a_failed_check_makes_a_row_unreliable(adaptive):
    table = adaptive_table(adaptive, 0.1)
    assert list(table["", "attack"]) == ["sound", "sound", "unreliable: gradient, logits"]
    page = style(table).to_html()
    assert page.count("unreliable") > len(table.columns)  # a class of every cell


def test_both_attackers_stand_beside_each_other(adaptive):
    both = views(adaptive, STUDY)["Both attackers over ε"]
    assert list(both.columns.unique(0)) == [f"ε = {short(eps)}" for eps in STRENGTHS]
    for method, given in {"no filter": BARE, "Filt(L_img*)": SOUND, "8-bit": BROKEN}.items():
        curves = np.stack([given.robust["oblivious"], given.worst()]).mean(axis=2).T
        np.testing.assert_allclose(both.loc[method], curves.ravel())


def test_the_headline_is_at_the_strength_that_leaves_half_without_a_filter(adaptive):
    table = headline(adaptive.replace({"Filt(L_img*)": "Filt(L_img)", "8-bit": "JPEG 75"}))
    assert list(table.columns) == ["clean", "gray-box, ε = 1e-1", "adaptive, ε = 1e-1"]
    assert list(table.index) == ["no filter", "Filt(L_img)", "JPEG 75 †"]
    assert list(table.loc["no filter"]) == [0.9, 0.55, 0.29]


# -- captions ------------------------------------------------------------------------------------


def test_every_caption_names_classifier_data_and_scale():
    for name in tables.TEXTS["captions"]:
        text = caption(name, STUDY)
        assert "`small_resnet` on `digits`" in text and "scale smoke" in text
        assert "{" not in text and text.endswith(".")


# -- the renderer --------------------------------------------------------------------------------

DIFFERENCES = pd.DataFrame(
    [["Filt(L_img)", "Add(L_img)", eps, 0.02, 0.01, 0.03, "+0.0200 +0.0200", "0 1", "better"]
     for eps in ("mean", "0.0", "0.1")],
    columns=["method", "other", "eps", "value", "low", "high", "per_seed", "seeds", "outcome"],
)  # fmt: skip
CLAIMS = pd.DataFrame({"claim": ["C1"], "predicate": ["|x| of Filt(L_img*)"], "outcome": ["holds"]})


@pytest.fixture(params=["table1", "table2", "table5", "adaptive", "seeds", "claims"])
def any_rows(request, adaptive):
    found = {
        "table1": tidy("attacked", "Filt(L_img*)", "PA-Filt(L_img)_sl"),
        "table2": tidy("Add(L_img)", "8-bit", table=2, metrics=("psnr", "ssim")),
        "table5": tidy("attacked", "Adv", table=5),
    }
    others = {"adaptive": adaptive, "seeds": DIFFERENCES, "claims": CLAIMS}
    assert tables.kind((found | others)[request.param]) == request.param
    return (found | others)[request.param]


def test_all_tables_are_rendered_everywhere(any_rows):
    """Every number of every table comes back from Markdown, and no line is too wide for a terminal."""
    text = document(any_rows, STUDY, "The caption", ["The training failed."])
    assert text.startswith("**The caption**\n\n> The training failed.\n\n")
    body = [line for line in cells(text) if not set("".join(line)) <= set(":-|")]
    for frame in views(any_rows, STUDY).values():
        head, *lines = (body.pop(0) for _ in range(len(frame) + 1))
        assert len({len(head), *map(len, lines)}) == 1
        for line, values in zip(lines, frame.itertuples(index=False), strict=True):
            for cell, number in zip(line[frame.index.nlevels :], values, strict=True):
                if isinstance(number, str):
                    assert cell.replace("\\", "") == number
                elif np.isinf(number):
                    assert cell == "∞"
                elif np.isnan(number):
                    assert cell == ""
                else:
                    assert float(cell) == pytest.approx(number, abs=0.00501)
    assert max(map(len, to_text(any_rows, STUDY).splitlines())) <= 100
    page = styled(any_rows, STUDY).to_html()
    assert "<caption>" in page and not set(page.split("caption>")[1]) & set("`*")


def test_names_read_on_a_web_page_as_they_are():
    assert "|x| of Filt(L_img*)" in markdown2html(to_markdown(views(CLAIMS, STUDY)[""]))
    assert "Filt(L_img*)" in markdown2html(to_markdown(wide_table(tidy("Filt(L_img*)"))))


def test_psnr_has_two_digits_and_may_be_infinite():
    table = tidy("attacked", table=2, metrics=("psnr", "ssim"))
    table.loc[(table["metric"] == "psnr") & (table["eps"] == 0), "value"] = np.inf
    lines = cells(to_markdown(wide_table(table)))
    assert lines[2][:4] == ["PSNR (dB)", "no filter", "measured", "∞"]
    assert len(lines[2][4].partition(".")[2]) == 2 and len(lines[-1][4].partition(".")[2]) == 3


def test_html_is_escaped():
    frame = pd.DataFrame({"a": ["<b>"]}, index=["x"])
    assert "<b>" not in style(frame, "<i>").to_html() and "<i>" not in style(frame, "<i>").to_html()


# -- differences ---------------------------------------------------------------------------------


def closed_form(share, number, z=1.959963984540054):
    centre = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z / (1 + z**2 / number) * (share * (1 - share) / number + z**2 / (4 * number**2)) ** 0.5
    return max(centre - half, 0), min(centre + half, 1)


@pytest.mark.parametrize("images", [1, 32, 500])
def test_wilsons_interval_is_that_of_the_closed_form(images):
    for right in {0, 1, images // 3, images // 2, images - 1, images}:
        expected = closed_form(right / images, images)
        np.testing.assert_allclose(wilson(right / images, images), expected, atol=1e-9)
    with pytest.raises(ValueError, match="share of 32"):
        wilson(0.5123, 32)


def test_differences_from_published_numbers_are_marked_outside_the_interval():
    rows = tidy("attacked", "Filt(L_img)", "8-bit")
    table = wide_table(rows)
    shown, classes = with_differences(table, 24)
    sources = ["measured", "95 % interval", "published", "difference", "worst case"]
    assert list(shown.loc["no filter"].index) == sources
    assert list(shown.loc["8-bit"].index) == ["measured", "95 % interval", "worst case"]
    for method, head in itertools.product(("no filter", "Filt(L_img)"), HEADS):
        share, paper = (table.loc[(method, source), head] for source in ("measured", "published"))
        low, high = closed_form(share, 24)
        assert shown.loc[(method, "95 % interval"), head] == f"{low:.3f}–{high:.3f}"
        difference = float(shown.loc[(method, "difference"), head])
        assert difference == pytest.approx(share - paper, abs=5e-4)
        size, side = abs(share - paper), "below" if share < paper else "above"
        tone = f"{side}{1 + (size >= 0.1) + (size >= 0.3)}"
        inside = low - 5e-4 <= paper <= high + 5e-4
        assert classes.loc[(method, "difference"), head] == ("" if inside else tone)
    assert (classes["mean"] == "").all() and (classes.xs("measured", level=1) == "").all(axis=None)


def test_every_interval_of_the_differences_over_seeds_is_shown():
    every = views(DIFFERENCES, STUDY)["The interval at each ε"]["Filt(L_img) − Add(L_img)"]
    assert every.to_dict() == {"0": "+0.010 … +0.030", "1e-1": "+0.010 … +0.030"}
