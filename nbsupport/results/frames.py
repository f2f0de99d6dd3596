"""What a slider over ε shows in a page that computes nothing: all frames of one test image, on one sheet."""

from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from ..experiments.evaluation import Evaluation
from .paper_figures import panels


@dataclass(frozen=True)
class Frames:
    """Pictures of one test image, pixel by pixel, one row per strength.

    Attributes
    ----------
    pixels
        The sheet: squares of `size` × `size` pixels, row after row, RGB.
    size
        Height and width of a picture.
    image, truth
        The number of the test image, and its class.
    eps
        The strength of each row.
    names
        Of the columns.
    words, notes
        For each row and column what the classifier sees (None in a map), and a number in words.
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    size: int
    image: int
    truth: str
    eps: tuple[float, ...]
    names: tuple[str, ...]
    words: tuple[tuple[str | None, ...], ...]
    notes: tuple[tuple[str, ...], ...]

    def index(self) -> dict[str, Any]:
        """Everything but the pixels, for the record beside the sheet."""
        return {name: value for name, value in vars(self).items() if name != "pixels"}


def painted(picture: Tensor) -> UInt8[np.ndarray, "h w 3"]:
    """An image in [0, 1], or a map of weights in the colours of the figures, in 8 bits."""
    values = picture.detach().cpu().numpy()
    if values.ndim == 2:
        coloured = matplotlib.colormaps["cividis"](values)[..., :3]
    else:
        coloured = values.transpose(1, 2, 0).clip(0, 1)
    return (255 * coloured).round().astype(np.uint8)


def frames(evaluation: Evaluation, image: int) -> Frames:
    """The panels of Fig. 3 of one test image, under every strength of the study."""
    test, eps = evaluation.artefacts.images("test"), evaluation.study.eps
    rows = [panels(evaluation, image, strength) for strength in eps]
    return Frames(
        pixels=np.concatenate(
            [np.concatenate([painted(panel.picture) for panel in row], axis=1) for row in rows]
        ),
        size=evaluation.study.image_size,
        image=image,
        truth=str(test.classes[test.labels[image]]),
        eps=eps,
        names=tuple(panel.name for panel in rows[0]),
        words=tuple(tuple(panel.word for panel in row) for row in rows),
        notes=tuple(tuple(panel.note for panel in row) for row in rows),
    )
