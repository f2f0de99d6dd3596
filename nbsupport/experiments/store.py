"""Artefacts on disk: everything expensive, addressed by the specification it was made from.

An artefact is a folder ``<home>/<kind>/<name>-<key>`` with its data and an ``artefact.json``; the key
is a hash of the whole specification, which names what it was made from, down to the data. Two forms:

`Store.tensors`   named tensors in one safetensors file, made by a function that may leave
                  checkpoints in a scratch folder and goes on from them after an interruption.
`Store.array`     a zarr array (strengths × images × …) in float16, made block by block; the chunks
                  that are there are the ones that are done.

Nothing is used unverified: files by their SHA-256, chunks by the CRC-32C that zarr keeps in each.
What does not match is reported as a `CorruptArtefact` warning and made again.
"""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from safetensors.torch import load, save
from torch import Tensor
from tqdm.auto import tqdm
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.errors import ContainsArrayError

from .cluster import accelerator, locked, team, wait_for_team
from .disk import room, write_atomically

BLOCK = 64  # images per chunk of an array
Specification = Mapping[str, Any]
Tensors = tuple[dict[str, Tensor], dict[str, Any]]


class CorruptArtefact(UserWarning):
    """A stored file was truncated or altered; it is not used and made again."""


def default_home() -> Path:
    """``NBSUPPORT_HOME``, or else a folder in the user's cache folder."""
    home = os.environ.get("NBSUPPORT_HOME") or Path(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "nbsupport"
    )
    return Path(home).expanduser()


def canonical(specification: Specification) -> str:
    """The specification as JSON with sorted keys: equal if and only if the content is."""
    return json.dumps(specification, sort_keys=True, allow_nan=False)


def key(specification: Specification) -> str:
    """Sixteen hexadecimal digits that stand for the specification."""
    return sha256(canonical(specification).encode()).hexdigest()[:16]


def _report(reason: str, *discarded: Path) -> None:
    for path in discarded:  # first, because warnings may be errors
        path.unlink(missing_ok=True)
    warnings.warn(f"{reason}; making it again", CorruptArtefact, stacklevel=2)


class Store:
    """All artefacts under one folder.

    Parameters
    ----------
    home
        The folder; `default_home` where None. It is made when first needed.
    """

    def __init__(self, home: str | Path | None = None) -> None:
        self.home = Path(home).expanduser() if home is not None else default_home()

    def folder(self, specification: Specification) -> Path:
        """Where the artefact of `specification` is or would be; the specification has a ``kind`` and a ``name``."""
        name = "".join(c if c.isalnum() or c in "-+" else "_" for c in str(specification["name"]))[
            :40
        ]
        return self.home / str(specification["kind"]) / f"{name}-{key(specification)}"

    def has(self, specification: Specification) -> bool:
        """Whether the artefact was finished; its content is verified when it is used."""
        return (self.folder(specification) / "artefact.json").is_file()

    def tensors(
        self,
        specification: Specification,
        make: Callable[[Path], Tensors],
        *,
        together: bool = False,
    ) -> Tensors:
        """Named tensors and a report: the stored ones, or those that `make` returns.

        Parameters
        ----------
        specification
            What the tensors are a function of.
        make
            Gets a scratch folder, which survives interruptions. Its report comes back as it reads from JSON.
        together
            Whether all processes make it at once; else one does, and the others wait for it.
        """
        folder = self.folder(specification)
        with room(folder), locked(folder, together):
            if stored := self._read_tensors(folder, specification):
                return stored
            scratch = folder / "scratch"
            scratch.mkdir(exist_ok=True)
            made, report = make(scratch)
            if team()[0]:
                wait_for_team()
                return self._read_tensors(folder, specification) or (made, report)
            # cloned, because safetensors refuses tensors that share memory
            content = save(
                {name: tensor.detach().cpu().clone().contiguous() for name, tensor in made.items()}
            )
            write_atomically(
                folder / "tensors.safetensors", lambda temporary: temporary.write_bytes(content)
            )
            record = self._finish(
                folder, specification, {"report": report, "sha256": sha256(content).hexdigest()}
            )
            shutil.rmtree(scratch)
            wait_for_team()
            return load(content), record["report"]

    def _read_tensors(self, folder: Path, specification: Specification) -> Tensors | None:
        if (record := self._record(folder, specification)) is None:
            return None
        path = folder / "tensors.safetensors"
        try:
            content = path.read_bytes()  # once: what is used is what was verified
            if sha256(content).hexdigest() == record["sha256"]:
                return load(content), record["report"]
            reason = "its checksum differs from the recorded one"
        except OSError as error:
            reason = str(error)
        _report(f"{path}: {reason}", folder / "artefact.json")
        return None

    def array(
        self,
        specification: Specification,
        shape: tuple[int, ...],
        make: Callable[[slice, list[int]], np.ndarray],
        label: str = "",
        at_once: int = 10**9,
    ) -> Tensor:
        """A float16 array of `shape` (strengths, images, …), filled block by block.

        Parameters
        ----------
        specification, shape
            What the array is a function of, and its shape; a chunk holds one strength and 64 images.
        make
            From a slice of images and the numbers of the strengths that are missing there to
            an array of shape (strengths, images, …).
        label
            For the progress bar.
        at_once
            How many pairs of an image and a strength `make` is asked for between two moves of the bar.

        Raises
        ------
        ValueError
            If `make` returns NaN, which marks what is missing, or another shape.
        """
        folder = self.folder(specification)
        with room(folder), locked(folder, together=True):
            (rank, processes), finished = team(), self._record(folder, specification) is not None
            stored = self._open_array(folder / "array.zarr", shape)
            result = torch.empty(shape, dtype=torch.float16)
            blocks = [
                slice(start, min(start + BLOCK, shape[1])) for start in range(0, shape[1], BLOCK)
            ]
            mine = blocks[rank::processes]
            shown = {
                "desc": label,
                "disable": finished or not label,
                "position": accelerator().process_index or None,
            }
            with tqdm(
                total=shape[0] * sum(x.stop - x.start for x in mine), unit="image", **shown
            ) as bar:
                for block in mine:
                    missing = [
                        row
                        for row in range(shape[0])
                        if not self._read_chunk(stored, row, block, result)
                    ]
                    bar.update((shape[0] - len(missing)) * (block.stop - block.start))
                    if not missing:
                        continue
                    made, size = [], max(at_once // len(missing), 1)
                    for start in range(block.start, block.stop, size):
                        part = slice(start, min(start + size, block.stop))
                        made.append(make(part, missing))
                        bar.update(len(missing) * (part.stop - part.start))
                    for row, values in zip(missing, np.concatenate(made, axis=1), strict=True):
                        stored[row, block] = values
                        if not self._read_chunk(stored, row, block, result):
                            raise ValueError(
                                f"{folder.name}: NaN was made for strength {row} and {block}"
                            )
            wait_for_team()
            others = blocks if processes > 1 else []
            if not all(
                self._read_chunk(stored, row, block, result)
                for row in range(shape[0])
                for block in others
            ):
                raise OSError(
                    f"{folder.name}: another process has not written its part; start again"
                )
            if not finished and rank == 0:
                self._finish(folder, specification, {"shape": shape})
            return result

    @staticmethod
    def _open_array(path: Path, shape: tuple[int, ...]) -> zarr.Array:
        # NaN marks what is missing, so empty chunks must be written like any other
        options: dict[str, Any] = dict(
            shape=shape, chunks=(1, min(BLOCK, shape[1]), *shape[2:]), dtype="float16", fill_value=float("nan"),
            serializer=BytesCodec(), compressors=[Crc32cCodec()], config={"write_empty_chunks": True},
        )  # fmt: skip
        wanted = zarr.create_array(
            {}, **options
        ).metadata.to_dict()  # a dictionary, because NaN differs from itself
        if (description := path / "zarr.json").exists():
            try:
                found = zarr.open_array(path, mode="r").metadata.to_dict()
            except (
                Exception
            ) as error:  # whatever zarr meets there; the chunks have checksums of their own
                _report(f"{description}: {error}", description)
            else:
                if found != wanted:
                    shutil.rmtree(path)
                    _report(f"{path}: its description differs from the specified one")
        with contextlib.suppress(
            ContainsArrayError
        ):  # it is there, or zarr's thread still wrote it when interrupted
            zarr.create_array(path, **options)
        return zarr.open_array(path, mode="r+", config=options["config"])

    @staticmethod
    def _read_chunk(stored: zarr.Array, row: int, block: slice, result: Tensor) -> bool:
        """Read one chunk into `result`; False where it has to be made."""
        try:
            values = np.asarray(stored[row, block])
        except ValueError as error:
            _report(f"{stored.store_path}, strength {row}, images from {block.start}: {error}")
            return False
        result[row, block] = torch.from_numpy(values)
        return not np.isnan(values).any()

    @staticmethod
    def _record(folder: Path, specification: Specification) -> dict[str, Any] | None:
        """The content of ``artefact.json``; None where it is absent or damaged."""
        path = folder / "artefact.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            content = {name: value for name, value in record.items() if name != "digest"}
            if record["digest"] == key(content) and record["specification"] == json.loads(
                canonical(specification)
            ):
                return record
            reason = "its content differs from what was written"
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"it cannot be read ({error})"
        _report(f"{path}: {reason}", path)
        return None

    @staticmethod
    def _finish(
        folder: Path, specification: Specification, rest: Mapping[str, Any]
    ) -> dict[str, Any]:
        about = {
            "specification": specification,
            "made": datetime.now(UTC).isoformat(),
            "torch": torch.__version__,
        }
        record = json.loads(
            canonical({**about, **rest})
        )  # as it reads back, so that the digest will be the same
        text = json.dumps(record | {"digest": key(record)}, indent=1)
        write_atomically(
            folder / "artefact.json", lambda temporary: temporary.write_text(text, encoding="utf-8")
        )
        return record
