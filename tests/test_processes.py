"""Two processes (gloo on the CPU) do the work of one: the same attacked images and the same results."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr
from filelock import FileLock
from safetensors.torch import load_file

from nbsupport.experiments.cluster import (
    BusyError,
    alone,
    balance,
    locked,
    mean_gradients,
    share_out,
    team,
)
from nbsupport.experiments.methods import TABLES

COMPUTE = ["-m", "nbsupport", "compute", "--scale", "smoke", "--tables", "3", "4"]
TWO = [
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "--tee",
    "3",
]  # says who prints what


def start(home, *command):
    environment = os.environ | {"NBSUPPORT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process):
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    home = tmp_path_factory.mktemp("one") / "home"
    return home, finish(start(home, *COMPUTE))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes, killed in the middle of their work, and started again."""
    home = tmp_path_factory.mktemp("two") / "home"
    first = start(home, *TWO, *COMPUTE)
    deadline = time.monotonic() + 300
    while not list(home.glob("denoiser/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert list(home.glob("attacked/*/artefact.json"))
    return home, finish(start(home, *TWO, *COMPUTE))


def specification(record):
    return json.loads(Path(record).read_text())["specification"]


def named(home, kind):
    return {
        specification(path)["name"]: path.parent for path in home.glob(f"{kind}/*/artefact.json")
    }


def test_the_attacked_images_are_the_same(one, two):
    single, double = named(one[0], "attacked"), named(two[0], "attacked")
    assert single.keys() == double.keys() == {"pgd4-train", "pgd4-test"}
    for name, folder in single.items():
        arrays = [
            np.asarray(zarr.open_array(path / "array.zarr", mode="r"))
            for path in (folder, double[name])
        ]
        assert np.array_equal(*arrays), name


def test_the_denoisers_are_the_same(one, two):
    single, double = named(one[0], "denoiser"), named(two[0], "denoiser")
    assert (
        single.keys()
        == double.keys()
        >= {"Multi-head-Filt(L_img)", "Y-Net", "PA-Filt(L_img)", "Filt(L_img)"}
    )
    for name, folder in single.items():
        weights = [load_file(path / "tensors.safetensors") for path in (folder, double[name])]
        for key, tensor in weights[0].items():
            assert torch.equal(tensor, weights[1][key]), (name, key)


def test_the_measurements_are_the_same(one, two):
    single, double = named(one[0], "measurement"), named(two[0], "measurement")
    assert single.keys() == double.keys() >= {*TABLES[3], *TABLES[4]}
    for name, folder in single.items():
        tensors = [load_file(path / "tensors.safetensors") for path in (folder, double[name])]
        for key, tensor in tensors[0].items():
            assert torch.equal(tensor, tensors[1][key]), (name, key)


def test_only_the_first_process_talks(two):
    lines = two[1].splitlines()
    assert [line for line in lines if "stored in " in line] == [f"[default0]:stored in {two[0]}"]


def test_each_process_trains_denoisers_of_its_own(two):
    names = (
        "Multi-head-Filt(L_img)",
        "Y-Net",
        "Filt(L_img)",
        "PA-Filt(L_img)",
        "PA-Filt(L_img)_literal",
    )
    who = {
        name: re.findall(rf"\[default(\d)\]:.*training {re.escape(name)}:", two[1])
        for name in names
    }
    assert all(len(set(ranks)) == 1 for ranks in who.values()), who
    assert set.union(*map(set, who.values())) == {"0", "1"}, who


TOGETHER = """
from nbsupport.experiments.artifacts import Artefacts
from nbsupport.experiments.cluster import accelerator
from nbsupport.study import Study

artefacts = Artefacts(Study.named("digits", "smoke"))
artefacts.train(("head_1",))
artefacts.trained("Y-Net")
accelerator().end_training()
"""


def test_denoisers_that_are_trained_together_are_the_same_up_to_rounding(one, tmp_path):
    """One training is fewer than two processes, so they share its batches."""
    shutil.copytree(
        one[0], tmp_path / "home", ignore=shutil.ignore_patterns("denoiser", "measurement")
    )
    (tmp_path / "together.py").write_text(TOGETHER)
    printed = finish(start(tmp_path / "home", *TWO, str(tmp_path / "together.py")))
    assert "[default1]" not in "".join(line for line in printed.splitlines() if "training" in line)
    single, double = named(one[0], "denoiser"), named(tmp_path / "home", "denoiser")
    assert double.keys() == {"Multi-head-Filt(L_img)", "Y-Net"}
    for name, folder in double.items():
        weights = [load_file(path / "tensors.safetensors") for path in (folder, single[name])]
        assert any(not torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
        for key, tensor in weights[0].items():
            assert torch.allclose(tensor, weights[1][key], rtol=1e-2, atol=1e-3), (name, key)


PAIR = """
import sys
from pathlib import Path
import torch
from nbsupport.experiments.cluster import accelerator, mean_gradients, team
from nbsupport.training.loop import fit

class Branches(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.usual, self.rare, self.never = (torch.nn.Linear(3, 1) for _ in range(3))

torch.manual_seed(0)
trained, inputs = Branches(), torch.randn(11, 3)

def loss(batch, generator):  # the second branch learns from the examples 0 and 5 alone
    value = trained.usual(inputs[batch]).square().mean()
    rare = inputs[batch[(batch == 0) | (batch == 5)]]
    return value + trained.rare(rare).square().sum() / len(batch) if len(rare) else value

where = Path(sys.argv[1])
sizes = {"examples": 11, "epochs": 8, "batch_size": 5, "clip_norm": 0.5}  # the last batch is one example
history = fit(trained, loss, **sizes, learning_rate=0.1, seed=0, scratch=where, label="")
if team()[0] == 0:
    torch.save((trained.state_dict(), history), where / "trained.pt")
accelerator().end_training()
"""


def test_examples_that_only_one_process_has_and_batches_of_one_teach_as_with_one_process(tmp_path):
    (tmp_path / "pair.py").write_text(PAIR)
    trained = []
    for name, launcher in {"one": [], "two": TWO}.items():
        (tmp_path / name).mkdir()
        finish(start(tmp_path, *launcher, str(tmp_path / "pair.py"), str(tmp_path / name)))
        trained.append(torch.load(tmp_path / name / "trained.pt"))
    (single, history), (double, other) = trained
    assert other == pytest.approx(history, rel=1e-5)
    for name, tensor in single.items():
        torch.testing.assert_close(double[name], tensor, rtol=1e-4, atol=1e-6)


def test_what_another_process_does_comes_later(monkeypatch):
    """`b` is done elsewhere until the third time that it is asked for; `a` and `c` are done meanwhile."""
    monkeypatch.setattr("nbsupport.experiments.cluster.POLL", 0)
    asked = []

    def do(task):
        asked.append(task)
        assert team() == (0, 1)
        if task == "b" and asked.count("b") < 3:
            raise BusyError

    share_out(["a", "b", "c"], do)
    assert asked == ["a", "b", "c", "b", "b"]


def test_a_folder_that_is_locked_comes_later(tmp_path, monkeypatch):
    """The lock is held through another file descriptor, as by another process."""
    monkeypatch.setattr("nbsupport.experiments.cluster.POLL", 0)
    elsewhere, tried = FileLock(tmp_path / "lock"), []
    elsewhere.acquire()

    def do(task):
        tried.append(task)
        if len(tried) == 2:
            elsewhere.release()
        with locked(tmp_path, together=False):
            tried.append("in")

    share_out(["task"], do)
    assert tried == ["task", "task", "in"]


def test_who_is_alone_has_no_team(monkeypatch):
    process = SimpleNamespace(process_index=1, num_processes=2)
    monkeypatch.setattr("nbsupport.experiments.cluster.accelerator", lambda: process)
    with alone():
        with alone():
            pass
        assert team() == (0, 1)
    assert team() == (1, 2)


def test_one_process_has_nothing_to_balance():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    mean_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]
    assert balance(torch.tensor([True, False])) == balance(torch.tensor([False, False])) == 1.0
