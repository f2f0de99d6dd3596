"""One process or several, through Accelerate: who does what, and who waits for whom.

Started with ``torchrun`` or ``accelerate launch``, the processes share attacks, trainings and measurements.
Some things all make together, each its part; others one makes alone, and the rest wait or make something else.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from filelock import FileLock, Timeout
from torch import Tensor

PATIENCE = timedelta(
    days=7
)  # for another process's training; of one that dies, who started them all takes care
POLL = 1.0  # seconds between two looks at what others are doing
_alone, _patient = ContextVar("alone", default=False), ContextVar("patient", default=True)


class BusyError(Exception):
    """Another process makes it, and there is something else to do meanwhile."""


@cache
def accelerator() -> Accelerator:
    """This process among all that were started together."""
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """What this process makes meanwhile, it makes without the others."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def team() -> tuple[int, int]:
    """Which one this process is of those that make the same thing now, from 0, and how many they are."""
    process = accelerator()
    return (0, 1) if _alone.get() else (process.process_index, process.num_processes)


def wait_for_team() -> None:
    """Until all that make the same thing have come here."""
    if team()[1] > 1:
        accelerator().wait_for_everyone()


def share_out(tasks: Iterable[str], do: Callable[[str], Any]) -> None:
    """Do all tasks, each process `alone`: always the first one that no other process is doing.

    Every process calls `do` for every task; when it is done already, that has to take its result from the store.
    """
    left = list(tasks)
    token = _patient.set(False)
    try:
        with alone():
            while left:
                for task in left:
                    with contextlib.suppress(BusyError):
                        do(task)
                        left.remove(task)
                        break
                else:
                    time.sleep(POLL)
    finally:
        _patient.reset(token)


def mean_gradients(parameters: Iterable[Tensor]) -> None:
    """Give the whole team the mean of its gradients, in one message; nothing where there is only one process.

    A gradient that only some have is 0 in the others; one that nobody has stays None, which optimisers skip.
    """
    _, processes = team()
    if processes == 1:
        return
    parameters = list(parameters)
    there = [parameter.grad is not None for parameter in parameters]
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    counts = torch.tensor(there, dtype=gradients[0].dtype, device=gradients[0].device)
    message = torch.cat([counts, *(gradient.flatten() for gradient in gradients)])
    torch.distributed.all_reduce(
        message
    )  # in place, unlike Accelerate's: the message is as large as the network
    message /= processes
    counts, *means = message.split([len(parameters), *(gradient.numel() for gradient in gradients)])
    for parameter, gradient, count, mean in zip(
        parameters, gradients, counts.tolist(), means, strict=True
    ):
        parameter.grad = gradient.copy_(mean.view_as(gradient)) if count else None


def balance(chosen: Tensor) -> float:
    """What the mean over this process's chosen examples has to be multiplied with, so that the mean over the
    team is that over everything chosen; 1 where there is one process, or nothing is chosen at all."""
    if team()[1] == 1:
        return 1.0
    counts = torch.tensor([float(chosen.sum()), float(len(chosen))], device=accelerator().device)
    here, everywhere = (
        float(each[0] / each[1]) for each in (counts, accelerator().reduce(counts.clone(), "sum"))
    )
    return here / everywhere if everywhere else 1.0


@contextlib.contextmanager
def locked(folder: Path, together: bool) -> Iterator[None]:
    """Keep others out of a folder; the operating system lets go of the lock when a process dies.

    With `together` the first of the team holds it for all of them, and all come in and go out together;
    else one comes in after the other, and is `alone` there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        if not together:
            held.enter_context(alone())
        if team()[0] == 0:
            lock = FileLock(folder / "lock")
            try:
                held.enter_context(lock.acquire(timeout=0))
            except Timeout:
                if not _patient.get():
                    raise BusyError(folder.name) from None
                logging.getLogger(__name__).warning(
                    "waiting for another process that makes %s", folder.name
                )
                held.enter_context(lock.acquire())
        wait_for_team()
        yield
