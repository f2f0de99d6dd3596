"""PGD(n, ε), the paper's attack, on Foolbox, with all strengths in one call."""

import contextlib
import copy
import gc
import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import eagerpy as ep
import foolbox
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..classifiers.models import Classifier, check_logits, check_mode
from ..data.images import Images, Labels, Logits, check_images, check_labels
from ..study import REL_STEP, STEPS

Result = TypeVar("Result")
CHUNK = {"cpu": 64, "cuda": 1024}  # images per pass: what fits a CPU's cache, what fills a GPU


def margin(logits: Logits, labels: Labels) -> Float[Tensor, "b"]:
    """Return the largest wrong logit minus the true one: positive where the attack succeeded."""
    true = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(true, -torch.inf).amax(dim=1) - logits[true]


class _PGD(foolbox.attacks.LinfPGD):
    """Foolbox's PGD from given starting points instead of its global random state."""

    def __init__(self, starts: Tensor, loss: str, **options: Any) -> None:
        super().__init__(**options)
        self.starts, self.loss = starts, loss

    def get_loss_fn(self, model: foolbox.Model, labels: ep.Tensor) -> Any:
        if self.loss == "cross-entropy":
            return super().get_loss_fn(model, labels)
        return lambda inputs: ep.astensor(margin(model(inputs).raw, labels.raw).sum())

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


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within it layers compute in float32, whatever the caller's autocast and TF32 settings.

    TF32's ten bits would swallow the perturbations of 1e-4 that attacks and results compare.
    """
    backends: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def per_pass(device: torch.device) -> int:
    """Return how many images to attack per pass on this device if memory allows."""
    return CHUNK.get(device.type, CHUNK["cuda"])


def halve_on_out_of_memory(run: Callable[[int], Result], at_once: int) -> Result:
    """Call `run` with `at_once` images per pass, halved each time that memory runs out, down to 1."""
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


@torch.no_grad()
def prepare(classifier: nn.Module, example: Images) -> nn.Module:
    """Copy a classifier for fast attacks: frozen, channels last, batch norm folded into convolutions.

    Folding is undone if it changes the logits of `example` by more than rounding. Raises
    `ValueError` in training mode, where an image's logits depend on its batch.
    """
    check_mode(classifier, "attack")
    frozen, folded = (copy.deepcopy(classifier).requires_grad_(False) for _ in range(2))
    for module in (*frozen.modules(), *folded.modules()):
        if isinstance(module, Classifier) and type(module).forward is Classifier.forward:
            module.forward = module.unchecked  # type: ignore[method-assign]
    _fold_batch_norm(folded, example)
    same = torch.allclose(folded(example), frozen(example), rtol=1e-3, atol=1e-4)
    return (folded if same else frozen).to(memory_format=torch.channels_last)


def _fold_batch_norm(network: nn.Module, example: Tensor) -> None:
    """Fold, in place, each batch norm whose only input is the output of one convolution.

    Hooks record which norm reads which convolution while `example` passes, so `network` may contain
    any Python code. They do not see other uses of a convolution's output: compare logits afterwards.
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
    classifier: nn.Module, images: Images, labels: Labels, eps: float | Float[Tensor, "b"],
    *, steps: int = STEPS, rel_step: float = REL_STEP, seed: int = 0, loss: str = "cross-entropy",
) -> Images:  # fmt: skip
    """Attack images with PGD(n, ε) under L∞, from a random start, without early stopping (eq. 2).

    `eps` is for images in [0, 1], one for all or one per image; 0 leaves an image unchanged. Each of
    the n = `steps` steps has size `rel_step` · ε. `loss` is the paper's cross-entropy or
    ``"margin"``, whose gradient does not vanish where the classifier is confident. The result stays
    within ε and [0, 1], and depends on the image, its label, its ε and `seed` alone (up to rounding).

    Raises `ValueError` if an argument is out of range, or the classifier returns probabilities or is
    in training mode.
    """
    check_images(images, caller="pgd", channels=None)
    images = images.detach()
    strengths = torch.as_tensor(eps, dtype=images.dtype, device=images.device)
    if strengths.ndim and strengths.shape != labels.shape:
        raise ValueError(f"pgd: expected one ε, or one per image, got {tuple(strengths.shape)}")
    strengths = strengths.expand(len(images))
    if not (torch.isfinite(strengths).all() and strengths.min() >= 0 and strengths.max() <= 1):
        raise ValueError(f"pgd: expected ε from 0 to 1, got {eps}; write 8/255 as 8 / 255")
    if steps < 1 or rel_step <= 0:
        sizes = f"steps={steps}, rel_step={rel_step}"
        raise ValueError(f"pgd: expected at least one step of positive size, got {sizes}")
    if loss not in ("cross-entropy", "margin"):
        raise ValueError(f"pgd: expected the loss 'cross-entropy' or 'margin', got {loss!r}")
    prepared = prepare(classifier, images[:2])
    with torch.no_grad():
        logits = prepared(images[:1])
    check_logits(logits)
    check_labels(labels, images=images, classes=logits.shape[1], caller="pgd")
    labels = labels.long()
    model = foolbox.PyTorchModel(prepared, bounds=(0, 1), device=images.device)
    options = dict(rel_stepsize=rel_step, steps=steps, random_start=True)

    def run(number: int) -> Tensor:
        attacked = []
        for part in torch.arange(len(images)).split(number):
            clean = images[part].contiguous(memory_format=torch.channels_last)
            attack = _PGD(random_starts(clean, strengths[part], seed), loss, **options)
            criterion = foolbox.criteria.Misclassification(labels[part])
            radii: Any = strengths[part].view(-1, 1, 1, 1)  # Foolbox broadcasts one per image
            with full_precision(images.device):
                attacked.append(attack.run(model, clean, criterion, epsilon=radii).contiguous())
        return torch.cat(attacked)

    return halve_on_out_of_memory(run, per_pass(images.device))


@dataclass(frozen=True)
class AttackedSet:
    """Clean images and their attacked versions, stored as `ratios` δ/ε: one row per ε above 0.

    δ/ε lies in [−1, 1], so float16 keeps each perturbation to 1/2048 of its ε, however small ε is;
    8-bit or half-precision pixels would erase the small ones. `eps` starts with 0, so ``eps[i + 1]``
    belongs to ``ratios[i]``.
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
