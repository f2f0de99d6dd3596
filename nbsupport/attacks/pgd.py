"""PGD(n, ε), the paper's attack, on Foolbox, with all strengths in one call."""

import contextlib
import gc
import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import eagerpy as ep
import foolbox
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..classifiers.models import (
    Apart,
    Classifier,
    check_logits,
    check_mode,
    copy_network,
    full_precision,
    is_saturated,
    precisions,
)
from ..data.images import AnyLabels, Images, Labels, Logits, check_images, check_labels
from ..study import REL_STEP, STEPS

Result = TypeVar("Result")
LEAD = 8.0  # of a true logit whose cross-entropy has a gradient in every precision
CHUNK = {"cpu": 64, "cuda": 1024}  # images per pass: what fits a CPU's cache, what fills a GPU


def margin(logits: Logits, labels: Labels) -> Float[Tensor, "b"]:
    """Return the largest wrong logit minus the true one: positive where the attack succeeded."""
    true = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(true, -torch.inf).amax(dim=1) - logits[true]


def cross_entropy(logits: Logits, labels: Labels) -> Float[Tensor, "b"]:
    """Return the cross-entropy, of scaled logits where it would round to 0 and lose its gradient.

    There the true logit is brought to `LEAD` above the others, whatever the scale of the network's.
    """
    scale = torch.where(is_saturated(logits, labels), -LEAD / margin(logits, labels).detach(), 1)
    return F.cross_entropy(scale[:, None] * logits, labels, reduction="none")


LOSSES = {"cross-entropy": cross_entropy, "margin": margin}


class _PGD(foolbox.attacks.LinfPGD):
    """Foolbox's PGD from given starting points instead of its global random state."""

    def __init__(self, starts: Tensor, loss: str, **options: Any) -> None:
        super().__init__(**options)
        self.starts, self.loss = starts, loss

    def get_loss_fn(self, model: foolbox.Model, labels: ep.Tensor) -> Any:
        return lambda inputs: ep.astensor(LOSSES[self.loss](model(inputs).raw, labels.raw).sum())

    def value_and_grad(self, loss_fn: Any, x: ep.Tensor) -> Any:
        gradient = differentiate(lambda inputs: loss_fn(ep.astensor(inputs)).raw, x.raw)
        return None, ep.astensor(gradient)

    def get_random_start(self, x0: ep.Tensor, epsilon: Any) -> ep.Tensor:
        return ep.astensor(self.starts)


def random_starts(images: Images, eps: Float[Tensor, "b"], seed: int = 0) -> Images:
    """Draw a uniform point from each image's L∞ ball, clipped to [0, 1].

    Each is a function of (seed, image, ε) alone, so neither batches nor processes change it.
    """
    starts = []
    for image, strength in zip(images.cpu(), eps.tolist(), strict=True):
        # Hashing float32 bytes gives an image the same start in any stored precision.
        content = image.float().contiguous().numpy().tobytes() + struct.pack("<fq", strength, seed)
        digest = hashlib.blake2b(content, digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
        noise = torch.rand(image.shape, generator=generator)
        starts.append((image + strength * (2 * noise - 1)).clamp(0, 1))
    return torch.stack(starts).to(images)


def per_pass(device: torch.device) -> int:
    """Return how many images to attack per pass on this device if memory allows."""
    return CHUNK.get(device.type, CHUNK["cuda"])


def halve_on_out_of_memory(run: Callable[[int], Result], at_once: int) -> Result:
    """Call `run` with `at_once` images per pass, halved whenever memory runs out, down to 1."""
    while True:
        try:
            return run(at_once)
        except RuntimeError as error:
            on_cpu = "can't allocate memory" in str(error)
            if at_once == 1 or not (on_cpu or isinstance(error, torch.OutOfMemoryError)):
                raise
        at_once //= 2  # outside the handler, whose traceback keeps tensors alive
        gc.collect()
        torch.cuda.empty_cache()


def differentiate(compute_loss: Callable[[Images], Tensor], images: Images) -> Images:
    """Return the gradient by images, without any by a network's weights where that is possible."""
    images = images.detach().requires_grad_()
    try:
        return torch.autograd.grad(compute_loss(images), images)[0]
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
    compute_loss(images).backward()  # all that reentrant checkpoints allow
    assert images.grad is not None
    return images.grad


@torch.enable_grad()
def prepare(classifier: nn.Module, example: Images) -> Apart:
    """Copy a classifier for fast attacks: frozen, channels last, batch norms folded.

    What fails, or changes the logits of `example` by more than rounding, is left out; a network
    without a faithful copy is used itself. A prepared one is returned as it is. Raises `ValueError`
    in training mode, where an image's logits depend on its batch, and for other outputs than
    logits.
    """
    if getattr(classifier, "prepared", False):
        return classifier  # type: ignore[return-value]
    check_mode(classifier, "attack")
    classifier, example = getattr(classifier, "_orig_mod", classifier), example.detach()
    itself, expected = _try_precisions(classifier, example.requires_grad_())
    check_logits(expected)
    rounding, itself.prepared = 1e-4 * float(expected.abs().max()), True
    layouts = torch.channels_last, torch.contiguous_format
    for layout, fold in product(layouts, (True, False)):
        with contextlib.suppress(Exception):  # whatever a layer raises
            itself(example.flip(3))  # lest a copy only repeats what its original saw last
            copied = Apart(copy_network(classifier, "attack"), itself.dtype, layout)
            copied.prepared = True
            for module in copied.modules():
                if isinstance(module, Classifier) and type(module).forward is Classifier.forward:
                    module.forward = module.unchecked  # type: ignore[method-assign]
            if fold:
                _fold_batch_norm(copied, example)
            if layout == torch.channels_last:
                copied.to(memory_format=layout)
            if torch.allclose(copied(example).detach(), expected, rtol=1e-3, atol=rounding):
                return copied
    return itself


def _try_precisions(classifier: nn.Module, example: Images) -> tuple[Apart, Tensor]:
    """Return the classifier with the precision of images that it takes, and the logits."""
    failures = []
    for dtype in dict.fromkeys((example.dtype, *precisions(classifier))):
        network = Apart(classifier, dtype, torch.contiguous_format)
        try:
            logits = network(example)
        except RuntimeError as error:
            failures.append(error)
        else:
            return network, logits.detach() if isinstance(logits, Tensor) else logits
    raise failures[0]


@torch.no_grad()
def _fold_batch_norm(network: nn.Module, example: Tensor) -> None:
    """Fold, in place, each batch norm whose only input is the output of one convolution.

    Hooks record which norm reads which convolution while `example` passes, so `network` may contain
    any Python code. They miss other uses of a convolution's output: compare logits afterwards.
    """
    outputs: dict[
        Tensor, nn.Module
    ] = {}  # tensors are equal as keys where they are the same object
    sources: dict[nn.BatchNorm2d, set[nn.Module | None]] = {}

    def record(conv: Any, inputs: Any, output: Any) -> None:
        outputs[output] = conv

    def look_up(norm: Any, inputs: Any) -> None:
        sources.setdefault(norm, set()).add(outputs.get(inputs[0]))

    names = {module: name for name, module in network.named_modules()}
    with contextlib.ExitStack() as hooks:
        for module in names:
            if isinstance(module, nn.Conv2d):
                hooks.enter_context(module.register_forward_hook(record))
            elif isinstance(module, nn.BatchNorm2d):
                hooks.enter_context(module.register_forward_pre_hook(look_up))
        network(example)
    users = [conv for found in sources.values() for conv in found]
    for norm, found in sources.items():
        conv, exclusive = next(iter(found)), len(found) == 1 and norm.running_var is not None
        if exclusive and isinstance(conv, nn.Conv2d) and users.count(conv) == 1:
            network.set_submodule(names[conv], fuse_conv_bn_eval(conv, norm))
            network.set_submodule(names[norm], nn.Identity())


@torch.enable_grad()
def pgd(
    classifier: nn.Module, images: Images, labels: AnyLabels, eps: float | Float[Tensor, "b"],
    *, steps: int = STEPS, rel_step: float = REL_STEP, seed: int = 0, loss: str = "cross-entropy",
) -> Images:  # fmt: skip
    """Attack images with PGD(n, ε) under L∞, from a random start, without early stopping (eq. 2).

    `eps` is for images in [0, 1], one for all or one per image; 0 leaves an image unchanged. Each
    of the n = `steps` steps has size `rel_step` · ε. `loss` is the paper's cross-entropy or
    ``"margin"``. The result stays within ε and [0, 1], in the wider of the images' and the
    classifier's precisions, and depends on the image, its label, its ε and `seed` alone (up to
    rounding).

    Raises `ValueError` if an argument is out of range, or the classifier returns probabilities or
    is in training mode; `TypeError` for images or ε of other types.
    """
    check_images(images, caller="pgd", channels=None)
    clean = images.detach()
    images = clean.to(torch.promote_types(clean.dtype, torch.float32))
    try:
        strengths = torch.as_tensor(eps, dtype=torch.float64, device=images.device).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{type(eps).__name__} {eps!r}"
        raise TypeError(
            f"pgd: expected ε as a number or tensor, got {got}; write 8 / 255"
        ) from error
    if strengths.ndim and strengths.shape != images.shape[:1]:
        raise ValueError(f"pgd: expected one ε, or one per image, got {tuple(strengths.shape)}")
    strengths = strengths.expand(len(images))
    if not (torch.isfinite(strengths).all() and strengths.min() >= 0 and strengths.max() <= 1):
        raise ValueError(f"pgd: expected ε from 0 to 1, got {eps}; write 8/255 as 8 / 255")
    if steps < 1 or rel_step <= 0:
        sizes = f"steps={steps}, rel_step={rel_step}"
        raise ValueError(f"pgd: expected at least one step of positive size, got {sizes}")
    if loss not in LOSSES:
        raise ValueError(f"pgd: expected the loss 'cross-entropy' or 'margin', got {loss!r}")
    prepared = prepare(classifier, images[:2])
    classes = prepared(images[:1].clone().requires_grad_()).shape[1]
    labels = check_labels(labels, images=images, classes=classes, caller="pgd")
    dtype = torch.promote_types(clean.dtype, prepared.dtype)
    images = images.to(torch.promote_types(images.dtype, dtype))
    strengths = strengths.to(images.dtype)
    model = foolbox.PyTorchModel(prepared, bounds=(0, 1), device=images.device)
    options = dict(rel_stepsize=rel_step, steps=steps, random_start=True)

    def run(number: int) -> Tensor:
        attacked = []
        for part in torch.arange(len(images)).split(number):
            inputs = images[part].contiguous(memory_format=prepared.layout)
            attack = _PGD(random_starts(inputs, strengths[part], seed), loss, **options)
            criterion = foolbox.criteria.Misclassification(labels[part])
            radii: Any = strengths[part].view(-1, 1, 1, 1)  # Foolbox broadcasts one per image
            with full_precision(images.device):
                found = attack.run(model, inputs, criterion, epsilon=radii).contiguous()
            attacked.append(_stay_within(found.to(dtype), inputs, radii))
        return torch.cat(attacked)

    return halve_on_out_of_memory(run, per_pass(images.device))


def _stay_within(attacked: Images, images: Images, eps: Float[Tensor, "b 1 1 1"]) -> Images:
    """Move by one rounding step, towards the clean image, what rounding put out of the ball."""
    outside = (attacked.double() - images.double()).abs() > eps.double()
    return torch.where(outside, torch.nextafter(attacked, images.to(attacked)), attacked)


@dataclass(frozen=True)
class AttackedSet:
    """Clean images and their attacked versions, stored as `ratios` δ/ε: one row per ε above 0.

    δ/ε lies in [−1, 1], so float16 keeps each perturbation to 1/2048 of its ε, however small ε is;
    8-bit or half-precision pixels would erase the small ones. `eps` starts with 0, so
    ``eps[i + 1]`` belongs to ``ratios[i]``.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, "n"]
    ratios: Float[Tensor, "strengths n c h w"]
    eps: tuple[float, ...]

    def at(self, eps: float, number: int | None = None) -> Float[Tensor, "n c h w"]:
        """Return the first `number` images (all by default) attacked with `eps`; clean ones for 0.

        Raises `ValueError` if the set has no images for `eps`.
        """
        if eps not in self.eps:
            raise ValueError(f"no images were attacked with ε = {eps}; choose one of {self.eps}")
        numbers = torch.arange(len(self.images))[:number]
        return self.pick(torch.full_like(numbers, self.eps.index(eps)), numbers)

    def pick(self, rows: Int[Tensor, "b"], numbers: Int[Tensor, "b"]) -> Float[Tensor, "b c h w"]:
        """Return, for each i, image ``numbers[i]`` attacked with strength ``eps[rows[i]]``."""
        strengths = torch.tensor(self.eps)[rows].view(-1, 1, 1, 1).to(self.images)
        deltas = strengths * self.ratios[(rows - 1).clamp(min=0), numbers].to(self.images)
        return (self.images[numbers] + deltas).clamp(0, 1)


def ratios(
    classifier: nn.Module, images: Images, labels: Labels, eps: tuple[float, ...], **options: Any
) -> Float[Tensor, "strengths b c h w"]:
    """Attack with `pgd` at all strengths of `eps` (above 0) in one call; return δ/ε in float16."""
    repeated = images.repeat(len(eps), 1, 1, 1)
    strengths = torch.tensor(eps).repeat_interleave(len(images)).to(images)
    attacked = pgd(classifier, repeated, labels.repeat(len(eps)), strengths, **options)
    deltas = (attacked - repeated) / strengths.view(-1, 1, 1, 1)
    return deltas.clamp(-1, 1).half().view(len(eps), *images.shape)
