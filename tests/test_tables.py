"""The tables: every number stands where it belongs, beside the published one, everywhere."""

import dataclasses
import itertools
import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from small import EPS as STRENGTHS
from small import SWEEP, SmallExperiment, audited, minimal, rows, tidy

from nbsupport.experiments import audit
from nbsupport.results import tables
from nbsupport.results.tables import (
    adaptive_table,
    audit_table,
    compared,
    document,
    headline,
    published,
    style,
    styled,
    to_text,
    views,
    wide_table,
    wilson,
    with_differences,
)
from nbsupport.study import EPS, Study, short

STUDY = Study.named("photographs", "smoke", seed=7)
HEADS = [short(eps) for eps in EPS]


def value(rows, **place):
    """The one value of the rows whose columns are as in `place`."""
    (found,) = rows[(rows[list(place)] == pd.Series(place)).all(axis=1)]["value"]
    return found


def cells(text):
    """The lines of the Markdown tables in a text, each a list of its cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines]


def test_all_701_numbers_of_the_paper_are_there_once():
    numbers = published()
    assert len(numbers) == 701 and numbers["value"].notna().all()
    assert not numbers.drop(columns="value").duplicated().any()


@pytest.mark.parametrize(
    ("table", "threat_model", "dataset", "method", "metric", "steps", "eps", "expected"),
    [
        (1, "vgg16", "neurips2017dev", "Filt(L_img)", "accuracy", 40, 0.3, 0.140),
        (2, "resnet50", "neurips2017dev", "Filt(L_img)", "psnr", 40, 0.5, 20.770),
        (5, "resnet50", "neurips2017dev", "Adv", "accuracy", 90, 0.3, 0.178),
        (6, "resnet50", "svhn", "Add+FPD", "accuracy", 40, 0.5, 0.567),
    ],
)
def test_numbers_are_as_printed(table, threat_model, dataset, method, metric, steps, eps, expected):
    place = dict(table=table, threat_model=threat_model, dataset=dataset, method=method)
    assert value(published(), **place, metric=metric, steps=steps, eps=eps) == expected


@pytest.mark.parametrize(
    ("number", "classifier", "data", "expected"),
    [
        (1, "resnet20", "cifar10", ("resnet50", "cifar10")),
        (4, "vgg16", "neurips2017dev", ("resnet50", "neurips2017dev")),
    ],
)
def test_the_nearest_published_numbers_are_compared(number, classifier, data, expected):
    assert compared(number, classifier, data) == expected


# -- wide tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "methods", "eps", "lines"),
    [
        (3, ("head_4", "attacked", "8-bit"), None, 8),  # the paper has no 8-bit
        (5, ("attacked", "Adv", "Filt+Adv"), None, 10),  # Adv is also attacked directly
        (5, ("attacked", "Adv", "Filt+Adv"), 0.3, 6),  # over n
    ],
)
def test_every_number_stands_where_it_belongs(number, methods, eps, lines):
    rows, found = tidy(*methods, table=number), {"published": published(*tables.PAPER)}
    sources = {"measured": "", "worst case": "-envelope", "attacked directly": "-on-itself"}
    for source, attack in sources.items():
        found[source] = rows[rows["attack"] == f"pgd{attack}"]
    table, points = wide_table(rows, eps), EPS if eps is None else SWEEP
    heads = HEADS if eps is None else [*SWEEP]
    assert list(table.columns) == heads + ["mean"] * (eps is None) and len(table) == lines
    for (method, source), line in table.iterrows():
        place = {"table": number, "method": "attacked" if method == "no filter" else method}
        for head, point in zip(heads, points, strict=True):
            place |= {"eps": point, "steps": 40} if eps is None else {"eps": eps, "steps": point}
            assert line[head] == value(found[source], **place)
        assert eps or line["mean"] == pytest.approx(np.mean(line[heads]))


def test_a_strength_that_the_paper_lacks_is_missing_there():
    table = wide_table(tidy("attacked", eps=(0.0, 0.2)))
    assert list(table.columns) == ["0", "2e-1", "mean"]
    assert np.isnan(table.loc[("no filter", "published"), "2e-1"])
    assert table.loc[("no filter", "measured")].notna().all()


def test_the_sentences_compare_worst_cases_and_group_by_clean_psnr():
    """Two filters smooth (25 and 30 dB), one does not (50 dB); the worst case has the numbers."""
    methods = ("attacked", "Filt(L_img)", "Add(L_img)", "Gaussian blur")
    rows = tidy(*methods, eps=(0.0, 0.01, 0.3))
    accuracy = {"attacked": (0.9, 0.4, 0.2), "Filt(L_img)": (0.9, 0.7, 0.5)}
    accuracy |= {"Add(L_img)": (0.9, 0.44, 0.2), "Gaussian blur": (0.8, 0.6, 0.1)}
    for method, values in accuracy.items():
        place = (rows["method"] == method) & (rows["attack"] == "pgd-envelope")
        rows.loc[place, "value"] = values
    psnr = {"attacked": np.inf, "Filt(L_img)": 30.0, "Add(L_img)": 50.0, "Gaussian blur": 25.0}
    same = {"metric": "clean PSNR", "attack": "pgd", "eps": 0.0}
    clean = [same | {"method": method, "value": value} for method, value in psnr.items()]
    first, second, third = tables.describe(pd.concat([rows, pd.DataFrame(clean)]))
    assert "1e-2" in first and "0.40" in first and "0.90" in first
    assert "Filt(L_img)" in second and "0.70" in second and "0.50" in second
    assert "+0.20 to +0.30" in third and "+0.04" in third


# -- the adaptive evaluation ---------------------------------------------------------------------

SOUND = minimal()
BROKEN = minimal(method="8-bit", logits=False, zero_gradients=0.5)
BARE = minimal(method="attacked", smallest=np.minimum(SOUND.smallest, 0.09))
BARE = dataclasses.replace(BARE, gray_box=rows(90, 84, 55, 30))


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory):
    experiment = SmallExperiment(tmp_path_factory.mktemp("tables"), study=STUDY)
    found = {each.method: each for each in (BARE, SOUND, BROKEN)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "groups", lambda *_: np.arange(len(SOUND.smallest)))
        return audit.rows(experiment, found, {SOUND.method: audited()})


def test_every_number_of_the_adaptive_evaluation_stands_where_it_belongs(adaptive):
    table = adaptive_table(adaptive, 0.1)
    assert list(table.index) == ["no filter", "Filt(L_img*)", "8-bit"]
    line, at = table.loc["Filt(L_img*)"], "accuracy at ε = 1e-1"
    expected = {(at, "gray-box"): 0.6, (at, "adaptive"): 0.29, ("", "clean"): 0.9}
    expected |= {("adaptive at ε", "3e-2"): 0.6, ("adaptive at ε", "5e-1"): 0.05}
    expected |= {("", "gradients"): "300", ("", "audit's gap"): "0"}
    assert {place: line[place] for place in expected} == expected
    assert line[at, "gain"].startswith("+0.290 (+0.") and table.loc["no filter", (at, "gain")] == ""
    assert adaptive_table(adaptive, 0.03)["accuracy at ε = 3e-2", "adaptive"]["Filt(L_img*)"] == 0.6


def test_every_number_of_an_audit_stands_where_it_belongs(adaptive):
    table = audit_table(adaptive, 0.1)
    assert list(table.index) == ["Filt(L_img*)"]
    line, at = table.loc["Filt(L_img*)"], "accuracy at ε = 1e-1"
    expected = {
        (at, "gray-box"): 0.6, (at, "PGD"): 0.3, (at, "AutoAttack's gradient attacks"): 0.29, (at, "Square"): 0.5,
        (at, "transfer"): 0.8, (at, "FGSM"): 0.7, ("median L2 norm", "DeepFool"): 1.0,
        ("median L2 norm", "L2-PGD"): np.inf,
        ("images that only the audit fools, ε =", "3e-2"): 0,
    }  # fmt: skip
    assert {place: line[place] for place in expected} == expected


def test_a_failed_check_makes_a_row_unreliable(adaptive):
    table = adaptive_table(adaptive, 0.1)
    assert list(table["", "attack"]) == ["not audited", "sound", "unreliable: gradient, logits"]
    page = style(table, "<i>").to_html()
    assert "<i>" not in page and len(re.findall('<td class="[^"]*unreliable', page)) == 1


def test_both_attackers_stand_beside_each_other(adaptive):
    both = views(adaptive, STUDY)["Both attackers over ε"]
    assert list(both.columns.unique(0)) == [f"ε = {short(eps)}" for eps in STRENGTHS]
    for method, given in {"no filter": BARE, "Filt(L_img*)": SOUND, "8-bit": BROKEN}.items():
        curves = np.stack([given.gray_box, given.robust()]).mean(axis=2).T
        np.testing.assert_allclose(both.loc[method], curves.ravel())


def test_the_headline_is_at_the_strength_that_leaves_half_without_a_filter(adaptive):
    table = headline(adaptive.replace({"Filt(L_img*)": "Filt(L_img)", "8-bit": "JPEG 40"}))
    assert list(table.index) == ["no filter", "Filt(L_img)", "JPEG 40 †"]
    low, high = wilson(pd.Series([0.29]), 100)
    interval = f"0.290 ({low[0]:.3f}–{high[0]:.3f})"
    *accuracies, gain = table.loc["Filt(L_img)"]
    assert accuracies == [0.9, 0.6, interval]
    assert gain.startswith(f"{SOUND.robust()[2].mean() - BARE.robust()[2].mean():+.3f} (")
    assert list(table.loc["no filter"])[:2] == [0.9, 0.55]


def test_other_projects_get_each_defence_at_8_of_255():
    experiment = SmallExperiment.__new__(SmallExperiment)
    experiment.study = STUDY
    bare = dataclasses.replace(BARE, eps=(0.0, 8 / 255, 0.1, 0.5))
    entry, *_ = tables.model_information(audit.rows(experiment, {"attacked": bare}, {}), STUDY)
    assert (entry["name"], entry["eps"], entry["dataset"]) == ("no filter", "8/255", STUDY.name)
    accuracies = [entry[key] for key in ("clean_acc", "reported", "autoattack_acc")]
    assert accuracies == ["90.00", "84.00", "60.00"] and entry["unreliable"] is False
    # the keys of RobustBench's files
    assert {"link", "authors", "additional_data", "number_forward_passes", "venue"} < set(entry)


# -- the renderer --------------------------------------------------------------------------------

DIFFERENCES = pd.DataFrame(
    [("mean", 0.02, 0.01, 0.03, "better"), ("0.0", 0.02, 0.01, 0.03, "better"),
     ("0.001", -0.02, -0.05, 0.01, "inconclusive"), ("0.1", -0.02, -0.03, -0.01, "worse")],
    columns=["eps", "value", "low", "high", "outcome"],
)  # fmt: skip
DIFFERENCES[["method", "other"]] = "Filt(L_img)", "Add(L_img)"
DIFFERENCES[["per_seed", "seeds"]] = "+0.0100 +0.0300", "0 1"
CLAIMS = pd.DataFrame(
    {"claim": ["C1", "C2"], "predicate": "|x| of Filt(L_img*)", "outcome": ["holds", "not measured"],
     "margin": [0.01, np.nan], "low": [-0.02, np.nan], "high": [0.03, np.nan]}
)  # fmt: skip


@pytest.fixture(params=["table1", "table2", "table5", "adaptive", "seeds", "claims"])
def any_rows(request, adaptive):
    found = {
        "table1": tidy("attacked", "Filt(L_img*)", "PA-Filt(L_img)_sl"),
        "table2": tidy("Add(L_img)", "8-bit", table=2, metrics=("psnr", "ssim")),
        "table5": tidy("attacked", "Adv", table=5),
    } | {"adaptive": adaptive, "seeds": DIFFERENCES, "claims": CLAIMS}
    assert tables.kind(found[request.param]) == request.param
    return found[request.param]


def test_all_tables_are_rendered_everywhere(any_rows):
    """Every number comes back from Markdown, and no line is too wide for a terminal."""
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


def test_differences_from_published_numbers_are_marked_outside_wilsons_interval():
    rows, images = tidy("attacked", "Filt(L_img)", "8-bit"), 24
    rows["value"] = np.random.default_rng(0).choice([0, 1, images // 2, images], len(rows)) / images
    table = wide_table(rows)
    shown, classes = with_differences(table, images)
    sources = ["measured", "95 % interval", "published", "difference", "worst case"]
    assert list(shown.loc["no filter"].index) == sources
    assert list(shown.loc["8-bit"].index) == ["measured", "95 % interval", "worst case"]
    for method, head in itertools.product(("no filter", "Filt(L_img)"), HEADS):
        share, paper = (table.loc[(method, source), head] for source in ("measured", "published"))
        right = round(share * images)
        low, high = binomtest(right, images).proportion_ci(method="wilson")
        assert shown.loc[(method, "95 % interval"), head] == f"{low:.3f}–{high:.3f}"
        difference = float(shown.loc[(method, "difference"), head])
        assert difference == pytest.approx(share - paper, abs=5.01e-4)
        size, side = abs(share - paper), "below" if share < paper else "above"
        tone = f"{side}{1 + (size >= 0.1) + (size >= 0.3)}"
        inside = low - 5e-4 <= paper <= high + 5e-4
        assert classes.loc[(method, "difference"), head] == ("" if inside else tone)
    assert (classes["mean"] == "").all() and (classes.xs("measured", level=1) == "").all(axis=None)
