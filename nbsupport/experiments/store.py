"""Bytes under keys: everything expensive in a study, kept under a hash of its specification.

An artifact is a folder ``<home>/<kind>/<name>-<key>`` with ``tensors.safetensors`` and its record,
``artifact.json``. The key hashes the whole specification, which names everything that the artifact
depends on. One SHA-256 covers both files: what does not match is reported as a `CorruptArtifact`
warning and made again. A process that dies leaves nothing half-written.
"""

import contextlib
import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load, save
from torch import Tensor, nn

from ..data.images import room, write_atomically
from ..study import default_home

RECORD, TENSORS = "artifact.json", "tensors.safetensors"
Specification = Mapping[str, Any]
Tensors = tuple[dict[str, Tensor], dict[str, Any]]
"""Named tensors, and a report that JSON can hold."""


class CorruptArtifact(UserWarning):
    """A stored file was truncated or altered. It is not used, and made again."""


def canonical(specification: Specification) -> str:
    """The specification as JSON with sorted keys: equal if and only if the content is."""
    return json.dumps(specification, sort_keys=True, allow_nan=False)


def key(specification: Specification) -> str:
    """Sixteen hexadecimal digits that stand for the specification."""
    return sha256(canonical(specification).encode()).hexdigest()[:16]


def hash_weights(network: nn.Module) -> str:
    """A hash of all parameters and buffers of a network, with their names."""
    return hash_tensors({**dict(network.named_parameters()), **dict(network.named_buffers())})


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A hash of tensors with their names, types and shapes."""
    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def depend_on(specification: Specification, *networks: nn.Module) -> dict[str, Any]:
    """The specification with the weights of the networks that an artifact is made from.

    Nothing that was made from other weights is then used, or continued.
    """
    return {**specification, "made_from": [hash_weights(network) for network in networks]}


class Store:
    """All artifacts under one folder, `nbsupport.study.default_home` where None is given.

    A `frozen` one makes nothing that it lacks.
    """

    def __init__(self, home: str | Path | None = None, *, frozen: bool = False) -> None:
        self.home = Path(home).expanduser() if home is not None else default_home()
        self.frozen = frozen

    def folder(self, specification: Specification) -> Path:
        """The artifact's folder, whether it exists or not, below the specification's ``kind``."""
        letters = (c if c.isalnum() or c in "-+" else "_" for c in str(specification["name"]))
        name = f"{''.join(letters)[:40]}-{key(specification)}"
        return self.home / str(specification["kind"]) / name

    def tensors(self, specification: Specification, make: Callable[[Path], Tensors]) -> Tensors:
        """Named tensors and a report: the stored ones, or those that `make` returns.

        `make` receives a scratch folder for checkpoints, which survives an interruption. While it
        runs, other processes wait for its result. Raises `ValueError` where it is missing in a
        frozen store.
        """
        folder = self.folder(specification)
        if self.frozen and not (folder / RECORD).is_file():
            name = f"{specification['kind']} {specification['name']!r}"
            raise ValueError(f"{self.home} has no such {name}; `compute` makes it")
        with room(folder), _lock(folder):
            if found := _read(folder, specification):
                return found
            scratch = folder / "scratch"
            scratch.mkdir(exist_ok=True)
            start = time.monotonic()
            tensors, report = make(scratch)
            # cloned, because safetensors refuses tensors that share memory
            content = save(
                {name: x.detach().cpu().clone().contiguous() for name, x in tensors.items()}
            )
            write_atomically(folder / TENSORS, lambda file: file.write_bytes(content))
            record: dict[str, Any] = {"report": report, "specification": specification}
            record |= {"torch": torch.__version__, "finished": datetime.now(UTC).isoformat()}
            record["seconds"] = round(time.monotonic() - start, 1)
            record = json.loads(json.dumps(record, allow_nan=False))
            text = json.dumps(record | {"sha256": _checksum(record, content)}, indent=1)
            write_atomically(folder / RECORD, lambda file: file.write_text(text, encoding="utf-8"))
            shutil.rmtree(scratch)
            return load(content), record["report"]


def _lock(folder: Path) -> contextlib.AbstractContextManager[Any]:
    """Keep other processes out. The operating system releases the lock when a process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "artifact.lock")
    with contextlib.suppress(Timeout):
        return lock.acquire(timeout=0)
    logging.getLogger(__name__).warning("waiting for another process: %s", folder.name)
    return lock.acquire()


def _read(folder: Path, specification: Specification) -> Tensors | None:
    """A finished artifact; None where it is absent or damaged."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        content = (folder / TENSORS).read_bytes()
        if record.pop("sha256") != _checksum(record, content):
            raise ValueError("its checksum differs from the recorded one")
        if record["specification"] != json.loads(canonical(specification)):
            raise ValueError("its specification differs from the requested one")
        return load(content), record["report"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        path.unlink()  # first, because warnings may be errors
        warnings.warn(f"{path}: {error}; making it again", CorruptArtifact, stacklevel=3)
        return None


def _checksum(record: dict[str, Any], content: bytes) -> str:
    return sha256(canonical(record).encode() + content).hexdigest()
