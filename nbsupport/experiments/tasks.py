"""The tasks of a study, each with those that it depends on, and how long they take.

A task is a classifier, a block of attacked images, a denoiser, a measurement, a block of the
adaptive evaluation or an audit. Its result lies in the store.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.benchmark import Timer

from ..attacks.pgd import AttackedSet, pgd
from ..denoisers.models import Filtering
from ..training.classifiers import KINDS
from ..training.denoisers import semantic_loss, specify_training
from ..training.loop import choose_precision
from .adaptive_evaluation import BLOCK, attack_block, minimal_specification
from .artifacts import Experiment
from .audit import audit, audit_specification
from .evaluation import measure, measure_images, measurement_specification
from .methods import AUDITED, split_method, trainings

Task = tuple[Any, ...]
"""A kind of artifact and its name; for attacked images the split and the number of the block."""


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
