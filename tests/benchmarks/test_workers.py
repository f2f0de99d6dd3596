"""Two workers of one thread beside one, and beside one process with all threads, on CIFAR-10's core.

Cores may share a power budget, caches or execution units. What two processes with nothing in common
reach together, beside one alone, is the most that two workers can.
"""

import json
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import Client
from PIL import Image

from nbsupport.attacks.pgd import pgd
from nbsupport.classifiers.models import build
from nbsupport.data.benchmarks import OBJECTS
from nbsupport.experiments import cluster
from nbsupport.experiments.artifacts import Experiment
from nbsupport.experiments.evaluation import measure
from nbsupport.experiments.store import Store
from nbsupport.study import Study

PHASES = {
    "attacked": ("attacked",),
    "denoiser": ("Add(L_img)", "Add(L_sem)", "Filt(L_img)", "Filt(L_sem)"),
    "measurement": ("8-bit", "JPEG 40", "median 3x3", "Gaussian blur"),
}
"""Kinds of artifacts, and the methods that need them."""


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """CIFAR-10 at a small size, of noise, with a classifier and attacked training images."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 7), ("test", 39)):
        for name in OBJECTS:
            folder = tmp_path / "data" / "cifar10" / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    monkeypatch.setenv("NBSUPPORT_DATA", str(tmp_path / "data"))
    sizes = dict(train_images=56, test_images=384, epochs=2, classifier_epochs=1, steps=3)
    made = Experiment(Study.named("cifar10", "quick", **sizes), Store(tmp_path / "base"))
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


def attack_for(seconds):
    """How many attacks of one step a process with one thread makes, on a network of its own."""
    torch.set_num_threads(1)
    network, images = (
        build("resnet20", 10, 32).eval().requires_grad_(False),
        torch.rand(64, 3, 32, 32),
    )
    labels, number = torch.zeros(64, dtype=torch.long), 0
    end = time.monotonic() + 1 + seconds
    while time.monotonic() < end:
        pgd(network, images, labels, 0.01, steps=1)
        number += time.monotonic() > end - seconds  # after a second to begin together
    return number


def measure_limit(seconds=10):
    """Attacks of two processes together that share nothing, as a multiple of those of one alone."""
    numbers = []
    for processes in (1, 2):
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            list(pool.map(attack_for, [0.0] * processes))  # imports
            numbers.append(sum(pool.map(attack_for, [seconds] * processes)))
    return numbers[1] / numbers[0]


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
        found["limit"] = measure_limit()
        torch.set_num_threads(os.cpu_count() or 1)
        found["all threads"] = time_phases(experiment, tmp_path / "alone", measure_all)

    benchmark.group = "workers"
    benchmark.pedantic(run, rounds=1)
    one, limit = found["1 × 1 thread"], found.pop("limit")
    print(f"\ntwo processes that share nothing attack {limit:.2f} times as much as one")
    print(f"\n{'':16}" + "".join(f"{phase:>24}" for phase in PHASES))
    for name, seconds in found.items():
        cells = (f"{s:8.1f} s, {one[phase] / s:5.2f} times" for phase, s in seconds.items())
        print(f"{name:16}" + "".join(f"{cell:>24}" for cell in cells))
