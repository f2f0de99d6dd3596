"""Results in ``figures/``: found with their records, or refused by name."""

import json
import shutil

import pytest

from nbsupport.results.results import results, studies
from nbsupport.results.save import REPOSITORY
from nbsupport.study import Study

COMMITTED = REPOSITORY / "figures" / "digits"


@pytest.fixture
def place(tmp_path):
    """A study's folder with one figure and one table."""
    (tmp_path / "digits").mkdir()
    for path in (*COMMITTED.glob("fig2.*"), *COMMITTED.glob("table1.*")):
        shutil.copy(path, tmp_path / "digits")
    return tmp_path / "digits"


def test_results_come_with_their_records(place):
    figure, table = results(place)
    assert (figure.name, table.name) == ("fig2", "table1")
    assert figure.record == json.loads((COMMITTED / "fig2.json").read_text(encoding="utf-8"))
    assert isinstance(figure.study, Study)
    assert figure.study.eps == tuple(figure.record["study"]["eps"])


def test_the_first_file_that_is_there_is_taken(place):
    figure, table = results(place)
    (place / "fig2.svg").unlink(missing_ok=True)
    assert figure.file("svg", "png") == place / "fig2.png"
    (place / "fig2.svg").write_text("<svg/>")
    assert figure.file("svg", "png") == place / "fig2.svg"
    assert table.file("svg", "png") is None


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "it is missing"),
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'study'"),
        ('{"study": {"name": "mnist", "scale": "quick"}}', "ValueError: no study named 'mnist'"),
        ('{"study": {"name": "digits", "scale": "quick", "colour": 1}}', "TypeError: .*'colour'"),
    ],
)
def test_a_record_that_is_none_is_an_error_that_names_the_file(record, reason, place):
    path = place / "table1.json"
    path.unlink() if record is None else path.write_text(record)
    with pytest.raises(
        ValueError, match=rf"^{path}: expected the record of where table1 comes from, but {reason}"
    ):
        results(place)


def test_hidden_files_and_folders_are_no_results(place):
    (place / ".fig9.png.123").touch()
    (place / "folder").mkdir()
    assert [result.name for result in results(place)] == ["fig2", "table1"]


def test_digits_come_last(place):
    shutil.copytree(place, place.parent / "svhn")
    (place.parent / "empty").mkdir()
    assert list(studies(place.parent)) == ["svhn", "digits"]


@pytest.mark.parametrize("root", ["empty", "absent"])
def test_no_results_at_all_are_an_error_that_says_how_to_make_them(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError,
        match=r"no results in .*; make them: python -m nbsupport run, or make study",
    ):
        studies(tmp_path / root)
