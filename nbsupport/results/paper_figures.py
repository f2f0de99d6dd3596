"""The pictures of a study: which images and tensors of it go into which `draw_…`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from ..attacks.adaptive import chain
from ..attacks.pgd import pgd
from ..classifiers.models import predicted_classes
from ..denoisers.filtering import uncertainty_map
from ..denoisers.models import Additive, KernelDenoiser, PAFilter
from ..denoisers.models import Filtering as FilteringDenoiser
from ..experiments.evaluation import Evaluation
from .diagrams import draw_architectures
from .plots import draw_before_after, draw_kernels, draw_parts, draw_uncertainty
from .tables import short


def fooled(evaluation: Evaluation, eps: float, number: int) -> list[int]:
    """The first `number` test images that the classifier gets right when clean and wrong when attacked with `eps`.

    Where there are fewer, other images follow. What a denoiser makes of them plays no part.
    """
    correct = evaluation.measurement("attacked").correct()
    telling = correct[0] & ~correct[evaluation.study.eps.index(eps)]
    return sorted(range(len(telling)), key=lambda image: not telling[image])[:number]


def image_choices(evaluation: Evaluation, images: Sequence[int]) -> dict[str, int]:
    """Test images under the labels of a slider: number and true class."""
    part = evaluation.artefacts.images("test")
    return {f"no. {image}, “{part.classes[part.labels[image]]}”": image for image in images}


@torch.no_grad()
def before_after(evaluation: Evaluation, method: str, image: int, eps: float) -> Figure:
    """One test image clean, attacked and denoised, with the classifier's word for each."""
    artefacts = evaluation.artefacts
    attacked, classes = artefacts.attacked("test"), artefacts.images("test").classes
    hat = attacked.pick(torch.tensor([evaluation.study.eps.index(eps)]), torch.tensor([image])).to(
        artefacts.device
    )
    three = torch.cat(
        [attacked.images[image : image + 1].to(hat), hat, artefacts.denoiser(method)(hat)]
    )
    words = predicted_classes(artefacts.classifier(), three, classes)
    clean, attacked_image, denoised = three.cpu()
    return draw_before_after(clean, attacked_image, denoised, words, eps, method)


@torch.no_grad()
def both_attackers(evaluation: Evaluation, method: str, image: int, eps: float) -> Figure:
    """One test image under the attacker who does not know the denoiser, and under the one who does.

    Each attacked image is shown before and after the denoiser, with the classifier's word for it.
    """
    artefacts, study = evaluation.artefacts, evaluation.study
    test, classifier, denoiser = (
        artefacts.images("test"),
        artefacts.classifier(),
        artefacts.denoiser(method),
    )
    clean, label = (
        part[image : image + 1].to(artefacts.device) for part in (test.images, test.labels)
    )
    panels: list[Any] = []
    for name, network in {
        "does not know": classifier,
        "knows": chain(denoiser, classifier),
    }.items():
        hat = pgd(network, clean, label, eps, steps=study.steps, seed=study.seed)
        for title, shown in {name: hat, "filtered": denoiser(hat)}.items():
            (word,) = predicted_classes(classifier, shown, test.classes)
            panels.append((shown[0].cpu(), f"{title}\n“{word}”"))
    (word,) = predicted_classes(classifier, clean, test.classes)
    return draw_parts(
        [{"label": f"ε = {short(eps)}", "panels": [(clean[0].cpu(), f"clean\n“{word}”"), *panels]}]
    )


def architectures(evaluation: Evaluation, image: int, eps: float) -> Figure:
    """Fig. 1 for one attacked test image."""
    artefacts = evaluation.artefacts
    additive, filtering, pa_filter = (
        artefacts.denoiser(n) for n in ("Add(L_img)", "Filt(L_img)", "PA-Filt(L_img)")
    )
    assert isinstance(additive, Additive)
    assert isinstance(filtering, FilteringDenoiser)
    assert isinstance(pa_filter, PAFilter)
    attacked = artefacts.attacked("test").at(eps)[image].to(artefacts.device)
    return draw_architectures(attacked, additive, filtering, pa_filter)


@torch.no_grad()
def uncertainty(evaluation: Evaluation, image: int) -> Figure:
    """Fig. 2: one test image over ε above its uncertainty maps under Filt(L_img), and the test set's means."""
    artefacts, eps = evaluation.artefacts, evaluation.study.eps
    filtering, attacked = artefacts.denoiser("Filt(L_img)"), artefacts.attacked("test")
    assert isinstance(filtering, KernelDenoiser)
    rows = torch.arange(len(eps))
    images = attacked.pick(rows, torch.full_like(rows, image)).to(artefacts.device)
    maps = uncertainty_map(filtering.kernels(images))[:, 0].cpu()
    means = evaluation.measurement("Filt(L_img)").extra["uncertainty"].numpy()
    return draw_uncertainty(list(images.cpu()), list(maps), eps, means)


class Panel(NamedTuple):
    """One picture of a row: its name, an image or a map, the classifier's word for an image, and a number in words."""

    name: str
    picture: Float[Tensor, "3 h w"] | Float[Tensor, "h w"]
    word: str | None
    note: str


@torch.no_grad()
def panels(evaluation: Evaluation, image: int, eps: float) -> list[Panel]:
    """Clean, attacked, Ĩ_sl, Ĩ_m, W and Ĩ of one test image under one strength.

    The number of an image is its PSNR against the clean one, that of W its mean.
    """
    artefacts = evaluation.artefacts
    attacked, classes = artefacts.attacked("test"), artefacts.images("test").classes
    pa_filter, clean = (
        artefacts.denoiser("PA-Filt(L_img)"),
        attacked.images[image].to(artefacts.device),
    )
    assert isinstance(pa_filter, PAFilter)
    hat = attacked.at(eps)[image : image + 1].to(artefacts.device)
    made = pa_filter.parts(hat)
    images = torch.cat([clean[None], hat, made.sl, made.m, pa_filter(hat)])
    words = predicted_classes(artefacts.classifier(), images, classes)
    errors = (images - clean).square().mean(dim=(1, 2, 3))
    notes = [f"{-10 * float(error.log10()):.1f} dB" if error > 0 else "" for error in errors]
    names = ("clean I", "attacked Î", "Ĩ_sl", "Ĩ_m", "Ĩ")
    found = [Panel(*each) for each in zip(names, images.cpu(), words, notes, strict=True)]
    found.insert(
        4, Panel("W", made.weight[0, 0].cpu(), None, f"mean {float(made.weight.mean()):.2f}")
    )
    return found


def parts(evaluation: Evaluation, image: int, strengths: Sequence[float]) -> Figure:
    """Fig. 3: the `panels` of one test image, a row per strength."""
    rows = []
    for eps in strengths:
        drawn = []
        for name, picture, word, note in panels(evaluation, image, eps):
            said = [f"“{word}”"] if word is not None else []
            drawn.append((picture, f"{name}\n" + ", ".join([*said, *([note] if note else [])])))
        rows.append({"label": f"ε = {short(eps)}", "panels": drawn})
    return draw_parts(rows)


@torch.no_grad()
def kernels(
    evaluation: Evaluation,
    method: str,
    image: int,
    strengths: Sequence[float],
    pixels: Mapping[str, tuple[int, int]],
) -> Figure:
    """Fig. 4: the kernels of `method` at some pixels of one test image, under each strength.

    Raises
    ------
    ValueError
        If the method does not filter.
    IndexError
        If a pixel lies outside of the image.
    """
    artefacts = evaluation.artefacts
    denoiser = artefacts.denoiser(method)
    if not isinstance(denoiser, KernelDenoiser):
        raise ValueError(f"kernels: expected a method that filters, got {method!r}")
    views = {}
    for eps in strengths:
        hat = artefacts.attacked("test").at(eps)[image : image + 1].to(artefacts.device)
        views[f"ε = {short(eps)}"] = hat[0].cpu(), denoiser.kernels(hat)[0].cpu()
    return draw_kernels(views, pixels)
