"""The README's results: from the table's rows, and current."""

import pandas as pd
import pytest
from test_tables import tidy

from nbsupport.experiments.evaluation import COLUMNS
from nbsupport.results import readme
from nbsupport.results.save import REPOSITORY
from nbsupport.results.tables import published

START, END = readme.marks("digits")
PAGE = f"before\n{START}\nold\n{END}\nafter\n"


def row(method, attack, eps, metric, value):
    return ["adaptive", "digits", "small_resnet", method, attack, 400, eps, metric, value, 25, 0]


@pytest.fixture
def rows():
    values = {"oblivious": (1.0, 0.84, 0.5), "worst": (1.0, 0.28, 0.0), "Square": (1.0, 0.6, 0.1)}
    found = [
        row(method, attack, eps, "accuracy", value)
        for method in ("attacked", "Filt(L_img*)")
        for attack, curve in values.items()
        for eps, value in zip((0.0, 0.05, 0.3), curve, strict=True)
    ]
    found.append(row("Filt(L_img*)", "all", None, "check: flat", 0.0))
    found.append(row("attacked", "all", None, "check: flat", 1.0))
    return pd.DataFrame(found, columns=COLUMNS)


def test_one_line_per_defence_with_both_attackers(rows):
    lines = readme.knowing(rows).splitlines()
    assert lines[0] == "| defence | does not know it, ε = 5e-2 | knows it, ε = 5e-2 |"
    assert lines[2] == "| no filter | 0.84 | 0.28 |"
    assert lines[3] == "| Filt(L_img\\*) † | 0.84 | 0.28 |"  # a check of its attack failed


def test_it_says_how_many_images_and_how_uncertain(rows):
    assert "first 25 test images of `digits`" in readme.knowing(rows)
    assert "up to 0.20" in readme.knowing(rows)  # 2 · √(¼ / 25)


def test_measured_stands_beside_published():
    ours = pd.concat(
        [tidy("attacked", "Filt(L_img)", table=1), tidy("attacked", "PA-Filt(L_img)", table=4)]
    )
    ours = ours.assign(study="cifar10", classifier="resnet20")
    head, _, *lines = [
        [cell.strip() for cell in line[1:-1].split("|")]
        for line in readme.oblivious(ours).splitlines()
    ]
    assert head == ["", "", *(f"ε = {column}" for column in readme.COLUMNS), "mean"]
    named = [(line[0], line[1]) for line in lines if len(line) == len(head)]
    methods = {
        "**no filter**": "",
        "**Filt(L_img)**": "",
        "**PA-Filt(L_img)**": " ‡",
    }  # the last for other images
    assert named == [
        pair
        for method, mark in methods.items()
        for pair in ((method, "measured"), ("", "published" + mark))
    ]
    bare = (
        published("resnet50", "neurips2017dev")
        .query("table == 4 and method == 'attacked'")["value"]
        .mean()
    )
    said = f"‡ Published for other images, Table 4: ResNet-50 on NeurIPS-2017DEV, where no filter has {bare:.3f}.*"
    assert readme.oblivious(ours).endswith(said)
    curve = ours[(ours["method"] == "Filt(L_img)") & (ours["attack"] == "pgd")].set_index("eps")[
        "value"
    ]
    assert lines[2][2:] == [
        *(f"{curve[float(column)]:.2f}" for column in readme.COLUMNS),
        f"{curve.mean():.3f}",
    ]
    theirs = (
        published("resnet50", "cifar10")
        .query("table == 1 and method == 'Filt(L_img)'")
        .set_index("eps")["value"]
    )
    assert lines[3][2:-1] == [f"{theirs[float(column)]:.2f}" for column in readme.COLUMNS]


def test_a_study_without_results_claims_nothing(tmp_path):
    assert readme.block("cifar10", tmp_path) == ""


def test_only_the_block_is_replaced():
    page = readme.updated(PAGE, "digits", "new")
    assert page == f"before\n{START}\nnew\n{END}\nafter\n"
    assert readme.updated(page, "digits", "new") == page


@pytest.mark.parametrize("page", ["", PAGE + PAGE, PAGE.replace(END, "")])
def test_a_page_without_the_marks_is_refused(page):
    with pytest.raises(ValueError, match="expected the README to contain"):
        readme.updated(page, "digits", "new")


@pytest.mark.parametrize("study", readme.STUDIES)
def test_the_committed_results_are_current(study):
    page = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert readme.updated(page, study, readme.block(study)) == page
