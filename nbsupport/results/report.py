"""The report: all stored results on one self-contained page, and the Markdown made of them."""

import json
import re
from base64 import b64encode
from datetime import UTC, datetime
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import mistune
import pandas as pd
import yaml
from markupsafe import Markup

from ..study import Study, eps_label
from . import claims, tables
from .save import REPOSITORY, RESULTS, build_folder, commit, is_clone, roots, write_text

START, END = "<!-- table: python -m nbsupport.results.report -->", "<!-- end of table -->"
COMPUTED = "computed"  # the chapter of what no notebook shows


class Result(NamedTuple):
    """A figure, a table or a sheet of frames: its record, its files by ending, and its rows."""

    name: str
    heading: str
    chapter: str  # the notebook
    record: dict[str, Any]
    study: Study
    files: dict[str, Path]
    rows: pd.DataFrame


def read(place: Path, name: str) -> Result:
    """One result. Raises `ValueError` if its record is missing, damaged, or stands alone."""
    path, files = place / f"{name}.json", {path.suffix: path for path in place.glob(f"{name}.*")}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        study = Study.recorded(record["study"])
        heading = tables.without_marks(record["caption"].partition(":")[0])
        complete = ".svg" in files or ".csv" in files or (".png" in files and "frames" in record)
        if not (heading and complete):
            raise ValueError("no caption, or no figure or table beside it")
        rows = pd.read_csv(files[".csv"]) if ".csv" in files else pd.DataFrame()
        chapter = record.get("notebook") or COMPUTED
        return Result(name, heading, chapter, record, study, files, rows)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"expected the record of a result ({type(error).__name__}: {error})"
        raise ValueError(f"{path}: {reason}; make it again") from error


def studies(roots: list[Path]) -> dict[str, list[Result]]:
    """The results of every study, ``photographs`` last; an earlier root hides a later one's.

    Raises `FileNotFoundError` if there are none, and `ValueError` as `read` does.
    """
    places = {path.name: path for root in reversed(roots) for path in root.glob("*/")}
    found = {}
    for study in sorted(places, key=lambda study: (study == "photographs", study)):
        files = (path for path in places[study].glob("[!.]*") if path.name != RESULTS)
        if names := {path.stem for path in files if path.is_file()}:
            found[study] = [read(places[study], name) for name in sorted(names)]
    if not found:
        where = " or ".join(map(str, roots))
        raise FileNotFoundError(f"no results in {where}; `python -m nbsupport compute` makes some")
    return found


def judge_everywhere(found: dict[str, list[Result]]) -> pd.DataFrame:
    """All claims, in each published group and in each study that has judged some."""
    judged = {
        study: [result.rows for result in results if "claim" in result.rows]
        for study, results in found.items()
    }
    return claims.claim_matrix({study: pd.concat(rows) for study, rows in judged.items() if rows})


def findings(results: list[Result]) -> list[str]:
    """The main results of a study: the best under each attacker, and what its seeds decide."""
    rows, found = {result.name: result.rows for result in results}, []
    spell = "{0[0]} {0[1]:.3f}".format
    if core := [rows[name] for name in ("table1", "table3", "table4") if name in rows]:
        accuracy = pd.concat(core).query("attack == 'pgd'").groupby("method")["value"].mean()
        best = ", ".join(map(spell, accuracy.nlargest(3).items()))
        bare = f"no filter {accuracy['attacked']:.3f}"
        found.append(f"Gray-box, mean accuracy over ε: {bare}; the highest: {best}.")
    if "adaptive" in rows:
        kept, images = tables.headline(rows["adaptive"]).iloc[:, -1], rows["adaptive"]["n"].iloc[0]
        text = ", ".join(map("{0[0]} {0[1]}".format, kept.items()))
        found.append(f"White-box, {kept.name}, {images} images: {text}.")
    if "seeds" in rows:
        mean = rows["seeds"][rows["seeds"]["eps"] == tables.MEAN]
        text = "; ".join(f"{row.method} − {row.other}: {row.outcome}" for row in mean.itertuples())
        found.append(f"Mean accuracy over ε, seeds {mean['seeds'].iloc[0]}: {text}.")
    return [finding.replace("*", "\\*") for finding in found]


def update_readme(path: Path = REPOSITORY / "README.md") -> None:
    """Write six defences into the README between its two marks, and all of ``figures/README.md``.

    Raises `ValueError` if the README does not contain both marks once.
    """
    found = studies([path.parent / "figures"])
    every = (result for results in found.values() for result in results)
    shown = next(result for result in every if result.name == "adaptive")
    table, note = tables.headline(shown.rows), tables.caption("headline", shown.study)
    text = f"{START}\n{tables.to_markdown(table)}\n\n*{note}*\n{END}"
    page, times = re.subn(f"(?s){START}.*?{END}", lambda _: text, path.read_text("utf-8"))
    if times != 1:
        raise ValueError(f"{path}: expected {START} and {END} once each")
    write_text(path, page)
    overview = _render("overview.md", studies=found, judged=judge_everywhere(found))
    write_text(path.parent / "figures" / "README.md", overview)


# -- the page ------------------------------------------------------------------------------------


def opening(notebook: str) -> tuple[str, str]:
    """The heading of a notebook's first cell and the rest; its name alone without the repository.

    Raises `ValueError` if the repository has no such notebook.
    """
    if notebook == COMPUTED or not is_clone():
        return notebook.replace("_", " ").capitalize(), ""
    path = REPOSITORY / "notebooks" / f"{notebook}.ipynb"
    if not path.is_file():
        raise ValueError(f"{path}: a result names this notebook, which does not exist")
    source = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])
    heading, _, text = source.partition("\n")
    return heading.removeprefix("# "), text.strip()


def html(frame: pd.DataFrame, uuid: str, images: int = 1) -> Markup:
    """A wide table as HTML; accuracies on so many images with intervals and differences."""
    classes = None
    if frame.index.names == ["method", "source"]:
        frame, classes = tables.with_differences(frame, images)
    styler = tables.style(frame, classes=classes).hide(names=True)
    return Markup(styler.set_table_attributes('class="numbers"').to_html(table_uuid=uuid))


def build(roots: list[Path]) -> str:
    """The whole page as HTML. Raises as `studies` and `opening` do."""
    found = studies(roots)
    every = [result for results in found.values() for result in results]
    known = {result.name: result.chapter for result in every if result.chapter != COMPUTED}
    first = {result.chapter: result.study.name for result in reversed(every)}
    ids = {f"{result.study.name}-{result.name}" for result in every}
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

    citation, package, clone = None, distribution("nbsupport"), is_clone()
    licence = package.read_text("licenses/LICENSE")
    if clone:
        licence = (REPOSITORY / "LICENSE").read_text("utf-8")
        citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text("utf-8"))
    return _render(
        "report.html", studies=found, known=known if clone else {}, first=first, prose=prose,
        openings={name: opening(name) for name in ("00_start_here", *first)},
        judged=judge_everywhere(found), html=html, eps_label=eps_label,
        citation=citation, package=package.metadata, licence=licence, made=datetime.now(UTC),
        commit=commit(), encode=lambda path: b64encode(path.read_bytes()).decode(),
    )  # fmt: skip


def _render(template: str, **fields: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True,
        autoescape=template.endswith("html"), undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    page = environment.get_template(template)
    return page.render(fields, claims=claims, tables=tables, findings=findings).strip() + "\n"


def write(path: Path | None = None) -> Path:
    """Put all stored results on one page, ``build/report.html`` if None, and return its path."""
    path, page = path or build_folder() / "report.html", build(roots())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


if __name__ == "__main__":
    update_readme()
