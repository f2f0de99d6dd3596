"""The report: all results of ``figures/`` and the notebooks' words on one page that needs no network and no kernel."""

from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.resources import files
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup

from ..experiments.disk import write_atomically
from ..study import eps_label
from . import prose
from .claims import LARGE_ACCURACY, SMALL_SHARE, on_what
from .comparison import LIMITS, against_published, against_published_over_steps, both_attackers
from .prose import Story, told
from .results import Result, studies
from .save import REPOSITORY, commit
from .style import COLOURS
from .tables import NAMES, caption, short, subject, swept, without_marks

TYPES = {"svg": "image/svg+xml", "png": "image/png"}
METRICS = {"accuracy": "accuracy", "psnr": "PSNR (dB)", "ssim": "SSIM"}
SYMBOLS = {"holds": "✓", "fails": "✗", "inconclusive": "~"}
"""Of a claim's outcomes; all others are missing ones."""


class Chapter(NamedTuple):
    """One notebook in one study: what it tells, its results there, and whether its words are told there in full."""

    story: Story
    results: list[Result]
    first: bool
    concluded: bool


class Part(NamedTuple):
    """One study: its results by notebook, and the notebooks of which it has none or not all."""

    name: str
    results: dict[str, Result]
    chapters: list[Chapter]
    missing: dict[str, list[str]]


def parts(found: dict[str, list[Result]], stories: list[Story]) -> list[Part]:
    """The studies, each in the order of the notebooks.

    Raises
    ------
    ValueError
        If a result names a notebook that does not save it.
    """
    by_name, seen, made = {story.name: story for story in stories}, set[str](), []
    for study, results in found.items():
        for result in results:
            notebook = result.record["notebook"]
            if notebook not in by_name or result.name not in by_name[notebook].above:
                path = result.place / f"{result.name}.json"
                raise ValueError(
                    f"{path}: expected a notebook that saves {result.name}, got {notebook!r}"
                )
        own = {result.name: result for result in results}
        chapters = [
            Chapter(story, there, story.name not in seen, story.study == study)
            for story in stories
            if (there := [own[name] for name in story.above if name in own])
        ]
        seen |= {chapter.story.name for chapter in chapters}
        lacking = {
            story.name: [name for name in story.above if name not in own] for story in stories
        }
        made.append(
            Part(study, own, chapters, {story: names for story, names in lacking.items() if names})
        )
    return made


def data_uri(path: Path) -> str:
    """A picture as part of the page."""
    return f"data:{TYPES[path.suffix[1:]]};base64,{b64encode(path.read_bytes()).decode()}"


def finder(part: Part, all_parts: list[Part]) -> Callable[[str], str | None]:
    """From what a notebook links to, to an anchor: in its own study if possible; a picture only of its own study."""
    notebooks = {
        chapter.story.name: other.name
        for other in (*reversed(all_parts), part)
        for chapter in other.chapters
    }

    def find(url: str) -> str | None:
        path = Path(url)
        if path.suffix == ".ipynb":
            return f"{notebooks[path.stem]}-{path.stem}" if path.stem in notebooks else None
        return f"{part.name}-{path.stem}" if path.stem in part.results else None

    return find


def content(result: Result) -> dict[str, Any]:
    """What the template shows of a result, by its kind: frames, figure, table, adaptive, claims, words."""
    study, record = result.study, result.record
    picture, table = result.file("svg", "png"), result.file("csv")
    if "frames" in record and picture:
        labels = [eps_label(eps) for eps in record["frames"]["eps"]]
        return {"kind": "frames", "sheet": data_uri(picture), "labels": labels, **record["frames"]}
    if picture:
        return {"kind": "figure", "source": data_uri(picture)}
    if not table:
        raise ValueError(
            f"{result.place / result.name}.json: expected a picture or a table beside it, there is none"
        )
    rows = pd.read_csv(table)
    if "claim" in rows:
        return {"kind": "claims", "rows": rows.to_dict("records")}
    text = table.with_suffix(".md").read_text(encoding="utf-8")
    if "table" not in rows:  # of another form than the paper's
        return {"kind": "words", "text": text}
    if rows["table"].iloc[0] == "adaptive":
        strengths, defences = both_attackers(rows)
        return {
            "kind": "adaptive",
            "strengths": strengths,
            "defences": defences,
            "n": rows["n"].iloc[0],
            "text": text,
        }
    grids = {"": against_published(rows)}
    for eps in swept(rows):
        title = f"The same over the number n of PGD’s steps, at ε = {short(eps)}"
        grids[title] = against_published_over_steps(rows, eps)
    failures = [line.removeprefix("> ") for line in text.splitlines() if line.startswith("> ")]
    return {"kind": "table", "grids": grids, "caption": caption(rows, study), "failures": failures}


def claims(all_parts: list[Part]) -> list[dict[str, Any]]:
    """Every claim once: its sentence, the outcome in the paper, and the outcome in each study that has judged it."""
    told_of: dict[Any, dict[Any, Any]] = {}
    for part in all_parts:
        tables = [file for result in part.results.values() if (file := result.file("csv"))]
        judged = [
            row
            for table in tables
            if "claim" in (rows := pd.read_csv(table))
            for row in rows.to_dict("records")
        ]
        for row in judged:
            told_of.setdefault(row["claim"], {**row, "here": {}})["here"][part.name] = row[
                "outcome"
            ]
    return sorted(told_of.values(), key=lambda claim: int(claim["claim"][1:]))


def build(figures: Path, notebooks: list[Path]) -> str:
    """The whole page as HTML.

    Parameters
    ----------
    figures
        The folder whose folders are studies.
    notebooks
        In their order; the first introduces the page.

    Raises
    ------
    FileNotFoundError
        If there are no results at all.
    ValueError
        If a result has no readable record, or one of a notebook that does not save it.
    """
    stories = [told(path) for path in notebooks]
    all_parts = parts(studies(figures), stories)
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    html, css, js = (
        files(__package__).joinpath(f"report.{kind}").read_text("utf-8")
        for kind in ("html", "css", "js")
    )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["prose"] = lambda text, find: Markup(prose.html(text, find))
    page = environment.from_string(html).render(
        parts=all_parts,
        stories={story.name: story for story in stories},
        told_in={
            chapter.story.name: part.name
            for part in reversed(all_parts)
            for chapter in part.chapters
        },
        first=stories[0],
        claims=claims(all_parts),
        papers=on_what(),
        small=SMALL_SHARE,
        large=LARGE_ACCURACY,
        citation=citation,
        paper=citation["references"][0],
        licence=(REPOSITORY / "LICENSE").read_text(encoding="utf-8"),
        made=datetime.now(UTC),
        commit=commit(),
        css=Markup(css),
        js=Markup(js),
        finder=finder,
        nothing=lambda url: None,
        content=content,
        subject=lambda result: without_marks(subject(result.study)),
        names=NAMES,
        symbols=SYMBOLS,
        limits=LIMITS,
        metrics=METRICS,
        colours=COLOURS,
        groupby=groupby,
        attribute=attrgetter,
    )
    return page.strip() + "\n"


def write(path: Path, figures: Path, notebooks: list[Path]) -> Path:
    """`build` the page into a file, whose folders are made where they are not there; returns it."""
    page = build(figures, notebooks)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write_text(page, encoding="utf-8"))
    return path
