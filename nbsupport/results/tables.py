"""Tables as the paper prints them, measured beside published."""

import itertools
from importlib.resources import files

import pandas as pd
from pandas.io.formats.style import Styler

from ..experiments.evaluation import ENVELOPE, OWN
from ..study import Study

PAPER = ("resnet50", "neurips2017dev")
"""The classifier and the data set of the published numbers that stand beside Tables 1 to 5 where there are none
for the study's own data set."""
PAPERS = dict.fromkeys(range(1, 6), PAPER) | {
    6: ("resnet50", "svhn"),
    7: ("resnext101", "neurips2017dev"),
}
NAMES = {
    "resnet50": "ResNet-50", "vgg16": "VGG-16", "resnext101": "ResNeXt-101",
    "neurips2017dev": "NeurIPS-2017DEV", "svhn": "SVHN", "cifar10": "CIFAR-10",
}  # fmt: skip

SUBJECTS = {
    1: "Accuracy with additive and filtering denoisers under two losses",
    2: "PSNR (dB) and SSIM against the clean image",
    3: "Accuracy with the heads of the multi-head denoiser",
    4: "Accuracy with PA-Filt and its parts",
    5: "Accuracy of the adversarially trained classifier, alone and behind denoisers",
    6: "Accuracy of the feature pyramid decoder, alone and behind denoisers",
    7: "Accuracy of the network with feature denoising, alone and behind denoisers",
}
MEASURED, WORST, ITSELF, PUBLISHED = "measured", "envelope", "attacked itself", "published"
SOURCES = {"pgd": MEASURED, ENVELOPE: WORST, OWN: ITSELF}


def published(classifier: str | None = None, data: str | None = None) -> pd.DataFrame:
    """The numbers of the paper's Tables 1 to 7, of one classifier and data set where named.

    Columns: table, threat_model, dataset, method, metric, steps, eps, value.
    """
    with files(__package__).joinpath("paper_tables.csv").open(encoding="utf-8") as file:
        numbers = pd.read_csv(file)
    for column, wanted in (("threat_model", classifier), ("dataset", data)):
        numbers = numbers[numbers[column] == wanted] if wanted else numbers
    return numbers


def compared(rows: pd.DataFrame) -> tuple[str, str]:
    """The classifier and the data set whose published numbers stand beside a table: the nearest that the paper has."""
    number, classifier, data = (rows[column].iloc[0] for column in ("table", "classifier", "study"))
    numbers = published()
    there = set(
        numbers.loc[numbers["table"] == number, ["threat_model", "dataset"]].itertuples(
            index=False, name=None
        )
    )
    return next(
        pair
        for pair in ((classifier, data), (PAPERS[number][0], data), PAPERS[number])
        if pair in there
    )


def short(eps: float) -> str:
    """ε as a column's head: ``5e-4``."""
    mantissa, exponent = f"{eps:.0e}".split("e")
    return "0" if eps == 0 else f"{mantissa}e{int(exponent)}"


def _with_published(rows: pd.DataFrame, over: str, **wanted: object) -> pd.DataFrame:
    """One line per metric, method, ε (where `over` is not ε) and source; one column per value of `over`."""
    number = int(rows["table"].iloc[0])
    theirs = published(*compared(rows))
    for column, value in ({"table": number} | wanted).items():
        theirs = theirs[theirs[column] == value]
    ours, theirs = rows.assign(source=rows["attack"].map(SOURCES)), theirs.assign(source=PUBLISHED)
    names = ["metric", "method", "source"]
    table = pd.concat([part[[*names, over, "value"]] for part in (ours, theirs)])
    table = table.pivot(index=names, columns=over, values="value")
    lines = itertools.product(
        rows["metric"].unique(), rows["method"].unique(), (*SOURCES.values(), PUBLISHED)
    )
    return table.loc[[line for line in lines if line in table.index]]


def beside(rows: pd.DataFrame) -> pd.DataFrame:
    """One of a study's tables, one line per method and source, one column per ε.

    The sources are *measured*, its *envelope* (see `nbsupport.experiments.evaluation.envelope`), for a robust
    classifier *attacked itself*, and, for the methods that the paper has, *published*.

    Parameters
    ----------
    rows
        From `nbsupport.experiments.evaluation.Evaluation.table`.
    """
    table = _with_published(rows[rows["steps"] == rows["steps"].iloc[0]], "eps", steps=40)
    table.columns = pd.Index([short(float(eps)) for eps in table.columns], name="ε")
    return table


def over_steps(rows: pd.DataFrame, eps: float) -> pd.DataFrame:
    """The second half of Table 5: as `beside`, but one column per number of PGD steps n, at one ε.

    The paper has it at 0.3 only.
    """
    part = rows[(rows["steps"] != rows["steps"].iloc[0]) & (rows["eps"] == eps)]
    table = _with_published(part, "steps", eps=eps)
    table = table.droplevel("metric").reindex(columns=sorted(part["steps"].unique()))
    return table.rename_axis(columns="n").dropna(how="all")


def swept(rows: pd.DataFrame) -> list[float]:
    """At which ε a table's rows have other numbers of steps than the study's n."""
    return list(rows[rows["steps"] != rows["steps"].iloc[0]]["eps"].unique())


def styled(rows: pd.DataFrame, study: Study) -> Styler:
    """`beside` with its caption, for a notebook: measured rows bold, published ones grey."""
    table = beside(rows)
    looks = {MEASURED: "font-weight: bold", WORST: "", ITSELF: "", PUBLISHED: "color: #777777"}
    numbers = table.style.format(precision=3).apply(
        lambda line: [looks[line.name[2]]] * len(line), axis=1
    )
    return numbers.set_caption(without_marks(caption(rows, study)))


def subject(study: Study) -> str:
    """The classifier, the data set and the form of its images, for captions."""
    images = f" ({study.images_from})" if study.images_from else ""
    return f"`{study.classifier_name}` on `{study.name}`{images}"


def caption(rows: pd.DataFrame, study: Study) -> str:
    """What a table shows, with everything needed to read its numbers."""
    number = int(rows["table"].iloc[0])
    few = f", on the first {study.own_images} of them" if study.own_images else ""
    own = (
        f" *{ITSELF.capitalize()}*: the envelope where PGD attacks this network itself{few}."
        if number > 4
        else ""
    )
    network, data = compared(rows)
    others = {"other images": data != study.name, "another network": network != study.classifier}
    apart = " and ".join(other for other, true in others.items() if true)
    known = (
        "does not have this table for" if study.name in set(published()["dataset"]) else "has no"
    )
    lacking = f", since the paper {known} `{study.name}`" if data != study.name else ""
    return (
        f"Table {number}. {SUBJECTS[number]}: {subject(study)}, PGD(n = {study.steps}, ε) by an attacker who "
        f"knows the classifier and not the denoiser; the same {study.test_images} test images for all ε; "
        f"seed {study.seed}, scale {study.scale}. *{WORST.capitalize()}*: per image the worst over all ε' ≤ ε. "
        f"*{PUBLISHED.capitalize()}*: the paper's numbers for {NAMES[network]} on {NAMES[data]}"
        f"{', ' + apart if apart else ''}{lacking}.{own}"
    )


def markdown(rows: pd.DataFrame, study: Study, failures: list[str]) -> str:
    """A study's table with its caption, for reading on the web."""
    lines = [f"**{caption(rows, study)}**", "", *(f"> {failure}\n" for failure in failures)]
    table = beside(rows)
    if table.index.get_level_values("metric").nunique() == 1:
        table = table.droplevel("metric")
    lines += _markdown(table)
    for eps in swept(rows):
        lines += ["", f"The same over the number n of PGD's steps, at ε = {short(eps)}:", ""]
        lines += _markdown(over_steps(rows, eps))
    return "\n".join(lines) + "\n"


def _markdown(table: pd.DataFrame) -> list[str]:
    head = [
        *("" if name == "source" else str(name) for name in table.index.names),
        *map(str, table.columns),
    ]
    lines = []
    for (*metric, method, source), values in zip(table.index, table.to_numpy(), strict=True):
        digits = 2 if metric == ["psnr"] else 3
        numbers = [
            "" if pd.isna(v) else "∞" if v == float("inf") else f"{v:.{digits}f}" for v in values
        ]
        lines.append(
            [*metric, f"**{escaped(method)}**" if source == MEASURED else "", source, *numbers]
        )
    return grid(head, lines)


def grid(head: list[str], lines: list[list[str]]) -> list[str]:
    """A Markdown table, line by line."""
    rule = "|" + "---|" * len(head)
    first, *rest = ("| " + " | ".join(cells) + " |" for cells in (head, *lines))
    return [first, rule, *rest]


def escaped(method: str) -> str:
    """A method's name in Markdown, which would take its star for emphasis."""
    return method.replace("*", "\\*")


def without_marks(text: str) -> str:
    """Markdown as plain text, for a caption in a notebook."""
    return text.replace("`", "").replace("*", "")
