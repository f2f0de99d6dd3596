"""The training loop: Adam with a one-cycle learning rate, resumable after every epoch."""

import hashlib
import io
import math
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data.images import write_atomically

Loss = Callable[[Int[Tensor, "b"], torch.Generator], Tensor]
"""Map the indices of a batch's examples, and a generator for random draws, to a scalar."""


class DamagedFile(UserWarning):
    """A stored file was truncated or altered. It is discarded and made again."""


@torch.enable_grad()  # a training may be started where gradients are switched off
def fit(
    network: nn.Module, loss: Loss, *, examples: int, epochs: int, batch_size: int,
    learning_rate: float, seed: int, scratch: Path, label: str, clip_norm: float | None = None,
    precision: str = "float32", keep: Collection[int] = (),
) -> list[float]:  # fmt: skip
    """Train all parameters that require gradients, in place; return the mean loss of each epoch.

    An interrupted training continues from the checkpoint of its last whole epoch in the folder
    `scratch` and ends at the same weights: all random draws depend on seed and epoch alone.
    `learning_rate` is the maximum of the cycle, `label` names the progress bar, and gradients are
    clipped to the norm `clip_norm`. The weights after each number of steps in `keep` stay in
    `scratch`, see `read_checkpoints`. Raises `FloatingPointError` if the loss is not finite.
    """
    network.to(memory_format=torch.channels_last)
    device = next(network.parameters()).device
    low = choose_precision(precision, device) == "bfloat16"  # for layers; weights stay in float32
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    batches = math.ceil(examples / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs * batches)
    state: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule}
    checkpoint, history = scratch / "checkpoint.pt", []
    if all(map(_read, scratch.glob("step*.pt"))) and (saved := _read(checkpoint)):
        history = saved["history"]
        for name, part in state.items():
            part.load_state_dict(saved[name])
    bar = tqdm(total=epochs * batches, initial=len(history) * batches, unit="batch", desc=label)
    with bar, torch.random.fork_rng(range(torch.cuda.device_count())):
        for epoch in range(len(history), epochs):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            torch.manual_seed(generator.initial_seed())  # dropout draws from the global state
            summed, order = 0.0, torch.randperm(examples, generator=generator)
            for step, batch in enumerate(order.split(batch_size), epoch * batches + 1):
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(device.type, torch.bfloat16, enabled=low):
                    value = loss(batch, generator)
                summed += float(value.detach()) * len(batch)
                if not math.isfinite(summed):
                    found = f"the loss is {summed} in epoch {epoch + 1}"
                    raise FloatingPointError(f"{label}: {found}; lower the learning rate")
                value.backward()
                if clip_norm is not None:
                    nn.utils.clip_grad_norm_(parameters, clip_norm)
                optimizer.step()
                schedule.step()
                bar.update()
                if step in keep:
                    _write(scratch / f"step{step}.pt", network.state_dict())
            history.append(summed / examples)
            bar.set_postfix(loss=f"{history[-1]:.4f}")
            contents = {name: part.state_dict() for name, part in state.items()}
            _write(checkpoint, contents | {"history": history})
    network.to(memory_format=torch.contiguous_format)
    return history


def read_checkpoints(scratch: Path) -> dict[int, dict[str, Tensor]]:
    """The weights that `fit` kept, by number of steps, rising."""
    found = {int(path.stem[4:]): _read(path) for path in scratch.glob("step*.pt")}
    return dict(sorted(found.items()))


def choose_precision(wanted: str, device: torch.device) -> str:
    """``bfloat16`` if it is wanted and the hardware computes with it, else ``float32``."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        able = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if wanted == "bfloat16" and able else "float32"


def _write(checkpoint: Path, contents: dict[str, Any]) -> None:
    """Write a checkpoint behind its SHA-256: `torch.load` does not notice altered weights."""
    torch.save(contents, file := io.BytesIO())
    content = hashlib.sha256(file.getvalue()).digest() + file.getvalue()
    write_atomically(checkpoint, lambda path: path.write_bytes(content))


def _read(checkpoint: Path) -> dict[str, Any]:
    """The contents of a checkpoint; none if it is missing or damaged."""
    if not checkpoint.exists():
        return {}
    content = (stored := checkpoint.read_bytes())[32:]
    if hashlib.sha256(content).digest() != stored[:32]:
        warnings.warn(f"{checkpoint} is damaged; training restarts", DamagedFile, stacklevel=3)
        return {}
    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
