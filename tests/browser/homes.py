"""One small explorer in its three homes, and how a test reads any of them."""

import re

import matplotlib
import nbformat
import numpy as np
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import nbsupport
from nbsupport.denoisers.baselines import Baseline
from nbsupport.interactive.explorer import explore
from nbsupport.study import eps_label, short

EPS = (0.0, 0.003, 0.01, 0.3)
WIDTHS = 272, 336, 588, 848  # pixels
NAMES = ("PA-Filt(L_img)", "Filt(L_img)")


def small(number=4, eps=EPS):
    """Pretrained networks on few images at few strengths."""
    denoisers = {name: nbsupport.load_pretrained(f"cifar10-{name}") for name in NAMES}
    denoisers["JPEG 40"] = Baseline("JPEG 40").eval()
    classifier, split = nbsupport.load_pretrained("cifar10-classifier"), nbsupport.samples()
    images, labels = split.images[:number], split.labels[:number]
    return explore(classifier, denoisers, images, labels, split.classes, eps=eps)


SOURCES = [
    "import sys\nsys.path.append({folder!r})\nfrom homes import small\n\nit = small()\nit",
    """from matplotlib.figure import Figure
from nbsupport.interactive.widgets import Browser, eps_choices

def draw(image, eps):
    figure = Figure(figsize=(4, 2))
    figure.add_axes((0.2, 0.2, 0.7, 0.5), title=f"image {{image}} under {{eps}}").plot([0, eps], [1, image])
    return figure

Browser(draw, image={{"cat": 1, "dog": 2}}, eps=eps_choices([0.0, 3e-3, 0.5]))""",
]


def write_notebook(path, folder):
    cells = [new_code_cell(source.format(folder=folder)) for source in SOURCES]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = new_notebook(cells=[new_markdown_cell("# Small"), *cells], metadata=kernel)
    nbformat.write(notebook, path)
    return path


# -- reading it ----------------------------------------------------------------------------------

CANVAS = """(canvas) => { const { width, height } = canvas;
  return [height, width, [...canvas.getContext("2d").getImageData(0, 0, width, height).data]]; }"""
ON_SCREEN = """(root, [eps, method]) => root.querySelector("input[type=range]").ariaValueText === `ε = ${eps}`
  && root.querySelector("[aria-label=method]").value === method
  && !root.querySelector(".nbs-pictures figure:nth-child(-n + 4).empty")"""


def pixels(root, name):
    """What a canvas shows: the picture of this name."""
    title = root.page.get_by_text(name, exact=True)
    figure = root.locator(".nbs-pictures figure").filter(has=title)
    height, width, data = figure.locator("canvas").evaluate(CANVAS)
    return np.array(data, np.uint8).reshape(height, width, 4)[..., :3]


def check_layout(root):
    """Nothing cut, text of at least 11 px, pictures of at least 96 px, and enough contrast."""
    assert root.evaluate("cut") == []
    assert root.evaluate("smallest") >= 11
    pictures = root.locator(".nbs-pictures canvas").all()
    assert min(each.bounding_box()["width"] for each in pictures) >= 96
    assert [each for each in root.evaluate("contrasts") if each[1] < 4.5] == []
    assert [each for each in root.evaluate("lines") if each[1] < 3] == []


def agrees(root, exploration, classes, image, strength, method):
    """Whether words and pictures are those of a choice, computed from its frames."""
    attacked, frame = (exploration.frames[image, strength, name] for name in ("attacked", method))
    hat, denoised = (each.pictures["denoised"] for each in (attacked, frame))
    clean = exploration.images[image]
    for name, wanted in {"clean": clean, "attacked": hat, "denoised": denoised}.items():
        wanted = (255 * wanted.permute(1, 2, 0).numpy()).round()
        assert np.abs(pixels(root, name) - wanted).max() <= 1, name
    change = (hat - clean).mean(dim=0) / (exploration.eps[strength] or 1)
    wanted = matplotlib.colormaps["RdBu_r"]((change.numpy() + 1) / 2, bytes=True)[..., :3]
    assert np.abs(pixels(root, "perturbation") - wanted.astype(int)).max() <= 8
    for name in [name for name in frame.pictures if name[0] == "U"]:
        frames = [each for key, each in exploration.frames.items() if key[2] == method]
        every = [map for each in frames for key, map in each.pictures.items() if key[0] == "U"]
        low, high = min(float(x.min()) for x in every), max(float(x.max()) for x in every)
        wanted = (frame.pictures[name][0].numpy() - low) / (high - low)
        wanted = matplotlib.colormaps["viridis"](wanted, bytes=True)[..., :3]
        assert np.abs(pixels(root, name) - wanted.astype(int)).max() <= 8, name
    truth = int(exploration.labels[image])
    found = [int(each.probabilities.argmax()) for each in (attacked, frame)]
    marks = [f"{classes[label]} {'✓' if label == truth else '✗'}" for label in found]
    eps, title = short(exploration.eps[strength]), method.replace("attacked", "no filter")
    wanted = f"true class: {classes[truth]} · attacked, ε = {eps}: {marks[0]} · {title}: {marks[1]}"
    assert root.locator(".nbs-verdict").inner_text() == wanted
    for words, each in zip(root.locator(".nbs-words").all(), (attacked, frame), strict=True):
        lines = words.locator("> div > div").all_inner_texts()
        assert sum(classes[truth] in line and "✓" in line for line in lines) == 1
        shown = [float(re.findall(r"[\d.]+$", line)[0]) for line in lines]
        best = each.probabilities.topk(len(lines)).values.tolist()
        assert np.allclose(shown[:-1], best[:-1], atol=0.006)


def walk_all(root, exploration, classes, image):
    """Every strength and method, with the keyboard; words and pictures agree at each."""
    slider, method = root.get_by_role("slider"), root.get_by_role("combobox", name="method")
    seen = set()
    for name in exploration.denoisers:
        method.select_option(name)
        slider.focus()
        for strength, eps in enumerate(exploration.eps):
            root.page.keyboard.press("ArrowRight" if strength else "Home")
            given = [root.element_handle(), [eps_label(eps), name]]
            root.page.wait_for_function(f"([root, given]) => ({ON_SCREEN})(root, given)", arg=given)
            agrees(root, exploration, classes, image, strength, name)
            seen.add(pixels(root, "attacked").tobytes())
    assert len(seen) == len(exploration.eps)
