"""From attacked to denoised images: what holds before any training, and eqs. 6 to 11."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import expit
from torch import nn

from nbsupport.denoisers.filtering import filter_pixels
from nbsupport.denoisers.models import Additive, Filtering, MultiHead, PAFilter, View, YNet
from nbsupport.denoisers.unet import Decoder, Encoder, OutputLayer, resize
from nbsupport.study import EPS

SIZES = [(1, 1), (1, 2), (3, 1), (5, 7), (15, 15), (16, 16), (17, 33), (24, 40)]
SEEDS = range(20)

every_kind = pytest.mark.parametrize("kind", [Additive, Filtering, MultiHead, YNet, PAFilter])
every_size = pytest.mark.parametrize("size", SIZES, ids=str)


def made(kind, *, seed=0, width=2, kernel_size=3, **options):
    torch.manual_seed(seed)
    return kind(width=width, kernel_size=kernel_size, **options).requires_grad_(False)


def disturbed(kind, *, by=0.3, **options):
    """A denoiser away from the identity."""
    denoiser = made(kind, **options)
    for parameter in denoiser.parameters():
        parameter += by * torch.randn_like(parameter)
    return denoiser


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# -- before any training -------------------------------------------------------------------------


@every_kind
@every_size
def test_every_denoiser_starts_at_the_identity(kind, size):
    images = rand(1, 3, *size)
    torch.testing.assert_close(made(kind)(images), images, atol=1e-6, rtol=0)


@every_kind
@pytest.mark.parametrize("kernel_size", [1, 5])
def test_so_it_does_with_other_kernels(kind, kernel_size):
    images = rand(2, 3, 9, 8)
    torch.testing.assert_close(
        made(kind, kernel_size=kernel_size)(images), images, atol=1e-6, rtol=0
    )


@every_kind
def test_the_literal_reading_does_not_start_there(kind):
    images = rand(2, 3, 16, 16)
    assert (made(kind, literal=True)(images) - images).abs().mean() > 0.01


@pytest.mark.parametrize("kind", [Additive, Filtering, MultiHead, YNet])
def test_from_the_identity_there_is_a_way_to_learn(kind):
    denoiser = made(kind).requires_grad_()
    denoiser(rand(2, 3, 16, 16)).sum().backward()
    layers = [layer for layer in denoiser.modules() if isinstance(layer, OutputLayer)]
    assert any(
        layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0 for layer in layers
    )


@pytest.mark.parametrize(("literal", "channels"), [(True, 3), (False, 27)])
def test_the_last_block_of_the_additive_denoiser(literal, channels):
    last = made(Additive, literal=literal).decoder.blocks[-1]
    assert last[-2].out_channels == channels
    assert isinstance(last[-1], nn.ReLU)


def test_the_additive_denoiser_adds():
    additive, images = made(Additive), rand(2, 3, 9, 8)
    additive.output.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    expected = (images + torch.tensor([0.1, -0.2, 0.3]).view(1, 3, 1, 1)).clamp(0, 1)
    torch.testing.assert_close(additive(images), expected)


def dead(seed, **options):
    """Whether the rectified channels before the output layer say nothing at all, so that nothing is ever learnt."""
    additive = made(Additive, seed=seed, width=4, **options)
    return not additive.decoder(additive.encoder(rand(4, 3, 16, 16))).any()


def test_the_literal_additive_denoiser_is_dead_for_some_seeds():
    assert any(dead(seed, literal=True) for seed in SEEDS)


def test_the_default_one_is_dead_for_none():
    assert not any(dead(seed) for seed in SEEDS)


# -- images in, images out -----------------------------------------------------------------------


@every_kind
@every_size
def test_images_of_any_size_stay_images_of_that_size(kind, size):
    denoised = disturbed(kind)(rand(1, 3, *size))
    assert denoised.shape == (1, 3, *size)
    assert denoised.min() >= 0
    assert denoised.max() <= 1


@pytest.mark.parametrize("kind", [Additive, Filtering, MultiHead, YNet])
def test_the_range_is_kept_by_clipping(kind):
    denoiser, images = disturbed(kind), rand(2, 3, 16, 16)
    raw = denoiser.denoise(images)
    assert raw.min() < 0 or raw.max() > 1
    assert torch.equal(denoiser(images), raw.clamp(0, 1))


@every_kind
def test_images_do_not_depend_on_their_batch(kind):
    denoiser, images = disturbed(kind, by=0.05).double(), rand(3, 3, 9, 11).double()
    alone = torch.cat([denoiser(image[None]) for image in images])
    torch.testing.assert_close(denoiser(images), alone)


BAD = {
    "array": (np.zeros((1, 3, 4, 4)), TypeError, "expected a torch tensor of images, got ndarray"),
    "8-bit": (
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        TypeError,
        r"got torch.uint8; .* images.float\(\) / 255",
    ),
    "no batch": (
        torch.zeros(3, 4, 4),
        ValueError,
        r"got \(3, 4, 4\); add the batch dimension with images\[None\]",
    ),
    "grayscale": (
        torch.zeros(1, 1, 4, 4),
        ValueError,
        r"becomes RGB with images.expand\(-1, 3, -1, -1\)",
    ),
    "channels last": (
        torch.zeros(1, 4, 4, 3),
        ValueError,
        r"the channels with images.permute\(0, 3, 1, 2\)",
    ),
    "RGBA": (
        torch.zeros(1, 4, 5, 5),
        ValueError,
        r"expected 3 colour channels, got images of \(1, 4, 5, 5\)$",
    ),
    "no image": (
        torch.zeros(0, 3, 4, 4),
        ValueError,
        r"at least one image and one pixel, got \(0, 3, 4, 4\)",
    ),
    "no pixel": (
        torch.zeros(1, 3, 0, 4),
        ValueError,
        r"at least one image and one pixel, got \(1, 3, 0, 4\)",
    ),
    "NaN": (
        torch.tensor([0.5, torch.nan, 0.5]).view(1, 3, 1, 1),
        ValueError,
        r"expected finite values in \[0, 1\]",
    ),
    "infinity": (
        torch.tensor([0.5, torch.inf, 0.5]).view(1, 3, 1, 1),
        ValueError,
        "got values from 0.5 to inf",
    ),
    "normalised": (
        torch.tensor([-2.0, 0.0, 2.0]).view(1, 3, 1, 1),
        ValueError,
        "do not normalise, the classifier",
    ),
    "0 to 255": (
        torch.tensor([0.0, 255.0, 9.0]).view(1, 3, 1, 1),
        ValueError,
        "from 0 to 255; divide by 255",
    ),
}


@every_kind
@pytest.mark.parametrize(("images", "error", "message"), BAD.values(), ids=BAD)
def test_anything_else_is_refused(kind, images, error, message, no_shape_checker):
    with pytest.raises(error, match=f"^{kind.__name__}: .*{message}"):
        made(kind)(images)


# -- the paper's sizes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper_size():
    """Shapes of what enters and leaves the blocks at the paper's width and image size, without computing anything."""
    with torch.device("meta"):
        filtering, shapes = Filtering(width=64, kernel_size=5), {"encoder": [], "decoder": []}
        for part, seen in shapes.items():
            for block in getattr(filtering, part).blocks:
                block.register_forward_hook(
                    lambda _, inputs, x, seen=seen: seen.append(
                        (*inputs[0].shape[1:], *x.shape[1:])
                    )
                )
        kernels = filtering.kernels(torch.empty(1, 3, 224, 224))
    return shapes | {"kernels": kernels.shape[1:]}


def test_the_encoder_ends_at_14_by_14_by_512(paper_size):
    assert [shape[3:] for shape in paper_size["encoder"]] == [
        (64, 224, 224),
        (128, 112, 112),
        (256, 56, 56),
        (512, 28, 28),
        (512, 14, 14),
    ]


def test_the_decoder_reads_blocks_4_3_2(paper_size):
    assert paper_size["decoder"] == [
        (512 + 512, 28, 28, 512, 28, 28),
        (512 + 256, 56, 56, 256, 56, 56),
        (256 + 128, 112, 112, 75, 112, 112),
    ]


def test_there_is_one_kernel_per_pixel_and_channel(paper_size):
    assert paper_size["kernels"] == (3 * 5**2, 224, 224)


def test_skips_are_what_the_encoder_said():
    encoder, decoder, entered = Encoder(2), Decoder(2, 27), []
    for block in decoder.blocks:
        block.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    outputs = encoder(rand(1, 3, 32, 48))
    decoder(outputs)
    for x, skip in zip(entered, (outputs[3], outputs[2], outputs[1]), strict=True):
        assert torch.equal(x[:, -skip.shape[1] :], skip)


@every_kind
def test_a_block_is_three_convolutions_each_rectified(kind):
    denoiser = made(kind)
    parts = [part for part in denoiser.modules() if isinstance(part, Encoder | Decoder)]
    for block in (block for part in parts for block in part.blocks):
        assert [type(layer) for layer in block] == [nn.Conv2d, nn.ReLU] * 3
        assert all(layer.kernel_size == (3, 3) for layer in block[::2])


def test_between_blocks_the_average_of_2_by_2_pixels_goes_on():
    encoder, entered = Encoder(2), []
    encoder.blocks[1].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    first = encoder(rand(1, 3, 6, 8))[0]
    torch.testing.assert_close(entered[0], first.view(1, 2, 3, 2, 4, 2).mean(dim=(3, 5)))


def test_enlarging_is_bilinear():
    enlarged = resize(
        torch.tensor([[0.0, 1.0], [2.0, 3.0]]).view(1, 1, 2, 2), torch.empty(1, 1, 4, 4)
    )
    steps = torch.tensor([0.0, 0.25, 0.75, 1.0])
    torch.testing.assert_close(enlarged[0, 0], 2 * steps[:, None] + steps)


def test_the_width_scales_every_block():
    encoder = Encoder(3)
    assert [block[-2].out_channels for block in encoder.blocks] == [3, 6, 12, 24, 24]


@every_size
def test_enlarging_after_the_output_layer_is_enlarging_before_it(size):
    torch.manual_seed(0)
    layer, small = OutputLayer(5, 7, None).double(), torch.rand(2, 5, 3, 4, dtype=torch.float64)
    large = torch.empty(2, 1, *size)
    torch.testing.assert_close(resize(layer(small), large), layer(resize(small, large)))


# -- several outputs -----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "outputs"), [(MultiHead, (1, 2, 3, 4)), (YNet, ("sl", "m"))])
def test_a_view_filters_with_the_kernels_of_its_output(kind, outputs):
    whole, images = disturbed(kind), rand(2, 3, 8, 8)
    denoised = [View(whole, output)(images) for output in outputs]
    for output, one in zip(outputs, denoised, strict=True):
        torch.testing.assert_close(
            one, filter_pixels(images, whole.kernels(images, output)).clamp(0, 1)
        )
    assert all(not torch.equal(one, other) for one, other in pairwise(denoised))


@pytest.mark.parametrize(("kind", "output"), [(MultiHead, 2), (YNet, "m")])
def test_a_view_shares_its_weights(kind, output):
    whole, images = made(kind), rand(1, 3, 8, 8)
    view = View(whole, output)
    assert {id(parameter) for parameter in view.parameters()} == {
        id(parameter) for parameter in whole.parameters()
    }
    layer = whole.outputs[output - 1 if kind is MultiHead else output]
    layer.bias.zero_()
    assert (view(images) == 0).all()


@pytest.mark.parametrize(("kind", "output"), [(MultiHead, 4), (YNet, "sl")])
def test_a_whole_answers_with_one_of_its_outputs(kind, output):
    whole, images = disturbed(kind), rand(2, 3, 8, 8)
    assert torch.equal(whole(images), View(whole, output)(images))


def test_one_pass_through_the_encoder_gives_both_kernels():
    ynet, images = disturbed(YNet), rand(2, 3, 8, 8)
    both = ynet.both_kernels(images)
    assert all(
        torch.equal(kernels, ynet.kernels(images, name))
        for name, kernels in zip(("sl", "m"), both, strict=True)
    )


def test_each_branch_has_a_decoder_of_its_own():
    ynet, images = disturbed(YNet), rand(2, 3, 8, 8)
    sl, m = ynet.both_kernels(images)
    for parameter in ynet.decoders["m"].parameters():
        parameter.zero_()
    assert torch.equal(ynet.kernels(images, "sl"), sl)
    assert not torch.equal(ynet.kernels(images, "m"), m)


@pytest.mark.parametrize(
    ("kind", "output", "message"),
    [
        (MultiHead, 0, "MultiHead: expected a head from 1 to 4, got 0"),
        (MultiHead, 5, "MultiHead: expected a head from 1 to 4, got 5"),
        (MultiHead, "sl", "MultiHead: expected a head from 1 to 4, got 'sl'"),
        (YNet, "large", "YNet: expected the branch 'sl' or 'm', got 'large'"),
        (YNet, 1, "YNet: expected the branch 'sl' or 'm', got 1"),
    ],
)
def test_an_unknown_output_is_refused(kind, output, message):
    with pytest.raises(ValueError, match=message):
        View(made(kind), output)(rand(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("eps", "head"), list(zip(EPS[1:], [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4], strict=True))
)
def test_every_strength_has_its_head(eps, head):
    assert MultiHead.band(eps) == head
    assert MultiHead.band(float(np.float32(eps))) == head


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1.0])
def test_other_strengths_have_none(eps):
    with pytest.raises(ValueError):
        MultiHead.band(eps)


# -- PA-Filt -------------------------------------------------------------------------------------


def convolved(x, layer):
    windows = sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))
    return (
        np.einsum("ihwyx,oiyx->ohw", windows, layer.weight.numpy())
        + layer.bias.numpy()[:, None, None]
    )


@pytest.mark.parametrize("literal", [False, True])
def test_the_weight_is_the_fusion_of_both_uncertainty_maps(literal):
    pafilter = disturbed(PAFilter, by=0.05, literal=literal).double()
    parts = pafilter.parts(rand(2, 3, 5, 6).double())
    layers = [layer for layer in pafilter.fusion if isinstance(layer, nn.Conv2d)]
    for number in range(2):
        kernels = parts.kernels_sl[number].numpy(), parts.kernels_m[number].numpy()
        x = np.stack([k.max(axis=0) for k in kernels]) - (0 if literal else 1)
        for layer in layers[:-1]:
            x = np.maximum(convolved(x, layer), 0)
        weight = expit(convolved(x, layers[-1]))
        np.testing.assert_allclose(parts.weight[number].numpy(), weight, rtol=1e-9, atol=1e-12)


def test_the_fused_image_is_a_weighted_mean_in_every_pixel():
    pafilter, images = disturbed(PAFilter, by=0.05), rand(2, 3, 5, 6)
    parts, fused = pafilter.parts(images), pafilter(images)
    for n, channel, y, x in np.ndindex(fused.shape):
        weight, sl, m = (
            parts.weight[n, 0, y, x],
            parts.sl[n, channel, y, x],
            parts.m[n, channel, y, x],
        )
        assert float(fused[n, channel, y, x]) == pytest.approx(
            float(weight * sl + (1 - weight) * m), abs=1e-6
        )


def test_the_parts_are_the_outputs_of_the_ynet():
    pafilter, images = disturbed(PAFilter), rand(2, 3, 5, 6)
    parts = pafilter.parts(images)
    for name in ("sl", "m"):
        torch.testing.assert_close(getattr(parts, name), View(pafilter.ynet, name)(images))
        kernels = pafilter.ynet.kernels(images, name)
        torch.testing.assert_close(getattr(parts, f"kernels_{name}"), kernels)
        torch.testing.assert_close(
            getattr(parts, f"uncertainty_{name}"), kernels.amax(dim=1, keepdim=True)
        )


def test_the_fusion_is_six_convolutions_and_a_sigmoid():
    *layers, last = made(PAFilter).fusion
    convolutions = layers[::2]
    assert [layer.out_channels for layer in convolutions] == [32] * 5 + [1]
    assert all(
        isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) for layer in convolutions
    )
    assert all(isinstance(layer, nn.ReLU) for layer in layers[1::2])
    assert isinstance(last, nn.Sigmoid)


def test_the_weight_starts_at_one_half():
    pafilter = PAFilter(disturbed(YNet))
    assert (pafilter.parts(rand(2, 3, 5, 6)).weight == 0.5).all()


def test_a_given_ynet_is_used_as_it_is():
    ynet = disturbed(YNet)
    assert PAFilter(ynet).ynet is ynet


@pytest.mark.parametrize(
    "images", [torch.full((1, 3, 4, 4), 2.0), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)]
)
def test_parts_refuse_what_a_call_refuses(images, no_shape_checker):
    with pytest.raises((TypeError, ValueError), match=r"^PAFilter: "):
        made(PAFilter).parts(images)
