"""The tables: tidy rows become wide DataFrames, measured beside published; one renderer shows them all."""

import itertools
import textwrap
import tomllib
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler
from scipy.stats import binomtest

from ..attacks.adaptive import L2_RADII, RESTART_STEPS
from ..experiments import methods
from ..experiments.artifacts import Experiment
from ..experiments.evaluation import table
from ..experiments.methods import CHECKS, ENVELOPE, METRICS, UNSEEN, WHITE_BOX
from ..study import Study, short
from . import seeds

PAPER = ("resnet50", "neurips2017dev")
PAPERS = dict.fromkeys(range(1, 6), PAPER) | {
    6: ("resnet50", "svhn"),
    7: ("resnext101", "neurips2017dev"),
}
"""By table: the classifier and data set whose published numbers stand beside a table if the study's own has none."""
NAMES = {
    "resnet50": "ResNet-50", "vgg16": "VGG-16", "resnext101": "ResNeXt-101",
    "neurips2017dev": "NeurIPS-2017DEV", "svhn": "SVHN", "cifar10": "CIFAR-10",
}  # fmt: skip
MEASURED, WORST, ITSELF, PUBLISHED = "measured", "worst case", "attacked itself", "published"
SOURCES = {"pgd": MEASURED, ENVELOPE: WORST, methods.ITSELF: ITSELF}
INTERVAL, DIFFERENCE, MEAN = "95 % interval", "difference", "mean"
LIMITS = (1e-6, 0.1, 0.3)  # small, clear and large differences
ROUNDED = 0.5e-3  # how far print rounds
ATTACKERS = {"oblivious": "gray-box", "envelope": "gray-box, ε' ≤ ε", methods.WORST: WORST}
HEADLINE = ("attacked", "Add(L_img)", "Filt(L_img)", "PA-Filt(L_img)", "Adv", "JPEG 75")
OUTCOMES = ("holds", "fails", "inconclusive")
TEXTS = tomllib.loads(files(__package__).joinpath("captions.toml").read_text(encoding="utf-8"))
LOOKS: Any = [
    {"selector": "td.measured", "props": "font-weight: bold"},
    {"selector": "td.published, td.unreliable", "props": "opacity: 0.65"},
]


def published(classifier: str | None = None, data: str | None = None) -> pd.DataFrame:
    """The numbers of the paper's Tables 1 to 7, of one classifier and data set where named.

    Columns: table, threat_model, dataset, method, metric, steps, eps, value.
    """
    with files(__package__).joinpath("paper_tables.csv").open(encoding="utf-8") as file:
        numbers = pd.read_csv(file)
    for column, wanted in (("threat_model", classifier), ("dataset", data)):
        numbers = numbers[numbers[column] == wanted] if wanted else numbers
    return numbers


def compared(number: int, classifier: str, data: str) -> tuple[str, str]:
    """The classifier and data set with published numbers of a table that come nearest to a study's."""
    numbers = published().query("table == @number")
    there = set(zip(numbers["threat_model"], numbers["dataset"], strict=True))
    pairs = ((classifier, data), (PAPERS[number][0], data), PAPERS[number])
    return next(pair for pair in pairs if pair in there)


def display_name(method: str) -> str:
    """A method as readers see it: ``no filter`` for ``attacked``, all others under their names."""
    return "no filter" if method == "attacked" else method


# -- wide tables ---------------------------------------------------------------------------------


def _beside_published(rows: pd.DataFrame, over: str, place: str) -> pd.DataFrame:
    """One line per metric, method and source, one column per value of `over`; `place` is a query."""
    number, classifier, data = rows[["table", "classifier", "study"]].iloc[0]
    paper = published(*compared(int(number), classifier, data))
    paper = paper.query(f"table == {number} and {place}").assign(source=PUBLISHED)
    measured, lines = (
        rows.assign(source=rows["attack"].map(SOURCES)),
        ["metric", "method", "source"],
    )
    table = pd.concat([part[[*lines, over, "value"]] for part in (measured, paper)])
    table = table.pivot(index=lines, columns=over, values="value")
    sources = (*SOURCES.values(), PUBLISHED)
    order = itertools.product(rows["metric"].unique(), rows["method"].unique(), sources)
    table = table.loc[[line for line in order if line in table.index]]
    return table.rename(display_name, level="method").rename(METRICS, level="metric")


def wide_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One of the paper's tables: a line per method and source, a column per ε, and a mean accuracy.

    The sources are *measured*, its *worst case* over ε' ≤ ε, *attacked itself* for a robust classifier,
    and *published* if the paper has the method. In Table 2 the metric is a third level of the index.
    """
    table = _beside_published(rows[rows["steps"] == rows["steps"].iloc[0]], "eps", "steps == 40")
    table.columns = pd.Index([short(float(eps)) for eps in table.columns], name="ε")
    if set(rows["metric"]) != {"accuracy"}:
        return table
    return table.assign(**{MEAN: table.mean(axis=1, skipna=False)}).droplevel("metric")


def swept(rows: pd.DataFrame) -> list[float]:
    """The ε at which a table was measured for other n than the study's."""
    return list(rows[rows["steps"] != rows["steps"].iloc[0]]["eps"].unique())


def over_steps(rows: pd.DataFrame, eps: float) -> pd.DataFrame:
    """The second half of Table 5: as `wide_table`, with a column per number n of PGD steps, at one ε."""
    part = rows[(rows["steps"] != rows["steps"].iloc[0]) & (rows["eps"] == eps)]
    table = _beside_published(part, "steps", f"eps == {eps}").droplevel("metric")
    table = table.reindex(columns=sorted(part["steps"].unique()))
    return table.rename_axis(columns="n").dropna(how="all")


def adaptive_table(rows: pd.DataFrame, eps: float) -> pd.DataFrame:
    """One line per defence of the adaptive evaluation: accuracies at `eps`, worst case over ε, L2 norms.

    Its last column is *sound*, or *unreliable* with the sanity checks that failed.
    """
    found, at = {}, f"accuracy at ε = {short(eps)}"
    for method, part in rows.groupby("method", sort=False):
        accuracy = part[part["metric"] == "accuracy"].set_index(["attack", "eps"])["value"]
        norms = part[part["metric"] == "median L2 norm"].set_index("attack")["value"]
        checks = part[part["metric"].str.startswith("check: ") & (part["value"] == 0)]["metric"]
        line: dict[tuple[str, str], object] = {("", "clean"): accuracy["PGD", 0.0]}
        for attack in ("oblivious", "envelope", *WHITE_BOX, "transfer", methods.WORST):
            line[at, ATTACKERS.get(attack, attack)] = accuracy[attack, eps]
        for strength, value in accuracy[methods.WORST].items():
            if strength:
                line["worst case at ε", short(float(str(strength)))] = value
        for attack in UNSEEN:
            line[f"unseen, ε = {short(eps)}", attack] = accuracy[attack, eps]
        line |= {("median L2 norm", str(attack)): norm for attack, norm in norms.items()}
        failed = ", ".join(checks.str.removeprefix("check: "))
        line["", "attack"] = f"unreliable: {failed}" if failed else "sound"
        found[display_name(str(method))] = line
    table = pd.DataFrame.from_dict(found, orient="index").rename_axis("defence")
    table.columns = pd.MultiIndex.from_tuples(next(iter(found.values())))
    return table


def headline(rows: pd.DataFrame) -> pd.DataFrame:
    """Six defences of the adaptive evaluation, clean and under both attackers; † if a sanity check failed.

    The ε is the one that leaves an accuracy of about a half without a filter.
    """
    bare = rows.query("method == 'attacked' and attack == 'oblivious' and eps > 0")
    eps = float(bare["eps"].iloc[int((bare["value"] - 0.5).abs().argmin())])
    table = adaptive_table(rows[rows["method"].isin(HEADLINE)], eps)
    table.index += [" †" * (verdict != "sound") for verdict in table["", "attack"]]
    columns = {("", "clean"): "clean"}
    for name, attacker in (("gray-box", "gray-box"), ("adaptive", WORST)):
        columns[f"accuracy at ε = {short(eps)}", attacker] = f"{name}, ε = {short(eps)}"
    return table[[*columns]].set_axis([*columns.values()], axis=1).rename_axis("defence")


def summarize(experiment: Experiment) -> str:
    """Accuracy with the methods of Tables 1 and 4, clean and at a small, a middle and a large ε, as text."""
    rows = pd.concat([table(experiment, number) for number in (1, 4)])
    rows = rows[rows["attack"] == "pgd"].drop_duplicates(["method", "eps"])
    curves = rows.pivot(index="method", columns="eps", values="value").loc[rows["method"].unique()]
    bare = curves.loc["attacked"]
    chosen = {float(str((bare - share * bare[0.0]).abs().idxmin())) for share in (0.8, 0.4, 0.02)}
    shown = curves[sorted(chosen | {0.0})].rename(index=display_name, columns=short)
    return formatted(shown.rename_axis(index=None, columns="accuracy at ε =")).to_string()


def kind(rows: pd.DataFrame) -> str:
    """The result with these tidy rows: ``table1`` … ``table7``, ``adaptive``, ``seeds`` or ``claims``."""
    if "table" not in rows:
        return "claims" if "claim" in rows else "seeds"
    table = rows["table"].iloc[0]
    return table if table == "adaptive" else f"table{table}"


def views(rows: pd.DataFrame, study: Study) -> dict[str, pd.DataFrame]:
    """All wide tables that show some tidy rows, by title; the first needs none."""
    name = kind(rows)
    if name == "claims":
        return {"": rows.set_index("claim").rename(columns=lambda column: column.replace("_", " "))}
    if name == "seeds":
        single = rows[rows["eps"] != seeds.MEAN]
        spans = single["low"].map("{:+.3f}".format) + " … " + single["high"].map("{:+.3f}".format)
        pairs, strengths = single["method"] + " − " + single["other"], single["eps"].astype(float)
        every = pd.crosstab(strengths, pairs, spans, aggfunc="first")[pairs.unique()]
        every = every.rename(short).rename_axis("ε").rename_axis(columns=None)
        return {"": seeds.wide(rows).rename_axis("comparison"), "The interval at each ε": every}
    if name == "adaptive":
        both = rows[
            (rows["metric"] == "accuracy") & rows["attack"].isin(("oblivious", methods.WORST))
        ]
        both = both.pivot(index="method", columns=["eps", "attack"], values="value")
        both = both.sort_index(axis=1).loc[rows["method"].unique()].rename(display_name)
        both = both.rename(columns=lambda eps: f"ε = {short(eps)}", level="eps")
        both = both.rename(columns=ATTACKERS, level="attack")
        both = both.rename_axis("defence").rename_axis(columns=["", ""])
        return {"": adaptive_table(rows, study.adaptive_trace_eps), "Both attackers over ε": both}
    title = "Over the number n of PGD steps, at ε = "
    over_n = {title + short(eps): over_steps(rows, eps) for eps in swept(rows)}
    return {"": wide_table(rows), **over_n}


# -- captions ------------------------------------------------------------------------------------


def subject(study: Study) -> str:
    """The classifier, the data set and the form of its images."""
    images = f" ({study.images_from})" if study.images_from else ""
    return f"`{study.classifier_name}` on `{study.name}`{images}"


def caption(name: str, study: Study) -> str:
    """What a result shows and how to read it, in Markdown; a name not in captions.toml captions itself."""
    few, paper = study.self_attack_images, ""
    if name.startswith("table"):
        network, data = compared(int(name[5:]), study.classifier_name, study.name)
        paper = f"{NAMES[network]} on {NAMES[data]}"
        paper += ", other images" * (data != study.name)
        paper += ", another network" * (network != study.classifier)
    fields = {
        "study": study,
        "subject": subject(study),
        "error": study.adaptive_images**-0.5,
        "restart_steps": min(RESTART_STEPS, study.adaptive_steps),
        "radii": ", ".join(f"{radius:g}" for radius in L2_RADII),
        "checks": "; ".join(f"*{check}*: {expected}" for check, expected in CHECKS.items()),
        "few": f" on the first {few} images" if few else "",
        "paper": paper,
    }
    for phrase, text in TEXTS["phrases"].items():
        fields[phrase] = text.format(**fields)
    return TEXTS["captions"].get(name, name + ": {subject}, {seed}.").format(**fields)


def without_marks(text: str) -> str:
    """Markdown as plain text."""
    return text.replace("`", "").replace("*", "").replace("\\", "")


# -- the renderer --------------------------------------------------------------------------------


def _text(value: object, digits: int) -> str:
    if isinstance(value, str | int | np.integer):
        return str(value)
    number = float(value)  # type: ignore[arg-type]
    return "" if np.isnan(number) else "∞" if np.isinf(number) else f"{number:.{digits}f}"


def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """The numbers of a wide table as text: PSNR with two digits, everything else with three."""
    lines = [
        [_text(value, 2 if "PSNR (dB)" in np.atleast_1d(place) else 3) for value in values]
        for place, values in zip(frame.index, frame.itertuples(index=False), strict=True)
    ]
    return pd.DataFrame(lines, frame.index, frame.columns, dtype=str)


def to_text(rows: pd.DataFrame, study: Study) -> str:
    """Tidy rows for a terminal: the caption and all their wide tables, in at most 100 columns."""
    blocks = [textwrap.fill(without_marks(caption(kind(rows), study)), 100)]
    for title, frame in views(rows, study).items():
        blocks += filter(None, (title, formatted(frame).to_string(line_width=100)))
    return "\n".join(blocks) + "\n"


def to_markdown(frame: pd.DataFrame) -> str:
    """A wide table for the web. Each level of the index is a column that repeats nothing."""
    flat = formatted(frame)
    keys = flat.index.to_frame(index=False).astype(str)
    keys = keys.mask(keys.eq(keys.shift()).assign(**{str(keys.columns[-1]): False}), "")
    if flat.columns.nlevels > 1:
        flat.columns = flat.columns.map(lambda heads: ": ".join(filter(None, map(str, heads))))
    flat = pd.concat([keys, flat.reset_index(drop=True)], axis=1).rename_axis(columns=None)
    flat = flat.apply(lambda column: column.str.replace(r"([*|])", r"\\\1", regex=True))
    return flat.to_markdown(index=False, disable_numparse=True)


def style(frame: pd.DataFrame, caption: str = "", classes: pd.DataFrame | None = None) -> Styler:
    """A wide table as HTML: measured numbers bold, published ones and unreliable rows paler.

    `classes` adds a CSS class to single cells.
    """
    text = formatted(frame)
    rows = [str(np.atleast_1d(place)[-1]).replace(" ", "-") + " " for place in frame.index]
    if ("", "attack") in frame:
        rows = [verdict.partition(":")[0] + " " for verdict in text["", "attack"]]
    names = text.where(text.isin(OUTCOMES), "") if classes is None else classes
    styler = Styler(text, cell_ids=False).format(escape="html")
    styler = styler.set_td_classes(names.radd(rows, axis=0)).set_table_styles(LOOKS)
    return styler.set_caption(escape(without_marks(caption)))


def styled(rows: pd.DataFrame, study: Study) -> Styler:
    """Tidy rows as a notebook shows them: their first wide table with its caption."""
    return style(next(iter(views(rows, study).values())), caption(kind(rows), study))


def document(rows: pd.DataFrame, study: Study, caption: str, failures: list[str]) -> str:
    """Tidy rows as a Markdown document: the caption, what failed, and all their wide tables."""
    blocks = [f"**{caption}**", *(f"> {failure}" for failure in failures)]
    for title, frame in views(rows, study).items():
        blocks += [f"{title}:", to_markdown(frame)] if title else [to_markdown(frame)]
    return "\n\n".join(blocks) + "\n"


# -- differences ---------------------------------------------------------------------------------


def wilson(share: float, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `images`. Raises `ValueError` if it is no such share."""
    right = round(share * images)
    if abs(right - share * images) > 1e-3:
        raise ValueError(f"wilson: expected a share of {images} images, got {share}")
    found = binomtest(right, images).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def with_differences(table: pd.DataFrame, images: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A table of accuracies on so many images with intervals and differences from the published ones.

    Also a CSS class per cell, ``below1`` to ``above3``, for a difference whose published number, as
    printed, lies outside the interval.
    """
    sources = table.index.get_level_values(1)
    measured, paper = (table[sources == each].droplevel(1) for each in (MEASURED, PUBLISHED))
    spans = measured.drop(columns=MEAN, errors="ignore").map(wilson, images=images)
    difference = measured.loc[paper.index] - paper
    low, high = (spans.map(lambda span, end=end: span[end]).loc[paper.index] for end in (0, 1))
    outside = paper.lt(low - ROUNDED) | paper.gt(high + ROUNDED)
    added = {
        INTERVAL: spans.map(lambda span: "{:.3f}–{:.3f}".format(*span)),
        DIFFERENCE: difference.map("{:+z.3f}".format, na_action="ignore"),
    }
    swapped = pd.concat(added).swaplevel()
    shown = pd.concat([table.astype(object), swapped])
    order = (MEASURED, INTERVAL, PUBLISHED, DIFFERENCE, WORST, ITSELF)
    lines = itertools.product(table.index.unique(0), order)
    shown = shown.loc[[line for line in lines if line in shown.index]]
    tones = pd.concat({DIFFERENCE: difference.where(outside).map(_tone)}).swaplevel()
    return shown, tones.reindex(shown.index, fill_value="")


def _tone(difference: float) -> str:
    size = sum(abs(difference) >= limit for limit in LIMITS)
    return f"{'below' if difference < 0 else 'above'}{size}" if size else ""
