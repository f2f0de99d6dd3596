"""The page: everything that is stored is on it, as it is stored, and nothing comes from elsewhere."""

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

from nbsupport.results.frames import Frames
from nbsupport.results.notebooks import find
from nbsupport.results.report import build, write
from nbsupport.results.save import REPOSITORY
from nbsupport.results.tables import published, short
from nbsupport.study import EPS, eps_label

FIGURES = REPOSITORY / "figures"
RECORDS = sorted(FIGURES.glob("*/*.json"))
OTHERS = {6: ("resnet50", "svhn"), 7: ("resnext101", "neurips2017dev")}
VOID = ("meta", "img", "input", "br", "hr", "link")


@pytest.fixture(scope="module")
def text():
    return build(FIGURES, find([]))


@pytest.fixture(scope="module")
def page(text):
    return BeautifulSoup(text, "html.parser")


def stored(pattern):
    """One test for each such file of the committed results."""
    paths = sorted(FIGURES.glob(f"*/{pattern}"))
    return pytest.mark.parametrize(
        "path", paths, ids=[f"{path.parent.name}-{path.stem}" for path in paths]
    )


def source_of(study, number):
    """Whose published numbers stand beside a table: of the same images where the paper has them."""
    return OTHERS.get(
        number, ("resnet50", "cifar10" if (study, number) == ("cifar10", 1) else "neurips2017dev")
    )


def section(page, path):
    """Where a result stands, by one of its files."""
    return page.find(id=f"{path.parent.name}-{path.stem}")


def words(element):
    return " ".join(element.get_text(" ").split())


def lines(table):
    """From (method, source) to the texts of the cells without their intervals, and to the intervals."""
    found = {}
    for body in table.find_all("tbody"):
        method = body.find(class_="method").get("data-method")
        for row in body.find_all("tr")[1:]:
            cells = row.find_all("td")
            small = [cell.small.get_text() if cell.small else "" for cell in cells]
            found[method, row.th.get_text()] = [next(cell.strings, "") for cell in cells], small
    return found


# -- as HTML -------------------------------------------------------------------------------------


class Balance(HTMLParser):
    """Every element is closed, in its order."""

    def __init__(self):
        super().__init__()
        self.open, self.resources, self.targets, self.ids = [], [], [], []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [named["id"]] if "id" in named else []
        self.targets += [named["href"]] if tag == "a" else []
        elsewhere = [
            "src",
            "srcset",
            "data",
            "poster",
            "action",
            "style",
            *(["href"] if tag != "a" else []),
        ]
        self.resources += [named[name] for name in elsewhere if name in named]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()


@pytest.fixture(scope="module")
def parsed(text):
    parser = Balance()
    parser.feed(text)
    return parser


def test_every_element_is_closed(parsed):
    assert parsed.open == []


def test_ids_are_unique_and_links_within_the_page_lead_somewhere(parsed):
    assert [name for name, times in Counter(parsed.ids).items() if times > 1] == []
    assert {target[1:] for target in parsed.targets if target.startswith("#")} <= set(parsed.ids)
    assert [target for target in parsed.targets if not re.match("#|https://", target)] == []


def test_nothing_is_loaded_from_elsewhere(parsed, page):
    loaded = [found.split(";base64,")[0] for found in parsed.resources]
    assert [found for found in loaded if re.search(r"//|url\((?!data:)", found)] == []
    styles, scripts = (
        "".join(tag.get_text() for tag in page.find_all(name)) for name in ("style", "script")
    )
    assert re.findall(r"@import|url\(|https?:", styles) == []
    assert re.findall(r"\bimport\b|fetch\(|XMLHttpRequest|https?:", scripts) == []


def test_headings_do_not_skip_a_level(page):
    levels = [int(tag.name[1]) for tag in page.find_all(re.compile("^h[1-6]$"))]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_what_scrolls_can_be_reached_and_is_named(page):
    assert all(
        box["tabindex"] == "0" and box["aria-label"] for box in page.find_all(class_="scroll")
    )


# -- what stands on it ---------------------------------------------------------------------------


def test_every_notebook_with_results_appears_once_in_each_study_and_in_order(page):
    studies = [tag["id"] for tag in page.find_all(class_="study")]
    assert studies == ["cifar10", "neurips2017dev", "digits"]
    for study in studies:
        there = [
            tag["id"].removeprefix(f"{study}-")
            for tag in page.find(id=study).find_all(class_="chapter")
        ]
        records = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in RECORDS
            if path.parent.name == study
        ]
        assert there == sorted({record["notebook"] for record in records})


@stored("*.json")
def test_every_result_says_where_it_comes_from(path, page):
    record = json.loads(path.read_text(encoding="utf-8"))
    told = words(section(page, path).find(class_="provenance"))
    for said in (
        record["commit"],
        record["made"],
        record["device"],
        record["notebook"],
        f"seed {record['seed']}",
    ):
        assert said in told
    assert f"torch {record['versions']['torch']}" in told
    assert f"{record['images']} test image" in told
    assert f", {record['scale']}" in told


@stored("*.png")
def test_every_picture_is_on_the_page(path, page):
    shown = path.with_suffix(".svg") if path.with_suffix(".svg").is_file() else path
    html = str(section(page, path))
    assert shown.read_bytes() in [
        b64decode(each) for each in re.findall(r"base64,([A-Za-z0-9+/=]+)", html)
    ]


def test_every_picture_has_a_description(page):
    assert all(len(image["alt"]) > 10 for image in page.find_all("img"))


@stored("table?.csv")
def test_each_number_of_a_table_is_the_stored_one_and_the_published_one(path, page):
    rows = pd.read_csv(path)
    rows = rows[rows["steps"] == rows["steps"].iloc[0]]
    tables = section(page, path).find_all("table", class_="numbers")
    for metric, table in zip(rows["metric"].unique(), tables, strict=False):
        digits, found = 2 if metric == "psnr" else 3, lines(table)
        for method, part in rows[rows["metric"] == metric].groupby("method"):
            for attack, source in {"pgd": "measured", "pgd-envelope": "envelope"}.items():
                values = part[part["attack"] == attack].sort_values("eps")["value"].to_numpy()
                expected = ["∞" if np.isinf(value) else f"{value:.{digits}f}" for value in values]
                if source == "measured" or (method, source) in found:
                    assert found[method, source][0][:13] == expected, (method, source)
                else:  # left out where it says nothing new
                    assert expected == found[method, "measured"][0][:13]
            theirs = published(*source_of(path.parent.name, int(path.stem[-1])))
            wanted = {"table": int(path.stem[-1]), "method": method, "metric": metric, "steps": 40}
            theirs = theirs[(theirs[list(wanted)] == pd.Series(wanted)).all(axis=1)]
            if len(theirs):
                expected = [f"{value:.{digits}f}" for value in theirs.sort_values("eps")["value"]]
                assert found[method, "published"][0][:13] == expected, method


@stored("table[134].csv")
def test_each_accuracy_has_wilsons_interval(path, page):
    rows = pd.read_csv(path)
    found = lines(section(page, path).find("table", class_="numbers"))
    for method, part in rows[rows["attack"] == "pgd"].groupby("method"):
        share, n, z = part.sort_values("eps")["value"].to_numpy(), part["n"].iloc[0], 1.959964
        centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
        shown = np.array(
            [each.split("–") for each in found[method, "measured"][1][:13]], dtype=float
        )
        np.testing.assert_allclose(shown.T, [centre - half, centre + half], atol=5.1e-4)


@stored("claims*.csv")
def test_claims_have_their_outcomes_here_and_in_the_paper(path, page):
    body = section(page, path).find("tbody")
    for row, tag in zip(pd.read_csv(path).to_dict("records"), body.find_all("tr"), strict=True):
        here, there = tag.find_all("td")
        assert words(tag.th) == f"{row['claim']} {' '.join(row['predicate'].split())}"
        assert row["outcome"] in words(here)
        assert " ".join(row["measured"].split()) in words(here)
        assert row["paper_outcome"] in words(there)


def test_all_claims_are_gathered_once(page):
    rows = page.find(id="claims").find("tbody").find_all("tr")
    names = [row.b.get_text() for row in rows]
    assert names == sorted(set(names), key=lambda name: int(name[1:]))
    judged = {
        claim for path in FIGURES.glob("*/claims*.csv") for claim in pd.read_csv(path)["claim"]
    }
    assert set(names) == judged


def test_it_says_what_the_words_in_the_claims_mean(page):
    reading = words(page.find(id="reading"))
    where = (
        "ResNet-50 on NeurIPS-2017DEV (C16: ResNet-50 on SVHN, C17: ResNeXt-101 on NeurIPS-2017DEV)"
    )
    assert f"the same predicate on its numbers for {where}." in reading
    assert (
        "at least 80 % of the clean accuracy" in reading
        and "an accuracy of at most 0.02" in reading
    )


@stored("seeds.csv")
def test_a_table_of_another_form_than_the_papers_is_there_as_it_was_written(path, page):
    rows, shown = pd.read_csv(path), words(section(page, path))
    for row in rows[rows["eps"] == "mean"].itertuples():
        assert (
            f"{row.method} − {row.other} {row.value:+.3f} {row.low:+.3f} … {row.high:+.3f}" in shown
        )


@stored("adaptive.csv")
def test_the_oblivious_attacker_stands_beside_the_worst(path, page):
    rows = pd.read_csv(path)
    values = rows[rows["metric"] == "accuracy"].set_index(["method", "attack", "eps"])["value"]
    table = section(page, path).find("table", class_="both")
    strengths = sorted(rows["eps"].dropna().unique())
    assert [words(head) for head in table.thead.tr.find_all("th")[1:-1]] == [
        f"ε = {short(eps)}" for eps in strengths
    ]
    for method, tag in zip(rows["method"].unique(), table.tbody.find_all("tr"), strict=True):
        shown = [next(cell.strings) for cell in tag.find_all("td")[:-1]]
        expected = [
            values[method, attack, eps] for eps in strengths for attack in ("oblivious", "worst")
        ]
        assert shown == [f"{value:.3f}" for value in expected], method


def test_a_notebook_concludes_only_in_the_study_it_speaks_of(page):
    assert page.find(id="digits").find_all(class_="conclusion")
    assert page.find(id="cifar10").find_all(class_="conclusion") == []


def test_a_notebook_opens_in_full_only_once(page):
    openings = [words(tag) for tag in page.find_all(class_="opening")]
    full = [opening for opening in openings if "Explained above" not in opening]
    assert len(set(full)) == len(full)
    assert all("Question." in opening for opening in openings)
    chapters = {json.loads(path.read_text(encoding="utf-8"))["notebook"] for path in RECORDS}
    assert len(full) == len(chapters)


# -- of other figures ----------------------------------------------------------------------------


@pytest.fixture
def figures(tmp_path):
    """Figures of which only one picture of one study is there."""
    place = tmp_path / "figures" / "digits"
    place.mkdir(parents=True)
    for path in FIGURES.glob("digits/fig3.*"):
        shutil.copy(path, place)
    return tmp_path / "figures"


@pytest.fixture
def framed(figures):
    """… and frames, made up."""
    names, size = ("clean I", "attacked Î", "W"), 2
    pixels = np.random.default_rng(0).integers(0, 256, (13 * size, 3 * size, 3), dtype=np.uint8)
    said = tuple(("7", "7" if row < 9 else "1", None) for row in range(13))
    notes = tuple(("", f"{60 - row} dB", "mean 0.50") for row in range(13))
    sheet = Frames(pixels, size, 5, "7", EPS, names, said, notes)
    record = json.loads((figures / "digits" / "fig3.json").read_text(encoding="utf-8")) | {
        "frames": sheet.index()
    }
    (figures / "digits" / "frames.json").write_text(json.dumps(record), encoding="utf-8")
    Image.fromarray(pixels).save(figures / "digits" / "frames.png")
    return figures


def test_a_part_of_the_results_makes_a_page_too(figures):
    page = BeautifulSoup(build(figures, find([])), "html.parser")
    assert [tag["id"] for tag in page.find_all(class_="result")] == ["digits-fig3"]
    assert page.find(id="claims") is None


def test_what_is_missing_is_said_with_the_command_that_makes_it(figures):
    missing = words(BeautifulSoup(build(figures, find([])), "html.parser").find(class_="missing"))
    assert "Table 1" in missing and "(adaptive)" in missing and "(fig3)" not in missing
    assert re.search(r"python -m nbsupport run --study digits( \d\d)* 12", missing)


def test_a_vector_picture_is_preferred(figures):
    (figures / "digits" / "fig3.svg").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    (image,) = BeautifulSoup(build(figures, find([])), "html.parser").find_all("img")
    assert b64decode(image["src"].removeprefix("data:image/svg+xml;base64,")).startswith(b"<svg")


def test_frames_become_a_slider_over_eps(framed):
    box = BeautifulSoup(build(framed, find([])), "html.parser").find(class_="frames")
    slider = box.find("input", type="range")
    assert (slider["min"], slider["max"], slider["step"], slider["value"]) == ("0", "12", "1", "0")
    assert slider["aria-valuetext"] == eps_label(0)
    assert "attack strength ε" in words(slider.parent)
    stored = json.loads(box.find("script").string)
    assert stored["labels"] == [eps_label(eps) for eps in EPS]
    assert stored["words"][12] == ["7", "1", None]


def test_without_a_script_the_first_frame_is_there_and_all_others_in_a_table(framed):
    box = BeautifulSoup(build(framed, find([])), "html.parser").find(class_="frames")
    first = [tag["style"] for tag in box.find(class_="panels").find_all(class_="pixels")]
    assert first == [f"--row: 0; --column: {column}" for column in range(3)]
    assert words(box.find("output")) == f"ε = {eps_label(0)}"
    rows = box.find(class_="sheet").tbody.find_all("tr")
    assert [words(row.th) for row in rows] == [eps_label(eps) for eps in EPS]
    for number, row in enumerate(rows):
        assert [tag["style"] for tag in row.find_all(class_="pixels")] == [
            f"--row: {number}; --column: {column}" for column in range(3)
        ]
        assert ("“7” ✓" if number < 9 else "“1” ✗") in words(row.find_all("td")[1])
        assert f"{60 - number} dB" in words(row)


def test_the_sheet_on_the_page_is_the_stored_one(framed):
    box = BeautifulSoup(build(framed, find([])), "html.parser").find(class_="frames")
    encoded = re.search(r"base64,([^)]+)\)", box["style"])[1]
    assert b64decode(encoded) == (framed / "digits" / "frames.png").read_bytes()
    assert "--rows: 13; --columns: 3" in box["style"]


def test_a_result_of_a_notebook_that_does_not_save_it_is_refused(figures):
    for path in figures.glob("digits/fig3.*"):
        path.rename(path.with_stem("fig9"))
    with pytest.raises(
        ValueError, match=r"fig9\.json: expected a notebook that saves fig9, got '07_pa_filt'"
    ):
        build(figures, find([]))


def test_a_record_without_a_result_is_refused(figures):
    for path in figures.glob("digits/fig3.[ps]*g"):
        path.unlink()
    with pytest.raises(
        ValueError, match=r"fig3\.json: expected a picture or a table beside it, there is none"
    ):
        build(figures, find([]))


def test_the_page_is_written_where_it_is_wanted(figures, tmp_path):
    path = write(tmp_path / "new" / "report.html", figures, find([]))
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
