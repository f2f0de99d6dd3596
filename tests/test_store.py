"""The store: nothing is made twice, nothing damaged is used, and a process that dies loses nothing finished."""

import errno
import itertools
import json
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

from nbsupport.experiments.store import CorruptArtifact, Store, depend_on, hash_weights, key
from nbsupport.training.loop import fit

SPECIFICATION = {"kind": "kind", "name": "name", "seed": 0}
SPECIFICATION |= {"from": {"data": "d", "eps": [0.1, 0.3]}}
TENSORS = {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)}
REPORT = {"loss": [1.5, 0.1]}


def tensors_of(store, specification=SPECIFICATION, calls=None):
    def make(scratch):
        if calls is not None:
            calls.append(scratch)
        return TENSORS, REPORT

    return store.tensors(specification, make)[0]


def training_of(store, calls=None):
    """Three epochs of two batches."""

    def make(scratch):
        torch.manual_seed(0)
        line, inputs = torch.nn.Linear(3, 1), torch.arange(24.0).view(8, 3) / 24

        def loss(batch, generator):
            if calls is not None:
                calls.append(batch)
            targets = torch.rand(len(batch), 1, generator=generator)
            return (line(inputs[batch]) - targets).square().mean()

        options = dict(epochs=3, batch_size=4, learning_rate=0.1, seed=0, label="line")
        return line.state_dict(), {"loss": fit(line, loss, examples=8, scratch=scratch, **options)}

    return store.tensors(SPECIFICATION, make)[0]


JOBS = {"tensors": tensors_of, "training": training_of}
WRITES = {"tensors": 2, "training": 3 + 2}
MOMENTS = {"tensors": 3 * 2, "training": 3 * 5 + 6}  # and six gradients
every_job = pytest.mark.parametrize("job", JOBS)


def has(store, specification):
    """Whether an artifact is finished."""
    return (store.folder(specification) / "artifact.json").is_file()


def same(a, b):
    pairs = [(a[name], b.get(name)) for name in a]
    return a.keys() == b.keys() and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def folder(store):
    return store.folder(SPECIFICATION)


# -- keys, names, homes --------------------------------------------------------------------------


def test_every_change_changes_the_key_but_not_the_order_of_entries():
    changes = [{"seed": 1}, {"seed": None}, {"extra": 0}]
    changes += [{"from": {"data": "d", "eps": eps}} for eps in ([0.3, 0.1], [0.1, 0.3 + 1e-16])]
    assert len({key(SPECIFICATION | change) for change in [{}, *changes]}) == 1 + len(changes)
    assert key({"a": {"b": 1, "c": 2}, "d": 3}) == key({"d": 3, "a": {"c": 2, "b": 1}})


def test_nan_is_refused_in_specifications_and_reports(store):
    nan = {"x": float("nan")}
    for specification, report in ((SPECIFICATION | nan, {}), (SPECIFICATION, nan)):
        with pytest.raises(ValueError, match="not JSON compliant"):
            store.tensors(specification, lambda scratch, report=report: (TENSORS, report))
    assert not has(store, SPECIFICATION)


def network(value=1.0, name="a", buffer=2.0, dtype=torch.float32):
    module = torch.nn.Module()
    module.register_parameter(name, torch.nn.Parameter(torch.full((2, 3), value, dtype=dtype)))
    module.register_buffer("scale", torch.tensor(buffer), persistent=False)
    return module


def test_weights_are_hashed_with_buffers_names_shapes_and_types():
    changes = [dict(value=1 + 1e-6), dict(name="b"), dict(buffer=3.0), dict(dtype=torch.float64)]
    hashes = {hash_weights(network(**change)) for change in [{}, *changes]}
    assert len(hashes) == 5 and hash_weights(network()) in hashes


def test_a_specification_that_depends_on_networks_changes_with_each_of_them():
    one, other = network(1.0), network(2.0)
    pairs = [(one,), (other,), (one, other), (other, one), (one, one)]
    assert len({key(depend_on(SPECIFICATION, *pair)) for pair in pairs}) == len(pairs)
    assert depend_on(SPECIFICATION, one) == depend_on(SPECIFICATION, network(1.0))


@pytest.mark.parametrize("name", ["../../up", "/a\\b:c", "", "雪" * 300, "\udce9"], ids=ascii)
def test_any_name_makes_one_folder_below_its_kind(store, name):
    odd = SPECIFICATION | {"name": name}
    assert same(tensors_of(store, odd), TENSORS)
    assert has(store, odd)
    assert store.folder(odd).resolve().parent == store.home / "kind"


# -- stored, and not made twice ------------------------------------------------------------------


def test_tensors_may_share_memory_lie_in_any_order_and_have_any_type(store):
    image = torch.rand(1, 3, 4, 4).to(memory_format=torch.channels_last)
    tensors = {"image": image, "tied": image, "part": image[:, 1:], "half": image.bfloat16()}
    tensors["trained"] = image.clone().requires_grad_()
    assert same(store.tensors(SPECIFICATION, lambda scratch: (tensors, {}))[0], tensors)


def test_a_finished_artifact_keeps_no_checkpoint(store, folder):
    training_of(store)
    files = {path.name for path in folder.iterdir()}
    assert files == {"artifact.json", "artifact.lock", "tensors.safetensors"}


# -- damage --------------------------------------------------------------------------------------


def alter(path, change):
    """Replace a file, so that a mapping of the former one stays intact."""
    content = change(path.read_bytes())
    path.unlink()
    path.write_bytes(content)


def flip(place):
    def change(content):
        altered = bytearray(content)
        altered[place % len(content)] ^= 1
        return bytes(altered)

    return change


DAMAGES = {
    "first bit": flip(0),
    "last bit": flip(-1),
    "truncated": lambda content: content[:-1],
    "emptied": lambda content: b"",
    "four zeros": lambda content: bytes(4),  # the checksum of nothing is zero
    "other JSON": lambda content: b"[]",
}
every_damage = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


@every_damage
@pytest.mark.parametrize("file", ["tensors.safetensors", "artifact.json"])
def test_damaged_tensors_are_reported_and_made_again(store, folder, file, damage):
    tensors_of(store)
    alter(folder / file, damage)
    calls = []
    with pytest.warns(CorruptArtifact, match=folder.name):
        assert same(tensors_of(store, calls=calls), TENSORS)
    assert same(tensors_of(store, calls=calls), TENSORS) and len(calls) == 1


def test_deleted_tensors_are_reported_and_made_again(store, folder):
    tensors_of(store)
    (folder / "tensors.safetensors").unlink()
    with pytest.warns(CorruptArtifact, match="tensors.safetensors"):
        assert same(tensors_of(store), TENSORS)


def test_an_altered_report_is_not_used(store, folder):
    tensors_of(store)
    alter(folder / "artifact.json", lambda content: content.replace(b"1.5", b"1.4"))
    with pytest.warns(CorruptArtifact, match="artifact.json"):
        _, report = store.tensors(SPECIFICATION, lambda scratch: (TENSORS, REPORT))
    assert report == REPORT


def test_the_files_of_another_artifact_are_not_used(store, folder):
    other = SPECIFICATION | {"seed": 1}
    store.tensors(other, lambda scratch: ({"weight": torch.zeros(1)}, {}))
    store.folder(other).rename(folder)
    with pytest.warns(CorruptArtifact, match="artifact.json"):
        assert same(tensors_of(store), TENSORS)


# -- interruptions -------------------------------------------------------------------------------


@contextmanager
def moment(number, happen, also_between=True):
    """Let `happen` happen in the middle of a write, before or after a file is moved into place, or before a gradient.

    The moments are counted; it happens at the one of this `number`.
    """
    opened, replaced, backward = Path.open, Path.replace, torch.Tensor.backward
    count = itertools.count()

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
    """The output of a call of a function of this module in an interpreter of its own."""
    command = [sys.executable, "-W", "ignore", "-c", f"import test_store; test_store.{call}"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def forked(function, *arguments):
    """The number of a new process in which `function` is called."""
    if child := os.fork():
        return child
    try:
        function(*arguments)
        os._exit(0)
    finally:
        os._exit(1)


def die_at_every_moment(home):
    """Do each job in one process per moment, which dies there of kill -9, until one survives."""

    def live(job, number):
        with moment(number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            JOBS[job](Store(Path(home, job, str(number))))

    weights = [torch.zeros(1, requires_grad=True)]
    torch.optim.Adam(weights).step()  # imports, which no child has to repeat
    for job in JOBS:
        for number in itertools.count():
            if not (end := os.waitpid(forked(live, job, number), 0)[1]):
                break
            assert os.WTERMSIG(end) == signal.SIGKILL


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder per job, in it one per moment with the files of a killed process; the last one survived."""
    home = tmp_path_factory.mktemp("killed")
    fresh(f"die_at_every_moment({str(home)!r})")
    return home


@pytest.fixture
def left(killed, tmp_path):
    """The stores that the killed processes of a job left, moment by moment."""

    def copies(job):
        shutil.copytree(killed / job, tmp_path / job)
        return [Store(tmp_path / job / str(number)) for number in range(MOMENTS[job])]

    return copies


def test_every_moment_was_met(killed):
    assert {job: len(list(killed.glob(f"{job}/*"))) - 1 for job in JOBS} == MOMENTS


@every_job
def test_kill_9_at_any_moment_changes_no_result(job, left, store):
    expected = JOBS[job](store)
    assert all(same(JOBS[job](each), expected) for each in left(job))


def test_kill_9_loses_at_most_the_epoch_in_work(left):
    for number, each in enumerate(left("training")):
        calls, finished = [], min((number + 1) // 5, 3)
        training_of(each, calls)
        assert len(calls) == 2 * (3 - finished)


@pytest.fixture
def _interruptible():
    """Python's own handling of Ctrl-C, which a process started in the background does without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@every_job
def test_an_interrupt_at_any_moment_changes_no_result(job, store, tmp_path):
    def interrupt():  # as Jupyter does, whichever thread is writing
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    expected = JOBS[job](store)
    for number in range(MOMENTS[job]):
        disturbed = Store(tmp_path / str(number))
        with pytest.raises(KeyboardInterrupt), moment(number, interrupt):
            JOBS[job](disturbed)
        assert same(JOBS[job](disturbed), expected)


@every_job
def test_a_full_disk_leaves_nothing_half_written(job, tmp_path):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    for number in range(WRITES[job]):
        store = Store(tmp_path / str(number))
        refused = pytest.raises(OSError, match="the disk is full")
        with refused, moment(number, full, also_between=False):
            JOBS[job](store)
        assert not has(store, SPECIFICATION)
        names = {path.name for path in store.home.rglob("*") if path.suffix != ".lock"}
        assert not any(name.startswith(".") for name in names)  # no temporary file
        assert same(JOBS[job](store), JOBS[job](Store(tmp_path / "undisturbed")))


# -- several processes ---------------------------------------------------------------------------


def race(home):
    """For each job, two processes ask for one artifact at the same time; prints what each made and got."""
    fork = multiprocessing.get_context("fork")
    start, results = fork.Barrier(2), fork.SimpleQueue()

    def run(job):
        calls = []
        start.wait()
        got = JOBS[job](Store(Path(home, job)), calls=calls)
        results.put([len(calls), {name: x.tolist() for name, x in got.items()}])

    both = {}
    for job in JOBS:
        children = [forked(run, job), forked(run, job)]
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        both[job] = [results.get(), results.get()]
    print(json.dumps(both))


def test_two_processes_make_everything_once_and_get_the_same(tmp_path):
    both = json.loads(fresh(f"race({str(tmp_path)!r})"))
    for job, ((calls, first), (more, second)) in both.items():
        assert first == second
        assert sorted([calls, more]) == [0, {"tensors": 1, "training": 6}[job]]


def test_what_a_killed_process_was_making_is_made_by_the_other(tmp_path):
    """The operating system releases the lock of the process that died."""
    store, ready = Store(tmp_path / "store"), tmp_path / "ready"

    def hang(scratch):
        ready.touch()
        signal.pause()

    child = forked(store.tensors, SPECIFICATION, hang)
    while not ready.exists():
        pass
    calls, killer = [], threading.Timer(1, os.kill, (child, signal.SIGKILL))
    killer.start()
    assert same(tensors_of(store, calls=calls), TENSORS) and len(calls) == 1
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
