"""The report: one page of all stored results that needs nothing else, and the Markdown made of them."""

import json
import re
import shutil
from base64 import b64decode
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from nbsupport.results import report, tables
from nbsupport.results.report import build, opening, overview, readme_table, studies, update_readme
from nbsupport.results.save import REPOSITORY
from nbsupport.study import EPS, eps_label

FIGURES, NOTEBOOKS = REPOSITORY / "figures", REPOSITORY / "notebooks"
VOID = ("meta", "img", "input", "br", "hr", "link")


@pytest.fixture(scope="module")
def text():
    return build([FIGURES])


@pytest.fixture(scope="module")
def page(text):
    return BeautifulSoup(text, "html.parser")


def stored(pattern):
    """One test for each such file of the committed results."""
    paths = sorted(FIGURES.glob(f"*/{pattern}"))
    names = [f"{path.parent.name}-{path.stem}" for path in paths]
    return pytest.mark.parametrize("path", paths, ids=names)


def section(page, path):
    """Where a result stands, by one of its files."""
    return page.find(id=f"{path.parent.name}-{path.stem}")


def words(element):
    return " ".join(element.get_text(" ").split())


def lines(table):
    """The cells of each row of a table, under its row headings."""
    found, method = {}, ""
    for row in table.tbody.find_all("tr"):
        heads = [words(head) for head in row.find_all("th")]
        method = heads[0] if len(heads) > 1 else method
        place = (method, heads[-1]) if "level1" in str(row) else heads[-1]
        found[place] = [words(cell) for cell in row.find_all("td")]
    return found


# -- as HTML -------------------------------------------------------------------------------------


class Balance(HTMLParser):
    """Every element is closed, in its order."""

    def __init__(self):
        super().__init__()
        self.open, self.resources, self.targets, self.ids = [], [], [], []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.open += [tag] if tag not in VOID else []
        self.ids += [named["id"]] if "id" in named else []
        self.targets += [named.pop("href")] if tag == "a" else []
        loading = ("src", "srcset", "data", "poster", "action", "style", "href")
        self.resources += [named[name] for name in loading if name in named]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()


def test_the_page_is_sound_and_loads_nothing(text, page):
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert [name for name, times in Counter(parser.ids).items() if times > 1] == []
    assert {target[1:] for target in parser.targets if target[0] == "#"} <= set(parser.ids)
    assert [target for target in parser.targets if not re.match("#|https://", target)] == []
    loaded = [found.split(";base64,")[0] for found in parser.resources]
    assert [found for found in loaded if re.search(r"//|url\((?!data:)", found)] == []
    styles, scripts = (" ".join(map(str, page.find_all(name))) for name in ("style", "script"))
    assert re.findall(r"@import|url\(|https?:", styles) == []
    assert re.findall(r"\bimport\b|fetch\(|XMLHttpRequest|https?:", scripts) == []


def test_it_can_be_read_without_eyes_and_mouse(page):
    levels = [int(tag.name[1]) for tag in page.find_all(re.compile("^h[1-6]$"))]
    assert levels.count(1) == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    boxes = page.find_all(class_="scroll")
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)
    assert all(len(image["alt"]) > 10 for image in page.find_all("img"))


# -- what stands on it ---------------------------------------------------------------------------


def test_every_notebook_with_results_appears_once_in_each_study_and_in_order(page):
    shown = page.find_all(class_="study")
    assert [tag["id"] for tag in shown] == ["cifar10", "neurips2017dev", "digits"]
    for study in shown:
        paths = (FIGURES / study["id"]).glob("*.json")
        names = sorted({json.loads(path.read_text("utf-8"))["notebook"] for path in paths})
        chapters = {tag["id"]: words(tag.h3) for tag in study.find_all(class_="chapter")}
        expected = {f"{study['id']}-{name}": opening(name, NOTEBOOKS)[0] for name in names}
        assert [*chapters.items()] == [*expected.items()]


def test_a_notebook_is_introduced_once(page):
    chapters = Counter(tag["id"].partition("-")[2] for tag in page.find_all(class_="chapter"))
    again = [tag for tag in page.find_all("a") if words(tag) == "Introduced above"]
    assert len(again) == sum(times - 1 for times in chapters.values())


@stored("*.json")
def test_every_result_has_its_caption_and_provenance(path, page):
    record, shown = json.loads(path.read_text(encoding="utf-8")), words(section(page, path))
    torch, images = f"torch {record['versions']['torch']}", f"{record['images']} test image"
    parts = (record[name] for name in ("commit", "made", "device", "notebook"))
    assert all(part in shown for part in (*parts, torch, images))
    caption = tables.without_marks(record["caption"])
    assert "".join(caption.split()) in "".join(shown.split())
    assert all(" ".join(failure.split()) in shown for failure in record.get("failures", []))


@stored("*.png")
def test_every_picture_is_on_the_page(path, page):
    shown = path.with_suffix(".svg") if path.with_suffix(".svg").is_file() else path
    pictures = re.findall(r"base64,([A-Za-z0-9+/=]+)", str(section(page, path)))
    assert shown.read_bytes() in [b64decode(each) for each in pictures]


@stored("table?.csv")
def test_each_number_of_a_table_is_the_stored_one_and_the_published_one(path, page):
    (result,) = [each for each in studies([FIGURES])[path.parent.name] if each.name == path.stem]
    table = tables.wide_table(result.rows)
    found = lines(section(page, path).find("table"))
    if "metric" in table.index.names:  # Table 2: its numbers in their order
        shown = [row.find_all("td") for row in section(page, path).table.tbody.find_all("tr")]
        expected = tables.formatted(table).to_numpy().tolist()
        assert [[words(cell) for cell in row] for row in shown] == expected
        return
    for place, values in tables.formatted(table).iterrows():
        assert found[place] == list(values)
        if place[1] == "measured":
            assert found[place[0], "95 % interval"][0].count("–") == 1
    sources = {source for _, source in found}
    assert {"measured", "95 % interval", "published", "difference", "worst case"} <= sources


@stored("claims*.csv")
def test_claims_have_their_outcomes_here_and_in_the_paper(path, page):
    found = lines(section(page, path).table)
    for row in pd.read_csv(path).to_dict("records"):
        shown = found[row["claim"]]
        for part in ("predicate", "outcome", "paper_outcome", "measured"):
            assert " ".join(row[part].split()) in shown


def test_all_claims_are_gathered_once(page):
    found = lines(page.find(id="claims").table)
    stored = pd.concat(map(pd.read_csv, FIGURES.glob("*/claims*.csv")))
    judged = set(stored["claim"])
    assert set(found) == judged and list(found) == sorted(found, key=lambda name: int(name[1:]))
    outcomes = pd.read_csv(FIGURES / "digits" / "claims.csv").set_index("claim")["outcome"]
    assert all(found[claim][-1] == outcome for claim, outcome in outcomes.items())


@stored("seeds.csv")
def test_differences_over_seeds_are_there(path, page):
    rows, found = pd.read_csv(path), lines(section(page, path).table)
    for row in rows[rows["eps"] == "mean"].itertuples():
        shown = found[f"{row.method} − {row.other}"]
        assert shown[:2] == [f"{row.value:+.3f}", f"{row.low:+.3f} … {row.high:+.3f}"]


@stored("adaptive.csv")
def test_the_gray_box_attacker_stands_beside_the_worst_case(path, page):
    rows = pd.read_csv(path)
    accuracy = rows[rows["metric"] == "accuracy"]
    curves = accuracy.pivot(index="method", columns=["eps", "attack"], values="value")
    found = lines(section(page, path).find_all("table")[1])
    for method, values in curves.iterrows():
        strengths = sorted(accuracy["eps"].unique())
        expected = [values[eps, attack] for eps in strengths for attack in ("oblivious", "worst")]
        assert found[tables.display_name(method)] == [f"{value:.3f}" for value in expected]


# -- of other results ----------------------------------------------------------------------------


@pytest.fixture
def figures(tmp_path):
    """Results of which only one picture of one study exists."""
    place = tmp_path / "figures" / "digits"
    place.mkdir(parents=True)
    for path in FIGURES.glob("digits/fig3.*"):
        shutil.copy(path, place)
    return tmp_path / "figures"


@pytest.fixture
def framed(figures):
    """… and made-up frames."""
    names, size = ("clean I", "attacked Î", "W"), 2
    pixels = np.random.default_rng(0).integers(0, 256, (13 * size, 3 * size, 3), dtype=np.uint8)
    answers = [["7", "7" if row < 9 else "1", None] for row in range(13)]
    notes = [["", f"{60 - row} dB", "mean 0.50"] for row in range(13)]
    index = dict(size=size, image=5, truth="7", eps=EPS, names=names, words=answers, notes=notes)
    record = json.loads((figures / "digits" / "fig3.json").read_text(encoding="utf-8"))
    (figures / "digits" / "frames.json").write_text(json.dumps(record | {"frames": index}))
    Image.fromarray(pixels).save(figures / "digits" / "frames.png")
    return figures


def parse(*roots):
    return BeautifulSoup(build([*roots]), "html.parser")


def test_a_part_of_the_results_makes_a_page_too(figures):
    page = parse(figures)
    assert [tag["id"] for tag in page.find_all(class_="result")] == ["digits-fig3"]
    assert page.find(id="claims") is None


def test_ones_results_hide_the_committed_ones_of_the_same_study(figures):
    page = parse(figures, FIGURES)
    study = page.find(id="digits")
    assert [tag["id"] for tag in study.find_all(class_="result")] == ["digits-fig3"]
    missing = words(study.find(class_="missing"))
    assert "table1" in missing and "fig3" not in missing
    assert re.search(r"python -m nbsupport run --study digits( \d\d)* 12", missing)
    assert page.find(id="cifar10-table1")


def test_frames_become_a_slider_over_eps_and_a_table_without_a_script(framed):
    box, labels = parse(framed).find(class_="frames"), [eps_label(eps) for eps in EPS]
    slider = box.find("input", type="range")
    assert (slider["min"], slider["max"], slider["aria-valuetext"]) == ("0", "12", eps_label(0))
    index = json.loads(box.find("script").string)
    assert index["labels"] == labels and index["words"][12] == ["7", "1", None]
    encoded = re.search(r"base64,([^)]+)\)", box["style"])[1]
    assert b64decode(encoded) == (framed / "digits" / "frames.png").read_bytes()
    assert "--rows: 13; --columns: 3" in box["style"]
    first = [tag["style"] for tag in box.find(class_="panels").find_all(class_="pixels")]
    assert first == [f"--row: 0; --column: {column}" for column in range(3)]
    rows = box.find(class_="sheet").find_all("tr")[1:]
    assert [words(row.th) for row in rows] == labels
    for number, row in enumerate(rows):
        assert ("“7” ✓" if number < 9 else "“1” ✗") in words(row.find_all("td")[1])
        assert f"{60 - number} dB" in words(row)


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
    path = figures / "digits" / "fig3.json"
    path.unlink() if record is None else path.write_text(record)
    with pytest.raises(ValueError, match=rf"fig3\.json: .*{reason}"):
        studies([figures])


def test_a_record_without_a_result_or_a_notebook_is_refused(figures):
    path = figures / "digits" / "fig3.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(record | {"notebook": "99_none"}))
    with pytest.raises(ValueError, match="99_none"):
        build([figures])
    for picture in figures.glob("digits/fig3.[ps]*g"):
        picture.unlink()
    with pytest.raises(ValueError, match=r"fig3\.json: .*no figure or table"):
        build([figures])


def test_no_results_at_all_are_an_error_that_says_how_to_make_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="make study"):
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
    update_readme(readme)
    assert readme.read_text(encoding="utf-8") == page
    shutil.rmtree(readme.parent / "figures" / "cifar10")
    assert "`digits`" in readme_table(readme.parent / "figures")


@pytest.mark.parametrize("page", ["", report.START, f"{report.START}{report.END}" * 2])
def test_a_readme_without_the_marks_is_refused(page, readme):
    readme.write_text(page)
    with pytest.raises(ValueError, match="expected"):
        update_readme(readme)


def test_the_committed_markdown_is_current():
    assert readme_table(FIGURES) in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert overview(FIGURES) == (FIGURES / "README.md").read_text(encoding="utf-8")


def test_the_overview_has_every_result_of_every_study():
    text = overview(FIGURES)
    for path in FIGURES.glob("*/*.json"):
        assert json.loads(path.read_text(encoding="utf-8"))["caption"] in text
    assert all((FIGURES / link).is_file() for link in re.findall(r"\]\(([^)]+)\)", text))
