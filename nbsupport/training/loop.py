"""One training loop for everything that learns, resumable after every epoch."""

import hashlib
import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..experiments.cluster import accelerator, mean_gradients, team
from ..experiments.disk import write_atomically
from ..experiments.store import CorruptArtefact
from .devices import autocast

Loss = Callable[[Int[Tensor, "b"], torch.Generator], Tensor]


@torch.enable_grad()  # an artefact may be asked for where gradients are switched off
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
    clip_norm: float | None = None,
    precision: str = "float32",
) -> list[float]:
    """Train with Adam and a one-cycle learning rate; go on from `scratch` after an interruption.

    Every epoch visits the examples in an order that depends on the seed and the epoch alone, so an
    interrupted and resumed training ends at the same weights as an undisturbed one. Where several processes
    train together (`nbsupport.experiments.cluster.team`), each learns from its share of every batch; the loss has then
    to be a mean over examples, without batch norm and without draws.

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
    clip_norm
        Gradients of a larger norm are shortened to it; None for no limit.
    precision
        ``float32``, or ``bfloat16`` where the hardware has it (`nbsupport.training.devices.precision`).

    Returns
    -------
    The mean loss of each epoch.

    Raises
    ------
    FloatingPointError
        If the loss is not finite.
    """
    trained.to(memory_format=torch.channels_last)
    device = next(trained.parameters()).device
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    steps = -(-examples // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, epochs * steps)
    parts: dict[str, Any] = {"trained": trained, "optimiser": optimiser, "schedule": schedule}
    checkpoint, history = scratch / "checkpoint.pt", []
    if saved := _read(checkpoint):
        history = saved["history"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    rank, processes = team()
    undisturbed = torch.random.fork_rng(range(torch.cuda.device_count()))
    shown: dict[str, Any] = {
        "desc": label,
        "disable": rank > 0,
        "position": accelerator().process_index or None,
    }
    with (
        tqdm(total=epochs * steps, initial=len(history) * steps, unit="batch", **shown) as bar,
        undisturbed,
    ):
        for epoch in range(len(history), epochs):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            torch.manual_seed(generator.initial_seed())  # dropout draws from the global state
            total = 0.0
            for batch in torch.randperm(examples, generator=generator).split(batch_size):
                optimiser.zero_grad(set_to_none=True)
                shares = (
                    processes if len(batch) >= processes else 1
                )  # of too few, everybody takes all
                mine = batch[rank % shares :: shares]
                with autocast(precision, device):
                    value = loss(mine, generator) * (len(mine) * shares / len(batch))
                total += float(value.detach()) * len(batch)
                if not math.isfinite(total):
                    raise FloatingPointError(
                        f"{label}: the loss is {total} in epoch {epoch + 1}; lower the learning rate"
                    )
                value.backward()
                mean_gradients(parameters)
                if clip_norm is not None:
                    nn.utils.clip_grad_norm_(parameters, clip_norm)
                optimiser.step()
                schedule.step()
                bar.update()
            mean = (
                accelerator().reduce(torch.tensor(total), reduction="mean")
                if processes > 1
                else total
            )
            history.append(float(mean) / examples)
            bar.set_postfix(loss=f"{history[-1]:.4f}")
            if rank == 0:
                _write(
                    checkpoint,
                    {name: part.state_dict() for name, part in parts.items()}
                    | {"history": history},
                )
    trained.to(memory_format=torch.contiguous_format)
    return history


def _write(checkpoint: Path, state: dict[str, Any]) -> None:
    """The checkpoint and before it its SHA-256: `torch.load` itself overlooks altered weights."""
    file = io.BytesIO()
    torch.save(state, file)
    content = file.getvalue()
    write_atomically(
        checkpoint, lambda path: path.write_bytes(hashlib.sha256(content).digest() + content)
    )


def _read(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint, empty where there is none or it is damaged."""
    if not checkpoint.exists():
        return {}
    stored = checkpoint.read_bytes()
    checksum, content = stored[:32], stored[32:]
    if hashlib.sha256(content).digest() != checksum:
        warnings.warn(
            f"{checkpoint}: damaged; starting this training again", CorruptArtefact, stacklevel=3
        )
        return {}
    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
