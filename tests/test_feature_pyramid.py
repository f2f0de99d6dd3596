"""Against the same computation written out with the authors' names."""

import math
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from nbsupport.attacks.pgd import prepare
from nbsupport.classifiers.feature_pyramid import (
    FeaturePyramidDecoder,
    attack_target,
    build,
    load_authors_weights,
)
from nbsupport.classifiers.models import SmallResNet

BLOCKS = (2, 1, 1, 1)


class Narrow(Bottleneck):
    expansion = 1


def tiny():
    network = ResNet(Narrow, list(BLOCKS), num_classes=5, width_per_group=8)
    return FeaturePyramidDecoder(network, width=16).double().eval()


def small():
    """A small decoder whose batch norms have seen images."""
    torch.manual_seed(0)
    decoder = FeaturePyramidDecoder(SmallResNet(5, width=4), width=16, dropout=0.0)
    with torch.no_grad():
        for _ in range(5):
            decoder.outputs(torch.rand(8, 3, 12, 12))
    return decoder.eval()


def authors(images):
    """Random weights under the authors' names, restored images, values before the tanh."""
    generator, weights = torch.Generator().manual_seed(1), {}

    def draw(name, *shape):
        if name not in weights:  # the backbone runs twice
            values = torch.rand(shape, generator=generator) + (not name.endswith("bias")) / 2
            if len(shape) > 1:
                values = torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5
            weights[name] = values
        return weights[name].double()

    def conv(name, x, channels, size=1, **options):
        kernels = draw(f"{name}.weight", channels, x.shape[1], size, size)
        return F.conv2d(x, kernels, padding=size // 2, **options)

    def biased(name, x, channels, size=1):
        return conv(name, x, channels, size, bias=draw(f"{name}.bias", channels))

    def norm(name, x):
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)
        scale, shift, mean, variance = (
            draw(f"{name}.{kind}", x.shape[1]).view(-1, 1, 1)
            for kind in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def elu(x):
        return torch.where(x > 0, x, x.exp() - 1)

    def means(x):
        return torch.einsum("niab,nicd,njcd->njab", x, x, x) / (x.shape[2] * x.shape[3])

    def backbone(x):
        x = elu(norm("group1.bn1", conv("group1.conv1", x, 64, 7, stride=2)))
        x = F.max_pool2d(x, 3, 2, 1)
        x = x + means(x)
        outputs = []
        for number, count in enumerate(BLOCKS, start=1):
            width, channels = 4 * 2**number, 32 * 2**number
            for block in range(count):
                name, stride = f"layer{number}.{block}", 2 if number > 1 and block == 0 else 1
                y = elu(norm(f"{name}.group1.bn1", conv(f"{name}.group1.conv1", x, width)))
                y = conv(f"{name}.group1.conv2", y, width, 3, stride=stride)
                y = elu(norm(f"{name}.group1.bn2", y))
                y = norm(f"{name}.group1.bn3", conv(f"{name}.group1.conv3", y, channels))
                if x.shape[1] != channels:
                    x = conv(f"{name}.downsample.0", x, channels, stride=stride)
                    x = norm(f"{name}.downsample.1", x)
                x = elu(x + y)
            outputs.append(x)
            if number == 1:
                x = x + means(x)
        return outputs

    c2, c3, c4, c5 = backbone(images)
    p = biased("toplayer", c5, 16)
    for name, c in (("latlayer1", c4), ("latlayer2", c3), ("latlayer3", c2)):
        p = F.interpolate(p, c.shape[2:], mode="bilinear", align_corners=False)
        p = p + biased(name, c, 16)
    p = biased("smooth3", p, 16, 3)
    for number, (before, after, size) in enumerate(((16, 8, 2), (8, 2, 2), (2, 3, 1))):
        kernels = draw(f"trans_conv.{number}.weight", before, after, size, size)
        p = F.conv_transpose2d(p, kernels, draw(f"trans_conv.{number}.bias", after), stride=size)
    p = p[:, :, : images.shape[2], : images.shape[3]]
    deep = backbone(p + means(images))[-1].mean((2, 3))
    return weights, p, deep @ draw("group2.fc.weight", 5, 512).T + draw("group2.fc.bias", 5)


@pytest.mark.parametrize(
    ("size", "prefix", "zipped"),
    [((32, 32), "", True), ((35, 22), "module.", False), ((1, 2), "", True)],
)
def test_the_authors_weights_give_the_authors_outputs(tmp_path, size, prefix, zipped):
    decoder, images = tiny(), torch.rand(2, 3, *size, dtype=torch.float64)
    (weights, restored, values), path = authors(images), tmp_path / "bestmodel_params.pkl"
    file = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    torch.save({"state_dict": file, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    load_authors_weights(decoder, path)
    with torch.no_grad():
        prepared = prepare(decoder, images)
        found = (*decoder.outputs(images), decoder(images))
        found += (attack_target(decoder)(images), prepared(images))
    expected = (restored, values, values.tanh(), values, values.tanh())
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("mode", [True, False])
def test_attacks_differentiate_the_logits_before_the_tanh(mode):
    decoder, images = small(), torch.rand(3, 3, 12, 12)
    decoder.head[-1].weight.data *= 100
    target = attack_target(decoder.train(mode))
    assert all(module.training is mode for module in target.modules())
    decoder.eval()
    logits, values = decoder(images), target(images)
    torch.testing.assert_close(logits, torch.tanh(values))
    assert logits.abs().max() <= 1 < values.abs().max()
    assert attack_target(plain := nn.Linear(1, 1)) is plain


def test_every_parameter_learns_and_no_relu_is_left():
    decoder = small().train()
    restored, values = decoder.outputs(torch.rand(4, 3, 12, 12))
    loss = F.mse_loss(restored, torch.rand(4, 3, 12, 12))
    (loss + F.cross_entropy(values.tanh(), torch.arange(4))).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in decoder.parameters())
    activations = [module for module in decoder.modules() if isinstance(module, nn.ReLU | nn.ELU)]
    assert len(activations) == 4 and all(isinstance(module, nn.ELU) for module in activations)


def test_networks_by_name():
    assert build("small_resnet_fpd", 7, 16).train()(torch.rand(2, 3, 16, 16)).shape == (2, 7)
    assert build("resnet18_fpd", 5, 20).train()(torch.rand(2, 3, 20, 20)).shape == (2, 5)
    with torch.device("meta"):
        large = build("resnet50_fpd", 10, 64)
    assert [layer.in_channels for layer in large.decoder.lateral] == [256, 512, 1024, 2048]
    assert [layer.stride for layer in large.decoder.enlarge] == [(2, 2), (2, 2), (1, 1)]
    with torch.device("meta"), pytest.raises(ValueError, match="FPD needs a residual network"):
        build("vgg16_fpd", 10, 32)


def test_other_weights_are_refused_and_change_nothing(tmp_path):
    weights, *_ = authors(torch.zeros(1, 3, 8, 8).double())
    del weights["latlayer3.bias"]
    torch.save({"state_dict": weights}, tmp_path / "weights.pkl")
    decoder = tiny()
    before = {key: tensor.clone() for key, tensor in decoder.state_dict().items()}
    with pytest.raises(ValueError, match=r"weights\.pkl: .* got 1 .*: latlayer3.bias$"):
        load_authors_weights(decoder, tmp_path / "weights.pkl")
    assert all(torch.equal(tensor, before[key]) for key, tensor in decoder.state_dict().items())


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": Code()}], ids=["list", "code"])
def test_files_of_another_form_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "weights.pkl")
    with pytest.raises(ValueError, match=r"weights\.pkl: expected"):
        load_authors_weights(tiny(), tmp_path / "weights.pkl")
    assert not (tmp_path / "ran").exists()


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "weights.pkl"
    torch.save({"state_dict": tiny().state_dict()}, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"torch\.save"):
        load_authors_weights(tiny(), path)
