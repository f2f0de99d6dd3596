"""What is there, what is missing, and the command that mends it."""

import importlib.metadata
import os
import platform
import shlex
import shutil
import sys

import torch

from .classifiers import public_weights
from .data import image_folder as folders
from .data import neurips, published
from .experiments.artifacts import Artefacts
from .experiments.fingerprints import made_from
from .experiments.methods import RECIPES, parts
from .experiments.store import default_home
from .results.save import folder
from .study import STUDIES, Study
from .training.classifiers import KINDS

INSTALL = "python -m pip install -e '.[lab]' -c constraints.txt"
COST = "Tables 1 to 4 take about 80 minutes and 260 MB at quick on 2 CPU cores"  # cifar10's; svhn has its sizes


def examine(study: Study) -> None:
    """What is there, what is missing, and the command that mends it."""
    missing = []
    print(f"python           {platform.python_version()} on {platform.platform()}")
    for name in (
        "nbsupport",
        "torch",
        "torchvision",
        "foolbox",
        "jupyterlab",
        "ipywidgets",
        "jupyterlab_widgets",
    ):
        try:
            print(f"{name:16} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name:16} missing: {INSTALL}")
            missing.append(name)
    cuda = torch.cuda.is_available()
    device = (
        torch.cuda.get_device_name()
        if cuda
        else f"{os.cpu_count()} CPU cores, no CUDA device found"
    )
    print(f"device           {device}")
    extension = os.path.join(
        sys.prefix, "share", "jupyter", "labextensions", "@jupyter-widgets", "jupyterlab-manager"
    )
    found = os.path.isdir(extension)
    print(
        f"sliders          {'JupyterLab has the widget extension' if found else f'no widget extension: {INSTALL}'}"
    )
    home = default_home()
    usable = home if home.exists() else next(parent for parent in home.parents if parent.exists())
    free = shutil.disk_usage(usable).free / 1e9
    print(
        f"store            {home} ({'there' if home.exists() else 'made when needed'}, {free:.0f} GB free)"
    )
    print(f"figures          {folder(study.name)}")
    print("studies")
    for name in STUDIES:
        there, where = located(study if name == study.name else Study.named(name, "quick"))
        print(f"  {name:15}{'there: ' if there else 'to get: '}{where}")
    if study.name in published.CLASSES and not located(study)[0]:
        sys.exit(1)  # for to look at it would be to download it
    artefacts = looked_at(study)
    _found(artefacts)
    command = " ".join(
        [
            "python -m nbsupport compute --study",
            study.name,
            "--scale",
            study.scale,
            *_options(study),
        ]
    )
    for name, there in made(artefacts).items():
        print(f"  {name:22} {'there' if there else f'not made yet: {command}'}")
    if missing or not found:
        sys.exit(1)


def located(study: Study) -> tuple[bool, str]:
    """Whether a study's images are there, and where, or how to get them. Nothing is downloaded or decoded."""
    if study.name == "digits":
        return (
            True,
            "its images come with scikit-learn; 9 minutes and 60 MB at quick on 2 CPU cores",
        )
    if study.name == "folder":
        return bool(study.data), f"its images are in {study.data}" if study.data else folders.GIVE
    home = published.home()
    if study.name == neurips.NAME:
        try:
            return (
                True,
                f"{neurips.there()} of its {neurips.WHOLE:,} images are in {home / neurips.NAME}",
            )
        except (ValueError, OSError) as error:
            return False, str(error)
    if published.is_tree(study.name):
        return True, f"its images are in {home / study.name}, as files; {COST}"
    if published.there(study.name):
        return True, f"torchvision's files are in {home}; {COST}"
    megabytes = published.MEGABYTES[study.name]
    return (
        False,
        f"compute and run download about {megabytes} MB to {home}; --data DIR names another place; {COST}",
    )


def looked_at(study: Study, methods: tuple[str, ...] = ()) -> Artefacts:
    """The study's artefacts once its images and its classifier were found good; otherwise the end, in one line.

    So are the architectures of the robust classifiers that `methods` need.
    """
    try:
        artefacts = Artefacts(study)
        kinds = {parts(method)[1] for method in methods} - {"standard"} | (
            {"standard"} if artefacts.own is None else set()
        )
        with torch.device("meta"):
            for kind in kinds:
                KINDS[kind].build(artefacts.architecture(kind), 2, study.image_size)
        artefacts.attacked_specification("test")
        artefacts.images("train")
    except (ValueError, OSError) as error:
        sys.exit(f"python -m nbsupport: {error}")
    return artefacts


def _found(artefacts: Artefacts) -> None:
    """The study's images and, where it is not the project's own, its classifier."""
    study = artefacts.study
    train, test = (artefacts.images(split) for split in ("train", "test"))
    print(f"study            {study.name} at {study.scale}; {located(study)[1]}")
    print(f"images           {len(train)} to train on, {len(test)} to test on, {len(train.classes)} classes, "
          f"{study.image_size}×{study.image_size} pixels")  # fmt: skip
    if artefacts.own is not None:
        classifier = artefacts.classifier()
        with torch.no_grad():
            logits = classifier(test.images.to(artefacts.device)).cpu()
        accuracy = (logits.argmax(dim=1) == test.labels).float().mean()
        print(
            f"classifier       {study.classifier_name}: {logits.shape[1]} logits, clean accuracy {accuracy:.3f}"
        )


def made(artefacts: Artefacts) -> dict[str, bool]:
    """Whether the classifier, the attacked images and some denoisers are made; nothing is made to find out."""
    has, names = artefacts.store.has, ("Filt(L_img)", "Y-Net", "PA-Filt(L_img)")
    found = (
        {}
        if artefacts.own is not None
        else {"classifier": has(artefacts.classifier_specification())}
    )
    if public := artefacts.public("standard"):
        found["classifier"] = public_weights.there(public)
    classifier = [artefacts.classifier()] if all(found.values()) else []
    for split in ("train", "test"):
        found[f"{split} images"] = any(
            has(made_from(artefacts.attacked_specification(split), c)) for c in classifier
        )
    for name in names:
        base = RECIPES[name].base
        made = classifier + ([artefacts.trained(base)[0]] if base and found[base] else [])
        wanted = made_from(artefacts.denoiser_specification(name), *made)
        found[name] = bool(classifier) and (base is None or found[base]) and has(wanted)
    return found


def _options(study: Study) -> list[str]:
    """What of the study has to be said on a command line beside its name and scale."""
    usual = Study.named(study.name, study.scale)
    names = ("classifier", "data", "image_size")
    changed = {
        name: str(value)
        for name in names
        if (value := getattr(study, name)) != getattr(usual, name)
    }
    if (
        study.name in (*published.CLASSES, neurips.NAME)
        and published.home() != default_home() / "data"
    ):
        changed["data"] = str(published.home())
    return [
        word
        for name, value in changed.items()
        for word in (f"--{name.replace('_', '-')}", shlex.quote(value))
    ]
