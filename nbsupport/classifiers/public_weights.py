"""torchvision's classifiers with their public ImageNet weights, downloaded on first use."""

from pathlib import Path
from typing import Any

import torch
import torchvision
from jaxtyping import Float, Int
from torch import Tensor

from . import trial
from .models import Classifier

LEAST = 0.5  # accuracy below which labels or preprocessing are wrong: the public networks are far above it


def _weights(name: str) -> Any:
    try:
        known = torchvision.models.get_model_weights(name)
    except ValueError as error:
        raise ValueError(
            f"no classifier named {name!r} in torchvision.models with public weights"
        ) from error
    return getattr(known, "IMAGENET1K_V1", known.DEFAULT)


def _file(name: str) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", _weights(name).url.split("/")[-1])


def there(name: str) -> bool:
    """Whether the weights need not be downloaded."""
    return _file(name).exists()


def specification(name: str) -> dict[str, Any]:
    """What the classifier is; its weights' file name holds their hash."""
    return {
        "kind": "classifier",
        "name": name,
        "weights": str(_weights(name)),
        "file": _file(name).name,
    }


def load(name: str) -> Classifier:
    """A classifier of `torchvision.models` with its first public weights and the normalisation they are made for.

    Raises
    ------
    ValueError
        If there are no such weights.
    FileNotFoundError
        If they are not there and cannot be downloaded, or their file is damaged.
    """
    weights = _weights(name)
    try:
        network = torchvision.models.get_model(name, weights=weights)
    except (OSError, RuntimeError, EOFError) as error:
        raise FileNotFoundError(
            f"{name}: its public weights could not be read ({error}). Remove {_file(name)} if it is there, try again, "
            f"or put there what {weights.url} gives"
        ) from error
    transforms = weights.transforms()
    return (
        Classifier(network, tuple(transforms.mean), tuple(transforms.std))
        .eval()
        .requires_grad_(False)
    )


@torch.no_grad()
def check(
    classifier: Classifier, name: str, images: Float[Tensor, "n c h w"], labels: Int[Tensor, "n"]
) -> float:
    """The accuracy on clean images, printed before anything is made from them.

    Raises
    ------
    ValueError
        If labels count from 1, images are normalised twice, or the accuracy is below `LEAST`.
    """
    trial.check_meaning(classifier.unchecked, images, labels)
    accuracy = float((classifier(images).argmax(dim=1) == labels).float().mean())
    print(f"{name}: names {accuracy:.1%} of {len(labels)} clean images")
    if accuracy < LEAST:
        raise ValueError(
            f"{name}: it names only {accuracy:.1%} of {len(labels)} clean images; labels or preprocessing are wrong "
            f"(labels count from 0, images are resized to 256 and cut to 224)"
        )
    return accuracy
