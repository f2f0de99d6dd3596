"""The results in the README, generated from ``figures/``: ``python -m nbsupport.results.readme``."""

from pathlib import Path
from typing import cast

import pandas as pd

from ..experiments.disk import write_atomically
from .adaptive_table import WORST
from .save import REPOSITORY
from .tables import MEASURED, NAMES, PUBLISHED, beside, compared, escaped, grid, short

STUDIES = ("cifar10", "digits")
COLUMNS = ("0", "1e-3", "3e-3", "1e-2", "3e-2", "1e-1", "5e-1")
"""The strengths of a table that the README shows; the whole table is linked."""


def oblivious(rows: pd.DataFrame) -> str:
    """Accuracy under the paper's attacker, measured beside published, in Markdown.

    Parameters
    ----------
    rows
        Of Tables 1, 4 and 5, from `nbsupport.experiments.evaluation.Evaluation.table`.
    """
    lines: list[list[str]] = []
    seen: set[tuple[str, str]] = set()
    apart = []
    for number, part in rows.groupby("table"):
        table = beside(part[part["metric"] == "accuracy"]).droplevel("metric")
        means, (network, data) = table.mean(axis=1), compared(part)
        mark = ""
        if data != part["study"].iloc[0]:
            mark, bare = " ‡", means["attacked", PUBLISHED]
            apart.append(
                f"Table {number}: {NAMES[network]} on {NAMES[data]}, where no filter has {bare:.3f}"
            )
        for index, values in table.iterrows():
            method, source = cast(tuple[str, str], index)
            if source in (MEASURED, PUBLISHED) and (method, source) not in seen:
                seen.add((method, source))
                name = "no filter" if method == "attacked" else escaped(method)
                shown = [
                    *(f"{values[column]:.2f}" for column in COLUMNS),
                    f"{means[method, source]:.3f}",
                ]
                lines.append(
                    [f"**{name}**", source, *shown]
                    if source == MEASURED
                    else ["", source + mark, *shown]
                )
    study = rows.iloc[0]["study"]
    links = ", ".join(
        f"[Table {number}](figures/{study}/table{number}.md)" for number in rows["table"].unique()
    )
    under = (
        f"*Accuracy on {rows.iloc[0]['n']} test images of `{study}`, by ε and as the mean over 13 ε, when the attacker "
        f"does not know the filter; seed {rows.iloc[0]['seed']}. All columns, with what was measured and what was "
        f"published: {links}.{' ‡ Published for other images, ' + '; '.join(apart) + '.' if apart else ''}*"
    )
    return "\n".join(
        [*grid(["", "", *(f"ε = {column}" for column in COLUMNS), "mean"], lines), "", under]
    )


def knowing(rows: pd.DataFrame) -> str:
    """Accuracy under both attackers, one line per defence, in Markdown.

    Parameters
    ----------
    rows
        From `nbsupport.results.adaptive_table.rows`.
    """
    accuracy = rows[(rows["metric"] == "accuracy") & (rows["eps"] > 0)]
    strengths = [eps for eps in sorted(accuracy["eps"].unique()) if eps <= 0.1]
    values = accuracy.set_index(["method", "attack", "eps"])["value"]
    broken = rows[rows["metric"].str.startswith("check: ") & (rows["value"] == 0)][
        "method"
    ].unique()
    heads = [
        f"{who}, ε = {short(eps)}" for eps in strengths for who in ("does not know it", "knows it")
    ]
    lines = []
    for method in rows["method"].unique():
        cells = [
            f"{values[method, attack, eps]:.2f}"
            for eps in strengths
            for attack in ("oblivious", WORST)
        ]
        name = "no filter" if method == "attacked" else escaped(method)
        lines.append([name + (" †" if method in broken else ""), *cells])
    first = rows.iloc[0]
    under = (
        f"*Accuracy on the first {first['n']} test images of `{first['study']}`, seed {first['seed']} (two standard "
        f"errors of a share are up to {1 / first['n'] ** 0.5:.2f}), when the attacker does not know the defence, as in "
        f"the paper, and when he does: per image the worst of all attacks of [notebook "
        f"12](notebooks/12_adaptive_attacks.ipynb) at this and smaller ε. Compare each row with *no filter* in the "
        f"same column: who knows also attacks longer. † a check of the attack failed, so the true accuracy may be "
        f"lower. [Full table](figures/{first['study']}/adaptive.md).*"
    )
    return "\n".join([*grid(["defence", *heads], lines), "", under])


def block(study: str, figures: Path = REPOSITORY / "figures") -> str:
    """All of a study's results for the README; of ``digits`` only what the attacker who knows leaves."""
    place, parts = figures / study, []
    tables = [path for number in (1, 4, 5) if (path := place / f"table{number}.csv").exists()]
    if study != "digits" and tables:
        parts.append(oblivious(pd.concat(map(pd.read_csv, tables))))
    if (place / "adaptive.csv").exists():
        parts.append(knowing(pd.read_csv(place / "adaptive.csv")))
    return "\n\n".join(parts)


def marks(study: str) -> tuple[str, str]:
    """Between which lines a study's results stand."""
    return (
        f"<!-- results of {study}: python -m nbsupport.results.readme -->",
        f"<!-- end of results of {study} -->",
    )


def updated(page: str, study: str, text: str) -> str:
    """The README with a study's results between its `marks`.

    Raises
    ------
    ValueError
        If it does not contain both marks once.
    """
    start, end = marks(study)
    if page.count(start) != 1 or page.count(end) != 1:
        raise ValueError(f"expected the README to contain {start} and {end} once each")
    before, rest = page.split(start)
    return f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}"


def main(readme: Path = REPOSITORY / "README.md") -> None:
    """Write the results into the README."""
    page = readme.read_text(encoding="utf-8")
    for study in STUDIES:
        page = updated(page, study, block(study))
    write_atomically(readme, lambda file: file.write_text(page, encoding="utf-8"))


if __name__ == "__main__":
    main()
