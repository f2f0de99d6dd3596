"""The study `photographs`: patches of ten colour photographs; the class is the photograph.

They come with scikit-image and scikit-learn, which state these licences:

* astronaut (NASA), hubble_deep_field (NASA), rocket (SpaceX): public domain
* chelsea (Stefan van der Walt), coffee (Rachel Michetti), retina (Mikael Häggström): CC0
* immunohistochemistry (CMMI): no known copyright restrictions
* motorcycle, left of stereo_motorcycle (Scharstein et al., GCPR 2014; Middlebury): none stated
* china, flower (Flickr: danielbuechele, vultilion): CC BY 2.0

A band of each photograph, from top to bottom, is for testing. It starts in the middle of the
subject, at `STARTS` relative to the photograph's width; its own width is `BAND` relative to the
shorter side. Test patches lie inside, training patches outside, so no pixel is in both.
A patch is a square at a random place, its side `SIDES` relative to the shorter side. It is resized
to 32 × 32 pixels with antialiasing. Then each channel's mean is removed, the standard deviation of
all values set to `CONTRAST`, and .5 added, clipped to [0, 1]; otherwise colours would give the
class away. A patch flatter than `FLAT` is drawn anew. The classes take turns.
"""

from functools import lru_cache
from hashlib import sha256

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from .images import Images, Split

STARTS = {
    "astronaut": 0.49, "chelsea": 0.55, "coffee": 0.45, "hubble_deep_field": 0.5,
    "immunohistochemistry": 0.5, "retina": 0.5, "rocket": 0.5, "motorcycle": 0.5, "china": 0.33,
    "flower": 0.52,
}  # fmt: skip
NUMBERS = {"train": 12000, "test": 1000}
SIZE, BAND, SIDES, CONTRAST, FLAT = 32, 0.38, (0.2, 0.35), 0.15, 0.05


@lru_cache(maxsize=1)
def photographs() -> dict[str, UInt8[Tensor, "3 h w"]]:
    """All photographs by name, at their full sizes."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    found = {}
    for name in STARTS:
        if name in ("china", "flower"):
            pixels = load_sample_image(f"{name}.jpg")
        elif name == "motorcycle":
            pixels = skimage.data.stereo_motorcycle()[0]
        else:
            pixels = getattr(skimage.data, name)()
        found[name] = torch.tensor(pixels).permute(2, 0, 1)
    return found


def load(split: str, number: int | None = None, size: int = SIZE, skip: int = 0) -> Split:
    """At most `number` patches of ``train`` or ``test`` after the first `skip`, cut when needed."""
    left, digest = max(NUMBERS[split] - skip, 0), sha256()
    number = min(number or left, left)
    for pixels in photographs().values():
        digest.update(pixels.numpy().tobytes())
    specification = {
        "data": "photographs", "split": split, "size": size, "images": number, "skip": skip,
        "source": "photographs of scikit-image and scikit-learn", "content": digest.hexdigest(),
        "starts": [*STARTS.values()], "band": BAND, "sides": [*SIDES], "patch": SIZE,
        "contrast": CONTRAST, "flat": FLAT,
    }  # fmt: skip
    labels = torch.arange(skip, skip + number) % len(STARTS)
    return Split(
        lambda: resize(cut(split, skip + number)[skip:], [size, size], antialias=True).clamp(0, 1),
        labels, tuple(STARTS), specification,
    )  # fmt: skip


def cut(split: str, number: int) -> Images:
    """Cut the first patches of a split; the i-th shows photograph i modulo ten."""
    every, patches = [*photographs().items()], list[Tensor]()
    generator = np.random.default_rng([*NUMBERS].index(split))
    while len(patches) < number:
        name, pixels = every[len(patches) % len(every)]
        _, height, width = pixels.shape
        shorter, start = min(height, width), int(STARTS[name] * width)
        side, end = int(generator.uniform(*SIDES) * shorter), start + int(BAND * shorter)
        low, high = (start, end) if split == "test" else (0, width)
        left, top = generator.integers((low, 0), (high - side + 1, height - side + 1)).tolist()
        if split == "train" and start - side < left < end:
            continue
        patch = pixels[:, top : top + side, left : left + side] / 255
        patch = resize(patch, [SIZE, SIZE], antialias=True)
        patch -= patch.mean(dim=(1, 2), keepdim=True)
        if (deviation := patch.std()) >= FLAT:
            patches.append((0.5 + CONTRAST * patch / deviation).clamp(0, 1))
    return torch.stack(patches)
