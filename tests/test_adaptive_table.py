"""The table of the attacker who knows: every number stands where it belongs, and broken attacks are marked."""

import dataclasses
import re

import numpy as np
import pytest
from nbconvert.filters import markdown2html
from small import EPS, evaluation, outcome, rows

from nbsupport.experiments.adaptive_evaluation import Protocol
from nbsupport.experiments.evaluation import COLUMNS
from nbsupport.experiments.soundness import CHECKS
from nbsupport.results import adaptive_table
from nbsupport.results.adaptive_table import caption, markdown, styled, wide
from nbsupport.study import Study

STUDY = Study.named("digits", "smoke", seed=7)
SOUND = outcome()
BROKEN = dataclasses.replace(outcome(logits=False, zero_gradients=0.5), method="8-bit")
BOTH = [SOUND, BROKEN]
AT, WORST, UNSEEN = "accuracy at ε = 1e-1", "worst at ε =", "unseen, ε = 1e-1"


@pytest.fixture(scope="module")
def tidy(tmp_path_factory):
    return adaptive_table.rows(
        Protocol(evaluation(tmp_path_factory.mktemp("table"), study=STUDY)), BOTH
    )


# -- tidy rows -----------------------------------------------------------------------------------


def test_the_columns_are_those_of_the_other_tables(tidy):
    assert list(tidy) == COLUMNS


def test_every_row_names_its_study(tidy):
    same = {
        "table": "adaptive",
        "study": "digits",
        "classifier": "small_resnet",
        "steps": STUDY.adaptive_steps,
    }
    same |= {"n": STUDY.adaptive_images, "seed": 7}
    assert all((tidy[column] == value).all() for column, value in same.items())


def test_accuracies_are_means_over_images(tidy):
    for given in BOTH:
        curves = given.robust | {"envelope": given.envelope, "worst": given.worst()}
        part = tidy[(tidy["method"] == given.method) & (tidy["metric"] == "accuracy")]
        assert len(part) == len(curves) * len(EPS)
        for name, curve in curves.items():
            line = part[part["attack"] == name]
            assert list(line["eps"]) == list(EPS)
            np.testing.assert_allclose(line["value"], [row.sum() / row.size for row in curve])


def test_norms_are_medians_and_have_no_strength(tidy):
    part = tidy[(tidy["method"] == SOUND.method) & (tidy["metric"] == "median L2 norm")]
    assert dict(zip(part["attack"], part["value"], strict=True)) == {
        "L2-PGD": np.inf,
        "DeepFool": 1.0,
        "C&W": 1.0,
    }
    assert part["eps"].isna().all()


def test_every_check_has_a_row(tidy):
    for given, broken in ((SOUND, set()), (BROKEN, {"logits", "gradient"})):
        part = tidy[(tidy["method"] == given.method) & tidy["metric"].str.startswith("check: ")]
        checks = dict(zip(part["metric"].str.removeprefix("check: "), part["value"], strict=True))
        assert checks == {name: float(name not in broken) for name in CHECKS}
        assert set(part["attack"]) == {"all"}


def test_there_is_nothing_else(tidy):
    each = (len(SOUND.robust) + 2) * len(EPS) + 3 + len(CHECKS)
    assert tidy["method"].value_counts().to_dict() == {"Filt(L_img*)": each, "8-bit": each}
    assert not tidy.drop(columns="value").duplicated().any()


# -- one line per defence ------------------------------------------------------------------------


def test_one_line_per_defence():
    assert list(wide(BOTH).index) == ["Filt(L_img*)", "8-bit"]
    assert list(wide([SOUND]).index) == ["Filt(L_img*)"]


def test_every_number_stands_where_it_belongs():
    given = outcome(trace_eps=0.1, robust={"PGD": rows(90, 60, 31, 5)})
    line = wide([given]).iloc[0]
    at = {
        "oblivious": 0.6,
        "envelope": 0.6,
        "PGD": 0.31,
        "AutoAttack": 0.29,
        "Square": 0.5,
        "transfer": 0.8,
    }
    assert {name: line[AT, name] for name in at} == at
    assert line["", "clean"] == 0.9
    assert line[AT, "worst"] == 0.29
    assert {eps: line[WORST, eps] for eps in ("3e-2", "1e-1", "5e-1")} == {
        "3e-2": 0.6,
        "1e-1": 0.29,
        "5e-1": 0.05,
    }
    assert [line[UNSEEN, name] for name in ("FGSM", "Gaussian noise", "uniform noise")] == [
        0.7,
        0.8,
        0.81,
    ]
    assert line["median L2 norm", "DeepFool"] == 1.0
    assert len(line) == 1 + 7 + 3 + 3 + 3 + 1


def test_the_worst_is_not_that_of_gradients_alone():
    line = wide([outcome(robust={"Square": rows(90, 50, 20, 1)})]).iloc[0]
    assert [line[WORST, eps] for eps in ("3e-2", "1e-1", "5e-1")] == [0.5, 0.2, 0.01]


def test_another_middle_strength_has_its_own_numbers():
    line = wide([outcome(trace_eps=0.03)]).iloc[0]
    assert line["accuracy at ε = 3e-2", "PGD"] == 0.6


def test_a_failed_check_makes_a_row_unreliable():
    verdicts = wide(BOTH)["", "attack"]
    assert list(verdicts) == ["sound", "unreliable: gradient, logits"]


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (dict(deterministic=False), "deterministic"),
        (dict(trace=rows(90, 40, 60, 40)), "n"),
        (dict(robust={"Square": rows(90, 10, 10, 5)}), "Square"),
    ],
    ids=["deterministic", "n", "Square"],
)
def test_whichever_check_it_is(change, check):
    given = outcome(**change)
    assert wide([given]).iloc[0]["", "attack"] == f"unreliable: {check}"
    assert f"| unreliable: {check} |" in markdown([given], STUDY)


# -- for reading ---------------------------------------------------------------------------------


def cells(text):
    return [
        [cell.strip() for cell in line[1:-1].split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_the_numbers_come_back_from_markdown():
    head, _, *body = cells(markdown(BOTH, STUDY))
    table = wide(BOTH)
    assert len(head) == 1 + len(table.columns) and head[:2] == ["defence", "clean"]
    assert head[2] == f"oblivious ({AT})" and head[-1] == "attack"
    assert {len(line) for line in body} == {len(head)}
    for line, (_, numbers) in zip(body, table.iterrows(), strict=True):
        for cell, number in zip(line[1:], numbers, strict=True):
            if isinstance(number, str):
                assert cell == number
            else:
                assert (
                    cell == "none"
                    if np.isinf(number)
                    else float(cell) == pytest.approx(number, abs=0.00501)
                )


def test_unreliable_rows_are_marked_and_sound_ones_are_not():
    body = cells(markdown(BOTH, STUDY))[2:]
    assert [(line[0], line[-1]) for line in body] == [
        ("**Filt(L_img\\*)**", "sound"),
        ("**8-bit**", "unreliable: gradient, logits"),
    ]
    page = markdown2html(markdown(BOTH, STUDY))
    assert "<strong>Filt(L_img*)</strong>" in page


def test_every_check_is_explained():
    last = markdown(BOTH, STUDY).splitlines()[-1]
    assert all(f"*{name}*: {expected}" in last for name, (expected, _) in CHECKS.items())


@pytest.mark.parametrize(
    "part",
    [
        "The attacker who knows the denoiser",
        "`small_resnet` on `digits`",
        "the first 4 test images (two standard errors of a share are up to 0.50)",
        "seed 7",
        "scale smoke",
        "with two losses, from 1 starts with three sizes of step each and n = 4, then once with n = 4",
        "the smallest of the radii 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2",
        "*Square*: its fourth, 4 queries",
        "unreliable: its true accuracy may be lower",
    ],
)
def test_a_caption_says_how_to_read_the_numbers(part):
    assert part in caption(STUDY)
    assert caption(STUDY) in markdown(BOTH, STUDY).splitlines()[0]


def test_a_styled_table_has_grey_rows_where_the_attack_is_unreliable():
    page = styled(BOTH, STUDY).to_html()
    rules = re.findall(r"([^}]*_row(\d)_col0\b[^{]*) {([^}]*)}", page.split("</style>")[0])
    assert {line: " ".join(looks.split()) for _, line, looks in rules} == {"1": "color: #777777;"}
    text = re.search("<caption>(.*)</caption>", page)[1]
    assert text.startswith("The attacker who knows the denoiser") and not set(text) & set("`*")


def test_one_defence_will_do():
    assert len(cells(markdown([BROKEN], STUDY))) == 3
