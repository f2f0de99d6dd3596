"""The tasks of a study on Dask: several processes, GPUs or machines share one store.

Needs the extra ``cluster``. A task is a classifier, a block of attacked images, a denoiser, a
measurement, a block of the adaptive evaluation or an audit, and runs once. Its result lies in the
store: a task whose worker dies goes on elsewhere from its checkpoint, and a second `compute` makes
what is missing.
"""

import contextlib
import logging
import os
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer
from tqdm.auto import tqdm

from .. import setup
from ..attacks.pgd import AttackedSet, pgd
from ..denoisers.models import Filtering
from ..study import Study
from ..training.classifiers import KINDS
from ..training.denoisers import semantic_loss, specify_training
from ..training.loop import choose_precision
from .adaptive_evaluation import BLOCK, attack_block, minimal_specification
from .artifacts import Experiment
from .audit import audit, audit_specification
from .evaluation import measure, measure_images, measurement_specification
from .methods import AUDITED, split_method, trainings
from .store import Store, key

Task = tuple[Any, ...]
"""A kind of artifact and its name; for attacked images the split and the number of the block."""
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


def list_tasks(
    experiment: Experiment, methods: Sequence[str], adaptive: Sequence[str] = ()
) -> dict[Task, list[Task]]:
    """The tasks that measure methods and attack some adaptively, each with those before it."""
    standard: Task = ("classifier", "standard")
    tasks: dict[Task, list[Task]] = {standard: []}

    def attack(split: str) -> list[Task]:
        blocks: list[Task] = [("attacked", split, n) for n in range(len(experiment.blocks(split)))]
        tasks.update({block: [standard] for block in blocks})
        return blocks

    def train(method: str) -> list[Task]:
        before = list[Task]()
        for recipe in reversed(trainings(method)):
            tasks["denoiser", recipe] = attack("train") + before
            before = [("denoiser", recipe)]
        return before

    # tasks run in this order: the longest chains start first, lest one worker end alone
    every = dict.fromkeys((*methods, *adaptive))
    for method in sorted(every, key=lambda method: len(trainings(method)), reverse=True):
        classifier: Task = ("classifier", split_method(method)[1])
        tasks[classifier] = []
        tasks["measurement", method] = [classifier, *attack("test"), *train(method)]
    for method in adaptive:
        second: Task = ("classifier", "second")
        tasks[second] = []
        before = [("measurement", method), second]
        number = len(experiment.images("adaptive"))
        parts: list[Task] = [("minimal", method, start) for start in range(0, number, BLOCK)]
        parts += [("audit", method)] * (method in AUDITED)
        tasks |= dict.fromkeys(parts, before)
    return tasks


def estimate(experiment: Experiment, methods: Sequence[str]) -> float:
    """Seconds that one process, at its speed now, would take to measure methods from nothing.

    Times PGD, a training and a measurement on some test images, with an untrained filter.
    """
    study, device, split = experiment.study, experiment.device, experiment.images("test")
    block, trained = experiment.blocks("test")[0], not experiment.is_given("standard")
    images, labels = split.images[block].to(device), split.labels[block].to(device)
    size = study.classifier, len(split.classes), study.image_size
    classifier = KINDS["standard"].build(*size) if trained else experiment.classifier()
    classifier.to(device).eval().requires_grad_(False)
    denoiser = Filtering(study.width, study.kernel_size).to(device).eval()
    nothing = torch.zeros(1, *images.shape, dtype=torch.float16)
    attacked = AttackedSet(images.cpu(), labels.cpu(), nothing, (0.0, study.eps[-1]))
    low = choose_precision(study.precision, device) == "bfloat16"

    def learn() -> None:
        for batch in images.split(study.batch_size):
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                loss = semantic_loss(classifier, denoiser(batch), batch)
            loss.backward()

    gradient = _time(lambda: pgd(classifier, images, labels, study.eps[-1], steps=2)) / 2
    training = _time(learn)
    measuring = _time(lambda: measure_images(classifier, denoiser, attacked)) / 2
    pairs = len(experiment.images("train")) * len(study.attacked_eps)
    tests = len(split) * len(study.evaluated_eps)
    recipes = [task[1] for task in list_tasks(experiment, methods) if task[0] == "denoiser"]
    epochs = sum(specify_training(recipe, study)["epochs"] for recipe in recipes)
    learned = trained * study.classifier_epochs * len(experiment.images("classifier"))
    seconds = gradient * (study.steps * (pairs + tests) + learned)
    return (seconds + training * epochs * pairs + measuring * len(methods) * tests) / len(images)


def _time(run: Callable[[], Any]) -> float:
    """Seconds of a call: the mean over one second, after a first call."""
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=1).mean


TASKS: dict[str, tuple[Callable[..., Any], Callable[..., dict[str, Any]]]] = {
    "classifier": (Experiment.classifier, Experiment.classifier_specification),
    "attacked": (Experiment.attack_block, Experiment.attacked_specification),
    "denoiser": (Experiment.trained, Experiment.denoiser_specification),
    "measurement": (measure, measurement_specification),
    "minimal": (attack_block, minimal_specification),
    "audit": (audit, audit_specification),
}
"""By kind of task, what carries it out, and the specification that tells its key."""


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
