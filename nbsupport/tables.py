"""Tables as the paper prints them, measured beside published."""

import itertools
from importlib.resources import files

import pandas as pd
from pandas.io.formats.style import Styler

from .evaluation import ENVELOPE
from .study import Study

PAPER = ("resnet50", "neurips2017dev")
"""The classifier and the data set of the published numbers that stand beside every measured table."""

SUBJECTS = {
    1: "Accuracy with additive and filtering denoisers under two losses",
    2: "PSNR (dB) and SSIM against the clean image",
    3: "Accuracy with the heads of the multi-head denoiser",
    4: "Accuracy with PA-Filt and its parts",
}
MEASURED, WORST, PUBLISHED = "measured", "envelope", "published"


def published(classifier: str | None = None, data: str | None = None) -> pd.DataFrame:
    """The numbers of the paper's Tables 1 to 7, of one classifier and data set where named.

    Columns: table, threat_model, dataset, method, metric, steps, eps, value.
    """
    with files(__package__).joinpath("paper_tables.csv").open(encoding="utf-8") as file:
        numbers = pd.read_csv(file)
    for column, wanted in (("threat_model", classifier), ("dataset", data)):
        numbers = numbers[numbers[column] == wanted] if wanted else numbers
    return numbers


def short(eps: float) -> str:
    """ε as a column's head: ``5e-4``."""
    mantissa, exponent = f"{eps:.0e}".split("e")
    return "0" if eps == 0 else f"{mantissa}e{int(exponent)}"


def beside(rows: pd.DataFrame) -> pd.DataFrame:
    """One of a study's tables, one line per method and source, one column per ε.

    The sources are *measured*, its *envelope* (see `nbsupport.evaluation.envelope`) and, for the
    methods that the paper has, *published*.

    Parameters
    ----------
    rows
        From `nbsupport.evaluation.Evaluation.table`.
    """
    ours = rows.assign(source=rows["attack"].map({"pgd": MEASURED, ENVELOPE: WORST}))
    number = int(rows["table"].iloc[0])
    theirs = published(*PAPER)
    theirs = theirs[(theirs["table"] == number) & (theirs["steps"] == 40)].assign(source=PUBLISHED)
    columns = ["metric", "method", "source", "eps", "value"]
    table = pd.concat([ours[columns], theirs[columns]]).pivot(index=columns[:3], columns="eps", values="value")
    lines = itertools.product(rows["metric"].unique(), rows["method"].unique(), (MEASURED, WORST, PUBLISHED))
    table = table.loc[[line for line in lines if line in table.index]]
    table.columns = pd.Index([short(float(eps)) for eps in table.columns], name="ε")
    return table


def styled(rows: pd.DataFrame, study: Study) -> Styler:
    """`beside` with its caption, for a notebook: measured rows bold, published ones grey."""
    table = beside(rows)
    looks = {MEASURED: "font-weight: bold", WORST: "", PUBLISHED: "color: #777777"}
    numbers = table.style.format(precision=3).apply(lambda line: [looks[line.name[2]]] * len(line), axis=1)
    return numbers.set_caption(caption(rows, study).replace("`", "").replace("*", ""))


def caption(rows: pd.DataFrame, study: Study) -> str:
    """What a table shows, with everything needed to read its numbers."""
    number = int(rows["table"].iloc[0])
    return (
        f"Table {number}. {SUBJECTS[number]}: `{study.classifier}` on `{study.name}`, PGD(n = {study.steps}, ε) by an "
        f"attacker who knows the classifier and not the denoiser; the same {study.test_images} test images for all ε; "
        f"seed {study.seed}, scale {study.scale}. *{WORST.capitalize()}*: per image the worst over all ε' ≤ ε. "
        f"*{PUBLISHED.capitalize()}*: the paper's numbers for ResNet-50 on NeurIPS-2017DEV, other images and another "
        f"network, since the paper has no `{study.name}`."
    )


def markdown(rows: pd.DataFrame, study: Study, failures: list[str]) -> str:
    """A study's table with its caption, for reading on the web."""
    table = beside(rows)
    lines = [f"**{caption(rows, study)}**", ""]
    lines += [f"> {failure}\n" for failure in failures]
    several = len(dict.fromkeys(rows["metric"])) > 1
    head = (["metric"] if several else []) + ["method", "", *table.columns]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (metric, method, source), values in zip(table.index, table.to_numpy(), strict=True):
        digits = 2 if metric == "psnr" else 3
        numbers = ["" if pd.isna(v) else "∞" if v == float("inf") else f"{v:.{digits}f}" for v in values]
        name = f"**{method.replace('*', chr(92) + '*')}**" if source == MEASURED else ""
        lines.append("| " + " | ".join(([metric] if several else []) + [name, source, *numbers]) + " |")
    return "\n".join(lines) + "\n"
