"""The methods: the rows of the paper's tables, how each is composed, and how figures draw it."""

from ..denoisers.baselines import BASELINES, SWEPT, find_baseline
from ..denoisers.models import HEADS
from ..training.denoisers import RECIPES

OPERATING_POINT, PUBLISHED_PSNR = "32dB", 32.0
"""The checkpoint of a training whose clean PSNR is near the published one (Table 2), in dB."""

VIEWS: dict[str, tuple[str, int | str]] = {
    **{f"head_{head}": ("Multi-head-Filt(L_img)", head) for head in range(1, HEADS + 1)},
    "PA-Filt(L_img)_sl": ("Y-Net", "sl"),
    "PA-Filt(L_img)_m": ("Y-Net", "m"),
    f"Filt(L_img)@{OPERATING_POINT}": ("Filt(L_img)_as_published", "kernels"),
    f"PA-Filt(L_img)_sl@{OPERATING_POINT}": ("Y-Net_as_published", "sl"),
    f"PA-Filt(L_img)_m@{OPERATING_POINT}": ("Y-Net_as_published", "m"),
}
"""Methods that are one output of a denoiser with several: its recipe, and the output."""

COMBINATIONS = {
    **{name: ("attacked", name) for name in ("Adv", "FPD", "FD")},
    **{f"Add+{name}": ("Add(L_img)", name) for name in ("Adv", "FPD", "FD")},
    **{f"Filt+{name}": ("Filt(L_img)", name) for name in ("Adv", "FPD", "FD")},
    "PA-Filt+Adv": ("PA-Filt(L_img)", "Adv"),
}
"""Methods with another classifier than the standard one: the denoiser before it, and that one."""

AS_PUBLISHED = "PA-Filt(L_img)_as_published"
BOTH_LOSSES = "PA-Filt(L_img+KL)"
GENERALISED: tuple[str, ...] = "attacked", "Add(L_img)", "Filt(L_img)", "PA-Filt(L_img)"
GENERALISED += (BOTH_LOSSES, "JPEG 40")
COMBINATIONS |= {f"{name}+second": (name, "second") for name in GENERALISED}
_SINGLE: tuple[str, ...] = "Add(L_sem)", "Filt(L_sem)", "Add(L_img)", "Filt(L_img)", "Filt(L_img*)"
_SINGLE += ("HGD", "Add(L_img)_as_published", "Filt(L_img)_as_published")
_SINGLE += (f"Filt(L_img)@{OPERATING_POINT}",)
_PARTS = ("PA-Filt(L_img)_sl", "PA-Filt(L_img)_m")
_FUSED: tuple[str, ...] = (*_PARTS, "PA-Filt(L_img)", BOTH_LOSSES, AS_PUBLISHED)
_FUSED += tuple(f"{part}@{OPERATING_POINT}" for part in _PARTS)

TABLES: dict[int, tuple[str, ...]] = {
    1: ("attacked", *_SINGLE, *BASELINES),
    2: ("attacked", *_SINGLE, *BASELINES),
    3: ("attacked", *(f"head_{head}" for head in range(1, HEADS + 1)), *BASELINES),
    4: ("attacked", *_FUSED, "Filt(L_img)", *BASELINES),
    5: ("attacked", "Adv", "Add+Adv", "Filt+Adv", "PA-Filt+Adv"),
    6: ("attacked", "FPD", "Add+FPD", "Filt+FPD"),
    7: ("attacked", "FD", "Add+FD", "Filt+FD"),
}
"""The methods of the paper's tables, named as there, and the simple baselines."""

_CORE = dict.fromkeys(method for table in (1, 3, 4, 5) for method in TABLES[table])
_TRAINED = (x for x in _CORE if x not in BASELINES and not x.endswith("_as_published"))
DEFENCES = (*_TRAINED, *BASELINES, "PA-Filt(L_adv)")
"""The methods of the adaptive evaluation: those of Tables 1 to 5, and PA-Filt(L_adv)."""
AUDITED: tuple[str, ...] = ("attacked", "Filt(L_img)", "Filt(L_sem)", "PA-Filt(L_img)", BOTH_LOSSES)
AUDITED += ("JPEG 40", "Adv", "Filt+Adv")
"""The defences for which some ε are also attacked from scratch."""


def split_method(method: str) -> tuple[str, str]:
    """The denoiser of a method, and the classifier behind it: ``standard`` in Tables 1 to 4."""
    return COMBINATIONS.get(method, (method, "standard"))


def find_recipe(method: str) -> tuple[str | None, int | str | None]:
    """The recipe that trains a method's denoiser, and the output that the method uses (None: all).

    The recipe is None where there is nothing to train: no denoiser, or a simple baseline. Raises
    `ValueError` if there is no such method.
    """
    denoiser, _ = split_method(method)
    name, output = VIEWS.get(denoiser, (denoiser.partition("@")[0], None))
    if name in RECIPES:
        if "@" in denoiser and not RECIPES[name].checkpoints:
            raise ValueError(f"{method!r}: expected a training that keeps checkpoints, got {name}")
        return name, output
    if denoiser == "attacked" or find_baseline(denoiser):
        return None, None
    names = ", ".join(["attacked", *RECIPES, *VIEWS, *COMBINATIONS, *BASELINES, *SWEPT])
    raise ValueError(f"no method named {method!r}; there are: {names}")


def trainings(method: str) -> list[str]:
    """The recipes that train a method's denoiser: its own, that of its base, and so on."""
    recipe, found = find_recipe(method)[0], list[str]()
    while recipe:
        found.append(recipe)
        recipe = RECIPES[recipe].base
    return found


# -- the attacks, as the columns `attack` of tidy rows name them ----------------------------------

ENVELOPE, ITSELF = "pgd-envelope", "pgd-on-itself"
"""Gray-box PGD in its worst case over ε' ≤ ε, and PGD on a robust classifier itself."""
WHITE_BOX = ("PGD", "AutoAttack", "Square")
"""Attacks on the whole defence; the first two follow its gradients."""
TRANSFERRED = ("oblivious", "transfer")
"""Attacks on the bare standard classifier, and on a second one."""
UNSEEN = ("FGSM", "Gaussian noise", "uniform noise")
"""Perturbations that the defence never saw in training, made without it."""
WORST = "worst"
"""Per image the worst case of all white-box and transferred attacks over ε' ≤ ε."""
CHECKS = {
    "audit": "attacking each ε from scratch fools at most one more image",
    "ε": "a stronger attack succeeds more often",
    "n": "a longer attack succeeds more often",
    "oblivious": "a white-box attack is never weaker than a gray-box attack",
    "Square": "gradients are never weaker than random search",
    "transfer": "gradients are never weaker than attacks transferred from another classifier",
    "flat": "doubling PGD's steps gains nearly nothing",
    "gradient": "every image has a gradient",
    "saturation": "the cross-entropy of the unattacked images has not rounded to 0",
    "logits": "the classifier returns logits",
    "deterministic": "the defence answers the same twice",
    "chance": "at ε = 0.5 accuracy is at most chance",
}
"""The sanity checks of the adaptive evaluation, and what each expects; most need an audit."""
GAIN = "gain", "gain, low", "gain, high"
"""Of a defence over its bare classifier, paired over images, with a 95 % interval."""
COSTS = "gradients per image", "forward passes per image", "seconds per image"
"""What the attacks on a defence took."""

# -- how figures draw them -----------------------------------------------------------------------

# Relatives share a hue: adding is orange, filtering blue, the heads are violet, PA-Filt is green.
# The markers tell curves apart in grey print and for every reader's colour vision.
_LOOKS = {
    "attacked": ("#000000", "o"),
    "Add(L_sem)": ("#e69f00", "^"), "Add(L_img)": ("#d55e00", "v"),
    "Filt(L_sem)": ("#56b4e9", "s"), "Filt(L_img)": ("#0072b2", "D"),
    "Filt(L_img*)": ("#332288", "p"), "HGD": ("#a65628", (7, 1, 0)),
    "head_1": ("#b3a2e0", (3, 1, 0)), "head_2": ("#8c63cf", (4, 1, 0)),
    "head_3": ("#662fb0", (5, 1, 180)), "head_4": ("#35106b", (6, 1, 0)),
    "PA-Filt(L_img)_sl": ("#cc79a7", "<"), "PA-Filt(L_img)_m": ("#882255", ">"),
    "PA-Filt(L_img)": ("#009e73", "*"), AS_PUBLISHED: ("#1b5e20", "8"),
    "PA-Filt(L_adv)": ("#8a8a1f", "h"), BOTH_LOSSES: ("#7f3c00", (8, 1, 0)),
    "Add(L_img)_as_published": ("#f0b27a", "v"), "Filt(L_img)_as_published": ("#7fb3d5", "D"),
    "Filt(L_img)@32dB": ("#1f78b4", "D"), "PA-Filt(L_img)_sl@32dB": ("#e7b6d1", "<"),
    "PA-Filt(L_img)_m@32dB": ("#b5657b", ">"),
    **dict.fromkeys(("Adv", "FPD", "FD"), ("#661100", "H")),
    **dict.fromkeys(("Add+Adv", "Add+FPD", "Add+FD"), ("#cc6677", "P")),
    **dict.fromkeys(("Filt+Adv", "Filt+FPD", "Filt+FD"), ("#6699cc", "X")),
    "PA-Filt+Adv": ("#004d40", "d"),
    **{name: ("#6b6b6b", marker) for name, marker in zip(BASELINES, "oXPhd", strict=True)},
}  # fmt: skip
CLEAN_PSNR = "clean PSNR"  # of denoised clean images: the operating point of a row
METRICS = {"accuracy": "accuracy", "psnr": "PSNR (dB)", "ssim": "SSIM"}
"""How tables and figures name what is measured."""

COLOURS = {method: colour for method, (colour, _) in _LOOKS.items()}
MARKERS = {method: marker for method, (_, marker) in _LOOKS.items()}
_DASHES = (4, 2), (1, 1), (3, 1, 1, 1), (5, 1, 1, 1, 1, 1), (1, 3)
DASHES = dict(zip(BASELINES, _DASHES, strict=True))
DASHES |= {name: (6, 2) for name in _LOOKS if name.endswith("_as_published")}
DASHES |= {name: (2, 2) for name in _LOOKS if name.endswith(f"@{OPERATING_POINT}")}
"""Methods of one colour and marker differ in their dashes."""
