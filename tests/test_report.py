"""The report: one page of all stored results that needs nothing else, and their Markdown."""

import json
import re
import shutil
from base64 import b64decode
from html.parser import HTMLParser
from itertools import pairwise
from typing import ClassVar

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from nbsupport.results import report, tables
from nbsupport.results.claims import CLAIMS, published_claims
from nbsupport.results.report import build, opening, studies, update_readme
from nbsupport.results.save import REPOSITORY
from nbsupport.study import eps_label

FIGURES = REPOSITORY / "figures"
STUDIES = sorted(path.name for path in FIGURES.glob("*/"))
STUDIES.sort(key="photographs".__eq__)  # last
VOID = ("meta", "img", "input", "br", "hr", "link")


@pytest.fixture(scope="module")
def text():
    return build([FIGURES])


@pytest.fixture(scope="module")
def page(text):
    return BeautifulSoup(text, "html.parser")


def stored(*patterns):
    """One test for each such file of the committed results."""
    paths = sorted(path for each in patterns for path in FIGURES.glob(f"*/{each}"))
    names = [f"{path.parent.name}-{path.stem}" for path in paths]
    return pytest.mark.parametrize("path", paths, ids=names)


def section(page, path):
    """Where a result stands, by one of its files."""
    return page.find(id=f"{path.parent.name}-{path.stem}")


def words(element):
    return " ".join(element.get_text(" ").split())


# -- as HTML -------------------------------------------------------------------------------------


class Balance(HTMLParser):
    """Every element is closed, in its order."""

    open: ClassVar = []

    def handle_starttag(self, tag, attributes):
        self.open += [tag] if tag not in VOID else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()


def test_the_page_is_sound_and_loads_nothing(text, page):
    Balance().feed(text)
    assert Balance.open == []
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


def test_every_notebook_with_results_appears_once_in_each_study_and_in_order(page):
    shown = page.find_all(class_="study")
    assert [tag["id"] for tag in shown] == STUDIES
    for study in shown:
        paths = (FIGURES / study["id"]).glob("*.json")
        names = sorted({json.loads(path.read_text("utf-8"))["notebook"] for path in paths})
        chapters = {tag["id"]: words(tag.h3) for tag in study.find_all(class_="chapter")}
        expected = {f"{study['id']}-{name}": opening(name)[0] for name in names}
        assert [*chapters.items()] == [*expected.items()]


def test_only_the_first_study_is_open_and_ones_own_come_first(page, tmp_path):
    studies = [tag for tag in page.find_all(class_="study") if tag.has_attr("open")]
    assert [tag["id"] for tag in studies] == STUDIES[:1]
    shutil.copytree(FIGURES / "photographs", tmp_path / "photographs")
    shown = parse(tmp_path, FIGURES).find_all(class_="study")
    assert [tag["id"] for tag in shown] == ["photographs", *STUDIES[:-1]]


def test_the_claims_that_differ_are_those_that_no_published_network_decides_so(page):
    rows, paper = page.find(id="differences").table.tbody.find_all("tr"), published_claims()
    differing = set()
    for path in FIGURES.glob("*/claims*.csv"):
        for row in pd.read_csv(path).fillna("").to_dict("records"):
            outcome = row.get("outcome") or row["plain_outcome"]
            published = {*paper[paper["claim"] == row["claim"]]["outcome"]} or {"holds"}
            if outcome in ("holds", "fails") and outcome not in published:
                differing.add(row["claim"])
    assert {words(row.th) for row in rows} == differing


def test_a_claim_without_published_numbers_holds_in_words():
    published = {"predicate": "…", "A on B": ["holds / fails", "fails", "", ""], "A on C": ""}
    judged = pd.DataFrame(
        published | {"here": ["fails (plain)", "fails", "holds", "fails / holds"]}
    )
    found = report.differing(judged, ["here"])
    assert found["published"].to_dict() == {0: "holds in 1", 3: "holds in words"}


def test_rows_without_a_measurement_are_left_out():
    empty = pd.DataFrame({"clean": [0.5, float("nan")]}, index=["measured one", "failed one"])
    shown = report.html(empty, "one")
    assert "measured one" in shown and "failed one" not in shown


def test_in_a_folder_of_pages_it_leads_to_them_and_has_the_explorer(figures, tmp_path, monkeypatch):
    (tmp_path / "07_pa_filt.html").touch()
    screen = '<div id="nbs-1">the explorer</div>'
    monkeypatch.setattr(
        report.page, "write_page", lambda path: path.write_text(f"<h1>{screen}</body></html>")
    )
    for _ in range(2):  # computed, then read
        page = BeautifulSoup(build([figures], tmp_path), "html.parser")
        assert str(page.find(id="nbs-1")) == screen
        assert page.find(id="cifar10-07_pa_filt").find("a", href="07_pa_filt.html")
        monkeypatch.setattr(report.page, "write_page", None)


@stored("*.json")
def test_every_result_has_its_caption_and_provenance(path, page):
    record, shown = json.loads(path.read_text(encoding="utf-8")), words(section(page, path))
    torch, images = f"torch {record['versions']['torch']}", f"{record['images']} test image"
    parts = (record[name] for name in ("made", "device", "notebook"))
    assert all(part in shown for part in (*parts, record["commit"][:12], torch, images))
    caption = tables.without_marks(record["caption"])
    assert "".join(caption.split()) in "".join(shown.split())
    assert all(" ".join(failure.split()) in shown for failure in record.get("failures", []))


@stored("[!f]*.png", "f[!r]*.png")
def test_every_picture_is_on_the_page(path, page):
    shown = path.with_suffix(".svg") if path.with_suffix(".svg").is_file() else path
    pictures = re.findall(r"base64,([A-Za-z0-9+/=]+)", str(section(page, path)))
    assert shown.read_bytes() in [b64decode(each) for each in pictures]


@stored("[!R]*.md")
def test_every_number_of_every_table_is_on_the_page(path, page):
    (result,) = [each for each in studies([FIGURES])[path.parent.name] if each.name == path.stem]
    shown = section(page, path).find_all("table")
    frames = tables.views(result.rows, result.study).values()
    for table, frame in zip(shown, frames, strict=True):
        cells = [[words(cell) for cell in row.find_all("td")] for row in table.tbody.find_all("tr")]
        expected = tables.formatted(frame).map(lambda text: " ".join(text.split()))
        assert all(values in cells for values in expected.to_numpy().tolist())
        added = 3 * len(frame.index.unique(0)) if frame.index.names == ["method", "source"] else 0
        assert len(expected) <= len(cells) <= len(expected) + added


def test_all_claims_are_gathered_once(page):
    rows = page.find(id="claims").table.tbody.find_all("tr")
    found = {words(row.th): words(row.find_all("td")[-1]) for row in rows}
    assert list(found) == list(CLAIMS)
    last = [name for name in STUDIES if (FIGURES / name / "claims.csv").is_file()][-1]
    outcomes = pd.read_csv(FIGURES / last / "claims.csv").set_index("claim")["outcome"]
    assert all(found[claim].startswith(outcome) for claim, outcome in outcomes.items())


# -- of other results ----------------------------------------------------------------------------


@pytest.fixture
def figures(tmp_path):
    """Results of which only one picture of one study exists."""
    place = tmp_path / "figures" / "cifar10"
    place.mkdir(parents=True)
    for path in FIGURES.glob("cifar10/fig3.*"):
        shutil.copy(path, place)
    return tmp_path / "figures"


def parse(*roots):
    return BeautifulSoup(build([*roots]), "html.parser")


def test_ones_results_hide_the_committed_ones_of_the_same_study(figures):
    assert parse(figures).find(id="cifar10-table1") is None  # a part of the results makes a page
    page = parse(figures, FIGURES)
    study = page.find(id="cifar10")
    assert [tag["id"] for tag in study.find_all(class_="result")] == ["cifar10-fig3"]
    missing = words(study.find(class_="missing"))
    assert "table4" in missing and "fig3" not in missing
    assert re.search(r"python -m nbsupport run --study cifar10( \d\d)* 08", missing)
    assert page.find(id="neurips2017dev-table4")


@stored("frames.json")
def test_frames_become_a_slider_over_eps(path, page):
    index, box = json.loads(path.read_text("utf-8"))["frames"], section(page, path)
    state = json.loads(box.find("script", type="application/json").string)
    assert state["sliders"] == [["ε", [eps_label(eps) for eps in index["eps"]]]]
    assert len({*state["frames"]}) == len(state["texts"]) == len(index["eps"])
    for text, answers, notes in zip(state["texts"], index["words"], index["notes"], strict=True):
        for name, word, note in zip(index["names"], answers, notes, strict=True):
            mark = "✓" if word == index["truth"] else "✗"
            assert " ".join(f"{name} {f'“{word}” {mark}' if word else ''} {note}".split()) in text


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "FileNotFoundError"),
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'study'"),
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
    shutil.copytree(FIGURES / "neurips2017dev", figures / "neurips2017dev")
    page = parse(figures)
    assert page.find(id="cifar10-computed").find(id="cifar10-fig3")
    assert page.find("a", href="#cifar10-computed")
    assert "fig3" not in words(page.find(id="cifar10").find(class_="missing"))


def test_no_results_at_all_are_an_error_that_says_how_to_make_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="nbsupport compute"):
        studies([tmp_path / "none"])


# -- Markdown ------------------------------------------------------------------------------------


@pytest.fixture
def readme(tmp_path):
    shutil.copytree(FIGURES, tmp_path / "figures")
    path = tmp_path / "README.md"
    path.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    return path


def test_the_readme_gets_its_six_rows_from_the_stored_results(readme):
    update_readme(readme)
    page = readme.read_text(encoding="utf-8")
    assert page.startswith(f"before\n{report.START}\n|") and page.endswith(f"{report.END}\nafter\n")
    assert len([line for line in page.splitlines() if line.startswith("|")]) == 2 + 6
    assert "Accuracy on 32 test images" in page and "`cifar10`" in page
    table = page.removeprefix("before\n").removesuffix("after\n")
    assert table in (REPOSITORY / "README.md").read_text(encoding="utf-8")  # is current
    update_readme(readme)
    assert readme.read_text(encoding="utf-8") == page
    folder = readme.parent / "figures"
    (folder / "photographs").mkdir(exist_ok=True)
    for path in (folder / "cifar10").glob("adaptive.*"):
        renamed = path.read_text("utf-8").replace('"cifar10"', '"photographs"')
        (folder / "photographs" / path.name).write_text(renamed, encoding="utf-8")
    shutil.rmtree(folder / "cifar10")
    update_readme(readme)
    assert "`photographs`" in readme.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["", report.START, f"{report.START}{report.END}" * 2])
def test_a_readme_without_the_marks_is_refused(page, readme):
    readme.write_text(page)
    with pytest.raises(ValueError, match="expected"):
        update_readme(readme)


def test_the_overview_is_current_and_has_every_result_of_every_study(readme):
    update_readme(readme)
    text = (readme.parent / "figures" / "README.md").read_text(encoding="utf-8")
    assert text == (FIGURES / "README.md").read_text(encoding="utf-8")
    for path in FIGURES.glob("*/*.json"):
        assert json.loads(path.read_text(encoding="utf-8"))["caption"] in text
    assert all((FIGURES / link).is_file() for link in re.findall(r"\]\(([^)]+)\)", text))
