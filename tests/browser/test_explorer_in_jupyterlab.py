"""The explorer of notebook 00 in JupyterLab: keyboard, clicks, errors, a busy kernel, themes."""

import itertools
import re

import pytest
from lab import NOTEBOOKS, PANEL

pytestmark = pytest.mark.parametrize(
    "notebook", NOTEBOOKS[:1], ids=lambda path: path.stem, indirect=True
)
IMAGES = ("clean", "attacked", "denoised")


@pytest.fixture
def explorer(notebook):
    (number,) = (i for i, source in enumerate(notebook.sources) if ".explore(" in source)
    root = notebook.show(number).locator(".nbs")
    root.evaluate("(root) => root.scrollIntoView({ block: 'end' })")
    yield root
    assert notebook.reported() == []


def picture(explorer, name):
    return explorer.get_by_label(re.compile(f"^{name}( image;|$)"))


def in_kernel(notebook, line):
    """Run code in the kernel, where the explorer is `it`."""
    every = "__import__('ipywidgets').widgets.widget._instances.values()"
    code = f"it, = (each for each in {every} if hasattr(each, 'exploration'))\n{line}"
    execute = f"{PANEL}.sessionContext.session.kernel.requestExecute({{ code }})"
    reply = notebook.page.evaluate(f"async (code) => (await {execute}.done).content", code)
    assert reply["status"] == "ok"


def test_everything_is_chosen_with_the_keyboard(notebook, explorer):
    strength, method = (explorer.get_by_role(role) for role in ("slider", "combobox"))
    thumbnails = explorer.get_by_role("group", name="images").get_by_role("button")
    clean, attacked, denoised = (picture(explorer, name) for name in IMAGES)
    first = notebook.press("Enter", thumbnails.last, clean, "the last thumbnail")
    assert thumbnails.last.get_attribute("aria-pressed") == "true"
    notebook.press("Space", thumbnails.first, clean, "the first thumbnail", back_to=first)
    notebook.press("End", strength, attacked, "the largest ε")
    largest = notebook.press("Home", strength, attacked, "ε = 0")
    assert strength.get_attribute("aria-valuetext") == "0 (clean)"
    notebook.press("End", strength, attacked, "the largest ε", back_to=largest)
    first = notebook.press("Home", method, denoised, "the first method")
    assert method.input_value() == "attacked"
    notebook.press("End", method, denoised, "the last method", back_to=first)


def test_the_most_probable_classes_come_first(explorer):
    for name in ("attacked", "denoised"):
        lines = explorer.get_by_label(f"predictions for the {name} image").locator("> div")
        values = [float(text[-4:]) for text in lines.all_inner_texts()]
        assert len(values) == 5
        assert values == sorted(values, reverse=True)
        assert all(re.match(r"[a-z]", text) for text in lines.all_inner_texts())


def test_tab_reaches_everything_in_order(notebook, explorer):
    seen = []
    explorer.evaluate("(root) => root.closest('.jp-Cell').focus()")  # as Escape does
    for _ in range(30):
        notebook.page.keyboard.press("Tab")
        name = explorer.evaluate(
            "(root) => root.contains(document.activeElement) &&"
            " (document.activeElement.ariaLabel ?? document.activeElement.textContent)"
        )
        seen += [name.partition(":")[0].partition(";")[0]] if name else []
    images = [f"image {number}" for number in range(explorer.locator(".nbs-strip button").count())]
    places = [f"{name} image" for name in IMAGES]
    assert seen == [*images, "attack strength ε", "method", "recompute with PGD", *places]


def test_a_click_chooses_the_pixel_and_arrows_move_it(notebook, explorer):
    heading = explorer.get_by_role("heading", name="kernels of pixel").element_handle()
    kernel = explorer.locator(".nbs-kernels canvas").first

    def shows(place, what):
        notebook.until("a.textContent.endsWith(b)", f"{place} after {what}", heading, place)

    for name in IMAGES:
        canvas = picture(explorer, name)
        width, height = canvas.evaluate("(canvas) => [canvas.width, canvas.height]")
        box, before = canvas.bounding_box(), [each.evaluate("pixels") for each in (canvas, kernel)]
        canvas.click(position={"x": box["width"] * 3.5 / width, "y": box["height"] * 0.5 / height})
        shows("(0, 3)", f"a click on {name}")
        assert canvas.evaluate("pixels") != before[0]
        assert kernel.evaluate("pixels") != before[1]
        places = {"Up": "(0, 3)", "Down": "(1, 3)", "Right": "(1, 4)", "Left": "(1, 3)"}  # Up: edge
        for key, place in places.items():
            notebook.page.keyboard.press(f"Arrow{key}")
            shows(place, key)
        in_kernel(notebook, "it.row = it.column = 16")
        shows("(16, 16)", "going back")


def test_recomputing_says_that_it_is_busy_and_ends(notebook, explorer):
    button = explorer.get_by_role("button", name="recompute with PGD")
    button.evaluate("watch")
    notebook.press("Enter", button, picture(explorer, "attacked"), "another random start")
    button = explorer.locator("button[aria-busy]").element_handle()
    notebook.until("a.ariaBusy === 'false'", "the end of the attack", button)
    seen = [state for state, _ in itertools.groupby(notebook.page.evaluate("() => window.seen"))]
    assert seen == ["true attacking …", "false recompute with PGD"]


def test_it_shows_that_it_waits_for_the_kernel_and_then_its_error(notebook, explorer, tmp_path):
    """Busy with the choice itself: newer JupyterLabs answer widgets while another cell runs."""
    status = explorer.locator(".nbs-line [role=status]").element_handle()
    alert, free = explorer.get_by_role("alert").element_handle(), tmp_path / "free"
    failing = f"""import pathlib, time
class Failing(dict):
    def __getitem__(self, key):
        while not pathlib.Path({str(free)!r}).exists(): time.sleep(0.05)
        raise KeyError(key)
"""
    in_kernel(notebook, f"{failing}kept, it.exploration.frames = it.exploration.frames, Failing()")
    explorer.get_by_role("slider").focus()
    notebook.page.keyboard.press("ArrowLeft")
    notebook.until("a.textContent.startsWith('waiting for the kernel')", "the explorer", status)
    notebook.shoot("explorer-waiting")
    free.touch()
    notebook.until("a.textContent === ''", "the kernel's answer", status)
    notebook.until("a.textContent.startsWith('KeyError')", "the error's message", alert)
    notebook.shoot("explorer-error")
    in_kernel(notebook, "it.exploration.frames = kept")
    notebook.page.keyboard.press("ArrowRight")
    notebook.until("a.textContent === ''", "the message to go", alert)


def test_its_keys_are_not_jupyterlabs(notebook, explorer):
    """Which would cut the cell and insert others."""
    cells = f"() => {PANEL}.content.widgets.map((cell) => cell.model.id)"
    before = notebook.page.evaluate(cells)
    explorer.get_by_role("button").first.focus()
    for key in "abxdd":
        notebook.page.keyboard.press(key)
    assert notebook.page.evaluate(cells) == before


def test_everything_has_a_name(explorer):
    for role in ("button", "slider", "combobox", "img", "application", "group"):
        every = explorer.get_by_role(role)
        assert every.count() == explorer.get_by_role(role, name=re.compile(r"\w")).count() > 0
    assert explorer.locator(":is(canvas, svg, img):not([role], button *)").count() == 0


@pytest.mark.matrix
def test_nothing_jumps_and_nothing_is_cut(notebook, explorer):
    """Whatever strength and method are chosen."""
    strength, method = (explorer.get_by_role(role) for role in ("slider", "combobox"))
    seen, plot = {}, explorer.locator("svg").element_handle()
    for name in method.locator("option").all_inner_texts():
        method.select_option(name)
        strength.focus()
        for key in ["End", *["ArrowLeft"] * int(strength.get_attribute("max"))]:
            notebook.page.keyboard.press(key)
            eps = strength.get_attribute("aria-valuetext").partition(" ")[0]
            wanted = [name, f"at ε = {eps}"]
            drawn = "b.every((part) => a.textContent.includes(part))"
            notebook.until(drawn, " ".join(wanted), plot, wanted)
            seen.setdefault(explorer.evaluate("boxes"), []).append((name, eps))
            assert explorer.evaluate("cut") == []
    assert list(seen.values()) == [[*itertools.chain(*seen.values())]]
    notebook.page.keyboard.press("End")


@pytest.mark.matrix
@pytest.mark.parametrize("theme", ["Dark", "Light"])
def test_it_can_be_read_in_both_themes(notebook, explorer, theme):
    in_kernel(notebook, "it.message = 'What went wrong'")
    notebook.execute(f"'apputils:change-theme', {{ theme: 'JupyterLab {theme}' }}")
    alert = explorer.get_by_role("alert").element_handle()
    changed = "document.body.dataset.jpThemeName.endsWith(b) && a.textContent"
    ready = f"{changed} && !document.querySelector('#jupyterlab-splash')"
    notebook.until(ready, f"the theme {theme}", alert, theme)
    notebook.shoot(f"explorer-{theme}")
    contrasts = explorer.evaluate("contrasts")
    in_kernel(notebook, "it.message = ''")
    assert {"What went wrong", "denoised", "recompute with PGD"} <= {text for text, _ in contrasts}
    assert [(text, contrast) for text, contrast in contrasts if contrast < 4.5] == []
