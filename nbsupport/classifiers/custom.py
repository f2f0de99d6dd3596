"""A classifier that this project does not know: loaded from ``path/to/file.py:factory``, and named."""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from torch import nn

Result = TypeVar("Result")


def is_reference(name: str) -> bool:
    """Whether a study's classifier is a ``path/to/file.py:factory`` and no architecture known here."""
    return ":" in name or name.endswith(".py")


def load(reference: str) -> nn.Module:
    """What the factory of ``path/to/file.py:factory`` returns, called without arguments.

    The file may import its neighbours and read files beside it, as a script does.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the reference has another form, the file or the factory fails, or no `nn.Module` comes.
    """
    path, _, factory = reference.rpartition(":")
    if not path.endswith(".py") or not factory.isidentifier():
        raise ValueError(f"classifier: expected path/to/file.py:factory, got {reference!r}")
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise FileNotFoundError(f"classifier: there is no file {file}, named by {reference!r}")
    source = _imported(file)
    if not callable(make := getattr(source, factory, None)):
        there = [name for name, value in vars(source).items() if inspect.isfunction(value)]
        raise ValueError(
            f"classifier: {file.name} has no function {factory!r}; it has: {', '.join(there) or 'none'}"
        )
    module = _tried(make, f"{file.name}:{factory}()")
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"classifier: expected an nn.Module from {reference}, got {type(module).__name__}"
        )
    return module


def _tried(make: Callable[[], Result], what: str) -> Result:
    try:
        return make()
    except Exception as error:  # whatever the user's code raises
        raise ValueError(
            f"classifier: {what} failed with {type(error).__name__}: {error}"
        ) from error


def _imported(file: Path) -> ModuleType:
    # under a name that no other module has, yet in sys.modules, where dataclasses and pickle look
    name = f"outside_{sha256(str(file).encode()).hexdigest()[:8]}"
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification and specification.loader
    module = sys.modules[name] = importlib.util.module_from_spec(specification)
    run = specification.loader.exec_module
    sys.path.insert(0, str(file.parent))
    try:
        _tried(lambda: run(module), file.name)
    finally:
        sys.path.remove(str(file.parent))
    return module


def name(module: nn.Module) -> str:
    """What a classifier of one's own is called in tables: its class, or that of the network in it."""
    return type(getattr(module, "network", module)).__name__
