"""The report: all stored results on one self-contained page, and the Markdown made of them."""

import io
import json
import re
from base64 import b64encode
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import mistune
import numpy as np
import pandas as pd
import torch
import yaml
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from ..experiments.methods import COLOURS, ENVELOPE
from ..interactive import explorer
from ..interactive.widgets import Browser, embed, eps_choices
from ..study import EPS, Study
from . import claims, plots, tables
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
    """The results of every study; an earlier root hides a later one's and comes first.

    Raises `FileNotFoundError` if there are none, and `ValueError` as `read` does.
    """
    places = {path.name: path for root in reversed(roots) for path in root.glob("*/")}
    found = {}
    order = {path: number for number, path in enumerate(roots)}
    first = {study: (order[path.parent], study == "photographs") for study, path in places.items()}
    for study in sorted(places, key=lambda study: (*first[study], study)):
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
        curves = pd.concat(core).query("attack == @ENVELOPE and metric == 'accuracy'")
        accuracy = curves[curves["eps"].isin(EPS)].groupby("method")["value"].mean()
        best = ", ".join(map(spell, accuracy.drop("attacked").nlargest(3).items()))
        bare = f"no filter {accuracy['attacked']:.3f}"
        found.append(f"Gray-box, worst case over ε' ≤ ε, mean over ε: {bare}; highest: {best}.")
    if "adaptive" in rows:
        table, images = tables.headline(rows["adaptive"]), rows["adaptive"]["n"].iloc[0]
        kept, eps = table.iloc[:, -1], table.columns[1].partition(", ")[2]
        text = ", ".join(f"{name} {gain}" for name, gain in kept.items() if gain)
        if text:
            found.append(f"White-box attacker, {eps}, {images} images, {kept.name}: {text}.")
    if "seeds" in rows:
        mean = rows["seeds"][rows["seeds"]["eps"] == tables.MEAN]
        each = "{0.method} − {0.other}: {0.outcome} (seeds {0.seeds})".format
        found.append(f"Mean accuracy over ε: {'; '.join(map(each, mean.itertuples()))}.")
    return [finding.replace("*", "\\*") for finding in found]


def update_readme(path: Path = REPOSITORY / "README.md") -> None:
    """Write six defences into the README between its two marks, and all of ``figures/README.md``.

    Raises `ValueError` if the README does not contain both marks once.
    """
    found = studies([path.parent / "figures"])
    every = (result for results in found.values() for result in results)
    shown = next(result for result in every if result.name == "adaptive")
    table, note = tables.headline(shown.rows), tables.caption("headline", shown.study)
    if table.index.str.endswith("†").any():
        note += tables.TEXTS["phrases"]["dagger"]
    text = f"{START}\n{tables.to_markdown(table)}\n\n*{note}*\n{END}"
    readme, times = re.subn(f"(?s){START}.*?{END}", lambda _: text, path.read_text("utf-8"))
    if times != 1:
        raise ValueError(f"{path}: expected {START} and {END} once each")
    write_text(path, readme)
    overview = render("overview.md", studies=found, judged=judge_everywhere(found))
    write_text(path.parent / "figures" / "README.md", overview)


# -- the page ------------------------------------------------------------------------------------


def opening(notebook: str) -> tuple[str, str]:
    """The heading of a notebook's first cell and its first paragraph, as plain text.

    Its name alone without the repository. Raises `ValueError` if that has no such notebook.
    """
    if notebook == COMPUTED or not is_clone():
        return notebook.replace("_", " ").capitalize(), ""
    path = REPOSITORY / "notebooks" / f"{notebook}.ipynb"
    if not path.is_file():
        raise ValueError(f"{path}: a result names this notebook, which does not exist")
    source = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])
    heading, _, text = source.partition("\n")
    paragraph = re.sub(r"!?\[([^]]*)\]\([^)]+\)", r"\1", text.strip().partition("\n\n")[0])
    return heading.removeprefix("# "), tables.without_marks(paragraph).removeprefix("Question. ")


def html(frame: pd.DataFrame, uuid: str, images: int = 1) -> Markup:
    """A wide table as HTML; accuracies on so many images with intervals and differences."""
    classes = None
    if frame.index.names == ["method", "source"]:
        frame, classes = tables.with_differences(frame, images)
    measured = frame.notna().any(axis=1)
    classes = classes[measured] if classes is not None else None
    styler = tables.style(frame[measured], classes=classes).hide(names=True)
    return Markup(styler.set_table_attributes('class="numbers"').to_html(table_uuid=uuid))


def differing(judged: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The claims that a study of these `names` decides as no published network and data set does.

    A claim without published numbers holds in the paper's words.
    """
    published, new = list[str](), list[bool]()
    for _, row in judged.map(lambda text: text.partition(" ")[0]).iterrows():
        counts = Counter(row.drop([*names, "predicate"])[row != ""])
        texts = [f"{outcome} in {number}" for outcome, number in counts.most_common()]
        published.append(", ".join(texts) or "holds in words")
        new.append(bool({*row[names]} & {"holds", "fails"} - {*(counts or {"holds"})}))
    return judged[["predicate"]].assign(published=published).join(judged[names])[new]


def curve(results: list[Result]) -> str:
    """Accuracy over ε of the headline's methods, in the worst case over ε' ≤ ε, as SVG in base64.

    Empty if the study has neither Table 1 nor 4.
    """
    rows = [result.rows for result in results if result.name in ("table1", "table4")]
    if not rows:
        return ""
    every = pd.concat(rows).drop_duplicates(["method", "attack", "metric", "eps"])
    chosen = every[every["method"].isin({*tables.HEADLINE} & {*COLOURS})]
    figure = plots.draw_curves(chosen, attack=ENVELOPE, metrics=["accuracy"])
    figure.savefig(file := io.BytesIO(), format="svg", metadata={"Date": None})
    return b64encode(file.getvalue()).decode()


def browse(result: Result) -> Markup:
    """A slider over the strengths of stored frames, which needs no kernel."""
    index = result.record["frames"]
    with Image.open(result.files[".png"]) as sheet:
        pixels = torch.tensor(np.asarray(sheet.convert("RGB"))).permute(2, 0, 1) / 255
    rows = pixels.chunk(len(index["eps"]), dim=1)

    def draw(eps: float) -> Figure:
        row, panels = index["eps"].index(eps), list[plots.Panel]()
        tiles = rows[row].chunk(len(index["names"]), dim=2)
        for tile, name, word, note in zip(
            tiles, index["names"], index["words"][row], index["notes"][row], strict=True
        ):
            answer = f"“{word}” {'✓' if word == index['truth'] else '✗'}" if word else ""
            panels.append((tile, f"{name}\n{answer}\n{note}", {}))
        return plots.draw_panels([panels[:3], panels[3:]], size=(1.9, 2.4))

    return Markup(embed(Browser(draw, eps=eps_choices(index["eps"]))))


def embed_explorer(path: Path) -> str:
    """The explorer as it stands on its page at `path`, which is written where it is missing or old.

    That takes a minute.
    """
    code = Path(explorer.__file__).parent.iterdir()
    if not path.is_file() or path.stat().st_mtime < max(each.stat().st_mtime for each in code):
        explorer.write_page(path)
    start = '<div id="nbs-'
    return start + path.read_text("utf-8").partition(start)[2].partition("</body>")[0]


def build(roots: list[Path], folder: Path | None = None) -> str:
    """The whole page as HTML; in a `folder` with the explorer and links to notebooks' pages there.

    Raises as `studies` and `opening` do.
    """
    found, clone = studies(roots), is_clone()
    every = [result for results in found.values() for result in results]
    known = {result.name: result.chapter for result in every if result.chapter != COMPUTED}
    citation, package, judged = None, distribution("nbsupport"), judge_everywhere(found)
    names = [name for study in found if (name := tables.NAMES.get(study, study)) in judged]
    judged = judged[~judged[names].isin(["", "not measured"]).all(axis=1)]
    licence = package.read_text("licenses/LICENSE")
    if clone:
        licence = (REPOSITORY / "LICENSE").read_text("utf-8")
        citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text("utf-8"))
    markdown = mistune.create_markdown(escape=True)
    return render(
        "report.html", studies=found, known=known if clone else {},
        explorer=embed_explorer(folder / "explorer.html") if folder else "",
        pages={path.stem for path in folder.glob("[0-9][0-9]_*.html")} if folder else (),
        prose=lambda text: Markup(markdown(text)), curve=curve(next(iter(found.values()))),
        openings={result.chapter: opening(result.chapter) for result in every}, judged=judged,
        differing=differing(judged, names), html=html, browse=browse,
        citation=citation, package=package.metadata, licence=licence, made=datetime.now(UTC),
        commit=commit(), encode=lambda path: b64encode(path.read_bytes()).decode(),
    )  # fmt: skip


def render(template: str, **fields: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True,
        autoescape=template.endswith("html"), undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    found = environment.get_template(template)
    return found.render(fields, claims=claims, tables=tables, findings=findings).strip() + "\n"


def write(path: Path | None = None) -> Path:
    """Put all stored results on one page, ``build/report.html`` if None, and return its path.

    The explorer's page, ``explorer.html``, stands beside it.
    """
    path = path or build_folder() / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, build(roots(), path.parent))
    return path


if __name__ == "__main__":
    update_readme()
