"""Trained weights as one safetensors file, with the record that builds their network and a checksum of both.

And weights from elsewhere, which are copied into a network once all of them fit.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .. import __version__
from ..experiments.disk import write_atomically
from ..experiments.store import canonical


def write(
    path: str | Path, kind: str, record: dict[str, Any], weights: Mapping[str, Tensor]
) -> Path:
    """Write weights; the file is replaced at once, or not at all.

    Parameters
    ----------
    path
        The file.
    kind
        Of network: ``denoiser`` or ``classifier``.
    record
        What builds the network, and whatever should be known of it; it has to fit into JSON.
    weights
        Its state.
    """
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights.items()}
    text = canonical(record)
    metadata = {
        "format": _format(kind),
        "version": __version__,
        "record": text,
        "sha256": _digest(text, tensors),
    }
    content = save(tensors, metadata)
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(content))
    return Path(path)


def read(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The record and the weights of a file that `write` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, was altered, or holds something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"load_{kind}: there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"load_{kind}: {path} is damaged or no safetensors file ({error}); save it again"
        ) from error
    if metadata.get("format") != _format(kind):
        raise ValueError(f"load_{kind}: {path} is no {_format(kind)!r} file, got {metadata.get('format')!r}; save it "
                         f"with save_{kind}")  # fmt: skip
    if _digest(metadata["record"], tensors) != metadata["sha256"]:
        raise ValueError(
            f"load_{kind}: {path} was altered (its checksum differs); save or copy it again"
        )
    return json.loads(metadata["record"]), tensors


def _format(kind: str) -> str:
    return f"nbsupport {kind} 1"


def _digest(record: str, tensors: Mapping[str, Tensor]) -> str:
    digest = sha256(record.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def copy_weights(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Copy the tensors of a file into those of a network once all names and shapes agree.

    Raises
    ------
    ValueError
        If they do not; nothing is copied then.
    """
    differ = {
        name for name in wanted.keys() & found.keys() if wanted[name].shape != found[name].shape
    }
    faults = {
        "missing": wanted.keys() - found.keys(),
        "unknown": found.keys() - wanted.keys(),
        "wrong shape": {
            f"{name} {tuple(found[name].shape)} for {tuple(wanted[name].shape)}" for name in differ
        },
    }
    for fault, names in faults.items():
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            raise ValueError(
                f"{path}: not the weights of this network; {len(names)} {fault}: {shown}"
            )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(found[name])
