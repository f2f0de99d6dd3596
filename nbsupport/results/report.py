"""The report: all stored results on one self-contained page, in ``figures/README.md`` and in the README's table."""

import json
import re
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import mistune
import nbformat
import pandas as pd
import yaml
from markupsafe import Markup

from ..study import Study, eps_label
from . import tables
from .claims import LARGE_ACCURACY, SMALL_SHARE, describe_papers
from .save import REPOSITORY, commit, roots, write_text

TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
START, END = "<!-- table: python -m nbsupport.results.report -->", "<!-- end of table -->"


@dataclass(frozen=True)
class Result:
    """One figure, table or sheet of frames in a study's folder, with its record and its tidy rows, if any."""

    name: str
    place: Path
    record: dict[str, Any]
    study: Study
    rows: pd.DataFrame | None

    def file(self, *endings: str) -> Path | None:
        """The first of its files with one of these endings that exists."""
        paths = (self.place / f"{self.name}.{ending}" for ending in endings)
        return next((path for path in paths if path.is_file()), None)

    @property
    def heading(self) -> str:
        """The beginning of its caption, up to the colon."""
        return tables.without_marks(self.record["caption"].partition(":")[0])


def read(place: Path, name: str) -> Result:
    """One result. Raises `ValueError` if its record is missing or damaged, or stands alone."""
    path, table = place / f"{name}.json", place / f"{name}.csv"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        settings = record["study"].items()
        fields: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in settings}
        rows = pd.read_csv(table) if table.is_file() else None
        result = Result(name, place, record, Study.named(**fields), rows)
        if not (record["caption"] and record["notebook"] and result.file("svg", "png", "csv")):
            raise ValueError("no caption, no notebook, or no figure or table beside it")
        return result
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"expected the record of a result ({type(error).__name__}: {error})"
        raise ValueError(f"{path}: {reason}; run its notebook again") from error


def studies(roots: list[Path]) -> dict[str, list[Result]]:
    """The results of every study by name, ``digits`` last; an earlier root hides a study in a later one.

    Raises `FileNotFoundError` if there are none, and `ValueError` as `read` does.
    """
    folders = (path for root in reversed(roots) for path in root.glob("*") if path.is_dir())
    places = {path.name: path for path in folders}
    found = {}
    for study in sorted(places, key=lambda study: (study == "digits", study)):
        names = {path.stem for path in places[study].glob("[!.]*") if path.is_file()}
        if names:
            found[study] = [read(places[study], name) for name in sorted(names)]
    if not found:
        where = " or ".join(map(str, roots))
        raise FileNotFoundError(f"no results in {where}; make them: make study")
    return found


def judge_everywhere(found: dict[str, list[Result]]) -> pd.DataFrame:
    """One row per claim: its predicate, its outcome in the paper and in each study that has judged it."""
    lines: dict[str, dict[str, str]] = {}
    for study, results in found.items():
        for rows in (result.rows for result in results if result.name.startswith("claims")):
            assert rows is not None
            for row in rows.to_dict("records"):
                line = {"predicate": row["predicate"], "in the paper": row["paper_outcome"]}
                line = lines.setdefault(row["claim"], line)
                line[tables.NAMES.get(study, study)] = row["outcome"]
    order = sorted(lines, key=lambda claim: int(claim[1:]))
    frame = pd.DataFrame([lines[claim] for claim in order], pd.Index(order, name="claim"))
    return frame.fillna("not measured")


def findings(results: list[Result]) -> list[str]:
    """The main results of a study: the best under each attacker, and what its seeds decide."""
    rows = {result.name: result.rows for result in results if result.rows is not None}
    found = []
    if core := [rows[name] for name in ("table1", "table3", "table4") if name in rows]:
        accuracy = pd.concat(core).query("attack == 'pgd' and metric == 'accuracy'")
        means = accuracy.groupby("method")["value"].mean().sort_values(ascending=False)
        best = ", ".join(f"{method} {value:.3f}" for method, value in means.head(3).items())
        bare = f"no filter {means['attacked']:.3f}"
        found.append(f"Gray-box, mean accuracy over ε: {bare}; the highest: {best}.")
    if "adaptive" in rows:
        kept = tables.headline(rows["adaptive"]).iloc[:, -1]
        text = ", ".join(f"{method} {value:.3f}" for method, value in kept.items())
        found.append(f"White-box, {kept.name}, {rows['adaptive']['n'].iloc[0]} images: {text}.")
    if "seeds" in rows:
        mean = rows["seeds"][rows["seeds"]["eps"] == "mean"]
        text = "; ".join(f"{row.method} − {row.other}: {row.outcome}" for row in mean.itertuples())
        found.append(f"Mean accuracy over ε, seeds {mean['seeds'].iloc[0]}: {text}.")
    return [finding.replace("*", "\\*") for finding in found]


def readme_table(figures: Path) -> str:
    """Six defences under both attackers, from ``cifar10`` or else the first study that has them."""
    found = studies([figures])
    every = [result for study in found.values() for result in study if result.name == "adaptive"]
    if not every:
        return "*No adaptive evaluation is stored yet.*"
    result = next((each for each in every if each.study.name == "cifar10"), every[0])
    assert result.rows is not None
    images = result.rows["n"].iloc[0]
    return (
        f"{tables.to_markdown(tables.headline(result.rows))}\n\n*Accuracy on {images} test images: "
        f"{tables.subject(result.study)}; two standard errors are at most {images**-0.5:.2f}. "
        "Gray-box: the attacker knows the classifier alone. Adaptive: per image the worst case of all "
        "white-box attacks at this and smaller ε. †: a sanity check of the attack failed, so the true "
        "accuracy may be lower.*"
    )


def update_readme(path: Path = REPOSITORY / "README.md") -> None:
    """Write the README's table between its two marks, and ``figures/README.md``.

    Raises `ValueError` if the README does not contain both marks once.
    """
    page, figures = path.read_text(encoding="utf-8"), path.parent / "figures"
    if page.count(START) != 1 or page.count(END) != 1:
        raise ValueError(f"{path}: expected {START} and {END} once each")
    before, after = page.split(START)[0], page.split(END)[1]
    write_text(path, f"{before}{START}\n{readme_table(figures)}\n{END}{after}")
    write_text(figures / "README.md", overview(figures))


def overview(figures: Path) -> str:
    """All results of the committed studies in Markdown, for ``figures/README.md``."""
    found = studies([figures])
    claims = tables.to_markdown(judge_everywhere(found))
    return _render("overview.md", studies=found, claims=claims)


# -- the page ------------------------------------------------------------------------------------


def opening(notebook: str, notebooks: Path) -> tuple[str, str]:
    """The heading of a notebook's first cell and the rest of it. Raises `ValueError` if there is no such notebook."""
    path = notebooks / f"{notebook}.ipynb"
    if not path.is_file():
        raise ValueError(f"{path}: a result names this notebook, which does not exist")
    heading, _, text = nbformat.read(path, as_version=4).cells[0].source.partition("\n")
    return heading.removeprefix("# "), text.strip()


def data_uri(path: Path) -> str:
    """A picture as part of the page."""
    return f"data:{TYPES[path.suffix]};base64,{b64encode(path.read_bytes()).decode()}"


def html(frame: pd.DataFrame, uuid: str, classes: pd.DataFrame | None = None) -> Markup:
    """A wide table as HTML."""
    styler = tables.style(frame, classes=classes).hide(names=True)
    return Markup(styler.set_table_attributes('class="numbers"').to_html(table_uuid=uuid))


def html_tables(result: Result) -> dict[str, Markup]:
    """The wide tables of a result as HTML, by title; accuracies with their intervals and differences."""
    assert result.rows is not None
    found: dict[str, Markup] = {}
    for title, frame in tables.views(result.rows, result.study).items():
        classes = None
        if result.name.startswith("table") and "metric" not in frame.index.names:
            frame, classes = tables.with_differences(frame, int(result.rows["n"].iloc[0]))
        found[title] = html(frame, f"{result.place.name}-{result.name}-{len(found)}", classes)
    return found


def build(roots: list[Path], notebooks: Path = REPOSITORY / "notebooks") -> str:
    """The whole page as HTML. Raises `FileNotFoundError` or `ValueError` as `studies` and `opening` do."""
    found = studies(roots)
    every = [result for results in found.values() for result in results]
    known = {result.name: result.record["notebook"] for result in every}
    first = {result.record["notebook"]: result.place.name for result in reversed(every)}
    start = min((path.stem for path in notebooks.glob("00_*.ipynb")), default="00_start_here")
    ids = {f"{result.place.name}-{result.name}" for result in every}
    ids |= {f"{study}-{notebook}" for notebook, study in first.items()}
    markdown = mistune.create_markdown(escape=True, plugins=["table"])

    def prose(text: str, study: str = "") -> Markup:
        def lead_within_page(match: re.Match[str]) -> str:
            picture, text, url = match.groups()
            name = Path(url).stem
            target = f"{first.get(name) if url.endswith('.ipynb') else study}-{name}"
            if target in ids:
                return f"[{'↗ ' * bool(picture)}{text}](#{target})"
            return "" if picture else text

        local = re.sub(r"(!?)\[([^]]*)\]\((?!https://)([^)]+)\)", lead_within_page, text)
        return Markup(markdown(local))

    claims = judge_everywhere(found)
    return _render(
        "report.html", css=Markup(_text("report.css")), js=Markup(_text("report.js")),
        citation=yaml.safe_load((REPOSITORY / "CITATION.cff").read_text("utf-8")),
        licence=(REPOSITORY / "LICENSE").read_text("utf-8"), made=datetime.now(UTC), commit=commit(),
        openings={name: opening(name, notebooks) for name in {start, *first}}, start=start, prose=prose,
        studies=found, known=known, first=first, claims=html(claims, "claims") if len(claims) else "",
        small=SMALL_SHARE, large=LARGE_ACCURACY, tables=html_tables, data_uri=data_uri, eps_label=eps_label,
        subject=lambda study: tables.without_marks(tables.subject(study)),
    )  # fmt: skip


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _render(template: str, **fields: Any) -> str:
    environment = jinja2.Environment(
        autoescape=template.endswith("html"), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    fields |= {"names": tables.NAMES, "papers": describe_papers(), "findings": findings}
    return environment.from_string(_text(template)).render(fields).strip() + "\n"


def write(path: Path | None = None) -> Path:
    """Put all stored results on one page, ``build/report.html`` if no path is given, and return its path."""
    path, page = path or REPOSITORY / "build" / "report.html", build(roots())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


if __name__ == "__main__":
    update_readme()
