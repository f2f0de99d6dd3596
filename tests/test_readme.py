"""The README's results: from the table's rows, and current."""

import pandas as pd
import pytest

from nbsupport import readme
from nbsupport.evaluation import COLUMNS
from nbsupport.figures import REPOSITORY

PAGE = f"before\n{readme.START}\nold\n{readme.END}\nafter\n"


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
    lines = readme.block(rows).splitlines()
    assert lines[0] == "| defence | does not know it, ε = 5e-2 | knows it, ε = 5e-2 |"
    assert lines[2] == "| no filter | 0.84 | 0.28 |"
    assert lines[3] == "| Filt(L_img\\*) † | 0.84 | 0.28 |"  # a check of its attack failed


def test_it_says_how_many_images_and_how_uncertain(rows):
    assert "first 25 test images of `digits`" in readme.block(rows)
    assert "up to 0.20" in readme.block(rows)  # 2 · √(¼ / 25)


def test_only_the_block_is_replaced(rows):
    page = readme.updated(PAGE, rows)
    assert page == f"before\n{readme.START}\n{readme.block(rows)}\n{readme.END}\nafter\n"
    assert readme.updated(page, rows) == page


@pytest.mark.parametrize("page", ["", PAGE + PAGE, PAGE.replace(readme.END, "")])
def test_a_page_without_the_marks_is_refused(page, rows):
    with pytest.raises(ValueError, match="expected the README to contain"):
        readme.updated(page, rows)


def test_the_committed_results_are_current():
    page, table = (REPOSITORY / "README.md").read_text(encoding="utf-8"), REPOSITORY / "figures/digits/adaptive.csv"
    if table.exists():
        assert readme.updated(page, pd.read_csv(table)) == page
    else:  # not measured: then the README claims nothing
        assert f"{readme.START}\n{readme.END}" in page
