"""What lies in ``figures/``: each result with the record of where it comes from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..study import Study


@dataclass(frozen=True)
class Result:
    """One figure, table or sheet of frames of a study.

    Attributes
    ----------
    name
        ``fig2``, ``table1``, ``claims``.
    place
        The study's folder in ``figures/``.
    record
        Its provenance, see `nbsupport.results.save.provenance`.
    study
        The study of that record.
    """

    name: str
    place: Path
    record: dict[str, Any]
    study: Study

    def file(self, *endings: str) -> Path | None:
        """The first of its files with one of these endings, such as ``svg``, that is there."""
        files = (self.place / f"{self.name}.{ending}" for ending in endings)
        return next((file for file in files if file.is_file()), None)


def results(place: Path) -> list[Result]:
    """All results in a study's folder, by name.

    Raises
    ------
    ValueError
        If the record of one is missing, cannot be read, or is of no study; the message names the file.
    """
    names = sorted(
        {path.stem for path in place.iterdir() if path.is_file() and not path.name.startswith(".")}
    )
    return [_result(place, name) for name in names]


def _result(place: Path, name: str) -> Result:
    path = place / f"{name}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        said: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in record["study"].items()
        }
        return Result(name, place, record, Study.named(**said))
    except FileNotFoundError:
        reason = "it is missing"
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise ValueError(
        f"{path}: expected the record of where {name} comes from, but {reason}; run its notebook again"
    )


def studies(root: Path) -> dict[str, list[Result]]:
    """The results of every study in ``figures/``; first the studies of photographs, and ``digits`` after them.

    Raises
    ------
    FileNotFoundError
        If there are none.
    ValueError
        As for `results`.
    """
    places = sorted(
        (path for path in root.glob("*") if path.is_dir()),
        key=lambda path: (path.name == "digits", path),
    )
    found = {place.name: own for place in places if (own := results(place))}
    if not found:
        raise FileNotFoundError(
            f"there are no results in {root}; make them: python -m nbsupport run, or make study"
        )
    return found
