"""Artefacts on disk: everything expensive, addressed by the specification it was made from.

An artefact is a folder ``<home>/<kind>/<name>-<key>`` with its data and an ``artefact.json``; the key
is a hash of the whole specification, which names what the artefact was made from, down to the data.
There are two forms:

`Store.tensors`   named tensors in one safetensors file, made by a function that may leave
                  checkpoints in a scratch folder and goes on from them after an interruption.
`Store.array`     a zarr array (strengths × images × …) in float16, made block by block; the chunks
                  that are there are the ones that are done.

Nothing is used unverified: files by their SHA-256, chunks by the CRC-32C that zarr keeps in each.
What does not match is reported as a `CorruptArtefact` warning and made again.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from zarr.codecs import BytesCodec, Crc32cCodec

BLOCK = 64  # images per chunk of an array
Specification = Mapping[str, Any]
log = logging.getLogger(__name__)


class CorruptArtefact(UserWarning):
    """A stored file was truncated or altered; it is not used and made again."""


def default_home() -> Path:
    """``NBSUPPORT_HOME``, or else a folder in the user's cache folder."""
    if home := os.environ.get("NBSUPPORT_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nbsupport"


def canonical(specification: Specification) -> str:
    """The specification as JSON with sorted keys: equal if and only if the content is."""
    return json.dumps(specification, sort_keys=True, ensure_ascii=False, allow_nan=False)


def key(specification: Specification) -> str:
    """Sixteen hexadecimal digits that stand for the specification."""
    return hashlib.sha256(canonical(specification).encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary neighbour of `path`, then put it in place at once, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class Store:
    """All artefacts under one folder.

    Parameters
    ----------
    home
        The folder; `default_home` where None. It is made when first needed.
    """

    def __init__(self, home: str | Path | None = None) -> None:
        self.home = Path(home) if home is not None else default_home()

    def folder(self, specification: Specification) -> Path:
        """Where the artefact of `specification` is or would be; the specification has a ``kind`` and a ``name``."""
        name = "".join(c if c.isalnum() or c in "-+" else "_" for c in str(specification["name"]))
        return self.home / str(specification["kind"]) / f"{name}-{key(specification)}"

    def has(self, specification: Specification) -> bool:
        """Whether the artefact was finished; its content is verified when it is used."""
        return (self.folder(specification) / "artefact.json").is_file()

    def tensors(
        self, specification: Specification, make: Callable[[Path], tuple[Mapping[str, Tensor], Mapping[str, Any]]]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Named tensors and a report: the stored ones, or those that `make` returns.

        Parameters
        ----------
        specification
            What the tensors are a function of.
        make
            Gets a scratch folder of its own, which survives interruptions and is removed at the end.

        Returns
        -------
        The tensors, and the report as it reads back from JSON.
        """
        folder = self.folder(specification)
        with self._locked(folder):
            with contextlib.suppress(FileNotFoundError):
                return self._read_tensors(folder, specification)
            scratch = folder / "scratch"
            scratch.mkdir(parents=True, exist_ok=True)
            made, report = make(scratch)
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in made.items()}
            path = folder / "tensors.safetensors"
            write_atomically(path, lambda temporary: save_file(tensors, temporary))
            self._finish(folder, specification, {"report": dict(report), "sha256": _sha256(path)})
            shutil.rmtree(scratch)
            return self._read_tensors(folder, specification)

    def _read_tensors(self, folder: Path, specification: Specification) -> tuple[dict[str, Tensor], dict[str, Any]]:
        record, path = self._record(folder, specification), folder / "tensors.safetensors"
        try:
            if _sha256(path) != record["sha256"]:
                raise SafetensorError("its checksum differs from the recorded one")
            return load_file(path), record["report"]
        except (FileNotFoundError, SafetensorError) as error:
            self._reject(folder / "artefact.json", f"{path}: {error}")
            raise FileNotFoundError(path) from error

    def array(
        self,
        specification: Specification,
        shape: tuple[int, ...],
        make: Callable[[slice, list[int]], np.ndarray],
        label: str = "",
    ) -> Tensor:
        """A float16 array of `shape` (strengths, images, …), filled block by block.

        Parameters
        ----------
        specification
            What the array is a function of.
        shape
            Its shape; a chunk holds one strength and 64 images.
        make
            From a slice of images and the numbers of the strengths that are missing there to
            an array of shape (strengths, images, …) without NaN.
        label
            For the progress bar.

        Returns
        -------
        The array, in memory.
        """
        folder = self.folder(specification)
        with self._locked(folder):
            stored = self._open_array(folder / "array.zarr", shape)
            result = torch.empty(shape, dtype=torch.float16)
            blocks = [slice(start, min(start + BLOCK, shape[1])) for start in range(0, shape[1], BLOCK)]
            finished = self.has(specification)
            with tqdm(total=shape[0] * shape[1], desc=label, unit="image", disable=finished or not label) as bar:
                for block in blocks:
                    missing = [row for row in range(shape[0]) if not self._read_chunk(stored, row, block, result)]
                    bar.update((shape[0] - len(missing)) * (block.stop - block.start))
                    if missing:
                        made = make(block, missing)
                        for row, values in zip(missing, made, strict=True):
                            stored[row, block] = values
                            self._read_chunk(stored, row, block, result)
                        bar.update(len(missing) * (block.stop - block.start))
            if not finished:
                self._finish(folder, specification, {"shape": list(shape)})
            return result

    def _open_array(self, path: Path, shape: tuple[int, ...]) -> zarr.Array:
        # NaN marks what is missing, so empty chunks must be written like any other
        options: dict[str, Any] = dict(
            shape=shape, chunks=(1, min(BLOCK, shape[1]), *shape[2:]), dtype="float16", fill_value=float("nan"),
            serializer=BytesCodec(), compressors=[Crc32cCodec()], config={"write_empty_chunks": True},
        )  # fmt: skip
        wanted = zarr.create_array(zarr.storage.MemoryStore(), **options).metadata
        if path.exists():
            try:
                stored = zarr.open_array(path, mode="r+", config={"write_empty_chunks": True})
                if stored.metadata == wanted:
                    return stored
                reason = "its description differs from the specified one"
            except Exception as error:  # whatever zarr meets in a damaged description, it is made again
                reason = str(error)
            warnings.warn(f"{path}: {reason}; making it again", CorruptArtefact, stacklevel=4)
            shutil.rmtree(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return zarr.create_array(path, **options)

    @staticmethod
    def _read_chunk(stored: zarr.Array, row: int, block: slice, result: Tensor) -> bool:
        """Read one chunk into `result`; False where it has to be made."""
        try:
            values = np.asarray(stored[row, block])
        except ValueError as error:
            warnings.warn(f"{stored.store_path}, strength {row}, images from {block.start}: {error}; making it again",
                          CorruptArtefact, stacklevel=3)  # fmt: skip
            return False
        result[row, block] = torch.from_numpy(values)
        return not np.isnan(values).any()

    def _record(self, folder: Path, specification: Specification) -> dict[str, Any]:
        """The content of ``artefact.json``; FileNotFoundError where it is absent or damaged."""
        path = folder / "artefact.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            content = {name: value for name, value in record.items() if name != "digest"}
            if record["digest"] == key(content) and record["specification"] == json.loads(canonical(specification)):
                return record
            reason = "its content differs from what was written"
        except (ValueError, KeyError, TypeError) as error:
            reason = f"it cannot be read ({error})"
        self._reject(path, f"{path}: {reason}")
        raise FileNotFoundError(path)

    @staticmethod
    def _finish(folder: Path, specification: Specification, rest: dict[str, Any]) -> None:
        record = {"specification": json.loads(canonical(specification)), "made": datetime.now(UTC).isoformat()}
        record |= {"torch": torch.__version__} | rest
        text = json.dumps(record | {"digest": key(record)}, indent=1, ensure_ascii=False)
        write_atomically(folder / "artefact.json", lambda path: path.write_text(text, encoding="utf-8"))

    @staticmethod
    def _reject(record: Path, reason: str) -> None:
        warnings.warn(f"{reason}; making it again", CorruptArtefact, stacklevel=5)
        record.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """One process at a time; the operating system lets go of the lock when a process dies."""
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("waiting for another process that makes %s", folder.name)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
