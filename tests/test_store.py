"""The store: nothing is made twice, nothing damaged is used, and no way to die costs more than the chunk in work."""

import errno
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import zarr
from filelock import FileLock

from nbsupport.experiments.store import CorruptArtefact, Store, canonical, default_home, key
from nbsupport.training.loop import fit

SPECIFICATION = {
    "kind": "kind",
    "name": "name",
    "seed": 0,
    "from": {"data": "digits", "eps": [0.1, 0.3]},
}
SHAPE, CHUNKS = (2, 130, 3), 6  # of 64, 64 and 2 images per strength
ARRAY = (torch.arange(780).view(SHAPE) / 1024).half()
TENSORS = {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)}
REPORT = {"loss": [1.5, 0.1]}


def tensors_of(store, specification=SPECIFICATION, calls=None):
    def make(scratch):
        if calls is not None:
            calls.append(scratch)
        return TENSORS, REPORT

    return store.tensors(specification, make)[0]


def array_of(store, calls=None):
    def make(block, missing):
        if calls is not None:
            calls.extend((row, block.start) for row in missing)
        return ARRAY[missing, block].numpy()

    return store.array(SPECIFICATION, SHAPE, make)


def training_of(store, calls=None):
    """Three epochs of two batches."""

    def make(scratch):
        torch.manual_seed(0)
        line = torch.nn.Linear(3, 1)

        def loss(batch, generator):
            if calls is not None:
                calls.append(batch)
            return (
                (line(inputs[batch]) - torch.rand(len(batch), 1, generator=generator))
                .square()
                .mean()
            )

        inputs = torch.arange(24.0).view(8, 3) / 24
        options = dict(
            epochs=3, batch_size=4, learning_rate=0.1, seed=0, scratch=scratch, label="line"
        )
        return line.state_dict(), {"loss": fit(line, loss, examples=8, **options)}

    return store.tensors(SPECIFICATION, make)[0]


JOBS = {"tensors": tensors_of, "array": array_of, "training": training_of}
WRITES = {"tensors": 2, "array": CHUNKS + 2, "training": 3 + 2}
MOMENTS = {job: 3 * writes for job, writes in WRITES.items()} | {
    "training": 3 * 5 + 6
}  # also before six gradients
CALLS = {"tensors": 1, "array": CHUNKS, "training": 6}


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    return a.dtype == b.dtype and torch.equal(a, b)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def folder(store):
    return store.folder(SPECIFICATION)


# -- keys, names, homes ----------------------------------------------------------------------


def test_the_order_of_entries_changes_no_key():
    assert key({"a": {"b": 1, "c": 2}, "d": 3}) == key({"d": 3, "a": {"c": 2, "b": 1}})


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"seed": None},
        {"extra": 0},
        {"from": {"data": "digits", "eps": [0.3, 0.1]}},
        {"from": {"data": "cifar10", "eps": [0.1, 0.3]}},
        {"from": {"data": "digits", "eps": [0.1, 0.3 + 1e-16]}},
    ],
    ids=str,
)
def test_every_change_changes_the_key(change):
    assert key(SPECIFICATION | change) != key(SPECIFICATION)


def test_a_specification_with_nan_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"eps": float("nan")})


def test_artefacts_made_from_different_things_live_side_by_side(store):
    other = SPECIFICATION | {"from": {"data": "cifar10"}}
    tensors_of(store)
    assert not store.has(other)
    tensors_of(store, other)
    assert store.has(SPECIFICATION) and store.has(other)


@pytest.mark.parametrize(
    "name",
    ["Filt(L_img*)", "../../up", "/a\\b:c", "", ".", "ε ≤ ½\n", "雪" * 300, "\udce9", 'say "hi"'],
    ids=lambda name: ascii(name)[:20],
)
def test_any_name_makes_one_folder_below_its_kind(store, name):
    odd = SPECIFICATION | {"name": name}
    assert same(tensors_of(store, odd), TENSORS)
    assert store.has(odd)
    assert store.folder(odd).resolve().parent == store.home / "kind"


def test_names_that_look_alike_keep_apart(store):
    assert store.folder(SPECIFICATION | {"name": "a/b"}) != store.folder(
        SPECIFICATION | {"name": "a_b"}
    )


def test_home_is_what_the_variable_says(monkeypatch):
    monkeypatch.setenv("NBSUPPORT_HOME", "~/elsewhere")
    assert Store().home == Path.home() / "elsewhere"


def test_home_is_in_the_cache_folder_of_xdg(monkeypatch, tmp_path):
    monkeypatch.delenv("NBSUPPORT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_home() == tmp_path / "nbsupport"


@pytest.mark.parametrize("empty", [True, False])
def test_home_is_in_the_users_cache_folder(monkeypatch, empty):
    for name in ("NBSUPPORT_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "") if empty else monkeypatch.delenv(name, raising=False)
    assert default_home() == Path.home() / ".cache" / "nbsupport"


def test_looking_for_an_artefact_writes_nothing(store):
    assert not store.has(SPECIFICATION)
    assert not store.home.exists()


# -- stored, and not made twice --------------------------------------------------------------


@pytest.mark.parametrize("job", JOBS)
def test_what_is_stored_is_not_made_again(store, job):
    first, calls = JOBS[job](store), []
    assert store.has(SPECIFICATION)
    assert same(JOBS[job](Store(store.home), calls=calls), first)
    assert calls == []


def test_an_array_is_float16_with_one_chunk_per_strength_and_64_images(store, folder):
    assert same(array_of(store), ARRAY)
    assert json.loads((folder / "array.zarr/zarr.json").read_text())["data_type"] == "float16"
    assert len(list(folder.glob("array.zarr/c/*/*/0"))) == CHUNKS


def test_the_specification_is_beside_the_artefact(store, folder):
    tensors_of(store)
    assert json.loads((folder / "artefact.json").read_text())["specification"] == SPECIFICATION


def test_a_report_comes_back_as_it_reads_from_json(store):
    report = {"loss": (0.1, 1e-300), "ε": "½", "heads": {2: "b", 10: "a"}, "none": None}
    expected = {"loss": [0.1, 1e-300], "ε": "½", "heads": {"2": "b", "10": "a"}, "none": None}
    assert store.tensors(SPECIFICATION, lambda scratch: (TENSORS, report))[1] == expected
    assert store.tensors(SPECIFICATION, pytest.fail)[1] == expected


def test_a_report_with_nan_is_refused(store):
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.tensors(SPECIFICATION, lambda scratch: (TENSORS, {"loss": float("nan")}))
    assert not store.has(SPECIFICATION)


def test_tensors_may_share_memory(store):
    weight = torch.rand(3, 4)
    made = {"weight": weight, "tied": weight, "part": weight[1:]}
    assert same(store.tensors(SPECIFICATION, lambda scratch: (made, {}))[0], made)


def test_tensors_may_lie_in_any_order_and_have_any_type(store):
    image = torch.rand(1, 3, 4, 4).to(memory_format=torch.channels_last)
    made = {"image": image, "half": image.bfloat16(), "learnt": image.clone().requires_grad_()}
    assert same(store.tensors(SPECIFICATION, lambda scratch: (made, {}))[0], made)


def test_nothing_is_left_beside_a_finished_artefact(store, folder):
    training_of(store)
    assert {path.name for path in folder.iterdir()} == {
        "artefact.json",
        "lock",
        "tensors.safetensors",
    }


# -- damage ----------------------------------------------------------------------------------


def altered(path, change):
    """Replace a file, so that a mapping of the old one stays what it is."""
    content = change(path.read_bytes())
    path.unlink()
    path.write_bytes(content)


def flipped(place):
    def change(content):
        altered = bytearray(content)
        altered[place % len(content)] ^= 1
        return bytes(altered)

    return change


DAMAGES = {
    "first bit": flipped(0),
    "middle bit": lambda content: flipped(len(content) // 2)(content),
    "last bit": flipped(-1),
    "truncated": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "zeroed": lambda content: bytes(len(content)),
    "four zeros": lambda content: bytes(4),  # the checksum of nothing is zero
    "longer": lambda content: content + b"x",
    "other JSON": lambda content: b"[]",
}
damaged = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


@damaged
@pytest.mark.parametrize("file", ["tensors.safetensors", "artefact.json"])
def test_damaged_tensors_are_reported_and_made_again(store, folder, file, damage):
    tensors_of(store)
    altered(folder / file, damage)
    calls = []
    with pytest.warns(CorruptArtefact, match=file):
        assert same(tensors_of(store, calls=calls), TENSORS)
    assert len(calls) == 1
    assert same(tensors_of(store, calls=calls), TENSORS) and len(calls) == 1


def test_every_byte_of_the_record_counts(store, folder):
    tensors_of(store)
    for place in range(0, (folder / "artefact.json").stat().st_size, 7):
        altered(folder / "artefact.json", flipped(place))
        with pytest.warns(CorruptArtefact, match="artefact.json"):
            tensors_of(store)


def test_deleted_tensors_are_reported_and_made_again(store, folder):
    tensors_of(store)
    (folder / "tensors.safetensors").unlink()
    with pytest.warns(CorruptArtefact, match="tensors.safetensors"):
        assert same(tensors_of(store), TENSORS)


def test_another_artefacts_files_are_not_taken_for_this_one(store, folder):
    other = SPECIFICATION | {"seed": 1}
    store.tensors(other, lambda scratch: ({"weight": torch.zeros(1)}, {}))
    store.folder(other).rename(folder)
    with pytest.warns(CorruptArtefact, match="artefact.json"):
        assert same(tensors_of(store), TENSORS)


def test_tensors_without_a_record_are_made_again(store, folder):
    tensors_of(store)
    (folder / "artefact.json").unlink()
    (folder / "tensors.safetensors").write_bytes(b"half")
    assert same(tensors_of(store), TENSORS)


def test_a_damaged_artefact_is_gone_where_the_warning_is_an_error(store, folder):
    tensors_of(store)
    altered(folder / "tensors.safetensors", flipped(0))
    with pytest.raises(CorruptArtefact):
        tensors_of(store)
    assert same(tensors_of(store), TENSORS)


@damaged
@pytest.mark.parametrize(("row", "block"), [(0, 1), (1, 2)], ids=["full", "partly filled"])
def test_only_a_damaged_chunk_is_made_again(store, folder, row, block, damage):
    array_of(store)
    altered(folder / f"array.zarr/c/{row}/{block}/0", damage)
    calls = []
    with pytest.warns(CorruptArtefact, match=f"strength {row}, images from {64 * block}"):
        assert same(array_of(store, calls), ARRAY)
    assert calls == [(row, 64 * block)]
    assert same(array_of(store, calls), ARRAY) and len(calls) == 1


def test_a_missing_chunk_is_made_again_silently(store, folder):
    array_of(store)
    (folder / "array.zarr/c/1/0/0").unlink()
    calls = []
    assert same(array_of(store, calls), ARRAY)
    assert calls == [(1, 0)]


@damaged
def test_a_damaged_description_costs_no_chunk(store, folder, damage):
    array_of(store)
    altered(folder / "array.zarr/zarr.json", damage)
    calls = []
    with pytest.warns(CorruptArtefact, match=r"zarr\.json"):
        assert same(array_of(store, calls), ARRAY)
    assert calls == []


def test_a_missing_description_costs_no_chunk(store, folder):
    array_of(store)
    (folder / "array.zarr/zarr.json").unlink()
    calls = []
    assert same(array_of(store, calls), ARRAY)
    assert calls == []


def test_a_description_that_appears_meanwhile_is_taken(store, monkeypatch):
    create = zarr.create_array

    def late(place, **options):
        """As the thread of zarr that goes on writing when its caller was interrupted."""
        create(place, **options)
        return create(place, **options)

    with monkeypatch.context() as patch:
        patch.setattr(
            zarr,
            "create_array",
            lambda place, **options: (create if place == {} else late)(place, **options),
        )
        assert same(array_of(store), ARRAY)


@damaged
def test_a_damaged_record_of_an_array_costs_no_chunk(store, folder, damage):
    array_of(store)
    altered(folder / "artefact.json", damage)
    calls = []
    with pytest.warns(CorruptArtefact, match="artefact.json"):
        assert same(array_of(store, calls), ARRAY)
    assert calls == []
    assert same(array_of(store, calls), ARRAY)


@pytest.mark.parametrize("shape", [(2, 130, 4), (3, 130, 3), (2, 64, 3), (2, 130, 3, 1)], ids=str)
def test_an_array_of_another_shape_is_reported_and_made_again(store, shape):
    store.array(
        SPECIFICATION, shape, lambda block, missing: torch.zeros(shape)[missing, block].numpy()
    )
    calls = []
    with pytest.warns(CorruptArtefact, match="description differs"):
        assert same(array_of(store, calls), ARRAY)
    assert len(calls) == CHUNKS


def test_an_array_of_another_type_is_reported_and_made_again(store, folder):
    array_of(store)
    altered(
        folder / "array.zarr/zarr.json", lambda content: content.replace(b"float16", b"float32")
    )
    with pytest.warns(CorruptArtefact, match="description differs"):
        assert same(array_of(store), ARRAY)


def test_nan_in_an_array_is_refused(store):
    with pytest.raises(ValueError, match="NaN was made for strength 0"):
        store.array(
            SPECIFICATION, SHAPE, lambda block, missing: ARRAY[missing, block].numpy() * torch.nan
        )
    assert not store.has(SPECIFICATION)


@pytest.mark.parametrize(
    "wrong", [ARRAY[:1, :64], ARRAY[:, :63], ARRAY[:, :64, :2]], ids=lambda x: str(tuple(x.shape))
)
def test_blocks_of_another_shape_are_refused(store, wrong):
    with pytest.raises(ValueError):
        store.array(SPECIFICATION, SHAPE, lambda block, missing: wrong.numpy())
    assert not store.has(SPECIFICATION)


# -- interruptions ---------------------------------------------------------------------------


@contextmanager
def moment(number, happen, also_between=True):
    """Let `happen` happen in the middle of a write, before or after it is put in place, or before a gradient.

    The moments are counted; it happens at the one of this `number`.
    """
    opened, replaced, backward, count = (
        Path.open,
        Path.replace,
        torch.Tensor.backward,
        itertools.count(),
    )

    def passes(half=lambda: None):
        if next(count) == number:
            half()
            happen()

    def open_(path, mode="r", *rest, **options):
        def half():
            with opened(path, mode) as file:
                file.write(b"half" if "b" in mode else "half")

        if "w" in mode:
            passes(half)
        return opened(path, mode, *rest, **options)

    def replace(path, target):
        passes()
        replaced(path, target)
        passes()

    def gradient(loss):
        passes()
        backward(loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", open_)
        if also_between:
            patch.setattr(Path, "replace", replace)
            patch.setattr(torch.Tensor, "backward", gradient)
        yield


def fresh(call):
    """What a call of a function of this module prints in an interpreter of its own."""
    command = [sys.executable, "-W", "ignore", "-c", f"import test_store; test_store.{call}"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def forked(function, *arguments):
    """The number of a process of its own in which `function` is called."""
    if child := os.fork():
        return child
    try:
        function(*arguments)
        os._exit(0)
    finally:
        os._exit(1)


def die_at_every_moment(home):
    """Do each job in one process per moment, which dies there of kill -9, until one lives to the end."""

    def live(job, number):
        with moment(number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            JOBS[job](Store(Path(home, job, str(number))))

    torch.optim.Adam(
        [torch.zeros(1, requires_grad=True)]
    ).step()  # imports, which no child has to repeat
    for job in JOBS:
        for number in itertools.count():
            if not (end := os.waitpid(forked(live, job, number), 0)[1]):
                break
            assert os.WTERMSIG(end) == signal.SIGKILL


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder per job, in it one per moment with what a killed process left there; the last one lived."""
    home = tmp_path_factory.mktemp("killed")
    fresh(f"die_at_every_moment({str(home)!r})")
    return home


@pytest.fixture
def left(killed, tmp_path):
    """The stores that were left by the killed processes of a job, moment by moment."""

    def copies(job):
        shutil.copytree(killed / job, tmp_path / job)
        return [Store(tmp_path / job / str(number)) for number in range(MOMENTS[job])]

    return copies


def test_every_moment_was_met(killed):
    assert {job: len(list(killed.glob(f"{job}/*"))) - 1 for job in JOBS} == MOMENTS


@pytest.mark.parametrize("job", JOBS)
def test_kill_9_at_any_moment_changes_nothing(job, left, store):
    expected = JOBS[job](store)
    assert all(same(JOBS[job](each), expected) for each in left(job))


def test_kill_9_loses_at_most_the_chunk_in_work(left):
    for number, each in enumerate(left("array")):
        finished, calls = (
            min(max((number + 1) // 3 - 1, 0), CHUNKS),
            [],
        )  # the first write is zarr.json
        array_of(each, calls)
        assert len(calls) == CHUNKS - finished


def test_kill_9_loses_at_most_the_epoch_in_work(left):
    for number, each in enumerate(left("training")):
        finished, calls = min((number + 1) // 5, 3), []
        training_of(each, calls)
        assert len(calls) == 2 * (3 - finished)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_an_interrupted_array_goes_on_where_it_was(store, blocks):
    def make(block, missing):
        if block.start == 64 * blocks:
            raise KeyboardInterrupt
        return ARRAY[missing, block].numpy()

    with pytest.raises(KeyboardInterrupt):
        store.array(SPECIFICATION, SHAPE, make, label="attacking")
    assert not store.has(SPECIFICATION)
    calls = []
    assert same(array_of(store, calls), ARRAY)
    assert calls == [(row, start) for start in range(64 * blocks, 130, 64) for row in range(2)]


@pytest.mark.parametrize(
    ("at_once", "size"), [(1, 1), (2, 1), (70, 35), (127, 63), (128, 64), (1000, 64)]
)
def test_an_array_is_made_in_parts_that_move_the_bar(store, at_once, size, monkeypatch):
    parts, moved = [], []

    def make(block, missing):
        parts.append((block.start, block.stop))
        return ARRAY[missing, block].numpy()

    monkeypatch.setattr(
        "nbsupport.experiments.store.tqdm.update", lambda bar, number: moved.append(number)
    )
    assert same(store.array(SPECIFICATION, SHAPE, make, "", at_once), ARRAY)
    blocks = [(0, 64), (64, 128), (128, SHAPE[1])]
    assert parts == [
        (at, min(at + size, stop)) for start, stop in blocks for at in range(start, stop, size)
    ]
    assert [number for number in moved if number] == [
        SHAPE[0] * (stop - start) for start, stop in parts
    ]


def test_an_interrupted_training_finds_its_checkpoint(store):
    def make(scratch):
        if (scratch / "checkpoint").exists():
            return TENSORS, {"read": (scratch / "checkpoint").read_text()}
        (scratch / "checkpoint").write_text("epoch 1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.tensors(SPECIFICATION, make)
    assert not store.has(SPECIFICATION)
    assert store.tensors(SPECIFICATION, make)[1] == {"read": "epoch 1"}


@pytest.fixture
def _interruptible():
    """Python's own handling of Ctrl-C, which a process started in the background does without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("job", JOBS)
def test_an_interrupt_at_any_moment_changes_nothing(job, store, tmp_path):
    def interrupt():
        signal.pthread_kill(
            threading.main_thread().ident, signal.SIGINT
        )  # as Jupyter does, whoever is writing

    expected = JOBS[job](store)
    for number in range(MOMENTS[job]):
        disturbed = Store(tmp_path / str(number))
        with pytest.raises(KeyboardInterrupt), moment(number, interrupt):
            JOBS[job](disturbed)
        assert same(JOBS[job](disturbed), expected)


@pytest.mark.parametrize("job", JOBS)
def test_a_full_disk_leaves_nothing_half_written(job, tmp_path):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    for number in range(WRITES[job]):
        store = Store(tmp_path / str(number))
        with (
            pytest.raises(OSError, match=r"the disk is full: .*NBSUPPORT_HOME, and run again"),
            moment(number, full, also_between=False),
        ):
            JOBS[job](store)
        assert not store.has(SPECIFICATION)
        names = {path.name for path in store.home.rglob("*") if path.is_file()}
        assert names <= {"lock", "zarr.json", "0", "tensors.safetensors", "checkpoint.pt"}
        assert same(JOBS[job](store), JOBS[job](Store(tmp_path / "undisturbed")))


# -- several at once -------------------------------------------------------------------------


def race(home):
    """For each job, two processes ask for one artefact at the same time; prints what each had to make and got."""
    fork = multiprocessing.get_context("fork")
    start, results = fork.Barrier(2), fork.SimpleQueue()

    def run(job):
        start.wait()
        calls = []
        got = JOBS[job](Store(Path(home, job)), calls=calls)
        results.put(
            [
                len(calls),
                got.tolist() if job == "array" else {name: got[name].tolist() for name in got},
            ]
        )

    both = {}
    for job in JOBS:
        children = [forked(run, job), forked(run, job)]
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        both[job] = [results.get(), results.get()]
    print(json.dumps(both))


@pytest.fixture(scope="module")
def raced(tmp_path_factory):
    return json.loads(fresh(f"race({str(tmp_path_factory.mktemp('raced'))!r})"))


@pytest.mark.parametrize("job", JOBS)
def test_two_processes_make_it_once(raced, job):
    assert sorted(calls for calls, got in raced[job]) == [0, CALLS[job]]


@pytest.mark.parametrize("job", JOBS)
def test_two_processes_get_the_same(raced, job):
    (_, first), (_, second) = raced[job]
    assert first == second


def test_who_waits_for_another_process_says_so(store, folder, caplog):
    folder.mkdir(parents=True)
    lock, said = FileLock(folder / "lock"), threading.Event()
    caplog.handler.addFilter(lambda record: said.set() or True)
    with caplog.at_level(logging.WARNING, logger="nbsupport.experiments.store"), lock:
        waiting = threading.Thread(target=tensors_of, args=(store,))
        waiting.start()
        assert said.wait(60)
    waiting.join()
    assert "waiting for another process" in caplog.text
    assert store.has(SPECIFICATION)
