"""Two workers of one thread beside one, and beside one process with all threads."""

import json
import os
import shutil
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
import torch
from distributed import Client

from nbsupport.experiments import cluster
from nbsupport.experiments.artifacts import Experiment
from nbsupport.experiments.evaluation import measure
from nbsupport.experiments.store import Store
from nbsupport.study import Study

PHASES = {
    "attacked": ("attacked",),
    "denoiser": (
        "Add(L_img)",
        "Add(L_img)_as_published",
        "Filt(L_img)",
        "Filt(L_img)_as_published",
    ),
    "measurement": ("8-bit", "JPEG 40", "median 3x3", "Gaussian blur"),
}
"""Kinds of artifacts, and the methods that need them; the trainings are pairs of equal length."""


@pytest.fixture
def experiment(tmp_path):
    """The core of CIFAR-10 at a small size, on photographs, with attacked training images."""
    sizes = dict(train_images=56, test_images=384, classifier_images=70, width=12, kernel_size=5)
    sizes |= dict(batch_size=24, epochs=1, classifier_epochs=1, steps=3)
    study = Study.named("photographs", "quick", classifier="resnet20", **sizes)
    made = Experiment(study, Store(tmp_path / "base"))
    made.attacked("train")
    return made


def time_phases(experiment, home, do):
    """Seconds from the start of the first artifact of each kind to the end of the last."""
    shutil.copytree(experiment.store.home, home)
    copied, seconds = Experiment(experiment.study, Store(home)), {}
    for kind, methods in PHASES.items():
        before = {*Path(home, kind).glob("*")}
        do(copied, methods)
        new = {*Path(home, kind).glob("*")} - before
        records = [json.loads((folder / "artifact.json").read_text()) for folder in new]
        ends = [datetime.fromisoformat(record["finished"]).timestamp() for record in records]
        starts = [end - x["seconds"] for end, x in zip(ends, records, strict=True)]
        seconds[kind] = max(ends) - min(starts)
    return seconds


def measure_all(experiment, methods):
    for method in methods:
        measure(experiment, method)


@pytest.mark.parametrize("way", ["ours"])
def test_workers(benchmark, way, experiment, tmp_path, monkeypatch):
    found = {}

    def run():
        for workers in (1, 2):
            with monkeypatch.context() as patch:
                patch.setenv("OMP_NUM_THREADS", "1")
                with cluster._local_cluster(workers) as local:
                    do = partial(cluster.compute, scheduler=local.scheduler_address)
                    home = tmp_path / str(workers)
                    with Client(local) as client:  # imports everything
                        client.run(cluster._experiment, experiment.study, home, "")
                    found[f"{workers} × 1 thread"] = time_phases(experiment, home, do)
        torch.set_num_threads(os.cpu_count() or 1)
        found["all threads"] = time_phases(experiment, tmp_path / "alone", measure_all)

    benchmark.group = "workers"
    benchmark.pedantic(run, rounds=1)
    one = found["1 × 1 thread"]
    print(f"\n{'':16}" + "".join(f"{phase:>24}" for phase in PHASES))
    for name, seconds in found.items():
        cells = (f"{s:8.1f} s, {one[phase] / s:5.2f} times" for phase, s in seconds.items())
        print(f"{name:16}" + "".join(f"{cell:>24}" for cell in cells))
