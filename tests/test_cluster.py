"""Tasks on a real Dask cluster of two processes: the same results, whatever happens to a worker."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nbsupport.experiments import cluster
from nbsupport.experiments.artifacts import Experiment
from nbsupport.experiments.evaluation import measure
from nbsupport.experiments.store import Store
from nbsupport.study import Study

METHODS = ("attacked", "PA-Filt(L_img)", "8-bit", "Adv")
STUDY = Study.named("digits", "smoke", train_images=128, test_images=70, epochs=3)


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
        assert torch.equal(found.predictions, expected.predictions)
        assert torch.equal(found.psnr, expected.psnr)


def test_tasks_come_after_those_they_depend_on(tmp_path):
    tasks = cluster.list_tasks(open_experiment(tmp_path), METHODS)
    seen = set()
    for task, before in tasks.items():
        assert set(before) <= seen, task
        seen.add(task)
    assert ("attacked", "train", "64") in tasks
    assert ("denoiser", "Y-Net") in tasks["denoiser", "PA-Filt(L_img)"]


def test_equal_tasks_of_other_studies_have_other_keys_on_a_scheduler(tmp_path):
    experiments = [open_experiment(tmp_path, replace(STUDY, seed=seed)) for seed in (0, 1)]
    for task in cluster.list_tasks(experiments[0], METHODS):
        one, other = (cluster._key(experiment, task) for experiment in experiments)
        assert one != other, task


def test_a_worker_that_is_killed_changes_nothing(tmp_path, alone):
    experiment, killed = open_experiment(tmp_path), []

    def kill():
        while not killed:
            for checkpoint in Path(tmp_path).glob("denoiser/Y-Net*/scratch/checkpoint.pt"):
                locked = checkpoint.parents[1] / "artifact.lock"
                killed.append(worker_holding(locked))
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.01)

    threading.Thread(target=kill, daemon=True).start()
    cluster.compute(experiment, METHODS, workers=2, scheduler=None)
    assert killed
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
    study = Study.named("digits", "smoke", eps=(0.0, 0.1))  # too few for Filt(L_img*)
    experiment = open_experiment(tmp_path, study)
    with pytest.raises(RuntimeError, match="needs ε"):
        cluster.compute(experiment, ("Filt(L_img*)", "8-bit"), workers=1, scheduler=None)
    stored = [path.name for path in Path(tmp_path).glob("measurement/*")]
    assert len(stored) == 1
    assert stored[0].startswith("8-bit")
