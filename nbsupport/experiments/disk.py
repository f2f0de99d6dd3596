"""Files that are written whole or not at all, and a full disk said plainly."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def room(place: Path) -> Iterator[None]:
    """Say of a disk that is full, or a quota that is used up, what to do.

    Raises
    ------
    OSError
        With the same number, in place of the one raised inside.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        advice = "nothing finished is lost: free some room, or name another folder in NBSUPPORT_HOME, and run again"
        raise OSError(
            error.errno, f"the disk is full: {place} cannot be written; {advice}"
        ) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary neighbour of `path`, then put it in place at once, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
