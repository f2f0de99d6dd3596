"""The report: one page of all stored results that needs nothing else, and their Markdown."""

import json
import re
import shutil
from base64 import b64decode
from itertools import pairwise

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from nbsupport.results import report, tables
from nbsupport.results.claims import published_claims
from nbsupport.results.report import build, studies, update_readme
from nbsupport.results.save import REPOSITORY, RESULTS
from nbsupport.study import EPS, eps_label

FIGURES = REPOSITORY / "figures"


@pytest.fixture(scope="module")
def page():
    return BeautifulSoup(build([FIGURES]), "html.parser")


@pytest.fixture(scope="module")
def sections(page):
    """Where each result stands, by study and name."""
    return {tag["id"]: tag for tag in page.find_all(class_="result")}


def stored(ending, *but):
    """The committed files of an ending, with the ids of their results."""
    but = (*but, RESULTS.removesuffix(".json"))
    paths = [path for path in FIGURES.glob(f"*/*{ending}") if path.stem not in but]
    return [(f"{path.parent.name}-{path.stem}", path) for path in paths]


def words(element):
    return " ".join(element.get_text(" ").split())


# -- as HTML -------------------------------------------------------------------------------------


def test_the_page_is_sound_and_loads_nothing(page):
    ids = [tag["id"] for tag in page.find_all(id=True)]
    assert len(ids) == len(set(ids))
    targets = [tag["href"] for tag in page.find_all("a")]
    assert {target[1:] for target in targets if target[0] == "#"} <= set(ids)
    assert all(re.match("#|https://", target) for target in targets)
    loading = ("src", "srcset", "data", "poster", "action", "style")
    loaded = [tag[name] for name in loading for tag in page.find_all(**{"attrs": {name: True}})]
    assert not page.find("link") and all(
        not re.search(r"//|url\((?!data:)", each.split(";base64,")[0]) for each in loaded
    )
    styles, scripts = (" ".join(map(str, page.find_all(name))) for name in ("style", "script"))
    assert re.findall(r"@import|url\(|https?:", styles) == []
    assert re.findall(r"\bimport\b|fetch\(|XMLHttpRequest|https?:(?!//www.w3.org)", scripts) == []


def test_it_can_be_read_without_eyes_and_mouse(page):
    levels = [int(tag.name[1]) for tag in page.find_all(re.compile("^h[1-6]$"))]
    assert levels.count(1) == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    boxes = page.find_all(class_="scroll")
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)
    assert all(len(image["alt"]) > 10 for image in page.find_all("img"))


# -- what stands on it ---------------------------------------------------------------------------


def test_the_claims_that_differ_are_those_that_no_published_network_decides_so(page):
    rows, paper = page.find(id="differences").table.tbody.find_all("tr"), published_claims()
    differing = set()
    for path in FIGURES.glob("*/claims*.csv"):
        for row in pd.read_csv(path, dtype=str).fillna("").to_dict("records"):
            outcome = row.get("outcome") or row["plain_outcome"]
            published = {*paper[paper["claim"] == row["claim"]]["outcome"]} or {"holds"}
            if outcome in ("holds", "fails") and outcome not in published:
                differing.add(row["claim"])
    assert {words(row.th) for row in rows} == differing


def test_the_first_finding_averages_accuracy_over_the_papers_strengths():
    rows = pd.read_csv(FIGURES / "cifar10" / "table1.csv").query("method == 'attacked'")
    bare = rows.query("attack == 'pgd' and metric == 'accuracy'").set_index("eps")["value"][[*EPS]]
    first, *_ = report.findings(studies([FIGURES])["cifar10"])
    assert len(bare) == 13 and f"no filter {sum(bare) / 13:.3f};" in first


def test_in_a_folder_of_pages_it_leads_to_them_and_has_the_explorer(figures, tmp_path, monkeypatch):
    (tmp_path / "07_pa_filt.html").touch()
    screen = '<div id="nbs-1">the explorer</div>'
    monkeypatch.setattr(
        report.explorer, "write_page", lambda path: path.write_text(f"<h1>{screen}</body></html>")
    )
    for _ in range(2):  # computed, then read
        page = BeautifulSoup(build([figures], tmp_path), "html.parser")
        assert str(page.find(id="nbs-1")) == screen
        assert page.find(id="cifar10-07_pa_filt").find("a", href="07_pa_filt.html")
        monkeypatch.setattr(report.explorer, "write_page", None)


def test_every_result_has_its_caption_and_provenance(sections):
    for place, path in stored(".json"):
        record, shown = json.loads(path.read_text(encoding="utf-8")), words(sections[place])
        torch, images = f"torch {record['versions']['torch']}", f"{record['images']} test image"
        parts = (record[name] for name in ("made", "device", "notebook"))
        expected = (*parts, record["commit"][:12], torch, images)
        assert [part for part in expected if part not in shown] == [], place
        caption = tables.without_marks(record["caption"])
        assert "".join(caption.split()) in "".join(shown.split())
        assert all(" ".join(failure.split()) in shown for failure in record.get("failures", []))


def test_every_picture_is_on_the_page(sections):
    for place, path in stored(".png", "frames"):
        shown = path.with_suffix(".svg") if path.with_suffix(".svg").is_file() else path
        pictures = re.findall(r"base64,([A-Za-z0-9+/=]+)", str(sections[place]))
        assert shown.read_bytes() in [b64decode(each) for each in pictures], place


def test_every_number_of_every_table_is_on_the_page(sections):
    results = {
        (each, result.name): result
        for each, every in studies([FIGURES]).items()
        for result in every
    }
    for place, path in stored(".md", "README"):
        result = results[path.parent.name, path.stem]
        shown = sections[place].find_all("table")
        frames = tables.views(result.rows, result.study).values()
        for table, frame in zip(shown, frames, strict=True):
            lines = [row.find_all("td") for row in table.tbody.find_all("tr")]
            cells = [[words(cell) for cell in line] for line in lines]
            expected = tables.formatted(frame).map(lambda text: " ".join(text.split()))
            assert all(values in cells for values in expected.to_numpy().tolist()), place


def test_frames_become_a_slider_over_eps(sections):
    for place, path in stored(".json"):
        if path.stem == "frames":
            index = json.loads(path.read_text("utf-8"))["frames"]
            state = json.loads(sections[place].find("script", type="application/json").string)
            assert state["sliders"] == [["ε", [eps_label(eps) for eps in index["eps"]]]]
            assert len({*state["frames"]}) == len(state["texts"]) == len(index["eps"])
            rows = zip(state["texts"], index["words"], index["notes"], strict=True)
            for text, answers, notes in rows:
                for name, word, note in zip(index["names"], answers, notes, strict=True):
                    mark = "✓" if word == index["truth"] else "✗"
                    answer = f"“{word}” {mark}" if word else ""
                    assert " ".join(f"{name} {answer} {note}".split()) in text


# -- of other results ----------------------------------------------------------------------------


@pytest.fixture
def figures(tmp_path):
    """Results of which only one picture of one study exists."""
    place = tmp_path / "figures" / "cifar10"
    place.mkdir(parents=True)
    for path in FIGURES.glob("cifar10/fig3.*"):
        shutil.copy(path, place)
    return tmp_path / "figures"


def test_ones_results_hide_the_committed_ones_of_the_same_study(figures, tmp_path):
    committed = tmp_path / "committed"
    for name in ("cifar10/table4", "cifar10/fig3", "neurips2017dev/table4"):
        (committed / name).parent.mkdir(parents=True, exist_ok=True)
        for path in FIGURES.glob(f"{name}.*"):
            shutil.copy(path, (committed / name).parent)
    page = BeautifulSoup(build([figures, committed]), "html.parser")
    study = page.find(id="cifar10")
    assert [tag["id"] for tag in study.find_all(class_="result")] == ["cifar10-fig3"]
    missing = words(study.find(class_="missing"))
    assert "table4" in missing and "fig3" not in missing
    assert "python -m nbsupport run --study cifar10 07" in missing
    assert page.find(id="neurips2017dev-table4")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "FileNotFoundError"),
        ("{", "JSONDecodeError"),
        ('{"study": {"name": "mnist", "scale": "quick"}}', "mnist"),
    ],
)
def test_a_damaged_record_is_refused_by_name(record, reason, figures):
    path = figures / "cifar10" / "fig3.json"
    path.unlink() if record is None else path.write_text(record)
    with pytest.raises(ValueError, match=rf"fig3\.json: .*{reason}"):
        studies([figures])


def test_a_record_without_a_result_or_a_notebook_is_refused(figures):
    path = figures / "cifar10" / "fig3.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(record | {"notebook": "99_none"}))
    with pytest.raises(ValueError, match="99_none"):
        build([figures])
    for picture in figures.glob("cifar10/fig3.[ps]*g"):
        picture.unlink()
    with pytest.raises(ValueError, match=r"fig3\.json: .*no figure or table"):
        build([figures])


def test_what_no_notebook_shows_has_a_chapter_of_its_own(figures):
    path = figures / "cifar10" / "fig3.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(record | {"notebook": None}))
    page = BeautifulSoup(build([figures]), "html.parser")
    assert page.find(id="cifar10-computed").find(id="cifar10-fig3")
    assert page.find("a", href="#cifar10-computed")


# -- Markdown ------------------------------------------------------------------------------------


@pytest.fixture
def readme(tmp_path):
    shutil.copytree(FIGURES, tmp_path / "figures")
    path = tmp_path / "README.md"
    path.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    return path


def test_a_readme_without_the_marks_is_refused(readme):
    readme.write_text(report.START)
    with pytest.raises(ValueError, match="expected"):
        update_readme(readme)


def test_readme_and_overview_are_current_and_rendered_from_the_stored_results(readme):
    update_readme(readme)
    page = readme.read_text(encoding="utf-8")
    assert page.startswith(f"before\n{report.START}\n|") and page.endswith(f"{report.END}\nafter\n")
    table = page.removeprefix("before\n").removesuffix("after\n")
    assert table in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    text = (readme.parent / "figures" / "README.md").read_text(encoding="utf-8")
    assert text == (FIGURES / "README.md").read_text(encoding="utf-8")
    for _, path in stored(".json"):
        assert json.loads(path.read_text(encoding="utf-8"))["caption"] in text
    assert all((FIGURES / link).is_file() for link in re.findall(r"\]\(([^)]+)\)", text))
