"""Explorer and sliders in pages without a kernel: an exported notebook, the report and the static page, offline."""

import io
import re

import numpy as np
import pytest
import torch
from homes import WIDTHS, agrees, check_layout, pixels, walk_all, write_notebook
from lab import REPOSITORY
from PIL import Image
from torch import nn

from nbsupport.classifiers.models import Classifier
from nbsupport.interactive import explorer as static
from nbsupport.interactive.explorer import explore
from nbsupport.interactive.widgets import embed
from nbsupport.results import notebooks, report
from nbsupport.study import eps_label, short

HOMES = ("static", "exported", "report")
# the others in `make test-all`
TESTED = ("static", 272, "dark"), ("exported", 588, "light"), ("report", 336, "dark")


@pytest.fixture(scope="session")
def pages(explorer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static, "explore", lambda: explorer)
        static.write_page(folder / "explorer.html")
        patch.setattr(notebooks, "NOTEBOOKS", folder)
        patch.setattr(notebooks, "PAGES", folder)
        write_notebook(folder / "00_small.ipynb", str(__file__).rpartition("/")[0])
        notebooks.run([], "photographs", "smoke")
    results = report.build([REPOSITORY / "figures"], folder)
    (folder / "index.html").write_text(results, encoding="utf-8")
    names = ("explorer.html", "photographs-smoke/00_small.html", "index.html")
    return {home: folder / name for home, name in zip(HOMES, names, strict=True)}


@pytest.fixture
def opened(open_offline, pages, request):
    """A page of a width, theme and zoom."""
    home, width, scheme, zoom = (*getattr(request, "param", ("static", 900, "light")), 1)[:4]
    size = {"width": width, "height": 800 // zoom}
    look = dict(viewport=size, color_scheme=scheme, device_scale_factor=zoom)
    return open_offline(pages[home], **look)


@pytest.mark.parametrize("opened", [(home, 900, "light") for home in HOMES], indirect=True)
def test_all_strengths_and_methods_change_picture_and_verdict(opened, explorer):
    root, classes = opened.locator(".nbs").first, explorer.fixed["classes"]
    verdict = "document.querySelector('.nbs-verdict').textContent"
    opened.wait_for_function(f"() => {verdict}.startsWith('true class')")
    agrees(root, explorer.exploration, classes, explorer.image, explorer.strength, explorer.method)
    walk_all(root, explorer.exploration, classes, explorer.image)
    root.get_by_role("group", name="images").get_by_role("button").nth(1).click()
    walk_all(root, explorer.exploration, classes, explorer.images[1]["number"])
    assert root.get_by_role("button", name="recompute").count() == 0  # needs a kernel


@pytest.mark.parametrize("opened", [("exported", 900, "light")], indirect=True)
def test_sliders_move_without_a_kernel(opened):
    browser = opened.locator(".nbs-sliders")
    image, eps = (browser.get_by_role("slider", name=name) for name in ("image", "ε"))
    picture, seen = browser.locator("img"), set()
    for key in ("Home", "End"):
        image.press(key)
        for strength, label in enumerate(map(eps_label, (0.0, 3e-3, 0.5))):
            eps.press("ArrowRight" if strength else "Home")
            name = {"Home": "cat", "End": "dog"}[key]
            assert eps.get_attribute("aria-valuetext") == f"ε = {label}"
            said = f"image = {name}, ε = {label}: image {1 + (key == 'End')} under"
            assert picture.get_attribute("alt").startswith(said)
            seen.add(picture.evaluate("pixels"))
    assert len(seen) == 6


def test_marker_values_and_kernels(opened, explorer):
    """A click chooses a pixel of the grid; the values are those of the pixel, and the marker no part of the picture."""
    root, exploration = opened.locator(".nbs"), explorer.exploration
    before = pixels(root, "attacked")
    pad = root.get_by_role("application", name="attacked image")
    box = pad.bounding_box()
    pad.click(position={"x": box["width"] * 8.5 / 32, "y": box["height"] * 20.5 / 32})
    assert root.get_by_role("heading", name="kernels of pixel (20, 8)").count() == 1
    assert np.array_equal(pixels(root, "attacked"), before)
    frame = exploration.frames[explorer.image, explorer.strength, explorer.method]
    taps = torch.stack([each[:, 20, 8].float() for each in frame.kernels.values()])
    sums = taps.view(3 * len(taps), -1).sum(dim=1)
    said = root.locator(".nbs-kernels figcaption").all_inner_texts()
    assert np.allclose([float(each[2:].replace("−", "-")) for each in said], sums, atol=0.08)
    pad.press("ArrowUp")
    assert root.get_by_role("heading", name="kernels of pixel (16, 8)").count() == 1
    pad.hover(position={"x": box["width"] * 3.5 / 32, "y": box["height"] * 5.5 / 32})
    value = root.locator(".nbs-pictures figure").nth(1).locator("data").inner_text()
    frame = exploration.frames[explorer.image, explorer.strength, "attacked"]
    wanted = frame.pictures["denoised"][:, 5, 3]
    assert np.allclose([float(each) for each in value.split()], wanted, atol=0.008)


def test_curve_and_kernels_show_their_values_under_the_pointer(opened, explorer):
    root, exploration = opened.locator(".nbs"), explorer.exploration
    root.get_by_role("heading", name="accuracy on 4 images").scroll_into_view_if_needed()
    third = root.locator(".nbs-plot > svg .curve polygon:nth-of-type(3)")
    opened.wait_for_function(
        "() => document.querySelectorAll('.nbs-plot > svg .curve').length === 4"
    )
    places = third.evaluate_all("(all) => all.map((mark) => mark.getBoundingClientRect().toJSON())")
    assert len(places) == len(exploration.denoisers) == 4
    for box in places:
        opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        said = root.locator(".nbs-plot > data").inner_text()
        name, share, eps = re.fullmatch(r"(.+): ([\d.]+) at ε = (.+)", said).groups()
        assert eps == short(exploration.eps[2])
        name = name.replace("no filter", "attacked")
        answers = [exploration.frames[i, 2, name].probabilities.argmax() for i in range(4)]
        right = np.mean([int(a) == int(exploration.labels[i]) for i, a in enumerate(answers)])
        assert float(share) == pytest.approx(right, abs=0.006)
    kernel = root.locator(".nbs-kernels canvas").first
    box = kernel.bounding_box()
    kernel.hover(position={"x": box["width"] / 2, "y": box["height"] / 2})
    said = root.locator(".nbs-values").inner_text()
    frame = exploration.frames[explorer.image, explorer.strength, explorer.method]
    taps = next(iter(frame.kernels.values()))[:, 16, 16].float()
    place = f"({', '.join(re.findall(r'-?[0-9]+', said.split('tap')[1])[:2])})"
    assert place == "(0, 0)" and "red" in said
    assert float(said.split()[-1]) == pytest.approx(float(taps[len(taps) // 6]), abs=0.01)


def test_a_changed_verdict_is_announced(opened):
    """Values under the pointer are not: they lie outside of the live regions."""
    root = opened.locator(".nbs")
    live = root.get_by_role("status").filter(has_text="true class")
    assert live.get_attribute("aria-live") == "polite"
    values = root.locator("data")
    assert values.count() > 5 and values.and_(root.locator("[role=status] *")).count() == 0
    node, before = live.element_handle(), live.inner_text()
    root.get_by_role("slider").press("Home")
    opened.wait_for_function("([node, text]) => node.textContent !== text", arg=[node, before])
    assert node.evaluate("(node) => node.isConnected") and "ε = 0" in live.inner_text()


def test_enlarging_saving_and_sweeping(opened):
    root = opened.locator(".nbs")
    root.get_by_role("button", name="enlarge denoised").click()
    assert root.locator("dialog canvas").bounding_box()["width"] >= 320
    with opened.expect_download() as download:
        root.get_by_role("button", name="save as PNG").click()
    saved = np.asarray(Image.open(io.BytesIO(download.value.path().read_bytes())).convert("RGB"))
    times = len(saved) // 32
    assert np.array_equal(saved[times // 2 :: times, times // 2 :: times], pixels(root, "denoised"))
    opened.keyboard.press("Escape")
    slider = root.get_by_role("slider")
    before = slider.get_attribute("aria-valuetext")
    root.get_by_role("button", name="play").click()
    moved = "(text) => document.querySelector('.nbs input').ariaValueText !== text"
    opened.wait_for_function(moved, arg=before)
    root.get_by_role("button", name="pause").click()


LOOKS = [pytest.param(("static", 588 // 2, "light", 2), marks=pytest.mark.matrix)]
LOOKS += [pytest.param((home, width, scheme), marks=[pytest.mark.matrix] * ((home, width, scheme) not in TESTED))
         for home in HOMES for width in WIDTHS for scheme in ("light", "dark")]  # fmt: skip


@pytest.mark.parametrize("opened", LOOKS, indirect=True, ids=str)
def test_it_can_be_read_at_every_width_in_both_themes(opened, request):
    root = opened.locator(".nbs").first
    home, width, *_ = request.node.callspec.params["opened"]
    if home != "static":  # whose pages have margins
        opened.set_viewport_size({"width": width + 100, "height": 800})
    root.evaluate("(root, width) => { root.style.width = `${width}px`; }", width)
    opened.evaluate("() => { document.body.style.margin = document.body.style.padding = 0; }")
    for method in root.get_by_role("combobox", name="method").locator("option").all_inner_texts():
        root.get_by_role("combobox", name="method").select_option(label=method)
        opened.wait_for_timeout(100)
        check_layout(root)
    for role in ("button", "slider", "combobox", "img", "application", "group"):
        every = root.get_by_role(role).all()
        label = "(e) => e.ariaLabel || e.textContent.trim() || e.alt"
        assert every and all(each.evaluate(label) for each in every)


def test_the_scale_of_kernels_shows_them(opened):
    root = opened.locator(".nbs")
    root.get_by_role("slider").press("End")
    kernel = root.locator(".nbs-kernels canvas").last
    spread = "(c) => { const d = [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 1); return Math.max(...d) - Math.min(...d); }"
    own = kernel.evaluate(spread)
    root.get_by_role("combobox", name="scale of the kernels").select_option("common")
    assert kernel.evaluate(spread) < own and own > 60


def test_large_images_are_enlarged_pixel_by_pixel(open_offline, tmp_path):
    layer = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    explorer = explore(Classifier(layer).eval(), {}, images, torch.tensor([0]), eps=(0.0, 0.1))
    (tmp_path / "large.html").write_text(embed(explorer), encoding="utf-8")
    page = open_offline(tmp_path / "large.html")
    page.get_by_role("button", name="enlarge clean").click()
    canvas = page.locator("dialog canvas")
    assert canvas.evaluate("(c) => c.width") == 224 <= canvas.bounding_box()["width"]


def test_the_methods_differ_by_dash_or_marker(opened, explorer):
    looks = opened.locator(".nbs-legend .curve").evaluate_all(
        "(each) => each.map((g) => [g.querySelector('polyline').getAttribute('stroke-dasharray'), g.querySelector('polygon').getAttribute('points')].join())"
    )
    assert len(set(looks)) == len(looks) == len(explorer.fixed["methods"])


@pytest.mark.matrix
def test_the_static_page_of_all_methods_is_small(tmp_path):
    static.write_page(tmp_path / "explorer.html")
    assert (tmp_path / "explorer.html").stat().st_size <= 6e6
