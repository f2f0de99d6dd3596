"""Use a trained denoiser: put it before a classifier, or export it as a graph."""

import io
from pathlib import Path

import torch
from torch import nn

from ..classifiers.models import check_mode
from ..data.images import Images, Logits, write_atomically
from .models import Denoiser


class Defended(nn.Module):
    """A denoiser before a classifier, see `defend`."""

    def __init__(self, classifier: nn.Module, denoiser: nn.Module) -> None:
        super().__init__()
        self.classifier, self.denoiser = classifier, denoiser

    def forward(self, images: Images) -> Logits:
        """Classify denoised images; raise `ValueError` if the denoiser changes their shape."""
        denoised = self.denoiser(images.clone())  # which may work in place
        if denoised.shape != images.shape:
            shapes = f"{tuple(images.shape)}, got {tuple(denoised.shape)}"
            raise ValueError(f"defend: expected denoised images of shape {shapes}")
        return self.classifier(denoised)


def defend(classifier: nn.Module, denoiser: nn.Module) -> Defended:
    """Put a denoiser before a classifier: images in [0, 1] to the logits of the denoised images.

    It shares both networks and is differentiable, so it can be attacked like any classifier. Raises
    `TypeError` if either is no `nn.Module` or their order is wrong, `ValueError` if either is in
    training mode or they are on different devices.
    """
    for role, module in {"classifier": classifier, "denoiser": denoiser}.items():
        if not isinstance(module, nn.Module):
            raise TypeError(f"defend: expected an nn.Module as {role}, got {type(module).__name__}")
        check_mode(module, f"defend, {role}")
    if isinstance(classifier, Denoiser):
        raise TypeError("defend: the classifier comes first: defend(classifier, denoiser)")
    defended = Defended(classifier, denoiser).eval()
    devices = {str(weight.device) for weight in defended.parameters()}
    if len(devices) > 1:
        raise ValueError(f"defend: expected one device, got {devices}; move one with .to()")
    return defended


@torch.no_grad()
def export(denoiser: Denoiser, path: str | Path, image_size: int | tuple[int, int] = 224) -> Path:
    """Export a denoiser to a ``.pt2`` file that runs without this package.

    ``torch.export.load(path).module()`` takes any number of images of `image_size` (height, width)
    and does not check their values. Raises `ValueError` in training mode or for another suffix.
    """
    check_mode(denoiser, "export")
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"export: expected a file name that ends in .pt2, got {path}")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    images = torch.zeros(2, 3, *size).to(next(denoiser.parameters(), torch.zeros(())))
    batch = {"images": {0: torch.export.Dim("batch")}}
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(denoiser, (images,), dynamic_shapes=batch), buffer)
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))
    return path
