"""Trained networks of a study put where `nbsupport.shipped` finds them."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import shipped, weight_files
from .defence import save_denoiser
from .evaluation import Evaluation

METHODS = ("Add(L_img)", "Filt(L_img)", "Multi-head-Filt(L_img)", "PA-Filt(L_img)")


def ship(evaluation: Evaluation, folder: Path = shipped.FOLDER) -> list[Path]:
    """Write the classifier and the denoisers `METHODS`, at half precision, with what is known of them.

    Their accuracy is measured with the rounded weights, as they are loaded.

    Returns
    -------
    The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, artefacts = evaluation.study, evaluation.artefacts
    classifier = artefacts.classifier()
    arguments = {
        "name": study.classifier,
        "classes": len(artefacts.images("test").classes),
        "image_size": study.image_size,
    }
    known = _about(evaluation, nn.Identity()) | {"specification": artefacts.classifier_specification()}
    record = {"arguments": arguments, "about": known}
    written = [folder / f"{study.name}-classifier.safetensors"]
    weight_files.write(written[0], "classifier", record, classifier.state_dict())
    for method in METHODS:
        rounded = copy.deepcopy(artefacts.denoiser(method)).half()
        known = _about(evaluation, copy.deepcopy(rounded).float())
        written.append(folder / f"{study.name}-{method}.safetensors")
        save_denoiser(rounded, written[-1], known | {"specification": artefacts.specification(method)})  # type: ignore[arg-type]
    return written


@torch.no_grad()
def _about(evaluation: Evaluation, denoiser: nn.Module) -> dict[str, Any]:
    study, classifier = evaluation.study, evaluation.artefacts.classifier()
    attacked = evaluation.artefacts.attacked("test")
    right = {}
    for eps in study.eps:
        blocks = zip(attacked.at(eps).split(50), attacked.labels.split(50), strict=True)
        right[str(eps)] = sum(int((classifier(denoiser(hat)).argmax(1) == truth).sum()) for hat, truth in blocks)
    return {
        "accuracy": {
            "samples": shipped.right_on_samples(classifier, denoiser),
            "sample_strengths": list(shipped.SAMPLE_STRENGTHS),
            "test": {eps: number / study.test_images for eps, number in right.items()},
            "test_images": study.test_images,
        },
        "study": study.specification(),
        "again": f"python -m nbsupport compute --study {study.name} --scale {study.scale} --tables 1 3 4",
    }
