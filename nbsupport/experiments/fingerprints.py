"""What stands for a network in the key of an artefact: hashes of its weights and of its text."""

import inspect
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..classifiers.custom import is_reference, name


def made_from(specification: dict[str, Any], *networks: nn.Module) -> dict[str, Any]:
    """The specification with the content of the networks that an artefact is made from.

    Training again on another machine ends at other weights. What was made from the former ones then
    has another key, so it is neither used nor continued with the new ones.
    """
    return specification | {"made_from": [weights(network) for network in networks]}


def weights(module: nn.Module) -> str:
    """A hash of all weights and buffers of a network, with their names."""
    digest = sha256()
    for key, tensor in sorted(
        [*module.named_parameters(), *module.named_buffers()], key=lambda item: item[0]
    ):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {values.dtype} {tuple(values.shape)} ".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fingerprint(module: nn.Module, reference: str = "") -> dict[str, str]:
    """The specification of an outside classifier: hashes of all that its logits are a function of.

    That is the weights with all buffers, the structure, and the text that defines it: the file of
    `reference` where it is one, else what can be looked up of its classes. No path is part of it.
    """
    file, text = Path(reference.rpartition(":")[0]).expanduser(), "".join(_sources(module))
    if outside := is_reference(reference):
        text = file.read_text(encoding="utf-8")
    return {
        "kind": "classifier",
        "name": f"{file.name}:{reference.rpartition(':')[2]}" if outside else name(module),
        "text": sha256(text.encode()).hexdigest(),
        "structure": sha256(repr(module).encode()).hexdigest(),
        "weights": weights(module),
    }


def _sources(module: nn.Module) -> list[str]:
    """The text of all classes in `module` that can be looked up; those defined in some terminals cannot."""
    sources = []
    for kind in sorted(
        {type(part) for part in module.modules()}, key=lambda kind: kind.__qualname__
    ):
        if not kind.__module__.startswith(("torch.", "torchvision.")):
            try:
                sources.append(inspect.getsource(kind))
            except (OSError, TypeError):
                continue
    return sources
