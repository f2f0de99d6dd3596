"""Eqs. 4 and 5 and the fusion's cross-entropy against NumPy."""

import jaxtyping
import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn

from nbsupport.classifiers.models import Classifier
from nbsupport.training.losses import fusion_loss, image_loss, semantic_loss


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 7), nn.Tanh(), nn.Linear(7, 5))
    return Classifier(network).double().requires_grad_(False)


@pytest.fixture
def denoised():
    return torch.rand(
        6, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).requires_grad_()


@pytest.fixture
def clean():
    return torch.rand(
        6, 3, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    ).requires_grad_()


def test_image_loss_is_the_mean_distance_of_pixels(denoised, clean):
    expected = np.abs(denoised.detach().numpy() - clean.detach().numpy()).mean()
    assert image_loss(denoised, clean).item() == pytest.approx(expected)


def test_semantic_loss_is_the_mean_distance_of_logits(classifier, denoised, clean):
    expected = np.abs(
        classifier(denoised).detach().numpy() - classifier(clean).detach().numpy()
    ).mean()
    assert semantic_loss(classifier, denoised, clean).item() == pytest.approx(expected)


def test_semantic_loss_on_features_is_the_mean_distance_before_the_last_layer(
    classifier, denoised, clean
):
    before = nn.Sequential(*classifier.network[:3])
    features = [before((images - 0.5) / 0.5).detach().numpy() for images in (denoised, clean)]
    expected = np.abs(features[0] - features[1]).mean()
    assert semantic_loss(classifier, denoised, clean, layer="features").item() == pytest.approx(
        expected
    )


def test_fusion_loss_is_the_cross_entropy_with_soft_labels(classifier, denoised, clean):
    labels = softmax(classifier(clean).detach().numpy(), axis=1)
    logs = log_softmax(classifier(denoised).detach().numpy(), axis=1)
    assert fusion_loss(classifier, denoised, clean).item() == pytest.approx(
        -(labels * logs).sum(axis=1).mean()
    )


def test_weights_multiply_each_images_part_of_the_fusion_loss(classifier, denoised, clean):
    weights = torch.linspace(0.5, 2, len(clean))
    alone = [
        fusion_loss(classifier, denoised[i : i + 1], clean[i : i + 1]).item()
        for i in range(len(clean))
    ]
    expected = np.mean([part * float(weight) for part, weight in zip(alone, weights, strict=True)])
    assert fusion_loss(classifier, denoised, clean, weights).item() == pytest.approx(
        expected, rel=1e-5
    )


LOSSES = {
    "logits": semantic_loss,
    "features": lambda classifier, denoised, clean: semantic_loss(
        classifier, denoised, clean, layer="features"
    ),
    "fusion": fusion_loss,
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@every_loss
def test_the_gradient_reaches_the_denoised_images_and_never_the_clean_ones(
    loss, classifier, denoised, clean
):
    loss(classifier, denoised, clean).backward()
    assert denoised.grad.abs().sum() > 0
    assert clean.grad is None


@every_loss
def test_nothing_pulls_at_a_perfectly_denoised_image(loss, classifier, clean):
    denoised = clean.detach().clone().requires_grad_()
    loss(classifier, denoised, clean).backward()
    torch.testing.assert_close(denoised.grad, torch.zeros_like(denoised))


@every_loss
def test_a_frozen_classifier_learns_nothing(loss, classifier, denoised, clean):
    loss(classifier, denoised, clean).backward()
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_an_unknown_layer_is_refused(classifier, denoised, clean):
    with pytest.raises(
        ValueError, match="semantic_loss: expected the layer 'logits' or 'features', got 'conv1'"
    ):
        semantic_loss(classifier, denoised, clean, layer="conv1")


def test_images_of_different_shapes_are_refused(denoised, clean):
    with pytest.raises(jaxtyping.TypeCheckError):
        image_loss(denoised, clean[:1])
