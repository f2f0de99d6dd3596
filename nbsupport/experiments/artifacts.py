"""The artifacts of a study by name: classifiers, attacked images, denoisers."""

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..attacks.pgd import AttackedSet, per_pass, ratios
from ..classifiers import custom
from ..classifiers.feature_pyramid import attack_target
from ..classifiers.models import HALF_VGG, Classifier
from ..data.benchmarks import fit_to_images, load
from ..data.images import Split
from ..denoisers.baselines import Baseline
from ..denoisers.models import Denoiser, View, YNet
from ..study import REL_STEP, STRONG_EPS, Study
from ..training import classifiers, denoisers
from ..training.classifiers import KINDS
from ..training.denoisers import training_seed
from ..training.loop import choose_precision, read_checkpoints
from .methods import OPERATING_POINT, PUBLISHED_PSNR, RECIPES, find_recipe, split_method
from .store import Store, Tensors, depend_on, hash_tensors, hash_weights

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Steps = int | None
Strengths = tuple[float, ...] | None
VERSION = 1  # part of every key: raise it when the code makes something else of a specification
SUBSTITUTE = "small_resnet"  # the architecture of the other classifiers beside a custom one
SPLITS = dict.fromkeys(("train", "validation", "classifier", "adversarial"), "train")
SPLITS |= dict.fromkeys(("test", "self_attack", "adaptive", "audit"), "test")
"""Each use of a study's images, and the split of the data set that serves it."""


class Trained(NamedTuple):
    """A denoiser, frozen, with the report of its training and its weights at some steps."""

    denoiser: Denoiser
    report: dict[str, Any]
    checkpoints: dict[int, dict[str, Tensor]]


def once(make: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Keep each result for the session, in the experiment, which is the first argument."""
    signature = inspect.signature(make)

    @functools.wraps(make)
    def remembered(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        experiment, *rest = bound.arguments.values()
        name = (make.__qualname__, *rest)
        if name not in experiment.session:
            experiment.session[name] = make(*arguments, **options)
        return experiment.session[name]

    return remembered


class Experiment:
    """One study and its artifacts: each is taken from the store, or trained or attacked now.

    A custom `classifier` takes the place of the study's standard one (see `nbsupport.wrap`), and
    `Study.robust` that of a robust one. Each artifact is read once per session.
    """

    def __init__(
        self, study: Study, store: Store | None = None, classifier: nn.Module | None = None
    ) -> None:
        self.store, self.session = store or Store(), dict[Any, Any]()
        self.study, self.custom = fit_to_images(study), dict[str, nn.Module | str]()
        if study.robust:
            self.custom[study.replaced] = study.robust
        if classifier is not None:
            self.custom["standard"] = classifier
            self.study = replace(self.study, classifier=custom.class_name(classifier))
        elif custom.is_reference(study.classifier):
            self.custom["standard"] = study.classifier
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @classmethod
    def open(cls, name: str = "photographs", scale: str = "quick", **changes: Any) -> "Experiment":
        """The experiment of `Study.chosen`: a named study, unless the environment names another."""
        return cls(Study.chosen(name, scale, **changes))

    def changed(self, **changes: Any) -> "Experiment":
        """The experiment with other settings, on the same store and with the same classifier."""
        custom = self.custom.get("standard")
        module = custom if isinstance(custom, nn.Module) else None
        return Experiment(replace(self.study, **changes), self.store, module)

    @once
    def images(self, split: str) -> Split:
        """The images for one use of `SPLITS`."""
        number = getattr(self.study, f"{split}_images")
        whole = {"self_attack": self.study.test_images, "audit": self.study.adaptive_images}
        if most := whole.get(split):  # all where None is chosen
            number = min(number or most, most)
        if split == "validation":
            return load(self.study, "train", number, skip=self.study.train_images)
        return load(self.study, SPLITS[split], number)

    # -- classifiers -----------------------------------------------------------------------------

    @once
    def classifier(self, name: str = "standard") -> Classifier:
        """A trained classifier of `nbsupport.training.classifiers.KINDS`, frozen.

        `custom` has those that are custom. Raises `ValueError` if there is no such name.
        """
        if self.is_given(name):
            return self._load_given(name)
        specification, kind = self.classifier_specification(name), KINDS[name]
        split = self.images(kind.split)
        # class numbers may have gaps, so there can be more classes than names
        classes = max(len(split.classes), int(split.labels.max()) + 1)
        sizes = specification["name"], classes, self.study.image_size
        classifier = self._seeded(lambda: kind.build(*sizes), specification["seed"])

        def make(scratch: Path) -> Tensors:
            inputs = classifier, split.images, split.labels
            losses = classifiers.train(name, *inputs, self.study, scratch)
            used = choose_precision(self.study.precision, self.device)
            return classifier.state_dict(), {"loss": losses, "precision": used}

        classifier.load_state_dict(self.store.tensors(specification, make)[0])
        return classifier.eval().requires_grad_(False)

    @once
    def classifier_specification(self, name: str = "standard") -> dict[str, Any]:
        """Everything that a classifier depends on. Paths are no part of it."""
        if self.is_given(name):
            classifier, robust = self.classifier(name), KINDS[name].split == "adversarial"
            return {
                "kind": "classifier", "name": self.architecture(name),
                **({"trained": "elsewhere"} if robust else {}),
                "weights": hash_weights(classifier),
                "structure": sha256(repr(classifier).encode()).hexdigest(),
                "answers": custom.fingerprint(classifier, self._probes()[0]),
            }  # fmt: skip
        trained = classifiers.specify_training(name, self.study)
        return {
            "kind": "classifier", "name": self.architecture(name), "version": VERSION,
            "data": self.images(KINDS[name].split).specification, "trained": trained,
            "epochs": self.study.classifier_epochs, "augmentation": self.study.augmentation,
            "seed": self.study.seed + KINDS[name].seed,
        }  # fmt: skip

    def is_given(self, name: str) -> bool:
        """Whether a classifier is not trained here: a custom one, or public weights."""
        public = self.study.name == "neurips2017dev" and name in ("standard", "second")
        return public or name in self.custom

    def architecture(self, name: str) -> str:
        """The architecture of a classifier, or the custom one's name without its folders."""
        if name in self.custom:
            return self.study.classifier_name if name == "standard" else self.study.robust_name
        if name == "second":  # of another family
            others = ("vgg16", "resnet50") if self.is_given(name) else (HALF_VGG, "resnet20")
            return others["vgg" in self.study.classifier_name.lower()]
        if self.is_given(name):
            return self.study.classifier
        standard = SUBSTITUTE if "standard" in self.custom else self.study.classifier
        return standard + KINDS[name].ending

    def _load_given(self, name: str) -> Classifier:
        """A classifier that is not trained here, tried on images that the denoisers learn from."""
        network: Any = self.custom.get(name)
        if network is None:
            network = custom.load_public(self.architecture(name))
        elif isinstance(network, str):
            network = custom.load(network, self.study.name, self.study.image_size)
        split = self.images("train")
        classes = None if split.specification.get("gaps") else len(split.classes)
        images, labels = self._probes()
        classifier = custom.wrap(network.to(self.device), images, labels, classes=classes)
        if order := split.specification.get("other_order"):
            others = torch.tensor([dict(order)[label] for label in labels.tolist()])
            custom.check_order(classifier.unchecked, images, labels, others.to(labels))
        return classifier

    def _probes(self) -> tuple[Tensor, Tensor]:
        number = min(self.study.train_images, custom.PROBES)
        split = load(self.study, "train", number)  # decodes no more images than these
        return split.images.to(self.device), split.labels.to(self.device)

    def _seeded(self, build: Callable[[], Any], seed: int) -> Any:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            return build().to(self.device)

    # -- attacked images -------------------------------------------------------------------------

    @once
    def attacked(
        self, split: str, steps: Steps = None, eps: Strengths = None, classifier: str = "standard"
    ) -> AttackedSet:
        """The images of a split of `SPLITS` under PGD(n, ε) on a bare classifier.

        n and the strengths above 0 are the study's where None; of other `eps`, those that are the
        study's are not attacked again.
        """
        images, every = self.images(split), self._strengths(split)
        strengths = eps or every
        if steps is None and {*every} & {*strengths} and {*every} != {*strengths}:
            kept = dict(zip(every, self.attacked(split, classifier=classifier).ratios, strict=True))
            if new := tuple(each for each in strengths if each not in every):
                others = self.attacked(split, None, new, classifier).ratios
                kept |= dict(zip(new, others, strict=True))
            chosen = torch.stack([kept[each] for each in strengths])
            return AttackedSet(images.images, images.labels, chosen, (0.0, *strengths))
        found = torch.empty(len(strengths), *images.images.shape, dtype=torch.float16)
        victim = "" if classifier == "standard" else f" ({classifier})"
        label = f"attacking the {SPLITS[split]} images{victim}"
        total = len(strengths) * len(images)
        with tqdm(total=total, unit="image", desc=label, delay=1) as bar:
            for number, block in enumerate(self.blocks(split)):
                found[:, block] = self.attack_block(split, number, steps, eps, classifier, bar)
                bar.update(len(strengths) * block.stop - bar.n)
        return AttackedSet(images.images, images.labels, found, (0.0, *strengths))

    def _strengths(self, split: str) -> tuple[float, ...]:
        study = self.study
        return study.attacked_eps if SPLITS[split] == "train" else study.evaluated_eps[1:]

    def blocks(self, split: str) -> list[slice]:
        """The parts of a split that are attacked and stored together."""
        number, size = len(self.images(split)), 64 if self.study.image_size <= 64 else 8
        return [slice(start, min(start + size, number)) for start in range(0, number, size)]

    def attack_block(
        self, split: str, number: int, steps: Steps = None, eps: Strengths = None,
        classifier: str = "standard", bar: tqdm | None = None,
    ) -> Float[Tensor, "strengths b c h w"]:  # fmt: skip
        """δ/ε of one of the `blocks`, see `attacked`; `bar` moves with each pass.

        Its key names the images of the block alone, so studies of different sizes share blocks.
        """
        specification = self.attacked_specification(split, steps, eps, classifier)
        block, attack = self.blocks(split)[number], specification["attack"]
        network, strengths = self.classifier(classifier), specification["eps"]
        options = dict(steps=attack["steps"], loss=attack["loss"], seed=self.study.seed)
        images, labels = self.images(split).images[block], self.images(split).labels[block]

        def make(scratch: Path) -> Tensors:
            clean, truth = images.to(self.device), labels.to(self.device)
            at_once, parts = max(per_pass(self.device) // len(clean), 1), []
            for start in range(0, len(strengths), at_once):
                chosen = tuple(strengths[start : start + at_once])
                found = ratios(attack_target(network), clean, truth, chosen, **options)
                parts.append(found.cpu())
                if bar is not None:
                    bar.update(len(chosen) * len(clean))
            return {"ratios": torch.cat(parts)}, {}

        specification["data"] = hash_tensors({"images": images, "labels": labels})
        return self.store.tensors(depend_on(specification, network), make)[0]["ratios"]

    def attacked_specification(
        self, split: str, steps: Steps = None, eps: Strengths = None, classifier: str = "standard"
    ) -> dict[str, Any]:
        """Everything that a set of attacked images depends on."""
        n, loss = steps or self.study.steps, KINDS[classifier].loss
        return {
            "kind": "attacked", "name": f"pgd{n}-{SPLITS[split]}", "version": VERSION,
            "attack": {"name": "LinfPGD", "steps": n, "rel_step": REL_STEP, "loss": loss},
            "eps": list(eps or self._strengths(split)), "seed": self.study.seed,
            "data": self.images(split).specification,
            "classifier": self.classifier_specification(classifier),
        }  # fmt: skip

    # -- denoisers -------------------------------------------------------------------------------

    def denoiser(self, method: str) -> nn.Module:
        """A method's denoiser, frozen. Raises `ValueError` if there is no such method."""
        name, output = find_recipe(method)
        if name is None:
            baseline, _ = split_method(method)
            return nn.Identity() if baseline == "attacked" else Baseline(baseline)
        trained = self.trained(name)
        denoiser: Any = trained.denoiser
        if step := self.find_step(method):
            denoiser = copy.deepcopy(denoiser)
            denoiser.load_state_dict(trained.checkpoints[step])
        return denoiser if output is None else View(denoiser, output).eval()

    def find_step(self, method: str) -> int | None:
        """The number of training steps of a method's checkpoint, after its ``@``; None if at end.

        At ``32dB`` it is the one whose clean PSNR on validation images is nearest to that.
        """
        name, output = find_recipe(method)
        point = method.partition("@")[2]
        if name is None or not point:
            return None
        curves = self.trained(name).report["clean_psnr"]
        curve = curves[str(output)] if output else next(iter(curves.values()))
        if point == OPERATING_POINT:
            return int(min(curve, key=lambda step: abs(curve[step] - PUBLISHED_PSNR)))
        if point not in curve:
            there = ", ".join(curve) or "none"
            raise ValueError(f"{method!r}: expected a step with a checkpoint, there are: {there}")
        return int(point)

    @once
    def trained(self, recipe: str) -> Trained:
        """The denoiser of a recipe, the report of its training, and its checkpoints."""
        study, base = self.study, RECIPES[recipe].base
        sizes = {"width": study.width, "kernel_size": study.kernel_size}
        chosen = denoisers.specify_training(recipe, study)
        sizes |= {
            name: chosen[name] for name in ("fusion_inputs", "fusion_start") if name in chosen
        }
        denoiser = self._seeded(lambda: RECIPES[recipe].build(**sizes), training_seed(study))
        start = self.trained(base).denoiser if base else None
        if RECIPES[recipe].at_operating_point:
            view: Any = self.denoiser(f"PA-Filt(L_img)_sl@{OPERATING_POINT}")
            start = view.whole
        made_from = (self.classifier(),) if start is None else (self.classifier(), start)

        def make(scratch: Path) -> Tensors:
            if start is not None:
                part = denoiser.get_submodule("ynet") if isinstance(start, YNet) else denoiser
                part.load_state_dict(start.state_dict())
            attacked, before = self.attacked("train"), copy.deepcopy(denoiser.state_dict())
            inputs = self.classifier(), attacked, study, scratch
            try:
                report = denoisers.train(recipe, denoiser, *inputs)
            except FloatingPointError as error:  # a failed training, as `find_collapse` says
                denoiser.load_state_dict(before)
                report = {"diverged": str(error)}
            tensors = copy.deepcopy(denoiser.state_dict())
            if RECIPES[recipe].checkpoints:
                clean = self.images("validation").images
                kept = {0: before} if "diverged" in report else read_checkpoints(scratch)
                report["clean_psnr"] = denoisers.clean_psnr(denoiser, kept, clean)
                for step, weights in kept.items():
                    tensors |= {f"{step}:{name}": tensor for name, tensor in weights.items()}
            return tensors, report

        specification = depend_on(self.denoiser_specification(recipe), *made_from)
        tensors, report = self.store.tensors(specification, make)
        checkpoints: dict[int, dict[str, Tensor]] = {}
        for name in [name for name in tensors if ":" in name]:
            step, _, weight = name.partition(":")
            checkpoints.setdefault(int(step), {})[weight] = tensors.pop(name)
        denoiser.load_state_dict(tensors)
        return Trained(denoiser.eval().requires_grad_(False), report, checkpoints)

    def denoiser_specification(self, recipe: str) -> dict[str, Any]:
        """Everything that a trained denoiser depends on."""
        study, base, kept = self.study, RECIPES[recipe].base, RECIPES[recipe].checkpoints
        return {
            "kind": "denoiser", "name": recipe, "version": VERSION, "seed": training_seed(study),
            "width": study.width, "kernel_size": study.kernel_size, "batch_size": study.batch_size,
            "strong_eps": list(STRONG_EPS), "attacked": self.attacked_specification("train"),
            "base": self.denoiser_specification(base) if base else None,
            **({"validation": self.images("validation").specification} if kept else {}),
            **denoisers.specify_training(recipe, study),
        }  # fmt: skip

    def specification(self, method: str) -> dict[str, Any]:
        """Everything that a table's row depends on, apart from the attacked images."""
        (name, output), (_, classifier) = find_recipe(method), split_method(method)
        trained = self.denoiser_specification(name) if name else None
        specification = self.classifier_specification(classifier)
        return {"name": method, "output": output, "trained": trained, "classifier": specification}

    def report(self, method: str) -> dict[str, Any]:
        """The report of a denoiser's training: its losses, and the signs of a collapse."""
        recipe, _ = find_recipe(method)
        if recipe is None:
            raise ValueError(f"report: expected a method that is trained, got {method!r}")
        return self.trained(recipe).report
