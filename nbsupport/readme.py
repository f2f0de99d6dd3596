"""The results table of the README, generated from ``figures/digits/adaptive.csv``: ``python -m nbsupport.readme``."""

from pathlib import Path

import pandas as pd

from .adaptive_table import WORST
from .figures import REPOSITORY
from .store import write_atomically
from .tables import escaped, grid, short

START, END = "<!-- results: python -m nbsupport.readme -->", "<!-- end of results -->"


def block(rows: pd.DataFrame) -> str:
    """Accuracy under both attackers, one line per defence, in Markdown.

    Parameters
    ----------
    rows
        From `nbsupport.adaptive_table.rows`.
    """
    accuracy = rows[(rows["metric"] == "accuracy") & (rows["eps"] > 0)]
    strengths = [eps for eps in sorted(accuracy["eps"].unique()) if eps <= 0.1]
    values = accuracy.set_index(["method", "attack", "eps"])["value"]
    broken = rows[rows["metric"].str.startswith("check: ") & (rows["value"] == 0)]["method"].unique()
    heads = [f"{who}, ε = {short(eps)}" for eps in strengths for who in ("does not know it", "knows it")]
    lines = []
    for method in rows["method"].unique():
        cells = [f"{values[method, attack, eps]:.2f}" for eps in strengths for attack in ("oblivious", WORST)]
        name = "no filter" if method == "attacked" else escaped(method)
        lines.append([name + (" †" if method in broken else ""), *cells])
    first = rows.iloc[0]
    under = (
        f"*Accuracy on the first {first['n']} test images of `{first['study']}` (two standard errors of a share are up "
        f"to {1 / first['n'] ** 0.5:.2f}) when the attacker does not know the defence, as in the paper, and when he "
        f"does: per image the worst of all attacks of [notebook 12](notebooks/12_adaptive_attacks.ipynb) at this and "
        f"smaller ε. † a check of the attack failed, so the true accuracy may be lower. "
        f"[Full table](figures/digits/adaptive.md).*"
    )
    return "\n".join([*grid(["defence", *heads], lines), "", under])


def updated(page: str, rows: pd.DataFrame) -> str:
    """The README with its results between `START` and `END`.

    Raises
    ------
    ValueError
        If it does not contain both marks once.
    """
    if page.count(START) != 1 or page.count(END) != 1:
        raise ValueError(f"expected the README to contain {START} and {END} once each")
    before, rest = page.split(START)
    return f"{before}{START}\n{block(rows)}\n{END}{rest.split(END)[1]}"


def main(readme: Path = REPOSITORY / "README.md") -> None:
    """Write the results into the README."""
    page = updated(readme.read_text(encoding="utf-8"), pd.read_csv(REPOSITORY / "figures/digits/adaptive.csv"))
    write_atomically(readme, lambda file: file.write_text(page, encoding="utf-8"))


if __name__ == "__main__":
    main()
