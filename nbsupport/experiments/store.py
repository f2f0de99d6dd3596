"""Bytes under keys: everything expensive in a study, kept under a hash of its specification.

An artifact is a folder ``<home>/<kind>/<name>-<key>`` with its data and an ``artifact.json``. The key
hashes the whole specification, which names everything that the artifact depends on. Nothing is used
unverified: record and tensors by one SHA-256, each chunk of an array by zarr's CRC-32C. What does not
match is reported as a `CorruptArtifact` warning and made again.
"""

import contextlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from filelock import FileLock, Timeout
from safetensors.torch import load, save
from torch import Tensor, nn
from tqdm.auto import tqdm
from zarr.codecs import BytesCodec, Crc32cCodec

from ..data.images import room, write_atomically
from ..study import default_home

BLOCK = 64  # images per chunk of an array
RECORD, TENSORS = "artifact.json", "tensors.safetensors"
Specification = Mapping[str, Any]
Tensors = tuple[dict[str, Tensor], dict[str, Any]]
MakeBlock = Callable[[slice, list[int]], np.ndarray]


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
    digest = sha256()
    tensors = [*network.named_parameters(), *network.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
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
    """All artifacts under one folder, `nbsupport.study.default_home` where None is given."""

    def __init__(self, home: str | Path | None = None) -> None:
        self.home = Path(home).expanduser() if home is not None else default_home()

    def folder(self, specification: Specification) -> Path:
        """The artifact's folder, whether it exists or not, below the specification's ``kind``."""
        letters = (c if c.isalnum() or c in "-+" else "_" for c in str(specification["name"]))
        name = f"{''.join(letters)[:40]}-{key(specification)}"
        return self.home / str(specification["kind"]) / name

    def has(self, specification: Specification) -> bool:
        """Whether the artifact is finished. Its content is verified when it is used."""
        return (self.folder(specification) / RECORD).is_file()

    def tensors(self, specification: Specification, make: Callable[[Path], Tensors]) -> Tensors:
        """Named tensors and a report: the stored ones, or those that `make` returns.

        `make` receives a scratch folder for checkpoints, which survives an interruption.
        """
        folder = self.folder(specification)
        with room(folder), _locked(folder, "artifact"):
            if found := _read(folder, specification):
                record, content = found
                return load(content), record["report"]
            scratch = folder / "scratch"
            scratch.mkdir(exist_ok=True)
            tensors, report = make(scratch)
            # cloned, because safetensors refuses tensors that share memory
            copies = {name: x.detach().cpu().clone().contiguous() for name, x in tensors.items()}
            content = save(copies)
            write_atomically(folder / TENSORS, lambda file: file.write_bytes(content))
            record = _finish(folder, specification, content, report=report)
            shutil.rmtree(scratch)
            return load(content), record["report"]

    def array(
        self,
        specification: Specification,
        shape: tuple[int, ...],
        make: MakeBlock,
        label: str = "",
        at_once: int = 10**9,
        only: int | None = None,
    ) -> Tensor:
        """A float16 array of shape (strengths, images, …), filled block by block of 64 images.

        `make` receives a slice of images and the rows (strengths) that are missing there, at most
        `at_once` pairs of them, and returns an array of shape (rows, images, …). After each call the
        bar `label` moves. Processes on one store share the blocks: each makes those that no other is
        making, and reads the rest. With `only`, just the block that starts at that image is made, and
        the rest is undefined. Raises `ValueError` if `make` returns NaN, which marks a missing value.
        """
        folder = self.folder(specification)
        with room(folder):
            with _locked(folder, "array"):
                finished = _read(folder, specification) is not None
                stored = _open_array(folder / "array.zarr", shape)
            result = torch.empty(shape, dtype=torch.float16)
            starts = range(0, shape[1], BLOCK) if only is None else [only]
            left = [slice(start, min(start + BLOCK, shape[1])) for start in starts]
            total, hidden = shape[0] * sum(b.stop - b.start for b in left), finished or not label
            with tqdm(total=total, unit="image", desc=label, disable=hidden) as bar:
                for patient in (False, True):  # blocks that another process is making come last
                    busy = []
                    for block in left:
                        try:
                            with _locked(folder, f"block{block.start}", patient):
                                _fill(stored, block, make, at_once, result, bar)
                        except Timeout:
                            busy.append(block)
                    left = busy
            if not finished and only is None:
                with _locked(folder, "array"):
                    _finish(folder, specification, shape=shape)
            return result


@contextlib.contextmanager
def _locked(folder: Path, name: str, patient: bool = True) -> Iterator[None]:
    """Keep other processes out. The operating system releases the lock when a process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not patient:
            raise
        logging.getLogger(__name__).warning("waiting for another process: %s", folder.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fill(
    stored: zarr.Array, block: slice, make: MakeBlock, at_once: int, result: Tensor, bar: tqdm
) -> None:
    """Read a block into `result`, after making the chunks that are missing."""
    missing = [row for row in range(len(result)) if not _read_chunk(stored, row, block, result)]
    bar.update((len(result) - len(missing)) * (block.stop - block.start))
    if not missing:
        return
    found, size = [], max(at_once // len(missing), 1)
    for start in range(block.start, block.stop, size):
        images = slice(start, min(start + size, block.stop))
        found.append(make(images, missing))
        bar.update(len(missing) * (images.stop - images.start))
    for row, values in zip(missing, np.concatenate(found, axis=1), strict=True):
        stored[row, block] = values
        if not _read_chunk(stored, row, block, result):
            raise ValueError(f"{stored.store_path}: expected numbers, got NaN in row {row}")


def _read_chunk(stored: zarr.Array, row: int, block: slice, result: Tensor) -> bool:
    """Read one chunk into `result`; False where it has to be made."""
    try:
        values = np.asarray(stored[row, block])
    except ValueError as error:
        _discard(f"{stored.store_path}, row {row}, images from {block.start}: {error}")
        return False
    result[row, block] = torch.from_numpy(values)
    return not np.isnan(values).any()


def _open_array(path: Path, shape: tuple[int, ...]) -> zarr.Array:
    """The array at `path`, empty where there is none. A description that differs is written again."""
    options: dict[str, Any] = dict(shape=shape, chunks=(1, min(BLOCK, shape[1]), *shape[2:]))
    options |= dict(dtype="float16", serializer=BytesCodec(), compressors=[Crc32cCodec()])
    # NaN marks a missing value, so chunks of NaN must be written like any other
    options |= dict(fill_value=float("nan"), config={"write_empty_chunks": True})
    memory: dict[str, Any] = {}
    zarr.create_array(memory, **options)
    wanted, description = memory["zarr.json"].to_bytes(), path / "zarr.json"
    path.mkdir(exist_ok=True)
    if description.exists() and description.read_bytes() != wanted:
        _discard(f"{description}: it differs from the specified one", description)
    if not description.exists():
        write_atomically(description, lambda file: file.write_bytes(wanted))
    return zarr.open_array(path, mode="r+", config=options["config"])


def _read(folder: Path, specification: Specification) -> tuple[dict[str, Any], bytes] | None:
    """The record and the bytes of the tensors; None where the artifact is absent or damaged."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        content = (folder / TENSORS).read_bytes() if "report" in record else b""
        if record.pop("sha256") != _checksum(record, content):
            reason = "its checksum differs from the recorded one"
        elif record["specification"] != json.loads(canonical(specification)):
            reason = "its specification differs from the requested one"
        else:
            return record, content
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it cannot be read ({error})"
    _discard(f"{path}: {reason}", path)
    return None


def _finish(
    folder: Path, specification: Specification, content: bytes = b"", **rest: Any
) -> dict[str, Any]:
    """Write the record, which makes the artifact a finished one."""
    record = rest | {"specification": specification, "torch": torch.__version__}
    record |= {"finished": datetime.now(UTC).isoformat()}
    record = json.loads(json.dumps(record, allow_nan=False))
    text = json.dumps(record | {"sha256": _checksum(record, content)}, indent=1)
    write_atomically(folder / RECORD, lambda file: file.write_text(text, encoding="utf-8"))
    return record


def _checksum(record: dict[str, Any], content: bytes) -> str:
    return sha256(canonical(record).encode() + content).hexdigest()


def _discard(reason: str, *files: Path) -> None:
    for path in files:  # first, because warnings may be errors
        path.unlink(missing_ok=True)
    warnings.warn(f"{reason}; making it again", CorruptArtifact, stacklevel=3)
