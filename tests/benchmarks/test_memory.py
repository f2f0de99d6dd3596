"""What the paper's scale takes of a GPU's memory: the tensors that autograd keeps, counted on a processor."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from nbsupport.attacks.pgd import CHUNK, prepare
from nbsupport.classifiers.models import build
from nbsupport.experiments.methods import RECIPES
from nbsupport.study import Study
from nbsupport.training.loop import choose_precision

NAMES = ("Filt(L_img)", "Filt(L_sem)", "Y-Net", "PA-Filt(L_img)")
EPS = torch.tensor([1e-4, 1e-3, 1e-2, 1e-1])  # one of four is among those that teach φ_m
ADAM = 16  # bytes per weight in float32: itself, its gradient and Adam's two moments


def saved(run, *networks):
    """Bytes of all that the backward pass needs beside the weights; what lies in one piece of memory once."""
    known = {
        each.untyped_storage().data_ptr()
        for net in networks
        for each in (*net.parameters(), *net.buffers())
    }
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = (
            tensor  # kept, so that no other comes to lie in the same place
        )
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(
        tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in known
    )


def grown(learn, number, *networks):
    """Bytes for `number` examples, from those for four and eight: some are needed whatever the number is."""
    four, eight = (saved(partial(learn, times), *networks) for times in (1, 2))
    return four + (eight - four) * (number - len(EPS)) / len(EPS)


@pytest.mark.parametrize("way", ["ours"])
@pytest.mark.parametrize("name", ["cifar10", "neurips2017dev"])
def test_memory_at_the_papers_scale(benchmark, name, way):
    study, lines = Study.named(name, "paper"), []
    size, images = study.image_size, torch.rand(len(EPS), 3, study.image_size, study.image_size)
    classifier = (
        build(study.classifier, 10 if size == 32 else 1000, size).eval().requires_grad_(False)
    )
    attacked = prepare(classifier, images[:2])

    def learn(recipe, denoiser, times):
        batch = images.repeat(times, 1, 1, 1)
        low = choose_precision(study.precision, torch.device("cpu")) == "bfloat16"
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            RECIPES[recipe].objective(denoiser, classifier, batch, batch, EPS.repeat(times))

    def attack(times):
        inputs = images.repeat(times, 1, 1, 1).requires_grad_()
        F.cross_entropy(attacked(inputs), torch.zeros(len(inputs)).long())

    def count():
        for recipe in NAMES:
            denoiser = (
                RECIPES[recipe].build(width=study.width, kernel_size=study.kernel_size).train()
            )
            batch = grown(partial(learn, recipe, denoiser), study.batch_size, denoiser, classifier)
            weights = sum(parameter.numel() for parameter in denoiser.parameters()) * ADAM
            lines.append(
                f"training {recipe}, batches of {study.batch_size}: {(batch + weights) / 1e9:.1f} GB"
            )
        lines.append(
            f"attacking {CHUNK['cuda']} images at once: {grown(attack, CHUNK['cuda'], attacked) / 1e9:.1f} GB"
        )

    benchmark.group = f"memory at the paper's scale, {name}"
    benchmark.pedantic(count, rounds=1)
    print(f"\n{name}: " + "; ".join(lines))
