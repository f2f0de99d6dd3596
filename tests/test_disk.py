"""Files are whole or not there, and a full disk is said plainly."""

import errno

import pytest

from nbsupport.__main__ import main
from nbsupport.experiments.disk import room, write_atomically
from nbsupport.experiments.store import Store


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("before", encoding="utf-8")
    return path


def test_a_file_is_replaced_as_a_whole(path):
    write_atomically(path, lambda temporary: temporary.write_text("after", encoding="utf-8"))
    assert path.read_text(encoding="utf-8") == "after"


def test_what_fails_half_way_leaves_the_old_file_alone(path):
    def half(temporary):
        temporary.write_text("af", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, half)
    assert [(each.name, each.read_text(encoding="utf-8")) for each in path.parent.iterdir()] == [
        ("kept.txt", "before")
    ]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["full", "quota"])
def test_a_full_disk_says_what_to_do(tmp_path, number):
    with (
        pytest.raises(OSError, match=rf"the disk is full: {tmp_path} .* NBSUPPORT_HOME") as caught,
        room(tmp_path),
    ):
        raise OSError(number, "as the system says it")
    assert caught.value.errno == number


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError, match=r"^\[Errno 13\] not yours$"), room(tmp_path):
        raise PermissionError(errno.EACCES, "not yours")


def test_the_command_line_says_it_in_one_line(monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "the disk is full: really")

    monkeypatch.setattr(Store, "tensors", full)
    with pytest.raises(SystemExit, match=r"^the disk is full: really$"):
        main(["compute", "--scale", "smoke"])
