"""The tasks of a study on Dask: by several processes, GPUs or machines, each task once, on one store.

Needs the extra ``cluster``. A task is a classifier, a block of attacked images, a denoiser or a
measurement. Its result lies in the store, so a task whose worker dies goes on elsewhere from the last
checkpoint, and a second `compute` makes only what is missing.
"""

import contextlib
import logging
import os
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from .. import setup
from ..study import Study
from ..training.denoisers import RECIPES
from .artifacts import Experiment
from .evaluation import measure, measurement_specification
from .methods import find_recipe, split_method
from .store import BLOCK, Store, key

Task = tuple[str, ...]
LOCAL = "127.0.0.1"
POLL = 0.5  # seconds between two looks at the workers


def compute(
    experiment: Experiment, methods: Sequence[str], workers: int | None, scheduler: str | None
) -> None:
    """Measure some methods of a study and everything that they depend on.

    A local cluster of `workers` processes does it (each with one GPU where there are any), or the running
    one at the address `scheduler`. Raises `RuntimeError` if a task failed, after all others, and
    `ConnectionError` if the scheduler is lost.
    """
    from distributed import Client

    with contextlib.ExitStack() as stack:
        where = scheduler or stack.enter_context(_local_cluster(workers or 1))
        client = stack.enter_context(Client(where))
        print(f"dashboard        {client.dashboard_link}")
        futures: dict[Task, Any] = {}
        for task, before in list_tasks(experiment, methods).items():
            after = [futures[each] for each in before]
            here = experiment.study, experiment.store.home.absolute(), task
            name = "-".join((*task, _key(experiment, task)))
            futures[task] = client.submit(_run, *here, after, key=name)
        _watch(client, list(futures.values()))
        if any(future.status == "cancelled" for future in futures.values()):
            raise ConnectionError("the scheduler is gone; call again, and finished tasks are kept")
        failed = [future.exception() for future in futures.values() if future.status == "error"]
        if failed:
            raise RuntimeError("\n".join(dict.fromkeys(str(error) for error in failed)))


def list_tasks(experiment: Experiment, methods: Sequence[str]) -> dict[Task, list[Task]]:
    """The tasks that measure some methods: each after the tasks it depends on, which are its value."""
    tasks: dict[Task, list[Task]] = {("classifier", "standard"): []}

    def attack(split: str) -> list[Task]:
        starts = range(0, len(experiment.images(split)), BLOCK)
        blocks: list[Task] = [("attacked", split, str(start)) for start in starts]
        tasks.update({block: [("classifier", "standard")] for block in blocks})
        return blocks

    def train(recipe: str | None) -> list[Task]:
        if recipe is None:
            return []
        tasks["denoiser", recipe] = attack("train") + train(RECIPES[recipe].base)
        return [("denoiser", recipe)]

    for method in methods:
        classifier = "classifier", split_method(method)[1]
        tasks[classifier] = []
        before = [classifier, *attack("test"), *train(find_recipe(method)[0])]
        tasks["measurement", method] = before
    return tasks


def _key(experiment: Experiment, task: Task) -> str:
    """Distinguishes equal tasks of different studies on one scheduler."""
    kind, name, *_ = task
    if kind == "measurement":
        return key(measurement_specification(experiment, name))
    return key(getattr(experiment, f"{kind}_specification")(name))


def _run(study: Study, home: Path, task: Task, after: list[None]) -> None:
    """Carry out a task in this worker. `after` only makes Dask wait for the tasks before it."""
    experiment, (kind, name, *start) = _experiment(study, home), task
    if kind == "classifier":
        experiment.classifier(name)
    elif kind == "attacked":
        experiment.attack_block(name, int(start[0]))
    elif kind == "denoiser":
        experiment.trained(name)
    else:
        measure(experiment, name)


@cache
def _experiment(study: Study, home: Path) -> Experiment:
    setup()
    if threads := os.environ.get("OMP_NUM_THREADS"):  # Dask sets it after PyTorch has looked
        torch.set_num_threads(int(threads))
    return Experiment(study, Store(home))


def _local_cluster(workers: int) -> Any:
    """Worker processes that share the cores evenly; each sees one GPU where there are any."""
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = torch.cuda.device_count()
    threads = os.environ.get("OMP_NUM_THREADS") or max((os.cpu_count() or 1) // workers, 1)
    nannies = {}
    for number in range(workers):
        environment = {"OMP_NUM_THREADS": str(threads)}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
        options = {"nthreads": 1, "env": environment, "memory_limit": 0, "host": LOCAL}
        nannies[number] = {"cls": Nanny, "options": options}
    scheduler = {"cls": Scheduler, "options": {"host": LOCAL, "dashboard_address": f"{LOCAL}:0"}}
    return SpecCluster(workers=nannies, scheduler=scheduler, silence_logs=logging.ERROR)


def _watch(client: Any, left: list[Any]) -> None:
    """One bar over all tasks, with the task that each worker is doing."""
    with tqdm(total=len(left), desc="computing", unit="task") as bar:
        while left:
            done = [future for future in left if future.done()]
            left = [future for future in left if not future.done()]
            busy = client.processing() if client.status == "running" else {}
            names = [keys[0].rpartition("-")[0] for keys in busy.values() if keys]
            bar.set_postfix_str(", ".join(names), refresh=False)
            bar.update(len(done))
            if left and not done:
                time.sleep(POLL)
