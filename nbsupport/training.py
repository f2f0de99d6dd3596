"""One training loop for everything that learns, resumable after every epoch."""

import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from .store import CorruptArtefact, write_atomically

Loss = Callable[[Int[Tensor, "b"], torch.Generator], Tensor]


def fit(
    trained: nn.Module,
    loss: Loss,
    *,
    examples: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    scratch: Path,
    label: str,
) -> list[float]:
    """Train with Adam and a one-cycle learning rate; go on from `scratch` after an interruption.

    Every epoch visits the examples in an order that depends on the seed and the epoch alone, so an
    interrupted and resumed training ends at the same weights as an undisturbed one.

    Parameters
    ----------
    trained
        What learns, in place; parameters that need no gradient stay as they are.
    loss
        From the numbers of a batch's examples and a generator for whatever it draws to a scalar.
    examples
        How many examples there are.
    epochs, batch_size, learning_rate
        The last one is the highest of the cycle.
    seed
        Of the order and of the draws.
    scratch
        A folder for the checkpoint of the last whole epoch.
    label
        For the progress bar.

    Returns
    -------
    The mean loss of each epoch.

    Raises
    ------
    FloatingPointError
        If the loss is not finite.
    """
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    steps = -(-examples // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, epochs * steps)
    parts: dict[str, Any] = {"trained": trained, "optimiser": optimiser, "schedule": schedule}
    checkpoint, history = scratch / "checkpoint.pt", []
    if saved := _read(checkpoint):
        history = saved["history"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    with tqdm(total=epochs * steps, initial=len(history) * steps, desc=label, unit="batch") as bar:
        for epoch in range(len(history), epochs):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            total = 0.0
            for batch in torch.randperm(examples, generator=generator).split(batch_size):
                optimiser.zero_grad(set_to_none=True)
                value = loss(batch, generator)
                value.backward()
                optimiser.step()
                schedule.step()
                total += float(value.detach()) * len(batch)
                bar.update()
            if not total == total or total == float("inf"):
                raise FloatingPointError(f"{label}: the loss of epoch {epoch + 1} is {total}; lower the learning rate")
            history.append(total / examples)
            bar.set_postfix(loss=f"{history[-1]:.4f}")
            state = {name: part.state_dict() for name, part in parts.items()} | {"history": history}
            write_atomically(checkpoint, partial(torch.save, state))
    return history


def _read(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint, empty where there is none or it is damaged."""
    try:
        return torch.load(checkpoint, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        return {}
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        warnings.warn(f"{checkpoint}: {error}; starting this training again", CorruptArtefact, stacklevel=3)
        return {}
