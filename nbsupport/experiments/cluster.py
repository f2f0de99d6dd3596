"""The tasks of a study on Dask: several processes, GPUs or machines share one store.

Needs the extra ``cluster``. Each of the `tasks` runs once. A task whose worker dies goes on
elsewhere from its checkpoint, and a second `compute` makes what is missing.
"""

import contextlib
import logging
import os
import signal
import time
import uuid
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from .. import setup
from ..study import Study
from .artifacts import Experiment
from .store import Store, key
from .tasks import TASKS, Task, list_tasks

LOCAL = "127.0.0.1"
POLL = 0.5  # seconds between two looks at the workers


def compute(
    experiment: Experiment, methods: Sequence[str], adaptive: Sequence[str] = (), *,
    workers: int | None = None, scheduler: str | None = None,
) -> None:  # fmt: skip
    """Measure some methods of a study, and attack some adaptively, with all that they depend on.

    A local cluster of `workers` processes does it (each with one GPU where there are any), or the
    running one at the address `scheduler`. Raises `RuntimeError` after all tasks if one failed, and
    `ConnectionError` if the scheduler is lost.
    """
    from distributed import Client

    if not scheduler:
        experiment.classifier()  # every other task waits for it: here it has all cores
    with contextlib.ExitStack() as stack:
        where = scheduler or stack.enter_context(_local_cluster(workers or 1))
        client = stack.enter_context(Client(where))
        print(f"dashboard        {client.dashboard_link}")
        futures: dict[Task, Any] = {}
        call = uuid.uuid4().hex  # workers of a running cluster read the user's files anew
        for task, before in list_tasks(experiment, methods, adaptive).items():
            after = [futures[each] for each in before]
            here = experiment.study, experiment.store.home.absolute(), call, task
            # the key distinguishes equal tasks of different studies on one scheduler
            specification = TASKS[task[0]][1](experiment, task[1])
            name = "-".join((*map(str, task), key(specification)))
            futures[task] = client.submit(_run, *here, after, key=name)
        _watch(client, list(futures.values()))
        if any(future.status == "cancelled" for future in futures.values()):
            raise ConnectionError("the scheduler is gone; call again, and finished tasks are kept")
        failed = [future.exception() for future in futures.values() if future.status == "error"]
        if failed:
            raise RuntimeError("\n".join(dict.fromkeys(str(error) for error in failed)))


def _run(study: Study, home: Path, call: str, task: Task, after: list[None]) -> None:
    """Carry out a task in this worker. `after` only makes Dask wait for the tasks before it."""
    kind, *names = task
    TASKS[kind][0](_experiment(study, home, call), *names)


@lru_cache(maxsize=1)
def _experiment(study: Study, home: Path, call: str) -> Experiment:
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
        options["silence_logs"] = logging.ERROR
        nannies[number] = {"cls": Nanny, "options": options}
    scheduler = {"cls": Scheduler, "options": {"host": LOCAL, "dashboard_address": f"{LOCAL}:0"}}
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit this: Ctrl-C is ours
    try:
        return SpecCluster(workers=nannies, scheduler=scheduler, silence_logs=logging.ERROR)
    finally:
        signal.signal(signal.SIGINT, before)


def _watch(client: Any, left: list[Any]) -> None:
    """One bar over all tasks, with the task that each worker is doing."""
    with tqdm(total=len(left), desc="computing", unit="task") as bar:
        while left:
            done = [future for future in left if future.done()]
            left = [future for future in left if not future.done()]
            with contextlib.suppress(OSError):  # while the scheduler is away
                names = [
                    keys[0].rpartition("-")[0] for keys in client.processing().values() if keys
                ]
                bar.set_postfix_str(", ".join(names), refresh=False)
            bar.update(len(done))
            if left and not done:
                time.sleep(POLL)
