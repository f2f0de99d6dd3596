"""Against loops over positions, and tensorpack's computation: BGR, 0 … 255, SAME, splits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from nbsupport.attacks.pgd import prepare
from nbsupport.classifiers import feature_denoising
from nbsupport.classifiers.custom import load
from nbsupport.classifiers.feature_denoising import (
    DenoisingBlock,
    build,
    dot_product,
    embedded_gaussian,
    insert,
    load_authors_weights,
    pad_like_tensorflow,
)
from nbsupport.classifiers.models import IMAGENET_MEAN, IMAGENET_STD, Classifier

BLOCKS, GROUPS = (2, 1, 1, 1), 4


class Narrow(Bottleneck):
    expansion = 1


def tiny(after, embedded):
    network = ResNet(Narrow, list(BLOCKS), num_classes=5, groups=GROUPS, width_per_group=2)
    insert(network, after=after, embedded=embedded)
    pad_like_tensorflow(network)
    return Classifier(network).double().eval()


def positions(x):
    """From (c, h, w) to a list of vectors, row by row."""
    return [x[:, i, j] for i in range(x.shape[1]) for j in range(x.shape[2])]


@pytest.mark.parametrize("channels", [2, 30])
def test_dot_product_is_the_sum_over_all_positions(channels):
    x = np.random.default_rng(0).normal(size=(2, channels, 3, 4))
    expected = np.empty_like(x)
    for image, result in zip(x, expected, strict=True):
        vectors = positions(image)
        for i, here in enumerate(vectors):
            result[:, i // 4, i % 4] = sum((here @ there) * there for there in vectors) / 12
    np.testing.assert_allclose(dot_product(torch.tensor(x)).numpy(), expected, rtol=1e-12)


def test_embedded_gaussian_is_a_softmax_weighted_mean():
    random = np.random.default_rng(1)
    x, theta, phi = (random.normal(size=(2, channels, 3, 2)) for channels in (4, 9, 9))
    expected = np.empty_like(x)
    for image in range(2):
        vectors, keys = positions(x[image]), positions(phi[image])
        for i, query in enumerate(positions(theta[image])):
            weights = np.array([np.exp(query @ key / 3) for key in keys])
            expected[image][:, i // 2, i % 2] = weights / weights.sum() @ np.array(vectors)
    result = embedded_gaussian(*map(torch.tensor, (x, theta, phi)))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("embedded", [False, True])
def test_block_starts_as_the_identity_and_learns(embedded):
    torch.manual_seed(0)
    block, x = DenoisingBlock(6, embedded=embedded), torch.randn(3, 6, 4, 5, requires_grad=True)
    assert torch.equal(block(x), x) and torch.equal(block.eval()(x), x)
    block.train()(x).square().sum().backward()
    assert block.norm.weight.grad.abs().min() > 0  # what is 0 at the start can leave it
    nn.init.ones_(block.norm.weight)
    block(x).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in block.parameters())


def test_other_networks_are_refused():
    with torch.device("meta"), pytest.raises(ValueError, match="FD needs a residual network"):
        build("vgg16_fd", 10, 32)


@pytest.mark.parametrize(
    ("name", "number", "embeddings"), [("resnet152_fd", 4, 2), ("resnext101_32x8d_fd", 33, 0)]
)
def test_the_authors_networks_have_their_blocks_and_padding(name, number, embeddings):
    with torch.device("meta"):
        network = build(name, 1000, 224).network
    blocks = [module for module in network.modules() if isinstance(module, DenoisingBlock)]
    assert [len(block.embeddings) for block in blocks] == [embeddings] * number
    assert network.conv1.padding == network.layer2[0].conv2.padding == (0, 0)
    assert network.layer1[0].conv2.padding == (1, 1)


def test_the_authors_networks_have_their_normalisation(monkeypatch):
    plain = Classifier(ResNet(Narrow, [1, 1, 1, 1], num_classes=4), IMAGENET_MEAN)
    monkeypatch.setattr(feature_denoising, "build_residual", lambda *given: plain)
    classifier = build("resnext101_32x8d_fd", 4, 64)
    assert (classifier.mean == 0.5).all() and (classifier.std == 0.5).all()


SMALL = ["network.stem.3", *(f"network.stages.{number}.1" for number in range(3))]
LAYERS = [f"network.layer{stage}.2" for stage in (1, 2, 3, 4)]


@pytest.mark.parametrize(("name", "blocks"), [("small_resnet_fd", SMALL), ("resnet18_fd", LAYERS)])
def test_other_networks_have_blocks_after_stem_and_stages(name, blocks):
    classifier = build(name, 10, 16)
    modules = classifier.named_modules()
    assert [name for name, each in modules if isinstance(each, DenoisingBlock)] == blocks
    assert classifier(torch.rand(2, 3, 16, 16)).shape == (2, 10)
    imagenet = name == "resnet18_fd"  # no file of the authors
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet else ((0.5, 0.5, 0.5),) * 2
    assert classifier.mean.flatten().tolist() == pytest.approx(mean)
    assert classifier.std.flatten().tolist() == pytest.approx(std)


def tensorpack(after, photographs):
    """Random weights under tensorpack's names, and its logits of photographs, BGR from 0 to 255."""
    random, file = np.random.default_rng(3), {}

    def draw(name, *shape):
        values = random.uniform(0.3, 1.2, shape)
        if len(shape) > 1:
            values = random.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        file[name] = values.astype(np.float32)
        return torch.tensor(file[name], dtype=torch.float64)

    def same(x, size, stride, value):
        amounts = []
        for side in (x.shape[3], x.shape[2]):
            total = max((-(-side // stride) - 1) * stride + size - side, 0)
            amounts += [total // 2, total - total // 2]
        return F.pad(x, amounts, value=value)

    def conv(name, x, channels, size=1, stride=1, split=1):
        weights = draw(f"{name}/W", size, size, x.shape[1] // split, channels)
        kernels = weights.permute(3, 2, 0, 1).split(channels // split)
        pieces = same(x, size, stride, 0).split(x.shape[1] // split, 1)
        pairs = zip(pieces, kernels, strict=True)
        return torch.cat([F.conv2d(*pair, stride=stride) for pair in pairs], dim=1)

    def layer(name, *arguments):
        x = conv(name, *arguments)
        gamma, beta, mean, variance = (
            draw(f"{name}/bn/{kind}", x.shape[1]).view(-1, 1, 1)
            for kind in ("gamma", "beta", "mean/EMA", "variance/EMA")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * gamma + beta

    def denoised(name, x):
        channels, height, width = x.shape[1:]
        if after == "stages":
            theta = conv(f"{name}/embedding_theta", x, channels // 2)
            phi = conv(f"{name}/embedding_phi", x, channels // 2)
            scores = torch.einsum("niab,nicd->nabcd", theta, phi) / (channels // 2) ** 0.5
            scores = scores.flatten(3).softmax(3).view_as(scores)
        else:
            scores = torch.einsum("niab,nicd->nabcd", x, x) / (height * width)
        return x + layer(f"{name}/conv", torch.einsum("nabcd,nicd->niab", scores, x), channels)

    x = torch.tensor(photographs).permute(0, 3, 1, 2) / 127.5 - 1
    x = layer("conv0", x, 64, 7, 2).relu()
    x = F.max_pool2d(same(x, 3, 2, -torch.inf), 3, 2)
    for group, count in enumerate(BLOCKS):
        width, channels = 8 * 2**group, 64 * 2**group
        for block in range(count):
            name, stride = f"group{group}/block{block}", 2 if group > 0 and block == 0 else 1
            y = layer(f"{name}/conv1", x, width).relu()
            y = layer(f"{name}/conv2", y, width, 3, stride, GROUPS).relu()
            y = layer(f"{name}/conv3", y, channels)
            if x.shape[1] != channels:
                x = layer(f"{name}/convshortcut", x, channels, 1, stride)
            x = (x + y).relu()
            if after == "blocks":
                x = denoised(f"{name}/non_local", x)
        if after == "stages":
            x = denoised(f"group{group}_denoise", x)
    return file, x.mean((2, 3)) @ draw("linear/W", 512, 5) + draw("linear/b", 5)


@pytest.mark.parametrize(
    ("after", "suffix", "size"), [("blocks", "", (64, 45)), ("stages", ":0", (35, 34))]
)
def test_the_authors_weights_give_tensorpacks_logits(tmp_path, monkeypatch, after, suffix, size):
    def build(name, classes, image_size):  # narrower than theirs
        return tiny(*feature_denoising.AUTHORS_NETWORKS[name])

    monkeypatch.setattr(feature_denoising, "build", build)
    photographs = np.random.default_rng(4).uniform(0, 255, (2, *size, 3))
    file, expected = tensorpack(after, photographs)
    np.savez(tmp_path / "weights.npz", **{f"{name}{suffix}": array for name, array in file.items()})
    classifier = load(f"fd:{tmp_path}/weights.npz", image_size=224)
    images = torch.tensor(photographs[..., ::-1].copy()).permute(0, 3, 1, 2) / 255
    prepared = prepare(classifier, images)
    with torch.no_grad():
        for network in (classifier, prepared):
            torch.testing.assert_close(network(images), expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", ["group1/block0/conv2/bn/mean/EMA", "global_step", "conv0/W"])
def test_other_weights_are_refused_and_change_nothing(tmp_path, name):
    file, _ = tensorpack("blocks", np.zeros((1, 8, 8, 3)))
    if name.endswith("EMA"):
        del file[name]  # missing; the others are unknown or of another shape
    else:
        file[name] = np.zeros((64, 3, 7, 7))
    np.savez(tmp_path / "weights.npz", **file)
    classifier = tiny("blocks", embedded=False)
    before = {key: tensor.clone() for key, tensor in classifier.state_dict().items()}
    with pytest.raises(ValueError, match=rf"weights\.npz: .* got 1 .*: {name}$"):
        load_authors_weights(classifier, tmp_path / "weights.npz")
    assert all(torch.equal(tensor, before[key]) for key, tensor in classifier.state_dict().items())


def test_files_of_another_form_are_refused(tmp_path):
    classifier = tiny("blocks", embedded=False)
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "code.npz", **{"conv0/W": np.array([print], dtype=object)})
    (tmp_path / "cut.npz").write_bytes((tmp_path / "code.npz").read_bytes()[:100])
    for name in ("array.npy", "code.npz", "cut.npz"):
        with pytest.raises(ValueError, match=rf"{name}: expected an \.npz"):
            load_authors_weights(classifier, tmp_path / name)
