"""The denoisers before training, and eqs. 6 to 11 in NumPy."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import expit
from small import disturbed, rand
from torch import nn

from nbsupport.denoisers.models import HGD, Additive, Filtering, MultiHead, PAFilter, View, YNet
from nbsupport.denoisers.unet import OutputLayer
from nbsupport.study import EPS

SIZES = [(1, 1), (17, 33)]

every_kind = pytest.mark.parametrize("kind", [Additive, Filtering, MultiHead, YNet, PAFilter])
every_size = pytest.mark.parametrize("size", SIZES, ids=str)


def made(kind, *, seed=0, width=2, kernel_size=3, **options):
    torch.manual_seed(seed)
    return kind(width=width, kernel_size=kernel_size, **options).requires_grad_(False)


@every_kind
@every_size
def test_every_denoiser_starts_at_the_identity(kind, size):
    images = rand(1, 3, *size)
    torch.testing.assert_close(made(kind)(images), images, atol=1e-6, rtol=0)


@every_kind
def test_as_published_it_does_not_start_there(kind):
    images = rand(2, 3, 16, 16)
    assert (made(kind, as_published=True)(images) - images).abs().mean() > 0.01


@pytest.mark.parametrize("kind", [Additive, Filtering, MultiHead, YNet])
def test_gradients_reach_the_output_layers_at_the_identity(kind):
    denoiser = made(kind).requires_grad_()
    denoiser(rand(2, 3, 16, 16)).sum().backward()
    layers = [layer for layer in denoiser.modules() if isinstance(layer, OutputLayer)]
    assert any(layer.weight.grad is not None and layer.weight.grad.any() for layer in layers)


def test_the_additive_denoiser_adds():
    additive, images = made(Additive), rand(2, 3, 9, 8)
    additive.output.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    expected = (images + torch.tensor([0.1, -0.2, 0.3]).view(1, 3, 1, 1)).clamp(0, 1)
    torch.testing.assert_close(additive(images), expected)


@pytest.mark.parametrize("as_published", [True, False])
def test_only_the_published_additive_denoiser_is_dead_for_some_seeds(as_published):
    """Its three rectified channels are all zero, so it never learns."""
    dead = []
    for seed in range(20):
        additive = made(Additive, seed=seed, width=4, as_published=as_published)
        dead.append(not additive.decoder(additive.encoder(rand(4, 3, 16, 16))).any())
    assert any(dead) == as_published


@every_kind
@every_size
def test_images_of_any_size_stay_images_of_that_size(kind, size):
    denoiser, images = disturbed(kind, 0.3).double(), rand(2, 3, *size).double()
    denoised = denoiser(images)
    assert torch.equal(denoised, denoiser.denoise(images).clamp(0, 1))
    assert denoised.shape == images.shape
    torch.testing.assert_close(denoised[1:], denoiser(images[1:]))


def test_anything_else_is_refused(no_shape_checker):
    for refuse in (made(Filtering), made(PAFilter), made(PAFilter).parts):
        with pytest.raises(ValueError, match=r"^(Filtering|PAFilter): "):
            refuse(torch.full((1, 3, 4, 4), 255.0))


def convolved(x, layer, border="constant"):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode=border)
    windows = sliding_window_view(padded, (3, 3), axis=(1, 2))
    sums = np.einsum("ihwyx,oiyx->ohw", windows, layer.weight.numpy())
    return sums + layer.bias.numpy()[:, None, None]


def rectified(x, block, leak=0.0):
    """Each of a block's three 3×3 convolutions and its rectifier, by einsum."""
    layers = [layer for layer in block if isinstance(layer, nn.Conv2d)]
    assert len(layers) == 3
    for layer in layers:
        x = np.stack([convolved(image, layer) for image in x])
        x = np.where(x > 0, x, leak * x)
    return x


@pytest.mark.parametrize("as_published", [True, False])
def test_phi_is_the_papers_unet(as_published):
    """Blocks, poolings and skips (section 3.2), with SciPy's and NumPy's operators."""
    filtering = disturbed(Filtering, 0.3, as_published=as_published).double()
    images, leak = rand(2, 3, 32, 48).double(), 0.0 if as_published else 0.1
    outputs, x = [], images.numpy()
    for number, block in enumerate(filtering.encoder.blocks):
        if number:
            b, c, h, w = x.shape
            x = x.reshape(b, c, h // 2, 2, w // 2, 2).mean(axis=(3, 5))
        outputs.append(x := rectified(x, block))
    for block, skip in zip(filtering.decoders["kernels"].blocks, outputs[3:0:-1], strict=True):
        enlarged = F.interpolate(torch.from_numpy(x), skip.shape[2:], mode="bilinear").numpy()
        x = rectified(np.concatenate([enlarged, skip], axis=1), block, leak)
    enlarged = F.interpolate(torch.from_numpy(x), (32, 48), mode="bilinear")
    output = filtering.outputs["kernels"]
    expected = F.conv2d(enlarged, output.weight, output.bias)
    torch.testing.assert_close(filtering.kernels(images), expected)


def test_blocks_have_the_papers_widths():
    with torch.device("meta"):
        filtering = Filtering(width=64, kernel_size=5)
        blocks = (*filtering.encoder.blocks, *filtering.decoders["kernels"].blocks)
        widths = [block[-2].out_channels for block in blocks]
        assert widths == [64, 128, 256, 512, 512, 512, 256, 75]
        assert filtering.kernels(torch.empty(1, 3, 224, 224)).shape == (1, 3 * 5**2, 224, 224)


@pytest.mark.parametrize(("kind", "outputs"), [(MultiHead, (4, 3, 2, 1)), (YNet, ("sl", "m"))])
def test_a_view_filters_with_the_kernels_of_its_output(kind, outputs):
    """Each output layer multiplies the image by its own bias; a call uses the first."""
    whole, images = made(kind), rand(2, 3, 8, 8)
    for number, output in enumerate(outputs, 1):
        whole.outputs[str(output)].bias *= number / 4
        torch.testing.assert_close(View(whole, output)(images), images * number / 4)
    assert torch.equal(whole(images), View(whole, outputs[0])(images))


@pytest.mark.parametrize(("kind", "output"), [(MultiHead, 0), (MultiHead, 5), (YNet, "large")])
def test_an_unknown_output_is_refused(kind, output):
    with pytest.raises(ValueError, match=f"{kind.__name__}: expected"):
        View(made(kind), output)(rand(1, 3, 4, 4))


def test_every_strength_has_its_head():
    heads = [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert [MultiHead.band(eps) for eps in EPS[1:]] == heads
    assert [MultiHead.band(float(np.float32(eps))) for eps in EPS[1:]] == heads
    for eps in (0.0, 1e-5, 1.0):
        with pytest.raises(ValueError):
            MultiHead.band(eps)


@pytest.mark.parametrize("as_published", [False, True])
def test_the_weight_is_the_fusion_of_both_uncertainty_maps(as_published):
    pafilter = disturbed(PAFilter, 0.05, as_published=as_published).double()
    parts = pafilter.parts(rand(2, 3, 5, 6).double())
    layers = [layer for layer in pafilter.fusion if isinstance(layer, nn.Conv2d)]
    for number in range(2):
        kernels = parts.kernels_sl[number].numpy(), parts.kernels_m[number].numpy()
        x = np.stack([k.max(axis=0) for k in kernels]) - (0 if as_published else 1)
        border = "constant" if as_published else "edge"  # no frame of zeros around W
        for layer in layers[:-1]:
            x = np.maximum(convolved(x, layer, border), 0)
        weight = expit(convolved(x, layers[-1], border))
        np.testing.assert_allclose(parts.weight[number].numpy(), weight, rtol=1e-9, atol=1e-12)


def test_all_inputs_of_the_fusion_are_maps_distances_and_what_its_parts_differ_by():
    pafilter, seen = disturbed(PAFilter, 0.05, fusion_inputs="all"), []
    pafilter.fusion.register_forward_pre_hook(lambda module, inputs: seen.append(*inputs))
    parts = pafilter.parts(rand(2, 3, 5, 6))
    identity = np.tile(np.eye(9)[4], 3)[:, None, None]
    for number, inputs in enumerate(seen[0].detach().numpy()):
        kernels = [k[number].detach().numpy() for k in (parts.kernels_sl, parts.kernels_m)]
        expected = [k.max(axis=0) - 1 for k in kernels]
        expected += [np.abs(k - identity).sum(axis=0) / 3 for k in kernels]
        expected.append((parts.sl - parts.m)[number].detach().abs().mean(dim=0).numpy())
        np.testing.assert_allclose(inputs, np.stack(expected), rtol=1e-4, atol=1e-6)


def test_the_parts_are_the_outputs_of_the_ynet_and_fused_pixel_by_pixel():
    pafilter, images = disturbed(PAFilter, 0.3), rand(2, 3, 5, 6)
    parts, fused = pafilter.parts(images), pafilter(images)
    for name in ("sl", "m"):
        kernels = pafilter.ynet.kernels(images, name)
        expected = View(pafilter.ynet, name)(images), kernels, kernels.amax(dim=1, keepdim=True)
        names = name, f"kernels_{name}", f"uncertainty_{name}"
        torch.testing.assert_close(tuple(getattr(parts, each) for each in names), expected)
    for n, channel, y, x in np.ndindex(fused.shape):
        weight, at = float(parts.weight[n, 0, y, x]), (n, channel, y, x)
        expected = weight * float(parts.sl[at]) + (1 - weight) * float(parts.m[at])
        assert float(fused[at]) == pytest.approx(expected, abs=1e-6)


def test_the_weight_starts_at_one_half():
    pafilter = made(PAFilter)
    pafilter.ynet = disturbed(YNet, 0.3)
    assert (pafilter.parts(rand(2, 3, 5, 6)).weight == 0.5).all()


# -- HGD -----------------------------------------------------------------------------------------


def test_hgd_has_the_layers_of_its_paper():
    """Convolutions per block and their channels at width 64, of Liao et al. (2018), section 3.2."""
    down = [(3, 64, 64), (64, *[128] * 3), (128, *[256] * 3), *[(256, *[256] * 3)] * 2]
    up = [(512, *[256] * 3), (512, *[256] * 3), (384, *[128] * 3), (192, 64, 64)]
    weights = sum(9 * a * b for block in (*down, *up) for a, b in itertools.pairwise(block))
    norms = sum(2 * channels for block in (*down, *up) for channels in block[1:])
    found = sum(parameter.numel() for parameter in HGD(64).parameters())
    assert found == weights + norms + 3 * 64 + 3


def test_hgd_adds_at_full_resolution():
    denoiser, images = HGD(4).eval(), torch.rand(2, 3, 17, 23)
    assert denoiser(images).shape == images.shape
    with torch.no_grad():
        denoiser.output.weight.zero_()
        denoiser.output.bias.copy_(torch.tensor([0.1, 0.0, -0.1]))
    expected = images + torch.tensor([0.1, 0.0, -0.1]).view(3, 1, 1)
    torch.testing.assert_close(denoiser(images), expected.clamp(0, 1))
