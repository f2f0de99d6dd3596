"""Tasks on a real Dask cluster of two processes: the same results, whatever happens to a worker."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed.utils import open_port

from nbsupport.experiments import cluster, tasks
from nbsupport.experiments.artifacts import Experiment
from nbsupport.experiments.evaluation import measure
from nbsupport.experiments.store import Store
from nbsupport.study import Study

METHODS = ("PA-Filt(L_img)", "8-bit")
STUDY = Study.named("photographs", "smoke", train_images=128, test_images=70, epochs=2)


def open_experiment(folder, study=STUDY):
    return Experiment(study, Store(folder))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The study in one process with one thread, as each worker has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    experiment = open_experiment(tmp_path_factory.mktemp("alone"))
    measurements = {method: measure(experiment, method) for method in METHODS}
    torch.set_num_threads(threads)
    return measurements


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "default")


def assert_equal(experiment, alone):
    for method, expected in alone.items():
        found = measure(experiment, method)  # from the store
        for metric, values in expected.items():
            np.testing.assert_array_equal(found[metric], values)


def test_tasks_come_after_those_they_depend_on(tmp_path):
    every = tasks.list_tasks(open_experiment(tmp_path), METHODS)
    seen = set()
    for task, before in every.items():
        assert set(before) <= seen, task
        seen.add(task)
    assert ("attacked", "train", 1) in every
    assert ("denoiser", "Y-Net") in every["denoiser", "PA-Filt(L_img)"]
    trained = [name for kind, name, *_ in tasks.list_tasks(
        open_experiment(tmp_path), ("Filt(L_img)", "JPEG 40", "PA-Filt(L_img)")) if kind == "denoiser"]  # fmt: skip
    assert trained == ["Y-Net", "PA-Filt(L_img)", "Filt(L_img)"]  # the longest chain first


def test_equal_tasks_of_other_studies_have_other_keys_on_a_scheduler(tmp_path):
    experiments = [open_experiment(tmp_path, replace(STUDY, seed=seed)) for seed in (0, 1)]
    for task in tasks.list_tasks(experiments[0], METHODS):
        one, other = (tasks.TASKS[task[0]][1](each, task[1]) for each in experiments)
        assert one != other, task


MOMENTS = {
    "attack": "attacked/*-train-*/scratch",
    "training": "denoiser/Y-Net*/scratch/checkpoint.pt",
}


def at(folder, moment, act):
    """Call `act` in another thread as soon as a file or folder of a pattern exists; return what it got."""
    met = []

    def watch():
        while not met:
            met.extend(Path(folder).glob(MOMENTS[moment]))
            time.sleep(0.002)
        act(met[0])

    threading.Thread(target=watch, daemon=True).start()
    return met


@pytest.mark.parametrize("moment", [pytest.param("attack", marks=pytest.mark.matrix), "training"])
def test_a_worker_that_is_killed_changes_nothing(tmp_path, alone, moment):
    def kill(found):
        artifact = next(each for each in found.parents if (each / "artifact.lock").exists())
        os.kill(worker_holding(artifact / "artifact.lock"), signal.SIGKILL)

    experiment = open_experiment(tmp_path)
    met = at(tmp_path, moment, kill)
    cluster.compute(experiment, METHODS, workers=2)
    assert met
    assert_equal(experiment, alone)


@pytest.mark.matrix
def test_a_scheduler_that_is_killed_ends_the_command_and_the_next_one_goes_on(tmp_path, alone):
    address = f"tcp://127.0.0.1:{open_port()}"
    start = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
    scheduler = subprocess.Popen([*start, "--host", address], stderr=subprocess.DEVNULL)
    start = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads=1"]
    worker = subprocess.Popen([*start, "--no-dashboard"], stderr=subprocess.DEVNULL)
    experiment = open_experiment(tmp_path / "store")
    try:
        met = at(tmp_path / "store", "training", lambda found: scheduler.kill())
        with pytest.raises(OSError, match="scheduler"):
            cluster.compute(experiment, METHODS, scheduler=address)
        assert met
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    cluster.compute(experiment, METHODS, workers=1)
    assert_equal(experiment, alone)


def worker_holding(path):
    """The process that has a file open."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(link.resolve() == path for link in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:
            continue
    raise AssertionError(f"no process has {path} open")


def test_a_task_that_fails_ends_the_command_and_keeps_the_others(tmp_path):
    study = Study.named("photographs", "smoke", eps=(0.0, 0.1))  # too few for Filt(L_img*)
    experiment = open_experiment(tmp_path, study)
    with pytest.raises(RuntimeError, match="needs ε"):
        cluster.compute(experiment, ("Filt(L_img*)", "8-bit"), adaptive=("8-bit",), workers=1)
    for kind in ("measurement", "minimal"):
        (stored,) = Path(tmp_path).glob(f"{kind}/*/artifact.json")
        assert stored.parent.name.startswith("8-bit")
