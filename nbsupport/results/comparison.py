"""Tables for a page: each measured number with its interval, the published one, and how far apart they are."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from .adaptive_table import WORST
from .tables import ITSELF, MEASURED, PUBLISHED, beside, over_steps, short
from .tables import WORST as ENVELOPE

DIFFERENCE = "difference"
LIMITS = {"accuracy": (0.0, 0.1, 0.3), "psnr": (0.5, 3.0, 10.0), "ssim": (0.01, 0.1, 0.3)}
"""From which difference on a cell is coloured faintly, clearly and strongly."""
DIGITS = {"accuracy": 3, "psnr": 2, "ssim": 3}
ROUNDED = 0.5e-3
"""How far a published accuracy may be from what was printed."""


class Cell(NamedTuple):
    """One cell: its text, the interval under it, and how it is coloured: from −3, far below, to 3, far above."""

    text: str = ""
    interval: str = ""
    tone: int = 0


class Line(NamedTuple):
    """One line of a method: where its numbers come from, and its cells."""

    source: str
    cells: list[Cell]


class Block(NamedTuple):
    """The lines of one method under one metric."""

    metric: str
    method: str
    lines: list[Line]


class Grid(NamedTuple):
    """A table: the heads of its columns, and its blocks."""

    heads: list[str]
    blocks: list[Block]


def wilson(share: float, number: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `number` images.

    Raises
    ------
    ValueError
        If the share is none of that many images.
    """
    right = round(share * number)
    if abs(right - share * number) > 1e-3:
        raise ValueError(f"wilson: expected a share of {number} images, got {share}")
    found: Any = binomtest(right, number).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def number(value: float, metric: str) -> str:
    """A number as the tables print it; none where it is not a number."""
    return "" if np.isnan(value) else "∞" if np.isinf(value) else f"{value:.{DIGITS[metric]}f}"


def share(value: float, images: int) -> Cell:
    """An accuracy with its interval."""
    low, high = wilson(value, images)
    return Cell(number(value, "accuracy"), f"{low:.3f}–{high:.3f}")


def apart(ours: float, theirs: float, metric: str, images: int | None) -> Cell:
    """The difference of two numbers; without colour where one is within the other's interval or too near.

    Parameters
    ----------
    ours, theirs
        What was measured, and what it is compared with.
    metric
        ``accuracy``, ``psnr`` or ``ssim``.
    images
        Of how many images `ours` is a share; None where it is no share and has no interval.
    """
    difference = round(ours - theirs, DIGITS[metric])
    if not np.isfinite(difference):
        return Cell()
    text = f"{difference:+z.{DIGITS[metric]}f}".replace("-", "−")
    text = text if text.strip("+0.") else text[1:]  # no difference has no sign
    low, high = wilson(ours, images) if images else (ours, ours)
    if low - ROUNDED <= theirs <= high + ROUNDED:
        return Cell(text)
    tone = sum(abs(difference) >= limit for limit in LIMITS[metric])
    return Cell(text, tone=int(np.sign(difference)) * tone)


def _block(
    metric: str, method: str, lines: dict[str, np.ndarray], images: int, mean: bool
) -> Block:
    shares = metric == "accuracy"
    ours, theirs = lines[MEASURED], lines.get(PUBLISHED)
    made = {
        MEASURED: [
            share(value, images) if shares else Cell(number(value, metric)) for value in ours
        ]
    }
    for source in (PUBLISHED, ENVELOPE, ITSELF):
        if source in lines and not (source == ENVELOPE and np.array_equal(lines[source], ours)):
            made[source] = [Cell(number(value, metric)) for value in lines[source]]
    if mean:
        for source, cells in made.items():
            cells.append(Cell(number(float(lines[source].mean()), metric)))
    if theirs is not None:
        pairs = zip(ours, theirs, strict=True)
        made[DIFFERENCE] = [apart(*pair, metric, images if shares else None) for pair in pairs]
        if mean:
            # a mean over ε has no interval, so no colour either
            made[DIFFERENCE].append(
                apart(float(ours.mean()), float(theirs.mean()), metric, None)._replace(tone=0)
            )
    order = (MEASURED, PUBLISHED, DIFFERENCE, ENVELOPE, ITSELF)
    return Block(metric, method, [Line(source, made[source]) for source in order if source in made])


def _grid(table: pd.DataFrame, images: int, heads: list[str], mean: bool) -> Grid:
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for (metric, method, source), values in zip(
        table.index, table.to_numpy(dtype=float), strict=True
    ):
        found.setdefault((metric, method), {})[source] = values
    blocks = [
        _block(metric, method, lines, images, mean) for (metric, method), lines in found.items()
    ]
    return Grid(heads, blocks)


def against_published(rows: pd.DataFrame) -> Grid:
    """One of the paper's tables over ε, see `nbsupport.results.tables.beside`; accuracies with their mean over ε.

    The envelope has a line where it differs from what was measured.
    """
    table, mean = beside(rows), set(rows["metric"]) == {"accuracy"}
    heads = [f"ε = {eps}" for eps in table.columns] + (["mean"] if mean else [])
    return _grid(table, int(rows["n"].iloc[0]), heads, mean)


def against_published_over_steps(rows: pd.DataFrame, eps: float) -> Grid:
    """As `against_published`, over the number n of PGD's steps at one ε."""
    table = over_steps(rows, eps)
    table.index = pd.MultiIndex.from_tuples([("accuracy", *index) for index in table.index])
    return _grid(
        table, int(rows["n"].iloc[0]), [f"n = {steps}" for steps in table.columns], mean=False
    )


class Defence(NamedTuple):
    """A defence under both attackers: its cells by ε, oblivious and worst in turn, and what failed of its checks."""

    method: str
    cells: list[Cell]
    failed: list[str]


def both_attackers(rows: pd.DataFrame) -> tuple[list[str], list[Defence]]:
    """What each defence keeps under the attacker who does not know it, and beside it under the one who does.

    Parameters
    ----------
    rows
        From `nbsupport.results.adaptive_table.rows`.

    Returns
    -------
    The strengths, and a line per defence; what the knowing attacker takes away is coloured as a difference.
    """
    images = int(rows["n"].iloc[0])
    accuracy = rows[rows["metric"] == "accuracy"].set_index(["method", "attack", "eps"])["value"]
    strengths: Sequence[float] = sorted(rows.loc[rows["metric"] == "accuracy", "eps"].unique())
    failed = rows[rows["metric"].str.startswith("check: ") & (rows["value"] == 0)]
    lines = []
    for method in rows["method"].unique():
        cells = []
        for eps in strengths:
            seeming, kept = (
                float(accuracy[method, attack, eps]) for attack in ("oblivious", WORST)
            )
            cells += [
                share(seeming, images),
                share(kept, images)._replace(tone=apart(kept, seeming, "accuracy", images).tone),
            ]
        broken = failed.loc[failed["method"] == method, "metric"].str.removeprefix("check: ")
        lines.append(Defence(method, cells, list(broken)))
    return [short(eps) for eps in strengths], lines
