"""The rows of the paper's tables: how each denoiser is made, and where it stands."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..classifiers.models import Classifier
from ..denoisers.baselines import BASELINES
from ..denoisers.models import HEADS, Additive, Denoiser, Filtering, MultiHead, PAFilter, View, YNet
from ..study import STRONG_EPS
from ..training.losses import fusion_loss, image_loss, semantic_loss
from .cluster import balance

Objective = Callable[[Denoiser, Classifier, Tensor, Tensor, Tensor], Tensor]


def _image(
    denoiser: Denoiser, classifier: Classifier, images: Tensor, clean: Tensor, eps: Tensor
) -> Tensor:
    return image_loss(denoiser(images), clean)


def _semantic(
    denoiser: Denoiser, classifier: Classifier, images: Tensor, clean: Tensor, eps: Tensor
) -> Tensor:
    return semantic_loss(classifier, denoiser(images), clean)


def _heads(
    denoiser: Denoiser, classifier: Classifier, images: Tensor, clean: Tensor, eps: Tensor
) -> Tensor:
    """Every image teaches the head of its strength's band (section 3.4)."""
    assert isinstance(denoiser, MultiHead)
    bands = torch.tensor(
        [MultiHead.band(strength) for strength in eps.tolist()], device=images.device
    )
    parts = [(View(denoiser, head), bands == head) for head in range(1, HEADS + 1)]
    return torch.stack(
        [
            image_loss(head(images[mine]), clean[mine]) * mine.sum() / len(images)
            for head, mine in parts
            if mine.any()
        ]
    ).sum()


def _branches(
    denoiser: Denoiser, classifier: Classifier, images: Tensor, clean: Tensor, eps: Tensor
) -> Tensor:
    """All strengths teach φ_sl, the strong ones φ_m (section 4.2)."""
    assert isinstance(denoiser, YNet)
    loss = image_loss(View(denoiser, "sl")(images), clean)
    strong = torch.isin(eps, torch.tensor(STRONG_EPS)).to(images.device)
    weight = balance(strong)
    return (
        loss + weight * image_loss(View(denoiser, "m")(images[strong]), clean[strong])
        if strong.any()
        else loss
    )


def _fusion(
    denoiser: Denoiser, classifier: Classifier, images: Tensor, clean: Tensor, eps: Tensor
) -> Tensor:
    return fusion_loss(classifier, denoiser(images), clean)


@dataclass(frozen=True)
class Recipe:
    """How a denoiser is made.

    Attributes
    ----------
    build
        Its class; takes ``width`` and ``kernel_size``.
    objective
        From (denoiser, classifier, attacked images, clean images, ε of each) to the loss.
    strong_only
        Whether it sees only the attacks of `nbsupport.study.STRONG_EPS`.
    base
        The denoiser that it starts from.
    knowing
        Whether it learns against PGD through itself and the classifier, instead of stored attacks.
    literal
        Whether the fusion is the paper's to the letter: its loss, its inputs, the rate of all other trainings.
    """

    build: Callable[..., Denoiser]
    objective: Objective
    strong_only: bool = False
    base: str | None = None
    knowing: bool = False
    literal: bool = False


RECIPES = {
    "Add(L_img)": Recipe(Additive, _image),
    "Add(L_sem)": Recipe(Additive, _semantic),
    "Filt(L_img)": Recipe(Filtering, _image),
    "Filt(L_sem)": Recipe(Filtering, _semantic),
    "Filt(L_img*)": Recipe(Filtering, _image, strong_only=True),
    "Multi-head-Filt(L_img)": Recipe(MultiHead, _heads),
    "Y-Net": Recipe(YNet, _branches),
    "PA-Filt(L_img)": Recipe(PAFilter, _fusion, base="Y-Net"),
    "PA-Filt(L_img)_literal": Recipe(
        partial(PAFilter, literal=True), _fusion, base="Y-Net", literal=True
    ),
    "PA-Filt(L_adv)": Recipe(PAFilter, _fusion, base="PA-Filt(L_img)", knowing=True),
}
VIEWS: dict[str, tuple[str, int | str]] = {
    **{f"head_{head}": ("Multi-head-Filt(L_img)", head) for head in range(1, HEADS + 1)},
    "PA-Filt(L_img)_sl": ("Y-Net", "sl"),
    "PA-Filt(L_img)_m": ("Y-Net", "m"),
}
"""Rows that are one output of a denoiser with several."""

COMBINATIONS = {
    **{name: ("attacked", name) for name in ("Adv", "FPD", "FD")},
    **{
        f"{short}+{name}": (f"{short}(L_img)", name)
        for name in ("Adv", "FPD", "FD")
        for short in ("Add", "Filt")
    },
    "PA-Filt+Adv": ("PA-Filt(L_img)", "Adv"),
}
"""Rows with an adversarially trained classifier: the denoiser before it, and the classifier."""


def parts(method: str) -> tuple[str, str]:
    """The denoiser of a table's row, and the classifier behind it: ``standard`` in Tables 1 to 4."""
    return COMBINATIONS.get(method, (method, "standard"))


def trainings(methods: Iterable[str]) -> list[str]:
    """The recipes behind some methods, in a good order for several to work on: each after that from which it starts,
    and the longest such chains first."""

    def chain(name: str) -> list[str]:
        base = RECIPES[name].base
        return [*(chain(base) if base else ()), name]

    denoisers = [parts(method)[0] for method in methods]
    names = [VIEWS.get(denoiser, (denoiser, None))[0] for denoiser in denoisers]
    chains = sorted((chain(name) for name in names if name in RECIPES), key=len, reverse=True)
    return list(dict.fromkeys(name for chained in chains for name in chained))


LITERAL = "PA-Filt(L_img)_literal"
TABLES = {
    1: (
        "attacked",
        "Add(L_sem)",
        "Filt(L_sem)",
        "Add(L_img)",
        "Filt(L_img)",
        "Filt(L_img*)",
        *BASELINES,
    ),
    2: (
        "attacked",
        "Add(L_sem)",
        "Filt(L_sem)",
        "Add(L_img)",
        "Filt(L_img)",
        "Filt(L_img*)",
        *BASELINES,
    ),
    3: ("attacked", *(f"head_{head}" for head in range(1, HEADS + 1)), *BASELINES),
    4: (
        "attacked",
        "PA-Filt(L_img)_sl",
        "PA-Filt(L_img)_m",
        "PA-Filt(L_img)",
        LITERAL,
        "Filt(L_img)",
        *BASELINES,
    ),
    5: ("attacked", "Adv", "Add+Adv", "Filt+Adv", "PA-Filt+Adv"),
    6: ("attacked", "FPD", "Add+FPD", "Filt+FPD"),
    7: ("attacked", "FD", "Add+FD", "Filt+FD"),
}
"""The methods of the paper's tables, named as there, and the simple baselines."""

DEFENCES = (
    *dict.fromkeys(
        method
        for table in (1, 3, 4, 5)
        for method in TABLES[table]
        if method not in (*BASELINES, LITERAL)
    ),
    *BASELINES,
    "PA-Filt(L_adv)",
)
"""What the attacker who knows is set upon: everything of Tables 1 to 5, and PA-Filt trained against him."""
