"""A trained denoiser where it is needed: before a classifier, in a file, and exported without this package."""

import inspect
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..classifiers.trial import check_mode
from ..experiments.disk import write_atomically
from . import models as denoisers
from . import weight_files
from .models import Additive, Denoiser, PAFilter

TOLERANCE = 1e-5  # between an exported denoiser and the one it was made from


class Defended(nn.Module):
    """A classifier that sees denoised images; see `defend`.

    Attributes
    ----------
    classifier, denoiser
        The two, as given.
    """

    def __init__(self, classifier: nn.Module, denoiser: nn.Module) -> None:
        super().__init__()
        self.classifier, self.denoiser = classifier, denoiser

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """The classifier's logits of the denoised images; both images in [0, 1].

        Raises
        ------
        ValueError
            If the denoiser returns images of another shape, or one of the two refuses its images.
        """
        denoised = self.denoiser(images)
        if denoised.shape != images.shape:
            raise ValueError(
                f"defend: expected denoised images of {tuple(images.shape)}, got {tuple(denoised.shape)}"
            )
        return self.classifier(denoised)


def defend(classifier: nn.Module, denoiser: nn.Module) -> Defended:
    """Put a denoiser before a classifier: from images in [0, 1] to the logits of the denoised images.

    The result is differentiable, so an attacker who knows the denoiser attacks it as any classifier.

    Parameters
    ----------
    classifier
        From images in [0, 1] to logits, in evaluation mode.
    denoiser
        From images in [0, 1] to such of the same shape, in evaluation mode. Neither is copied or changed.

    Raises
    ------
    TypeError
        If one of them is no `nn.Module`, or they are the wrong way round.
    ValueError
        If one is in training mode, or they are on different devices.
    """
    for role, module in {"classifier": classifier, "denoiser": denoiser}.items():
        if not isinstance(module, nn.Module):
            raise TypeError(f"defend: expected an nn.Module as {role}, got {type(module).__name__}")
        check_mode(module, f"defend, {role}")
    if isinstance(classifier, Denoiser):
        raise TypeError("defend: the classifier comes first: defend(classifier, denoiser)")
    places = [
        next((str(weight.device) for weight in module.parameters()), "")
        for module in (classifier, denoiser)
    ]
    if all(places) and places[0] != places[1]:
        raise ValueError(
            f"defend: the classifier is on {places[0]}, the denoiser on {places[1]}; move one with .to()"
        )
    return Defended(classifier, denoiser).eval()


def save_denoiser(
    denoiser: Denoiser, path: str | Path, about: dict[str, Any] | None = None
) -> Path:
    """Write a trained denoiser as one safetensors file, with all that `load_denoiser` needs to build it.

    Parameters
    ----------
    denoiser
        One of `nbsupport.denoisers.models` as built by its class; of a `View` save the whole.
    path
        The file; it is replaced at once, or not at all.
    about
        Whatever should be known of it, such as `Artefacts.specification`; it has to fit into JSON.

    Raises
    ------
    TypeError
        If it is no denoiser that can be built again from its class, width and kernel size.
    """
    record = {
        "class": type(denoiser).__name__,
        "arguments": _arguments(denoiser),
        "about": about or {},
    }
    return weight_files.write(path, "denoiser", record, denoiser.state_dict())


def load_denoiser(path: str | Path) -> Denoiser:
    """A denoiser from the file that `save_denoiser` wrote, in evaluation mode, frozen, on the CPU.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, was altered, or holds something else.
    """
    content, tensors = weight_files.read(path, "denoiser")
    denoiser: Denoiser = _known(content["class"])(**content["arguments"])
    denoiser.load_state_dict(tensors)
    return denoiser.eval().requires_grad_(False)


def _known(name: str) -> Any:
    kind = getattr(denoisers, name, None)
    if not (
        inspect.isclass(kind)
        and issubclass(kind, Denoiser)
        and "width" in inspect.signature(kind).parameters
    ):
        raise TypeError(
            f"denoiser: {name} is no class of nbsupport.denoisers with a width; of a View save its whole"
        )
    return kind


def _arguments(denoiser: Denoiser) -> dict[str, Any]:
    """What builds a denoiser of the same shape, read off its layers, and tried."""
    kind = _known(type(denoiser).__name__)
    inner: Any = denoiser.ynet if isinstance(denoiser, PAFilter) else denoiser
    last = inner.output if hasattr(inner, "output") else next(iter(inner.outputs.children()))
    taps = last.in_channels // 3  # of the last block: 3·K·K channels, but for the literal Additive
    arguments = {"width": inner.encoder.blocks[0][0].out_channels, "kernel_size": isqrt(taps)}
    arguments["literal"] = getattr(
        denoiser, "literal", isinstance(denoiser, Additive) and taps == 1
    )
    with torch.device("meta"):
        built = kind(**arguments).state_dict()
    if {name: t.shape for name, t in built.items()} != {
        name: t.shape for name, t in denoiser.state_dict().items()
    }:
        raise TypeError(
            f"save_denoiser: this {kind.__name__} was changed after it was built and cannot be built again"
        )
    return arguments


class _Unchecked(nn.Module):
    """A denoiser as a graph: values of images cannot be checked in it."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, images: Tensor) -> Tensor:
        return self.denoiser.denoise(images).clamp(0, 1)


@torch.no_grad()
def export(denoiser: Denoiser, path: str | Path, image_size: int | tuple[int, int] = 224) -> Path:
    """Write a denoiser with `torch.export`: ``torch.export.load(path).module()`` needs PyTorch alone.

    Batches of any number of images pass, of the one size given. The graph does not check that they lie in
    [0, 1]. It is tried on one and on three images against the denoiser before the file is kept.

    Parameters
    ----------
    denoiser
        In evaluation mode.
    path
        The file, ``….pt2``; it is replaced at once, or not at all.
    image_size
        Height and width, or both where they are the same.

    Raises
    ------
    ValueError
        If it is in training mode, or the file has another ending.
    RuntimeError
        If what was exported computes something else.
    """
    check_mode(denoiser, "export")
    if Path(path).suffix != ".pt2":
        raise ValueError(
            f"export: expected a file that ends in .pt2, which torch.export.load asks for, got {path}"
        )
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    first = next(denoiser.parameters())
    examples = [
        torch.rand(number, 3, *size, generator=torch.Generator().manual_seed(0)).to(first)
        for number in (3, 1)
    ]
    batch = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(_Unchecked(denoiser), (examples[0],), dynamic_shapes=batch)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            torch.export.save(program, file)
        with temporary.open("rb") as file:
            exported = torch.export.load(file).module()
        for images in examples:
            if (difference := float((exported(images) - denoiser(images)).abs().max())) > TOLERANCE:
                raise RuntimeError(
                    f"export: the exported denoiser differs by {difference:.1e} from the original"
                )

    write_atomically(Path(path), write)
    return Path(path)
