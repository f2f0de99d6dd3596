"""The tables: tidy rows become wide DataFrames, measured beside published, and then text."""

import textwrap
import tomllib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler
from scipy.stats import norm

from ..attacks.adaptive import L2_RADII, RESTART_STEPS
from ..denoisers.baselines import BASELINES
from ..experiments.methods import (
    CHECKS,
    CLEAN_PSNR,
    ENVELOPE,
    GAIN,
    ITSELF,
    METRICS,
    TRANSFERRED,
    UNSEEN,
    WHITE_BOX,
    WORST,
)
from ..study import EPS, Study, short

HERE = Path(__file__).parent
TEXTS = tomllib.loads((HERE / "captions.toml").read_text(encoding="utf-8"))
PAPER = ("resnet50", "neurips2017dev")
PAPERS = dict.fromkeys(range(1, 6), PAPER)
PAPERS |= {6: ("resnet50", "svhn"), 7: ("resnext101", "neurips2017dev")}
"""The classifier and data set published beside a table, where the paper lacks the study's own."""
NAMES = {
    "resnet50": "ResNet-50", "vgg16": "VGG-16", "resnext101": "ResNeXt-101",
    "neurips2017dev": "NeurIPS-2017DEV", "svhn": "SVHN", "cifar10": "CIFAR-10",
}  # fmt: skip
SOURCES = MEASURED, WORST_CASE, ALONE, PUBLISHED = (
    "measured", "worst case", "attacked directly", "published",
)  # fmt: skip
INTERVAL, DIFFERENCE, ADAPTIVE = "95 % interval", "difference", "adaptive"
ATTACKS = {
    "pgd": MEASURED, ENVELOPE: WORST_CASE, ITSELF: ALONE, PUBLISHED: PUBLISHED,
    "oblivious": "gray-box", "envelope": "gray-box, ε' ≤ ε", WORST: ADAPTIVE,
}  # fmt: skip
"""How tables name the attack of some rows."""
MEAN = "mean"  # in the place of an ε
SHOWN = {"attacked": "no filter"}  # the method that readers see under another name
HEADLINE = "attacked", "Add(L_img)", "Filt(L_img)", "PA-Filt(L_img)", "Adv", "JPEG 40"
SUMMARISED = (
    "attacked", "Add(L_img)", "Filt(L_img)", "Filt(L_sem)", "HGD", "PA-Filt(L_img)",
    "PA-Filt(L_img+KL)", "JPEG 40",
)  # fmt: skip
SMOOTHING = 36.0  # dB of clean PSNR: denoisers that change every image have less
VERDICTS = ("holds", "fails", "inconclusive", "unreliable")
LOOKS: Any = [
    {"selector": "caption", "props": "text-align: left; max-width: 58em"},
    {"selector": "th, td", "props": "padding: 0.3em 0.35em; font-size: 12px"},
    {"selector": "td.measured, td.published", "props": "white-space: nowrap"},
    {"selector": "td.measured", "props": "font-weight: bold"},
    {"selector": "td.published, tr:has(td.unreliable) td", "props": "opacity: 0.65"},
]


def published(classifier: str | None = None, data: str | None = None) -> pd.DataFrame:
    """The numbers of the paper's Tables 1 to 7, of one classifier and data set where named.

    Columns: table, threat_model, dataset, method, metric, steps, eps, value.
    """
    numbers = pd.read_csv(HERE / "paper_tables.csv")
    for column, wanted in (("threat_model", classifier), ("dataset", data)):
        numbers = numbers[numbers[column] == wanted] if wanted else numbers
    return numbers


def compared(number: int, classifier: str, data: str) -> tuple[str, str]:
    """The classifier and data set, published for a table, that are nearest to a study's."""
    pairs = ((classifier, data), (PAPERS[number][0], data), PAPERS[number])
    return next(pair for pair in pairs if (published(*pair)["table"] == number).any())


# -- wide tables ---------------------------------------------------------------------------------


def wide_table(rows: pd.DataFrame, eps: float | None = None) -> pd.DataFrame:
    """One of the paper's tables: a line per method and source, a column per ε, and a mean accuracy.

    At one `eps`, the second half of Table 5: a column per number n of PGD steps. The sources are
    *measured*, its *worst case* over ε' ≤ ε, *attacked directly* for a robust classifier, and
    *published* if the paper has the method. In Table 2 the metric is a third level of the index.
    """
    number, classifier, data, steps = rows[["table", "classifier", "study", "steps"]].iloc[0]
    paper = published(*compared(int(number), classifier, data)).query("table == @number")
    over = "eps" if eps is None else "steps"
    place = "steps == {}" if eps is None else f"steps != {{}} and eps == {eps}"
    rows, paper = rows.query(place.format(steps)), paper.query(place.format(40))
    clean = rows[rows["metric"] == CLEAN_PSNR].set_index("method")["value"].rename(SHOWN)
    rows = rows[rows["metric"] != CLEAN_PSNR]
    every = pd.concat([rows, paper.assign(attack=PUBLISHED)])
    every["source"] = every["attack"].map(ATTACKS)
    table = every.pivot(index=["metric", "method", "source"], columns=over, values="value")
    levels: Any = [rows["metric"].unique(), rows["method"].unique(), SOURCES]
    lines = pd.MultiIndex.from_product(levels, names=table.index.names)
    table = table.reindex(lines, columns=sorted(rows[over].unique())).dropna(how="all")
    table = table.rename(SHOWN, level="method").rename(METRICS, level="metric")
    if eps is not None:
        return table.droplevel("metric").rename_axis(columns="n")
    mean = table[[eps for eps in EPS if eps in table]].mean(axis=1, skipna=False)
    table = table.rename(columns=short).rename_axis(columns="ε")
    if set(rows["metric"]) != {"accuracy"}:
        return table
    table = table.assign(**{MEAN: mean}).droplevel("metric")
    if len(clean):
        source = table.index.get_level_values("source")
        psnr = clean.reindex(table.index.get_level_values("method")).where(source == MEASURED)
        table[CLEAN_PSNR] = psnr.to_numpy()
    return table


def with_differences(table: pd.DataFrame, images: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A table of accuracies on so many images, with Wilson's intervals and the differences.

    Also a CSS class per cell, ``below1`` to ``above3``, for a difference from a published number
    that, as printed, lies outside the interval.
    """
    methods, sources = (table.index.get_level_values(level) for level in (0, 1))
    measured, paper = (table[sources == each].droplevel(1) for each in (MEASURED, PUBLISHED))
    low, high = wilson(measured.drop(columns=MEAN, errors="ignore"), images)
    difference = (measured - paper).dropna(how="all")
    outside = paper.lt(low - 0.5e-3) | paper.gt(high + 0.5e-3)  # how far print rounds
    added = {
        INTERVAL: low.map("{:.3f}".format) + "–" + high.map("{:.3f}".format),
        DIFFERENCE: difference.map("{:+z.3f}".format, na_action="ignore"),
    }
    shown = pd.concat([table, pd.concat(added, names=["source"]).swaplevel()])
    levels: Any = [methods.unique(), (MEASURED, INTERVAL, PUBLISHED, DIFFERENCE, WORST_CASE, ALONE)]
    lines = pd.MultiIndex.from_product(levels, names=table.index.names)
    shown = shown.reindex(lines).dropna(how="all")
    sizes = difference.abs().map(lambda size: str(1 + (size >= 0.1) + (size >= 0.3)))
    tones = sizes.radd(np.where(difference < 0, "below", "above")).where(outside, "")
    return shown, pd.concat({DIFFERENCE: tones}).swaplevel().reindex(shown.index, fill_value="")


def wilson(share: Any, images: Any) -> tuple[Any, Any]:
    """The ends of Wilson's 95 % interval of a share of so many images."""
    z = norm.isf(0.025) ** 2 / images
    centre, half = share + z / 2, (z * (share * (1 - share) + z / 4)) ** 0.5
    low, high = ((centre + end) / (1 + z) for end in (-half, half))
    return low.clip(0), high.clip(upper=1)


def adaptive_table(rows: pd.DataFrame, eps: float) -> pd.DataFrame:
    """One line per defence of the adaptive evaluation: both attackers at `eps`, one at every ε.

    *Gain*: over the bare classifier, paired. The last column is *unreliable* with the sanity checks
    that failed, or else *sound*, or *not audited*, so that most checks were not made.
    """
    at, over = f"accuracy at ε = {short(eps)}", "adaptive at ε"
    places: dict[Any, tuple[str, str, float]] = {("", "clean"): ("accuracy", WORST, 0.0)}
    places |= {(at, ATTACKS[x]): ("accuracy", x, eps) for x in ("oblivious", "envelope")}
    places[at, ADAPTIVE] = ("accuracy", WORST, eps)
    places |= {(at, name): (name, WORST, eps) for name in GAIN}
    worst = rows[(rows["attack"] == WORST) & (rows["eps"] > 0)]["eps"].unique()
    places |= {(over, short(each)): ("accuracy", WORST, each) for each in worst}
    places["", "gradients"] = ("gradients per image", "all", 0.0)
    table = _place(rows, places)
    if (at, "gain") in table:
        ends: Any = [table[at, name] for name in GAIN]
        table = table.drop(columns=[(at, name) for name in GAIN])
        table.insert(4, (at, "gain"), _with_interval(*ends))
        table["", "gradients"] = table["", "gradients"].map("{:,.0f}".format)
    gaps = rows[rows["metric"] == "gap"].groupby("method")["value"].max().rename(SHOWN)
    if len(gaps):
        table["", "audit's gap"] = gaps.map("{:.0f}".format).reindex(table.index, fill_value="")
    failed = rows[rows["metric"].str.startswith("check: ") & (rows["value"] == 0)]
    names = failed["metric"].str.removeprefix("check: ").groupby(failed["method"]).agg(", ".join)
    verdicts = ("unreliable: " + names).rename(SHOWN)
    audited = table.index.to_series().isin(gaps.index).map({True: "sound", False: "not audited"})
    table["", "attack"] = verdicts.reindex(table.index).fillna(audited)
    return table


def gains_table(rows: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """A line per ε: what defences gain on their bare classifier under both attackers."""
    found = rows[rows["metric"].isin(GAIN) & rows["method"].isin(methods)]
    ends = found.pivot(index=["method", "attack", "eps"], columns="metric", values="value")
    table: Any = _with_interval(*(ends[name] for name in GAIN)).unstack(["method", "attack"])
    table = table[[(method, attack) for method in methods for attack in ("envelope", WORST)]]
    return table.rename(index=short, columns=ATTACKS).rename_axis(index="ε", columns=["", ""])


def _with_interval(value: pd.Series, low: pd.Series, high: pd.Series) -> pd.Series:
    value_, low_, high_ = (each.map("{:+z.3f}".format) for each in (value, low, high))
    return (value_ + " (" + low_ + " … " + high_ + ")").where(low.notna(), "")


def audit_table(rows: pd.DataFrame, eps: float) -> pd.DataFrame:
    """One line per audited defence: every attack at `eps`, L2 norms, and its gap at every ε."""
    at, gap = f"accuracy at ε = {short(eps)}", "images that only the audit fools, ε ="
    heads = ATTACKS | {"AutoAttack": "AutoAttack's gradient attacks"}
    attacks = {heads.get(x, x): f"audit: {x}" for x in (*WHITE_BOX, *TRANSFERRED, *UNSEEN)}
    places: dict[Any, tuple[str, str, float]]
    places = {(at, name): ("accuracy", attack, eps) for name, attack in attacks.items()}
    norms = rows[rows["metric"] == "median L2 norm"]["attack"].unique()
    places |= {("median L2 norm", each): ("median L2 norm", each, 0.0) for each in norms}
    strengths = sorted(rows[rows["metric"] == "gap"]["eps"].unique())
    places |= {(gap, short(each)): ("gap", "audit", each) for each in strengths}
    return _place(rows[rows["attack"].str.startswith("audit") | rows["attack"].isin(norms)], places)


def _place(rows: pd.DataFrame, places: dict[Any, tuple[str, str, float]]) -> pd.DataFrame:
    """A line per defence, and under each head a metric under one attack and ε (0 for none).

    Heads without numbers are left out.
    """
    columns = ["metric", "attack", "eps"]
    table = rows.fillna({"eps": 0.0}).pivot(index="method", columns=columns, values="value")
    there = {head: place for head, place in places.items() if place in table}
    table = table.loc[rows["method"].unique(), [*there.values()]]
    table.columns = pd.MultiIndex.from_tuples(there)
    return table.rename(SHOWN).rename_axis("defence")


def headline(rows: pd.DataFrame) -> pd.DataFrame:
    """Six defences of the adaptive evaluation, clean and under both attackers, and their gains.

    The ε is the one that leaves an accuracy of about a half without a filter. †: a check failed.
    """
    bare = rows.query("method == 'attacked' and attack == 'oblivious' and eps > 0")
    eps: Any = (bare.set_index("eps")["value"] - 0.5).abs().idxmin()
    table = adaptive_table(rows[rows["method"].isin(HEADLINE)], eps)
    table.index += [" †" * text.startswith("unreliable") for text in table["", "attack"]]
    at, images = f"accuracy at ε = {short(eps)}", rows["n"].iloc[0]
    low, high = (end.map("{:.3f}".format) for end in wilson(table[at, ADAPTIVE], images))
    adaptive = table[at, ADAPTIVE].map("{:.3f} (".format) + low + "–" + high + ")"
    return pd.DataFrame(
        {
            "clean": table["", "clean"],
            f"gray-box, ε = {short(eps)}": table[at, ATTACKS["oblivious"]],
            f"adaptive, ε = {short(eps)} (95 % interval)": adaptive,
            "adaptive gain over no filter (paired)": table.get((at, "gain"), ""),
        }
    )


def model_information(rows: pd.DataFrame, study: Study) -> list[dict[str, Any]]:
    """An entry per defence of an adaptive evaluation, as RobustBench describes models, at 8/255.

    Accuracies are percentages, as texts. ``autoattack_acc`` is the worst case over all attacks
    here, AutoAttack's parts among them; ``reported`` is the gray-box one.
    """
    found, threat = list[dict[str, Any]](), 8 / 255
    if threat not in set(rows["eps"]):
        return found
    for method, line in adaptive_table(rows, threat).iterrows():
        at, percent = f"accuracy at ε = {short(threat)}", "{:.2f}".format
        found.append(
            {
                "link": "https://doi.org/10.1145/3474085.3475171",
                "name": method,
                "authors": "AdvFilter in notebooks",
                "additional_data": False,
                "number_forward_passes": 1,
                "dataset": study.name,
                "venue": "Unpublished",
                "architecture": f"{study.classifier_name} behind {method}",
                "eps": short(threat),
                "clean_acc": percent(100 * line["", "clean"]),
                "reported": percent(100 * line[at, ATTACKS["oblivious"]]),
                "autoattack_acc": percent(100 * line[at, ADAPTIVE]),
                "unreliable": line["", "attack"].startswith("unreliable"),
                "footnote": f"The first {rows['n'].iloc[0]} test images; adaptive attacks.",
            }
        )
    return found


def _seeds_tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A line per comparison: its mean over ε, and at how many ε it wins; and every interval."""
    signed = "{:+.3f}".format
    rows = rows.assign(
        comparison=rows["method"] + " − " + rows["other"],
        interval=rows["low"].map(signed) + " … " + rows["high"].map(signed),
        each=[", ".join(signed(float(x)) for x in text.split()) for text in rows["per_seed"]],
        mean=rows["value"].map(signed),
    )
    over_eps = rows["eps"] == MEAN
    means, single = rows[over_eps].set_index("comparison"), rows[~over_eps].astype({"eps": float})
    wins = pd.crosstab(single["comparison"], single["outcome"])
    wins = wins.reindex(columns=["better", "worse"], fill_value=0)
    every = single.pivot(index="eps", columns="comparison", values="interval")[means.index]
    return {
        "": means[["mean", "interval", "each", "seeds", "outcome"]].join(wins),
        "The interval at each ε": every.rename(short).rename_axis(index="ε", columns=None),
    }


def summarize_fusions(rows: pd.DataFrame) -> pd.DataFrame:
    """A line per variant of `fusions.compare`: means over seeds, W's least spread, collapses."""
    groups = rows.groupby("variant", sort=False)
    return groups.agg(
        accuracy=("accuracy", "mean"), gain=("gain", "mean"), error=("error", "mean"),
        spread=("weight_std", "min"), collapsed=("collapsed", "sum"), seeds=("seed", "nunique"),
    ).rename(columns={"spread": "least spread of W"})  # fmt: skip


def _claims_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A line per claim, with the interval of each margin beside it as text."""
    table = rows.set_index("claim")
    for reading in ("", "plain_"):
        if (margin := f"{reading}margin") in table:
            low, high = (table.pop(f"{reading}{end}") for end in ("low", "high"))
            table[margin] = _with_interval(table[margin], low, high)
    return table.rename(columns=lambda column: column.replace("_", " "))


def _generalisation_table(rows: pd.DataFrame, study: Study) -> pd.DataFrame:
    """A line per classifier, method and source; strengths that no denoiser learned from are new."""
    lines = ["classifier", "method", "source"]
    rows = rows.assign(source=rows["attack"].map(ATTACKS)).replace({"method": SHOWN})
    table: Any = rows.pivot(index=lines, columns="eps", values="value")
    table = table.loc[pd.MultiIndex.from_frame(rows[lines].drop_duplicates())]
    heads = [short(eps) + " (new)" * (eps not in study.eps) for eps in table]
    return table.set_axis(heads, axis=1).rename_axis(columns="ε")


def summarize(rows: pd.DataFrame) -> str:
    """Tidy rows of Tables 1 and 4 as text: clean, and at a small, a middle and a large ε."""
    curves = _curves(rows, "pgd")
    bare: Any = curves.loc["attacked"]
    chosen = {(bare - share * bare[0.0]).abs().idxmin() for share in (1, 0.8, 0.4, 0.02)}
    few = [method for method in SUMMARISED if method in curves.index]
    shown = curves.loc[few, sorted(chosen)].rename(index=SHOWN, columns=short)
    return formatted(shown.rename_axis(index=None, columns="accuracy at ε =")).to_string()


def _curves(rows: pd.DataFrame, attack: str) -> pd.DataFrame:
    """A line of accuracies over ε per method, in the order of the rows."""
    chosen = rows[(rows["attack"] == attack) & (rows["metric"] == "accuracy")]
    curves = chosen.drop_duplicates(["method", "eps"]).pivot(
        index="method", columns="eps", values="value"
    )
    return curves.loc[chosen["method"].unique()]


def describe(rows: pd.DataFrame) -> list[str]:
    """What Tables 1 and 4 show, in three sentences; each image counts with its worst ε' ≤ ε."""
    curves = _curves(rows, ENVELOPE)
    bare: Any = curves.loc["attacked"]
    half: Any = (bare - bare[0.0] / 2).abs().idxmin()
    means = curves[[eps for eps in EPS if eps in curves]].mean(axis=1)
    trained = means.drop(["attacked", *BASELINES], errors="ignore")
    best: Any = trained.idxmax() if len(trained) else "attacked"
    simple: Any = means.reindex([*BASELINES]).idxmax()
    psnr = rows[rows["metric"] == CLEAN_PSNR].drop_duplicates("method").set_index("method")["value"]
    sentences = [
        f"Without a filter, PGD at ε = {short(half)} lowers the accuracy from {bare[0.0]:.2f} to "
        f"{bare[half]:.2f}.",
        f"On average over ε, {SHOWN.get(best, best)} keeps the most accuracy of all trained "
        f"denoisers, {means[best]:.3f}; the bare classifier keeps {means['attacked']:.3f}, and "
        f"{simple}, which needs no training, keeps {means[simple]:.3f}.",
    ]
    smooth = curves.index.intersection(psnr[psnr <= SMOOTHING].index)
    near = curves.index.intersection(psnr[psnr > SMOOTHING].index).drop("attacked")
    if len(smooth) and len(near):
        gains = [curves.loc[group, half] - bare[half] for group in (smooth, near)]
        some, others = (f"{gain.min():+.2f} to {gain.max():+.2f}" for gain in gains)
        sentences.append(
            f"At ε = {short(half)}, methods that change every image (clean PSNR up to "
            f"{SMOOTHING:g} dB) gain {some}; methods with a higher one gain {others}."
        )
    return sentences


def kind(rows: pd.DataFrame) -> str:
    """The result with these rows: ``table1``, …, generalisation, fusions, seeds or claims."""
    if "variant" in rows:
        return "fusions"
    if "table" not in rows:
        return "claims" if "claim" in rows else "seeds"
    table = rows["table"].iloc[0]
    return table if isinstance(table, str) else f"table{table}"


def views(rows: pd.DataFrame, study: Study) -> dict[str, pd.DataFrame]:
    """All wide tables that show some tidy rows, by title; the first needs none."""
    name = kind(rows)
    if name == "claims":
        return {"": _claims_table(rows)}
    if name == "fusions":
        return {"": summarize_fusions(rows)}
    if name == "seeds":
        return _seeds_tables(rows)
    if name == "generalisation":
        return {"": _generalisation_table(rows, study)}
    if name == "adaptive":
        places = {
            (f"ε = {short(eps)}", ATTACKS[attack]): ("accuracy", attack, eps)
            for eps in sorted(rows["eps"].dropna().unique())
            for attack in ("oblivious", WORST)
        }
        found = {"": adaptive_table(rows, study.audit_trace_eps)}
        found["Both attackers over ε"] = _place(rows[rows["metric"] == "accuracy"], places)
        if (audits := rows[rows["metric"] == "gap"]).empty:
            return found
        title = f"The audit: every attack at some ε from scratch, {audits['n'].iloc[0]} images"
        return found | {title: audit_table(rows, study.audit_trace_eps)}
    title, swept = "Over the number n of PGD steps, at ε = ", rows["steps"] != rows["steps"].iloc[0]
    over_n = {title + short(eps): wide_table(rows, eps) for eps in rows[swept]["eps"].unique()}
    return {"": wide_table(rows), **over_n}


# -- captions ------------------------------------------------------------------------------------


def subject(study: Study) -> str:
    """The classifier, the data set and the form of its images, and a robust classifier's name."""
    images = f" ({study.images_from})" if study.images_from else ""
    robust = f", `{study.robust_name}` as {study.replaced}" if study.robust else ""
    return f"`{study.classifier_name}` on `{study.name}`{images}{robust}"


def caption(name: str, study: Study) -> str:
    """What a result shows and how to read it, in Markdown; its name if captions.toml lacks it."""
    few, paper = study.self_attack_images, ""
    if name.startswith("table") or name in ("operating_points", "dial"):
        number = int(name.removeprefix("table")) if name.startswith("table") else 1
        network, data = compared(number, study.classifier_name, study.name)
        paper = f"{NAMES[network]} on {NAMES[data]}"
        paper += ", other images" * (data != study.name)
        paper += ", another network" * (network != study.classifier)
    fields = dict(
        study=study,
        subject=subject(study),
        restart_steps=min(RESTART_STEPS, study.audit_steps),
        audit_eps=", ".join(map(short, study.audit_eps)),
        radii=", ".join(f"{radius:g}" for radius in L2_RADII),
        checks="; ".join(f"*{check}*: {expected}" for check, expected in CHECKS.items()),
        few=f" on the first {few} images" if few else "",
        paper=paper,
    )
    fits = {"copies": study.images_from == "JPEG copies", "overlap": study.name == "photographs"}
    for phrase, text in TEXTS["phrases"].items():
        fields[phrase] = text.format(**fields) if fits.get(phrase, True) else ""
    return TEXTS["captions"].get(name, name + ": {subject}, {seed}.").format(**fields)


def without_marks(text: str) -> str:
    """Markdown as plain text."""
    return text.replace("`", "").replace("*", "").replace("\\", "")


# -- the renderer --------------------------------------------------------------------------------


def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """The numbers of a wide table as text: PSNR with two digits, everything else with three."""

    def spell(line: pd.Series) -> pd.Series:
        psnr = (line.index == CLEAN_PSNR) | (METRICS["psnr"] in str(line.name))
        cells = [
            f"{cell:z.{digits}f}" if isinstance(cell, float) else str(cell)
            for cell, digits in zip(line, np.where(psnr, 2, 3), strict=True)
        ]
        return pd.Series(cells, line.index).replace({"inf": "∞", "nan": ""})

    return frame.astype(object).apply(spell, axis=1)


def to_text(rows: pd.DataFrame, study: Study) -> str:
    """Tidy rows for a terminal: the caption and all their wide tables, in at most 100 columns."""
    blocks = [textwrap.fill(without_marks(caption(kind(rows), study)), 100)]
    for title, frame in views(rows, study).items():
        blocks += filter(None, (title, formatted(frame).to_string(line_width=100)))
    return "\n".join(blocks) + "\n"


def to_markdown(frame: pd.DataFrame) -> str:
    """A wide table for the web. Each level of the index is a column that repeats nothing."""
    flat = formatted(frame).reset_index()
    if flat.columns.nlevels > 1:
        flat.columns = [": ".join(filter(None, heads)) for heads in flat.columns]
    for level in frame.index.names[:-1]:
        flat[level] = flat[level].mask(flat[level] == flat[level].shift(), "")
    flat = flat.replace(r"([*|])", r"\\\1", regex=True)
    return flat.to_markdown(index=False, disable_numparse=True)


def document(rows: pd.DataFrame, study: Study, caption: str, failures: list[str]) -> str:
    """Tidy rows as a Markdown document: the caption, what failed, and all their wide tables."""
    blocks = [f"**{caption}**", *(f"> {failure}" for failure in failures)]
    for title, frame in views(rows, study).items():
        blocks += [f"{title}:", to_markdown(frame)] if title else [to_markdown(frame)]
    return "\n\n".join(blocks) + "\n"


def style(frame: pd.DataFrame, caption: str = "", classes: pd.DataFrame | None = None) -> Styler:
    """A wide table as HTML: measured numbers bold, published ones and unreliable rows paler.

    A cell's CSS classes are its row's source and its verdict, or what `classes` has there.
    """
    text = formatted(frame)
    if classes is None:
        first = text.map(lambda cell: cell.replace(":", " ").partition(" ")[0])
        classes = first.where(first.isin(VERDICTS), "")
    sourced = "source" in frame.index.names  # not a claim's lines, which are long
    rows = [f"{place[-1]} " if sourced else "" for place in frame.index]
    styler = Styler(text, cell_ids=False).format(escape="html")
    styler = styler.set_td_classes(classes.radd(rows, axis=0)).set_table_styles(LOOKS)
    return styler.set_caption(escape(without_marks(caption)))


def styled(rows: pd.DataFrame, study: Study) -> Styler:
    """Tidy rows as a notebook shows them: their first wide table with its caption.

    A line of a worst case that equals the measured one is left out.
    """
    table = next(iter(views(rows, study).values()))
    if "source" in table.index.names:
        lines = table.drop(columns=CLEAN_PSNR, errors="ignore").droplevel("source").reset_index()
        repeated = table.index.get_level_values("source") == WORST_CASE
        table = table[~(repeated & lines.duplicated().to_numpy())]
    return style(table, caption(kind(rows), study))
