"""Against the same computation written out with the names of the published files."""

import math
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from nbsupport.attacks.pgd import prepare
from nbsupport.classifiers.feature_pyramid import FeaturePyramidDecoder, build, load_published
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


def published():
    """The weights of `tiny` under the authors' names, random."""
    generator, weights = torch.Generator().manual_seed(1), {}

    def layer(name, *shape, channels=None):
        weights[f"{name}.weight"] = (
            torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5
        )
        if channels:
            weights[f"{name}.bias"] = torch.randn(channels, generator=generator) / 5

    def conv(name, norm, *shape):
        layer(name, *shape)
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(7)
        for part in ("weight", "bias", "running_mean", "running_var"):
            weights[f"{norm}.{part}"] = (
                torch.rand(shape[0], generator=generator) + (part != "bias") * 0.5
            )

    conv("group1.conv1", "group1.bn1", 64, 3, 7, 7)
    before = 64
    for number, count in enumerate(BLOCKS, start=1):
        channels, width = 32 * 2**number, 4 * 2**number
        for block in range(count):
            name = f"layer{number}.{block}"
            conv(f"{name}.group1.conv1", f"{name}.group1.bn1", width, before, 1, 1)
            conv(f"{name}.group1.conv2", f"{name}.group1.bn2", width, width, 3, 3)
            conv(f"{name}.group1.conv3", f"{name}.group1.bn3", channels, width, 1, 1)
            if before != channels:
                conv(f"{name}.downsample.0", f"{name}.downsample.1", channels, before, 1, 1)
            before = channels
    for name, channels in {
        "toplayer": 512,
        "latlayer1": 256,
        "latlayer2": 128,
        "latlayer3": 64,
    }.items():
        layer(name, 16, channels, 1, 1, channels=16)
    layer("smooth3", 16, 16, 3, 3, channels=16)
    layer("trans_conv.0", 16, 8, 2, 2, channels=8)
    layer("trans_conv.1", 8, 2, 2, 2, channels=2)
    layer("trans_conv.2", 2, 3, 1, 1, channels=3)
    layer("group2.fc", 5, 512, channels=5)
    return weights


def authors(weights, images):
    """Restored images and values before the tanh, with the published weights."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def conv(name, x, **options):
        return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), **options)

    def norm(name, x):
        scale, shift, mean, variance = (
            w[f"{name}.{part}"].view(-1, 1, 1)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def elu(x):
        return torch.where(x > 0, x, x.exp() - 1)

    def means(x):
        return torch.einsum("niab,nicd,njcd->njab", x, x, x) / (x.shape[2] * x.shape[3])

    def backbone(x):
        x = elu(norm("group1.bn1", conv("group1.conv1", x, stride=2, padding=3)))
        x = F.max_pool2d(x, 3, 2, 1)
        x = x + means(x)
        outputs = []
        for number, count in enumerate(BLOCKS, start=1):
            for block in range(count):
                name, stride = f"layer{number}.{block}", 2 if number > 1 and block == 0 else 1
                y = elu(norm(f"{name}.group1.bn1", conv(f"{name}.group1.conv1", x)))
                y = elu(
                    norm(
                        f"{name}.group1.bn2",
                        conv(f"{name}.group1.conv2", y, stride=stride, padding=1),
                    )
                )
                y = norm(f"{name}.group1.bn3", conv(f"{name}.group1.conv3", y))
                if f"{name}.downsample.0.weight" in w:
                    x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride=stride))
                x = elu(x + y)
            outputs.append(x)
            if number == 1:
                x = x + means(x)
        return outputs

    c2, c3, c4, c5 = backbone(images)
    p = conv("toplayer", c5)
    for name, c in (("latlayer1", c4), ("latlayer2", c3), ("latlayer3", c2)):
        p = F.interpolate(p, c.shape[2:], mode="bilinear", align_corners=False) + conv(name, c)
    p = conv("smooth3", p, padding=1)
    for number, stride in enumerate((2, 2, 1)):
        name = f"trans_conv.{number}"
        p = F.conv_transpose2d(p, w[f"{name}.weight"], w[f"{name}.bias"], stride=stride)
    p = p[:, :, : images.shape[2], : images.shape[3]]
    deep = backbone(p + means(images))[-1].mean((2, 3))
    return p, deep @ w["group2.fc.weight"].T + w["group2.fc.bias"]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (35, 22)])
@pytest.mark.parametrize(("prefix", "zipped"), [("", True), ("module.", False)])
def test_published_weights_give_the_authors_outputs(tmp_path, prefix, zipped, height, width):
    weights, path = published(), tmp_path / "bestmodel_params.pkl"
    file = {
        "state_dict": {f"{prefix}{name}": tensor for name, tensor in weights.items()},
        "epoch": 3,
    }
    torch.save(file, path, _use_new_zipfile_serialization=zipped)
    decoder, images = tiny(), torch.rand(2, 3, height, width, dtype=torch.float64)
    load_published(decoder, path)
    with torch.no_grad():
        restored, values = authors(weights, images)
        torch.testing.assert_close(decoder.outputs(images)[0], restored, rtol=1e-7, atol=1e-10)
        torch.testing.assert_close(decoder.unsquashed(images), values, rtol=1e-7, atol=1e-10)
        torch.testing.assert_close(
            decoder.restore(images), restored.clamp(0, 1), rtol=1e-7, atol=1e-10
        )
        torch.testing.assert_close(decoder(images), values.tanh(), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (9, 15), (1, 2)])
def test_restored_images_have_the_size_of_the_images(height, width):
    decoder, images = small(), torch.rand(2, 3, height, width)
    restored = decoder.restore(images)
    assert restored.shape == images.shape
    assert restored.min() >= 0 and restored.max() <= 1


def test_logits_are_the_tanh_of_the_unsquashed_ones_and_come_from_the_features():
    decoder, images = small(), torch.rand(3, 3, 12, 12)
    decoder.head[-1].weight.data *= 100
    logits, values = decoder(images), decoder.unsquashed(images)
    torch.testing.assert_close(logits, torch.tanh(values))
    assert logits.abs().max() <= 1 < values.abs().max()
    torch.testing.assert_close(decoder.head[-1](decoder.features(images)), values)


@pytest.mark.parametrize("call", ["forward", "unsquashed", "restore", "features"])
def test_images_out_of_range_are_refused(call):
    with pytest.raises(ValueError, match=r"expected finite values in \[0, 1\]"):
        getattr(small(), call)(2 * torch.ones(1, 3, 12, 12))


def test_every_parameter_learns_and_no_relu_is_left():
    decoder = small().train()
    restored, values = decoder.outputs(torch.rand(4, 3, 12, 12))
    (
        F.mse_loss(restored, torch.rand(4, 3, 12, 12))
        + F.cross_entropy(values.tanh(), torch.arange(4))
    ).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in decoder.parameters())
    activations = [module for module in decoder.modules() if isinstance(module, nn.ReLU | nn.ELU)]
    assert len(activations) == 4 and all(isinstance(module, nn.ELU) for module in activations)


def test_restoration_is_learned_without_the_head():
    decoder, images = small().train(), torch.rand(8, 3, 12, 12)
    parameters = decoder.restoration_parameters()
    head = {id(parameter) for parameter in decoder.head.parameters()}
    assert len(head) == 2
    assert {id(parameter) for parameter in parameters} == {
        id(p) for p in decoder.parameters()
    } - head
    optimiser, losses = torch.optim.Adam(parameters, lr=1e-2), []
    for _ in range(20):
        optimiser.zero_grad()
        losses.append(F.mse_loss(decoder.restoration(images), images))
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("kind", ["small", "torchvision"])
def test_attacks_see_the_same_network(tmp_path, kind):
    if kind == "small":
        decoder = small().double()
    else:
        torch.save({"state_dict": published()}, tmp_path / "weights.pkl")
        decoder = tiny()
        load_published(decoder, tmp_path / "weights.pkl")
    images = torch.rand(2, 3, 21, 24, dtype=torch.float64)
    prepared = prepare(decoder, images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    with torch.no_grad():
        torch.testing.assert_close(prepared(images), decoder(images), rtol=1e-7, atol=1e-10)


def test_networks_by_name():
    assert build("small_resnet_fpd", 7, 16).train()(torch.rand(2, 3, 16, 16)).shape == (2, 7)
    with torch.device("meta"):
        large, low = build("resnet50_fpd", 10, 64), build("resnet50_fpd", 10, 32)
    assert [tuple(layer.weight.shape) for layer in large.decoder.lateral] == [
        (128, channels, 1, 1) for channels in (256, 512, 1024, 2048)
    ]
    assert [tuple(layer.weight.shape) for layer in large.decoder.enlarge] == [
        (128, 64, 2, 2), (64, 16, 2, 2), (16, 3, 1, 1)
    ]  # fmt: skip
    assert [layer.stride for layer in large.decoder.enlarge] == [(2, 2), (2, 2), (1, 1)]
    assert [layer.stride for layer in low.decoder.enlarge] == [(1, 1)] * 3
    with pytest.raises(
        ValueError, match="FPD changes the stages of a residual network, and 'vgg16' is none"
    ):
        build("vgg16_fpd", 10, 32)
    assert build("resnet18_fpd", 5, 20).train()(torch.rand(2, 3, 20, 20)).shape == (2, 5)
    with pytest.raises(
        TypeError, match=r"expected a ResNet of torchvision or a SmallResNet, got Linear"
    ):
        FeaturePyramidDecoder(nn.Linear(1, 1))


def faulty(weights, fault):
    if fault == "missing":
        return {name: tensor for name, tensor in weights.items() if name != "latlayer3.bias"}
    if fault == "unknown":
        return weights | {"mean": torch.zeros(1, 3, 1, 1)}
    return weights | {"group2.fc.weight": torch.zeros(10, 512)}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"1 missing: latlayer3\.bias$"),
        ("unknown", r"1 unknown: mean$"),
        ("shape", r"1 wrong shape: group2\.fc\.weight \(10, 512\) for \(5, 512\)$"),
    ],
)
def test_other_weights_are_refused_and_change_nothing(tmp_path, fault, message):
    torch.save({"state_dict": faulty(published(), fault)}, tmp_path / "weights.pkl")
    decoder = tiny()
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"weights\.pkl: not the weights of this network; " + message
    ):
        load_published(decoder, tmp_path / "weights.pkl")
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.state_dict().items())


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"expected {'state_dict': …}"),
        ({"weights": {}}, r"expected {'state_dict': …}"),
        ({"state_dict": {"group1.conv1.weight": 1.0}}, r"with a tensor for every name"),
        ({"state_dict": Code()}, "without code"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "weights.pkl")
    with pytest.raises(ValueError, match=r"weights\.pkl: .*" + message):
        load_published(tiny(), tmp_path / "weights.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"weights", "half"])
def test_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "weights.pkl"
    torch.save({"state_dict": published()}, path)
    path.write_bytes(
        path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content
    )
    with pytest.raises(ValueError, match=r"expected weights which torch\.save wrote"):
        load_published(tiny(), path)
    with pytest.raises(FileNotFoundError):
        load_published(tiny(), tmp_path / "none")
