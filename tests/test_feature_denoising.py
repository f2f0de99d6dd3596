"""Against loops over positions, and against tensorpack's own way of computing: BGR, 0 … 255, SAME, split channels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import Bottleneck, ResNet

from nbsupport.attacks.pgd import prepare
from nbsupport.classifiers.feature_denoising import (
    DenoisingBlock,
    build,
    dot_product,
    embedded_gaussian,
    insert,
    load_published,
    pad_like_tensorflow,
    stages,
)
from nbsupport.classifiers.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Classifier,
    SmallResNet,
    feature_denoising,
)

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


@pytest.mark.parametrize(("channels", "height"), [(2, 9), (9, 2)])
def test_dot_product_takes_the_cheaper_order(channels, height):
    with FlopCounterMode(display=False) as counter:
        dot_product(torch.rand(1, channels, height, 1))
    assert counter.get_total_flops() == 2 * (2 * 2 * 2 * 9)


def test_embedded_gaussian_is_a_softmax_weighted_mean():
    random = np.random.default_rng(1)
    x, theta, phi = (
        random.normal(size=(2, 4, 3, 2)),
        random.normal(size=(2, 9, 3, 2)),
        random.normal(size=(2, 9, 3, 2)),
    )
    expected = np.empty_like(x)
    for image in range(2):
        vectors, keys = positions(x[image]), positions(phi[image])
        for i, query in enumerate(positions(theta[image])):
            weights = np.array([np.exp(query @ key / 3) for key in keys])
            mean = sum(
                weight * vector
                for weight, vector in zip(weights / weights.sum(), vectors, strict=True)
            )
            expected[image][:, i // 2, i % 2] = mean
    result = embedded_gaussian(torch.tensor(theta), torch.tensor(phi), torch.tensor(x))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("embedded", [False, True])
def test_block_starts_as_the_identity_and_learns(embedded):
    torch.manual_seed(0)
    block, x = DenoisingBlock(6, embedded=embedded), torch.randn(3, 6, 4, 5, requires_grad=True)
    assert torch.equal(block(x), x) and torch.equal(block.eval()(x), x)
    block.train()(x).square().sum().backward()
    assert block.norm.weight.grad.abs().min() > 0  # what is 0 at the start can leave it
    nn.init.ones_(block.norm.weight)
    block.zero_grad()
    block(x).square().sum().backward()
    assert sum(1 for _ in block.parameters()) == (5 if embedded else 3)
    assert all(parameter.grad.abs().max() > 0 for parameter in block.parameters())
    assert not torch.allclose(block(x), x)


@pytest.mark.parametrize("embedded", [False, True])
def test_block_is_batch_norm_of_a_1x1_convolution_of_the_mean(embedded):
    torch.manual_seed(1)
    block, x = DenoisingBlock(6, embedded=embedded).eval(), torch.randn(2, 6, 3, 3)
    nn.init.constant_(block.norm.weight, 2.0)
    nn.init.constant_(block.norm.bias, 0.5)
    mean = dot_product(x)
    if embedded:
        assert [layer.weight.shape for layer in block.embeddings.values()] == [(3, 6, 1, 1)] * 2
        theta, phi = (
            torch.einsum("oc,bchw->bohw", layer.weight[..., 0, 0], x)
            for layer in block.embeddings.values()
        )
        mean = embedded_gaussian(theta, phi, x)
    expected = (
        x
        + 2 * torch.einsum("oc,bchw->bohw", block.conv.weight[..., 0, 0], mean) / (1 + 1e-5) ** 0.5
        + 0.5
    )
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("after", ["stages", "blocks"])
@pytest.mark.parametrize("kind", ["torchvision", "small"])
def test_insertion_is_in_the_right_places_and_changes_nothing_yet(kind, after):
    network = (
        ResNet(Narrow, list(BLOCKS))
        if kind == "torchvision"
        else SmallResNet(10, width=4, blocks=2)
    )
    counts = BLOCKS if kind == "torchvision" else (2, 2, 2)
    images = torch.rand(2, 3, 32, 32)
    before = (
        network.eval()(images)
        if kind == "torchvision"
        else network.eval().head(network.stages(network.stem(images)))
    )
    insert(network, after=after, embedded=True)
    for count, stage in zip(counts, stages(network), strict=True):
        expected = [False, True] * count if after == "blocks" else [False] * count + [True]
        assert [isinstance(module, DenoisingBlock) for module in stage] == expected
    torch.testing.assert_close(network.eval()(images), before)


def test_insertion_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="after='stages' or after='blocks', got 'everywhere'"):
        insert(SmallResNet(10), after="everywhere", embedded=False)
    with pytest.raises(
        TypeError, match=r"expected a ResNet of torchvision or a SmallResNet, got Linear"
    ):
        insert(nn.Linear(1, 1), after="stages", embedded=False)


def test_small_network_has_four_blocks():
    classifier = build("small_resnet_fd", 10, 16)
    blocks = [
        name for name, module in classifier.named_modules() if isinstance(module, DenoisingBlock)
    ]
    assert blocks == [
        "network.stem.3",
        "network.stages.0.1",
        "network.stages.1.1",
        "network.stages.2.1",
    ]
    assert classifier(torch.rand(2, 3, 16, 16)).shape == (2, 10)
    assert classifier.features(torch.rand(2, 3, 16, 16)).shape == (2, 64)


@pytest.mark.parametrize(
    ("name", "number", "embeddings"), [("resnet152_fd", 4, 2), ("resnext101_32x8d_fd", 33, 0)]
)
def test_published_networks_have_their_blocks(name, number, embeddings):
    with torch.device("meta"):
        classifier = build(name, 1000, 224)
    blocks = [module for module in classifier.modules() if isinstance(module, DenoisingBlock)]
    assert [len(block.embeddings) for block in blocks] == [embeddings] * number
    assert classifier.network.conv1.padding == (0, 0) and classifier.network.layer2[
        0
    ].conv2.padding == (0, 0)
    assert classifier.network.layer1[0].conv2.padding == (1, 1)


def test_published_networks_are_normalised_as_published(monkeypatch):
    plain = Classifier(ResNet(Narrow, [1, 1, 1, 1], num_classes=4), IMAGENET_MEAN, IMAGENET_STD)
    monkeypatch.setattr(feature_denoising, "residual", lambda *given: plain)
    classifier = build("resnext101_32x8d_fd", 4, 64)
    assert (classifier.mean == 0.5).all()
    assert (classifier.std == 0.5).all()


def test_unknown_name_is_refused():
    with pytest.raises(
        ValueError, match="no classifier named 'resnet9'; there are small_resnet, resnet20 and"
    ):
        build("resnet9_fd", 10, 32)


@pytest.mark.parametrize("name", ["vgg16_fd", "mobilenet_v2_fd", "resnet50"])
def test_what_has_no_stages_of_residual_blocks_is_refused(name):
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match="FD changes the stages of a residual network, and '"),
    ):
        build(name, 10, 32)


@pytest.mark.parametrize("size", [16, 64])
def test_every_residual_network_can_have_blocks(size):
    classifier = build("resnet18_fd", 10, size)
    blocks = [
        name for name, module in classifier.named_modules() if isinstance(module, DenoisingBlock)
    ]
    assert blocks == [f"network.layer{stage}.2" for stage in (1, 2, 3, 4)]
    assert classifier.mean.flatten().tolist() == pytest.approx(
        IMAGENET_MEAN
    )  # nothing published has to fit
    assert classifier(torch.rand(1, 3, size, size)).shape == (1, 10)


@pytest.mark.parametrize(("height", "width"), [(8, 7), (9, 10)])
@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.MaxPool2d])
def test_padding_is_tensorflows(kind, kernel, height, width):
    torch.manual_seed(2)
    # negative values would lose against padding zeros in a maximum
    x = -1 - torch.rand(1, 1, height, width, dtype=torch.float64)
    layer = (
        nn.MaxPool2d(kernel, 2, kernel // 2)
        if kind is nn.MaxPool2d
        else nn.Conv2d(1, 1, kernel, 2, kernel // 2)
    )
    layer = layer.double()
    pad_like_tensorflow(layer)
    rows, columns = -(-height // 2), -(-width // 2)
    # https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2
    above = max(kernel - 2 if height % 2 == 0 else kernel - height % 2, 0) // 2
    left = max(kernel - 2 if width % 2 == 0 else kernel - width % 2, 0) // 2
    expected = np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            taps = [
                (i, j, x[0, 0, 2 * row + i - above, 2 * column + j - left].item())
                for i in range(kernel)
                for j in range(kernel)
                if 0 <= 2 * row + i - above < height and 0 <= 2 * column + j - left < width
            ]
            if isinstance(layer, nn.MaxPool2d):
                expected[row, column] = max(value for *_, value in taps)
            else:
                expected[row, column] = layer.bias.item() + sum(
                    layer.weight[0, 0, i, j].item() * v for i, j, v in taps
                )
    np.testing.assert_allclose(layer(x)[0, 0].detach().numpy(), expected, rtol=1e-12)


def published(after):
    """A file of tensorpack's form for `tiny`, with random numbers."""
    random, file = np.random.default_rng(3), {}

    def conv(name, size, before, channels, norm=True):
        file[f"{name}/W"] = random.normal(size=(size, size, before, channels)) / np.sqrt(
            size * size * before
        )
        if norm:
            file[f"{name}/bn/gamma"], file[f"{name}/bn/beta"] = random.uniform(
                0.2, 1, (2, channels)
            )
            file[f"{name}/bn/mean/EMA"], file[f"{name}/bn/variance/EMA"] = random.uniform(
                0.5, 1.5, (2, channels)
            )

    conv("conv0", 7, 3, 64)
    before = 64
    for group, count in enumerate(BLOCKS):
        channels, width = 64 * 2**group, 8 * 2**group
        for block in range(count):
            name = f"group{group}/block{block}"
            conv(f"{name}/conv1", 1, before, width)
            conv(f"{name}/conv2", 3, width // GROUPS, width)
            conv(f"{name}/conv3", 1, width, channels)
            if before != channels:
                conv(f"{name}/convshortcut", 1, before, channels)
            if after == "blocks":
                conv(f"{name}/non_local/conv", 1, channels, channels)
            before = channels
        if after == "stages":
            conv(f"group{group}_denoise/embedding_theta", 1, channels, channels // 2, norm=False)
            conv(f"group{group}_denoise/embedding_phi", 1, channels, channels // 2, norm=False)
            conv(f"group{group}_denoise/conv", 1, channels, channels)
    file["linear/W"], file["linear/b"] = random.normal(size=(512, 5)), random.normal(size=5)
    return {name: array.astype(np.float32) for name, array in file.items()}


def tensorpack(file, photographs):
    """The logits of BGR photographs (b, h, w, 3) of 0 … 255, computed from a file as tensorpack does."""
    weights = {name: torch.tensor(array, dtype=torch.float64) for name, array in file.items()}

    def same(x, size, stride, value):
        for dimension, side in ((2, x.shape[2]), (3, x.shape[3])):
            total = max((-(-side // stride) - 1) * stride + size - side, 0)
            before = total // 2
            x = F.pad(
                x,
                (before, total - before, 0, 0)
                if dimension == 3
                else (0, 0, before, total - before),
                value=value,
            )
        return x

    def norm(name, x):
        gamma, beta, mean, variance = (
            weights[f"{name}/bn/{part}"].view(-1, 1, 1)
            for part in ("gamma", "beta", "mean/EMA", "variance/EMA")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * gamma + beta

    def conv(name, x, stride=1, split=1):
        kernels = weights[f"{name}/W"].split(weights[f"{name}/W"].shape[3] // split, 3)
        parts = same(x, kernels[0].shape[0], stride, 0).split(x.shape[1] // split, 1)
        pairs = zip(parts, kernels, strict=True)
        return torch.cat(
            [F.conv2d(part, kernel.permute(3, 2, 0, 1), stride=stride) for part, kernel in pairs], 1
        )

    def denoised(name, x):
        if f"{name}/embedding_theta/W" in weights:
            theta, phi = conv(f"{name}/embedding_theta", x), conv(f"{name}/embedding_phi", x)
            scores = torch.einsum("niab,nicd->nabcd", theta, phi) / theta.shape[1] ** 0.5
            scores = scores.flatten(3).softmax(3).view_as(scores)
        else:
            scores = torch.einsum("niab,nicd->nabcd", x, x) / (x.shape[2] * x.shape[3])
        return x + norm(
            f"{name}/conv", conv(f"{name}/conv", torch.einsum("nabcd,nicd->niab", scores, x))
        )

    x = torch.tensor(photographs).permute(0, 3, 1, 2) / 127.5 - 1
    x = norm("conv0", conv("conv0", x, 2)).relu()
    x = F.max_pool2d(same(x, 3, 2, -torch.inf), 3, 2)
    for group, count in enumerate(BLOCKS):
        for block in range(count):
            name, stride = f"group{group}/block{block}", 2 if group > 0 and block == 0 else 1
            y = norm(f"{name}/conv1", conv(f"{name}/conv1", x)).relu()
            y = norm(f"{name}/conv2", conv(f"{name}/conv2", y, stride, GROUPS)).relu()
            y = norm(f"{name}/conv3", conv(f"{name}/conv3", y))
            if f"{name}/convshortcut/W" in weights:
                x = norm(f"{name}/convshortcut", conv(f"{name}/convshortcut", x, stride))
            x = (x + y).relu()
            if f"{name}/non_local/conv/W" in weights:
                x = denoised(f"{name}/non_local", x)
        if f"group{group}_denoise/conv/W" in weights:
            x = denoised(f"group{group}_denoise", x)
    return x.mean((2, 3)) @ weights["linear/W"] + weights["linear/b"]


@pytest.mark.parametrize(
    ("after", "embedded", "suffix"), [("blocks", False, ""), ("stages", True, ":0")]
)
@pytest.mark.parametrize(("height", "width"), [(64, 45), (35, 34)])
def test_published_weights_give_tensorpacks_logits(
    tmp_path, after, embedded, suffix, height, width
):
    file = published(after)
    np.savez(tmp_path / "weights.npz", **{f"{name}{suffix}": array for name, array in file.items()})
    classifier = tiny(after, embedded)
    load_published(classifier, tmp_path / "weights.npz")
    photographs = np.random.default_rng(4).uniform(0, 255, (2, height, width, 3))
    images = torch.tensor(photographs[..., ::-1].copy()).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        torch.testing.assert_close(
            classifier(images), tensorpack(file, photographs), rtol=1e-8, atol=0
        )


def faulty(file, fault):
    if fault == "missing":
        return {
            name: array for name, array in file.items() if name != "group1/block0/conv2/bn/mean/EMA"
        }
    if fault == "unknown":
        return file | {"global_step": np.zeros(())}
    return file | {"conv0/W": file["conv0/W"].transpose(3, 2, 0, 1)}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"1 missing: group1/block0/conv2/bn/mean/EMA$"),
        ("unknown", r"1 unknown: global_step$"),
        ("shape", r"1 wrong shape: conv0/W \(64, 3, 7, 7\) for \(7, 7, 3, 64\)$"),
    ],
)
def test_other_weights_are_refused_and_change_nothing(tmp_path, fault, message):
    np.savez(tmp_path / "weights.npz", **faulty(published("blocks"), fault))
    classifier = tiny("blocks", embedded=False)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"weights\.npz: not the weights of this network; " + message
    ):
        load_published(classifier, tmp_path / "weights.npz")
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items()
    )


def test_files_of_another_form_are_refused(tmp_path):
    classifier = tiny("blocks", embedded=False)
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "code.npz", **{"conv0/W": np.array([print], dtype=object)})
    (tmp_path / "text").write_text("weights")
    (tmp_path / "empty").touch()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "code.npz").read_bytes()[:100])
    for name in ("array.npy", "code.npz", "text", "empty", "cut.npz"):
        with pytest.raises(ValueError, match=f"{name}: expected an .npz of arrays"):
            load_published(classifier, tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_published(classifier, tmp_path / "none")
    np.savez(tmp_path / "weights.npz", **published("blocks"))
    with pytest.raises(
        ValueError, match="expected one of resnet152_fd, resnext101_32x8d_fd, got SmallResNet"
    ):
        load_published(Classifier(SmallResNet(5)), tmp_path / "weights.npz")


@pytest.mark.parametrize(("after", "embedded"), [("blocks", False), ("stages", True)])
def test_attacks_see_the_same_network(tmp_path, after, embedded):
    np.savez(tmp_path / "weights.npz", **published(after))
    classifier = tiny(after, embedded)
    load_published(classifier, tmp_path / "weights.npz")
    images = torch.rand(2, 3, 38, 33, dtype=torch.float64)
    prepared = prepare(classifier, images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    with torch.no_grad():
        torch.testing.assert_close(prepared(images), classifier(images), rtol=1e-8, atol=0)
