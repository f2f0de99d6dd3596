"""The published numbers as printed, and the measured ones beside them."""

import re

import numpy as np
import pandas as pd
import pytest
from nbconvert.filters import markdown2html

from nbsupport.experiments.evaluation import COLUMNS
from nbsupport.results.tables import (
    PAPERS,
    beside,
    caption,
    compared,
    markdown,
    over_steps,
    published,
    short,
    styled,
    swept,
)
from nbsupport.study import EPS, Study

SWEPT, SWEEP = (0.3, 0.05), (10, 30, 50, 70, 90)
STUDY = Study.named("digits", "smoke", seed=7)
HEADS = [
    "0",
    "1e-4",
    "3e-4",
    "5e-4",
    "1e-3",
    "3e-3",
    "5e-3",
    "1e-2",
    "3e-2",
    "5e-2",
    "1e-1",
    "3e-1",
    "5e-1",
]


def tidy(*methods, table=1, metrics=("accuracy",), eps=EPS, seed=0):
    """Rows as `Evaluation.table` makes them, with random values.

    Robust classifiers of Tables 5 to 7 are attacked themselves, too; Table 5 goes over n at two strengths.
    """
    rng = np.random.default_rng(seed)
    same = {
        "table": table,
        "study": "digits",
        "classifier": "small_resnet",
        "steps": 40,
        "n": 24,
        "seed": 7,
    }
    rows = [
        same
        | {
            "method": method,
            "attack": attack,
            "eps": strength,
            "metric": metric,
            "value": float(rng.random()),
        }
        for method in methods
        for metric in metrics
        for attack in ("pgd", "pgd-envelope", *["pgd-on-itself"] * (method in ("Adv", "FPD", "FD")))
        for strength in eps
    ]
    over = {"attack": "pgd", "metric": "accuracy"}
    rows += [
        same | over | {"method": method, "eps": strength, "steps": n, "value": rng.random()}
        for method in methods
        for strength in SWEPT
        for n in SWEEP
        if table == 5
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def value(rows, **place):
    """The one value of the rows whose columns are as in `place`."""
    for column, wanted in place.items():
        rows = rows[rows[column] == wanted]
    (found,) = rows["value"]
    return found


# -- published -----------------------------------------------------------------------------------


def test_all_701_numbers_are_there():
    assert len(published()) == 701
    assert list(published()) == [
        "table",
        "threat_model",
        "dataset",
        "method",
        "metric",
        "steps",
        "eps",
        "value",
    ]
    assert published()["value"].notna().all()


def test_no_number_is_there_twice():
    assert not published().drop(columns="value").duplicated().any()


@pytest.mark.parametrize(
    ("table", "threat_model", "dataset", "method", "metric", "steps", "eps", "expected"),
    [
        (1, "resnet50", "neurips2017dev", "attacked", "accuracy", 40, 1e-4, 0.866),
        (1, "resnet50", "neurips2017dev", "Filt(L_img*)", "accuracy", 40, 3e-2, 0.298),
        (1, "vgg16", "neurips2017dev", "Filt(L_img)", "accuracy", 40, 0.3, 0.140),
        (1, "resnet50", "cifar10", "Add(L_sem)", "accuracy", 40, 5e-4, 0.87),
        (1, "resnet50", "svhn", "Filt(L_sem)", "accuracy", 40, 0.1, 0.502),
        (2, "resnet50", "neurips2017dev", "Filt(L_img)", "psnr", 40, 0.5, 20.770),
        (2, "resnet50", "neurips2017dev", "Add(L_sem)", "ssim", 40, 0.1, 0.692),
        (3, "resnet50", "neurips2017dev", "attacked", "accuracy", 40, 1e-4, 0.886),
        (3, "resnet50", "neurips2017dev", "head_3", "accuracy", 40, 3e-4, 0.798),
        (4, "resnet50", "neurips2017dev", "PA-Filt(L_img)", "accuracy", 40, 1e-3, 0.768),
        (4, "resnet50", "neurips2017dev", "PA-Filt(L_img)_m", "accuracy", 40, 0.3, 0.247),
        (5, "resnet50", "neurips2017dev", "Filt+Adv", "accuracy", 40, 0.5, 0.341),
        (5, "resnet50", "neurips2017dev", "Adv", "accuracy", 90, 0.3, 0.178),
        (6, "resnet50", "svhn", "Add+FPD", "accuracy", 40, 0.5, 0.567),
        (7, "resnext101", "neurips2017dev", "Filt+FD", "accuracy", 40, 0.3, 0.692),
    ],
)
def test_numbers_are_as_printed(table, threat_model, dataset, method, metric, steps, eps, expected):
    place = dict(
        table=table, threat_model=threat_model, dataset=dataset, method=method, metric=metric
    )
    assert value(published(), **place, steps=steps, eps=eps) == expected


@pytest.mark.parametrize(
    ("classifier", "data", "tables"),
    [
        ("vgg16", None, {1}),
        (None, "svhn", {1, 6}),
        ("resnet50", "neurips2017dev", {1, 2, 3, 4, 5}),
        ("resnext101", "neurips2017dev", {7}),
        ("vgg16", "svhn", set()),
    ],
)
def test_one_classifier_and_one_data_set(classifier, data, tables):
    numbers = published(classifier, data)
    assert set(numbers["table"]) == tables
    assert set(numbers["threat_model"]) <= (
        {classifier} if classifier else {"resnet50", "vgg16", "resnext101"}
    )
    assert set(numbers["dataset"]) <= ({data} if data else {"neurips2017dev", "cifar10", "svhn"})


def test_the_strengths_are_headed_as_in_the_paper():
    assert [short(eps) for eps in EPS] == HEADS


# -- measured beside published -------------------------------------------------------------------


def test_a_line_per_method_and_source():
    table = beside(tidy("attacked", "Filt(L_img)", "8-bit"))
    assert table.index.names == ["metric", "method", "source"]
    assert [line[1:] for line in table.index] == [
        *(("attacked", source) for source in ("measured", "envelope", "published")),
        *(("Filt(L_img)", source) for source in ("measured", "envelope", "published")),
        *(("8-bit", source) for source in ("measured", "envelope")),
    ]


def test_a_column_per_strength():
    table = beside(tidy("attacked"))
    assert list(table.columns) == HEADS
    assert table.columns.name == "ε"


def test_metrics_follow_each_other():
    table = beside(tidy("Add(L_img)", "Filt(L_img)", table=2, metrics=("psnr", "ssim")))
    assert list(dict.fromkeys(line[:2] for line in table.index)) == [
        (metric, method) for metric in ("psnr", "ssim") for method in ("Add(L_img)", "Filt(L_img)")
    ]


def test_the_order_is_that_of_the_rows():
    table = beside(tidy("8-bit", "Filt(L_img)", "attacked"))
    assert list(dict.fromkeys(table.index.get_level_values("method"))) == [
        "8-bit",
        "Filt(L_img)",
        "attacked",
    ]


def test_every_number_stands_where_it_belongs():
    rows = tidy("head_1", "head_4", table=3)
    table = beside(rows)
    for (_, method, source), line in table.iterrows():
        for eps, number in zip(EPS, line, strict=True):
            if source == "published":
                assert number == value(published(), table=3, method=method, eps=eps)
            else:
                attack = {"measured": "pgd", "envelope": "pgd-envelope"}[source]
                assert number == value(rows, method=method, attack=attack, eps=eps)


def test_each_table_stands_beside_its_own():
    attacked = [
        beside(tidy("attacked", table=number)).loc[("accuracy", "attacked", "published"), "1e-4"]
        for number in (1, 3)
    ]
    assert attacked == [0.866, 0.886]


def test_a_strength_that_the_paper_lacks_is_missing_there():
    table = beside(tidy("attacked", eps=(0.0, 0.2)))
    assert np.isnan(table.loc[("accuracy", "attacked", "published"), "2e-1"])
    assert np.isnan(table.loc[("accuracy", "attacked", "measured"), "1e-1"])


@pytest.mark.parametrize(("number", "name"), [(5, "Adv"), (6, "FPD"), (7, "FD")])
def test_a_robust_classifier_has_a_line_where_it_is_attacked_itself(number, name):
    rows = tidy("attacked", name, f"Filt+{name}", table=number)
    table = beside(rows)
    sources = {
        method: list(part.index.get_level_values("source"))
        for method, part in table.groupby("method")
    }
    assert sources[name] == ["measured", "envelope", "attacked itself", "published"]
    assert sources["attacked"] == sources[f"Filt+{name}"] == ["measured", "envelope", "published"]
    for eps, number in zip(EPS, table.loc["accuracy", name, "attacked itself"], strict=True):
        assert number == value(rows, method=name, attack="pgd-on-itself", eps=eps)


@pytest.mark.parametrize(
    ("number", "method", "head", "expected"),
    [
        (5, "Adv", "1e-1", 0.558),
        (5, "PA-Filt+Adv", "5e-1", 0.345),
        (6, "attacked", "0", 0.925),
        (6, "Filt+FPD", "3e-1", 0.570),
        (7, "attacked", "0", 0.935),
        (7, "Add+FD", "5e-1", 0.266),
    ],
)
def test_tables_6_and_7_stand_beside_svhn_and_resnext(number, method, head, expected):
    assert (
        beside(tidy(method, table=number)).loc[("accuracy", method, "published"), head] == expected
    )


def test_the_rows_over_n_are_not_among_those_over_eps():
    rows = tidy("attacked", "Adv", table=5)
    alone = rows[rows["steps"] == 40]
    pd.testing.assert_frame_equal(beside(rows), beside(alone))


# -- over n --------------------------------------------------------------------------------------


def test_the_strengths_of_the_sweep_come_in_their_order():
    assert swept(tidy("attacked", "Adv", table=5)) == [0.3, 0.05]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6, 7])
def test_no_other_table_was_swept(number):
    assert swept(tidy("attacked", table=number)) == []


def test_a_column_per_n_and_a_line_per_method_and_source():
    table = over_steps(tidy("attacked", "Adv", "Filt+Adv", table=5), 0.3)
    assert list(table.columns) == list(SWEEP)
    assert table.columns.name == "n"
    lines = [
        (method, source)
        for method in ("attacked", "Adv", "Filt+Adv")
        for source in ("measured", "published")
    ]
    assert list(table.index) == lines


def test_every_number_over_n_stands_where_it_belongs():
    rows = tidy("attacked", "Adv", table=5)
    for (method, source), line in over_steps(rows, 0.3).iterrows():
        for steps, number in line.items():
            numbers = (
                published(*PAPERS[5]) if source == "published" else rows[rows["attack"] == "pgd"]
            )
            assert number == value(numbers, table=5, method=method, steps=steps, eps=0.3)


def test_the_paper_went_over_n_at_3e_1_alone():
    rows = tidy("attacked", "Adv", table=5)
    table = over_steps(rows, 0.05)
    assert list(table.index) == [("attacked", "measured"), ("Adv", "measured")]
    assert list(table.loc["Adv", "measured"]) == [
        value(rows, method="Adv", steps=n, eps=0.05) for n in SWEEP
    ]


def test_numbers_of_steps_that_the_paper_lacks_are_missing_there():
    rows = tidy("Adv", table=5)
    rows["steps"] = rows["steps"].replace({10: 11, 30: 31})
    table = over_steps(rows, 0.3)
    assert list(table.columns) == [11, 31, 50, 70, 90]
    assert table.loc["Adv", "published"].isna().tolist() == [True, True, False, False, False]
    rows["steps"] = rows["steps"].replace({50: 51, 70: 71, 90: 91})
    assert list(over_steps(rows, 0.3).index) == [("Adv", "measured")]


# -- captions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        "Table 4",
        "`small_resnet` on `digits`",
        "PGD(n = 4, ε)",
        "an attacker who knows the classifier and not the denoiser",
        "the same 24 test images for all ε",
        "seed 7",
        "scale smoke",
        "the worst over all ε' ≤ ε",
        "the paper's numbers for ResNet-50 on NeurIPS-2017DEV",
    ],
)
def test_a_caption_says_how_to_read_the_numbers(part):
    assert part in caption(tidy("attacked", table=4), STUDY)


@pytest.mark.parametrize(
    ("number", "theirs"),
    [
        (1, "ResNet-50 on NeurIPS-2017DEV"),
        (5, "ResNet-50 on NeurIPS-2017DEV"),
        (6, "ResNet-50 on SVHN"),
        (7, "ResNeXt-101 on NeurIPS-2017DEV"),
    ],
)
def test_a_caption_names_the_papers_network_and_data(number, theirs):
    text = caption(tidy("attacked", table=number), STUDY)
    assert f"the paper's numbers for {theirs}, other images" in text
    assert ("Attacked itself" in text) == (number > 4)


@pytest.mark.parametrize(
    ("number", "classifier", "data", "theirs"),
    [
        (1, "resnet20", "cifar10", "ResNet-50 on CIFAR-10, another network."),
        (1, "resnet50", "cifar10", "ResNet-50 on CIFAR-10."),
        (1, "resnet20", "svhn", "ResNet-50 on SVHN, another network."),
        (
            2,
            "resnet20",
            "cifar10",
            "ResNet-50 on NeurIPS-2017DEV, other images and another network, since",
        ),
        (2, "resnet50", "cifar10", "ResNet-50 on NeurIPS-2017DEV, other images, since"),
        (1, "vgg16", "neurips2017dev", "VGG-16 on NeurIPS-2017DEV."),
        (4, "vgg16", "neurips2017dev", "ResNet-50 on NeurIPS-2017DEV, another network."),
        (6, "resnet20", "svhn", "ResNet-50 on SVHN, another network."),
        (
            7,
            "resnet20",
            "cifar10",
            "ResNeXt-101 on NeurIPS-2017DEV, other images and another network, since",
        ),
    ],
)
def test_the_nearest_published_numbers_stand_beside(number, classifier, data, theirs):
    rows = tidy("attacked", table=number).assign(study=data, classifier=classifier)
    study = Study.named(data, "smoke", classifier=classifier, images_from="JPEG copies")
    text = caption(rows, study)
    assert f"the paper's numbers for {theirs}" in text
    assert f"`{classifier}` on `{data}` (JPEG copies), PGD" in text
    network, name = compared(rows)
    wanted = published(network, name).query(
        "table == @number and method == 'attacked' and steps == 40"
    )
    metric = rows["metric"].iloc[0]
    wanted = wanted[wanted["metric"] == metric]
    if len(wanted):
        shown = beside(rows).loc[(metric, "attacked", "published")]
        assert shown.tolist() == pytest.approx(wanted.sort_values("eps")["value"].tolist())


def test_tables_are_captioned_apart():
    captions = {caption(tidy("attacked", table=number), STUDY)[8:] for number in range(1, 8)}
    assert len(captions) == 7


# -- markdown ------------------------------------------------------------------------------------


def cells(text):
    """The lines of the table in a markdown file, each a list of its cells."""
    return [
        [cell.strip() for cell in line[1:-1].split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


@pytest.mark.parametrize(
    ("table", "metrics"), [(1, ("accuracy",)), (2, ("psnr", "ssim")), (4, ("accuracy",))]
)
def test_the_numbers_come_back_from_markdown(table, metrics):
    rows = tidy("attacked", "Filt(L_img)", "8-bit", table=table, metrics=metrics)
    head, _, *body = cells(markdown(rows, STUDY, []))
    expected = beside(rows)
    assert head[-13:] == list(expected.columns)
    assert len(body) == len(expected)
    for line, ((metric, _, source), numbers) in zip(body, expected.iterrows(), strict=True):
        assert line[-14] == source
        assert metric in line or len(metrics) == 1
        assert [float(cell) for cell in line[-13:]] == pytest.approx(
            list(numbers), abs=0.00501 if metric == "psnr" else 0.000501
        )


def test_the_numbers_over_n_come_back_from_markdown():
    rows = tidy("attacked", "Adv", table=5)
    first, *over = markdown(rows, STUDY, []).split(
        "The same over the number n of PGD's steps, at ε = "
    )
    assert len(cells(first)) == 2 + len(beside(rows))
    assert [part[:4] for part in over] == ["3e-1", "5e-2"]
    for part, eps in zip(over, SWEPT, strict=True):
        head, _, *body = cells(part)
        assert head == ["method", "", *map(str, SWEEP)]
        expected = over_steps(rows, eps)
        assert [line[1] for line in body] == [source for _, source in expected.index]
        numbers = [[float(cell) for cell in line[2:]] for line in body]
        np.testing.assert_allclose(numbers, expected, atol=0.000501)


def test_the_method_stands_once_in_front_of_its_sources():
    body = cells(markdown(tidy("attacked", "8-bit"), STUDY, []))[2:]
    assert [line[0] for line in body] == ["**attacked**", "", "", "**8-bit**", ""]


def test_all_lines_are_equally_long():
    assert len({len(line) for line in cells(markdown(tidy("attacked", "8-bit"), STUDY, []))}) == 1


def test_infinity_is_shown():
    rows = tidy("attacked", table=2, metrics=("psnr", "ssim"))
    rows.loc[(rows["metric"] == "psnr") & (rows["eps"] == 0), "value"] = np.inf
    psnr, ssim = (line for line in cells(markdown(rows, STUDY, [])) if line[2] == "measured")
    assert psnr[3] == "∞"
    assert "∞" not in [*psnr[4:], *ssim]


def test_what_is_missing_is_blank():
    measured, _, theirs = cells(markdown(tidy("attacked", eps=(0.0, 0.2)), STUDY, []))[2:]
    column = 2 + [*HEADS[:11], "2e-1"].index("2e-1")
    assert theirs[column] == ""
    assert measured[column] != ""
    assert measured[column - 1] == ""


def test_the_caption_and_the_failures_stand_above():
    rows = tidy("attacked", table=4)
    text = markdown(rows, STUDY, ["PA-Filt(L_img): training failed."])
    above = text[: text.index("|")]
    assert caption(rows, STUDY) in above
    assert "\n> PA-Filt(L_img): training failed.\n" in above


@pytest.mark.parametrize(
    "method", ["Filt(L_img*)", "Filt(L_img)", "PA-Filt(L_img)_sl", "head_4", "median 3x3"]
)
def test_method_names_read_on_a_web_page_as_they_are(method):
    assert f"<strong>{method}</strong>" in markdown2html(markdown(tidy(method), STUDY, []))


# -- in a notebook -------------------------------------------------------------------------------


def styled_html():
    rows = tidy("attacked", "Filt(L_img*)")
    return rows, styled(rows, STUDY).to_html()


def test_a_styled_table_shows_caption_methods_and_numbers():
    rows, page = styled_html()
    assert re.search(
        r"<caption>Table 1\. .*knows the classifier and not the denoiser.*</caption>", page
    )
    assert "Filt(L_img*)" in page
    assert f"{value(rows, method='attacked', attack='pgd', eps=0.1):.3f}" in page


def test_its_caption_has_no_markdown_in_it():
    caption_text = re.search("<caption>(.*)</caption>", styled_html()[1])[1]
    assert not set(caption_text) & set("`*")


def test_measured_numbers_are_bold_and_published_ones_grey():
    page = styled(tidy("attacked"), STUDY).to_html()
    rules = re.findall(r"([^}]*_row(\d)_col0\b[^{]*) {([^}]*)}", page.split("</style>")[0])
    assert {line: " ".join(looks.split()) for _, line, looks in rules} == {
        "0": "font-weight: bold;",
        "2": "color: #777777;",
    }
