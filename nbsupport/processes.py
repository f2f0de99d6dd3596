"""One process or several, through Accelerate: who does what, and who waits for whom.

Started with ``torchrun`` or ``accelerate launch``, the processes share attacks and the trainings of
denoisers; what one of them makes alone the others wait for.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch import Tensor


@cache
def accelerator() -> Accelerator:
    """This process among all that were started together."""
    return Accelerator(cpu=not torch.cuda.is_available())


def mean_gradients(parameters: Iterable[Tensor]) -> None:
    """Give every process the mean of all processes' gradients, in one message; nothing where there is only one."""
    if accelerator().num_processes == 1:
        return
    gradients = [each.grad for each in parameters if each.grad is not None]
    mean = accelerator().reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
    for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def balance(chosen: Tensor) -> float:
    """What the mean over this process's chosen examples has to be multiplied with, so that the mean over all
    processes is that over everything chosen; 1 where there is one process, or nothing is chosen at all."""
    counts = torch.tensor([float(chosen.sum()), float(len(chosen))], device=accelerator().device)
    here, everywhere = (float(each[0] / each[1]) for each in (counts, accelerator().reduce(counts.clone(), "sum")))
    return here / everywhere if everywhere else 1.0


@contextlib.contextmanager
def locked(folder: Path, together: bool) -> Iterator[None]:
    """Keep others out of a folder; the operating system lets go of the lock when a process dies.

    With `together` the first of several processes holds it for all of them, and all come in and go out
    together; else one comes in after the other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    process = accelerator()
    with contextlib.ExitStack() as held:
        if not together or process.is_main_process:
            lock = FileLock(folder / "lock")
            try:
                held.enter_context(lock.acquire(timeout=0))
            except Timeout:
                logging.getLogger(__name__).warning("waiting for another process that makes %s", folder.name)
                held.enter_context(lock.acquire())
        if together:
            process.wait_for_everyone()
        yield
