"""The explorer of notebook 00 on its page: with the keyboard alone, by a click, when it fails, in the dark."""

import itertools
import re

import pytest
from lab import NOTEBOOKS, PANEL

pytestmark = pytest.mark.parametrize(
    "notebook", NOTEBOOKS[:1], ids=lambda path: path.stem, indirect=True
)

# What may grow and shrink with what it says.
INNER = ":is(.nbs-words, .nbs-kernels, svg) *, option, small"
BOXES = f"""(root) => [root, ...root.querySelectorAll("*")].filter((each) => !each.matches("{INNER}")).map((each) => {{
  const {{ x, y, width, height }} = each.getBoundingClientRect();
  return [each.tagName, each.className, x, y, width, height].join(" ");
}})"""
CUT = """(root) => [root, root.closest(".jp-OutputArea"), ...root.querySelectorAll("*")].filter((each) =>
  each.clientWidth && each.scrollWidth > each.clientWidth ||
  root.contains(each) && each.getBoundingClientRect().right > root.getBoundingClientRect().right
).map((each) => each.outerHTML.slice(0, 100))"""
# Of each element with text of its own: the contrast of its colour with what lies behind it, as WCAG defines it.
CONTRASTS = """(root) => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const luminance = (layers) => {
    for (const [colour, opacity] of layers) {
      context.globalAlpha = opacity;
      context.fillStyle = colour;
      context.fillRect(0, 0, 1, 1);
    }
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((value) => value / 255)
      .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const own = (each) => [...each.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
  return [...root.querySelectorAll("*")].filter((each) => own(each) && each.checkVisibility()).map((each) => {
    const styles = [];
    for (let above = each; above; above = above.parentElement) styles.unshift(getComputedStyle(above));
    const behind = [["white", 1], ...styles.map((style) => [style.backgroundColor, 1])];
    const opacity = styles.reduce((product, style) => product * Number(style.opacity), 1);
    const colour = each instanceof SVGElement ? styles.at(-1).fill : styles.at(-1).color;
    const [dark, light] = [luminance(behind), luminance([...behind, [colour, opacity]])].sort((a, b) => a - b);
    return [each.textContent, (light + 0.05) / (dark + 0.05)];
  });
}"""


@pytest.fixture
def explorer(notebook):
    (number,) = (
        number for number, source in enumerate(notebook.sources) if "widgets.explore(" in source
    )
    root = notebook.show(number).locator(".nbs")
    root.evaluate("(root) => root.scrollIntoView({ block: 'end' })")
    yield root
    assert notebook.reported() == []


@pytest.fixture
def strength(explorer):
    return explorer.get_by_role("slider", name="attack strength ε")


@pytest.fixture
def method(explorer):
    return explorer.get_by_role("combobox", name="method")


def picture(explorer, name):
    return explorer.get_by_label(re.compile(f"^{name}( image;|$)"))


def in_kernel(notebook, line):
    """Run a line on the explorer, which is there as `it`."""
    code = f"from nbsupport import widgets\nit, = (w for w in widgets._all_widgets() if hasattr(w, 'exploration'))\n{line}"
    kernel = f"{PANEL}.sessionContext.session.kernel"
    reply = notebook.page.evaluate(
        f"async (code) => (await {kernel}.requestExecute({{ code }}).done).content", code
    )
    assert reply["status"] == "ok"


def test_thumbnails_are_chosen_with_the_keyboard(notebook, explorer):
    thumbnails = explorer.get_by_role("group", name="images").get_by_role("button")
    first = notebook.press(
        "Enter", thumbnails.last, picture(explorer, "clean"), "the last thumbnail"
    )
    assert [each.get_attribute("aria-pressed") for each in thumbnails.all()][-1] == "true"
    notebook.shoot("explorer-image")
    notebook.press(
        "Space", thumbnails.first, picture(explorer, "clean"), "the first thumbnail", back_to=first
    )


def test_the_strength_is_moved_with_the_keyboard(notebook, explorer, strength):
    attacked = picture(explorer, "attacked")
    notebook.press("End", strength, attacked, "the largest ε")
    largest = notebook.press("Home", strength, attacked, "ε = 0")
    assert strength.get_attribute("aria-valuetext") == "0 (clean)"
    notebook.shoot("explorer-strength")
    notebook.press("End", strength, attacked, "the largest ε", back_to=largest)


def test_the_method_is_chosen_with_the_keyboard(notebook, explorer, method):
    first = notebook.press("Home", method, picture(explorer, "denoised"), "the first method")
    assert method.input_value() == "attacked"
    notebook.shoot("explorer-method")
    notebook.press("End", method, picture(explorer, "denoised"), "the last method", back_to=first)


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
    places = [f"{name} image" for name in ("clean", "attacked", "denoised")]
    assert seen == [*images, "attack strength ε", "method", "recompute with PGD", *places]


def test_a_click_chooses_the_pixel_and_arrows_move_it(notebook, explorer):
    heading, kernel = (
        explorer.get_by_role("heading", name="kernels of pixel"),
        explorer.locator(".nbs-kernels canvas"),
    )
    for name in ("clean", "attacked", "denoised"):
        canvas = picture(explorer, name)
        width, height = canvas.evaluate("(canvas) => [canvas.width, canvas.height]")
        box, before = (
            canvas.bounding_box(),
            (canvas.evaluate("pixels"), kernel.first.evaluate("pixels")),
        )
        canvas.click(position={"x": box["width"] * 3.5 / width, "y": box["height"] * 0.5 / height})
        notebook.until(
            "a.textContent.endsWith('(0, 3)')", f"a click on {name}", heading.element_handle()
        )
        assert canvas.evaluate("pixels") != before[0]
        assert kernel.first.evaluate("pixels") != before[1]
        steps = {
            "ArrowUp": "(0, 3)",
            "ArrowDown": "(1, 3)",
            "ArrowRight": "(1, 4)",
            "ArrowLeft": "(1, 3)",
        }  # up: at the edge
        for key, place in steps.items():
            notebook.page.keyboard.press(key)
            notebook.until(
                "a.textContent.endsWith(b)", f"{place} after {key}", heading.element_handle(), place
            )
        notebook.shoot(f"explorer-pixel-{name}")
        in_kernel(notebook, "it.row = it.column = 16")
        notebook.until(
            "a.textContent.endsWith('(16, 16)')", "the first pixel", heading.element_handle()
        )


def test_recomputing_says_that_it_is_busy_and_ends(notebook, explorer):
    button = explorer.get_by_role("button", name="recompute with PGD")
    button.evaluate("""(button) => {
      window.seen = [];
      const look = () => window.seen.push(`${button.ariaBusy} ${button.textContent}`);
      new MutationObserver(look).observe(button, { attributes: true, childList: true });
    }""")
    notebook.press("Enter", button, picture(explorer, "attacked"), "another random start")
    button = explorer.locator("button[aria-busy]")
    notebook.until("a.ariaBusy === 'false'", "the end of the attack", button.element_handle())
    seen = [state for state, _ in itertools.groupby(notebook.page.evaluate("() => window.seen"))]
    assert seen == ["true attacking …", "false recompute with PGD"]


def test_it_says_that_it_waits_for_a_busy_kernel(notebook, explorer, strength, tmp_path):
    """Busy with the choice itself: while another cell runs, in newer JupyterLabs another thread answers widgets."""
    status, free = explorer.locator(".nbs-line [role=status]").element_handle(), tmp_path / "free"
    slow = f"""import pathlib, time
class Slow(dict):
    def __getitem__(self, key):
        while not pathlib.Path({str(free)!r}).exists(): time.sleep(0.05)
        return super().__getitem__(key)
"""
    in_kernel(
        notebook,
        slow + "kept, it.exploration.frames = it.exploration.frames, Slow(it.exploration.frames)",
    )
    strength.focus()
    notebook.page.keyboard.press("ArrowLeft")
    notebook.until(
        "a.textContent.startsWith('waiting for the kernel')", "the explorer to say so", status
    )
    notebook.shoot("explorer-waiting")
    free.touch()
    notebook.until("a.textContent === ''", "the kernel's answer", status)
    in_kernel(notebook, "it.exploration.frames = kept")
    notebook.page.keyboard.press("ArrowRight")


def test_an_error_is_seen_and_not_the_end(notebook, explorer, strength):
    alert = explorer.get_by_role("alert")
    in_kernel(notebook, "kept, it.exploration.frames = it.exploration.frames, {}")
    strength.focus()
    notebook.page.keyboard.press("ArrowLeft")
    notebook.until(
        "a.textContent.startsWith('KeyError')", "the error's message", alert.element_handle()
    )
    notebook.shoot("explorer-error")
    in_kernel(notebook, "it.exploration.frames = kept")
    notebook.page.keyboard.press("ArrowRight")
    notebook.until("a.textContent === ''", "the message to go", alert.element_handle())


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


def test_nothing_jumps_and_nothing_is_cut(notebook, explorer, strength, method):
    """Whatever strength and method are chosen."""
    seen, plot = {}, explorer.locator("svg").element_handle()
    for name in method.locator("option").all_inner_texts():
        method.select_option(name)
        strength.focus()
        for key in ["End", *["ArrowLeft"] * int(strength.get_attribute("max"))]:
            notebook.page.keyboard.press(key)
            eps = strength.get_attribute("aria-valuetext").partition(" ")[0]
            wanted = [name, f"at ε = {eps}"]
            notebook.until(
                "b.every((part) => a.textContent.includes(part))",
                f"{name} {wanted[1]}",
                plot,
                wanted,
            )
            seen.setdefault("\n".join(explorer.evaluate(BOXES)), []).append((name, eps))
            assert explorer.evaluate(CUT) == []
    assert list(seen.values()) == [[*itertools.chain(*seen.values())]]
    notebook.page.keyboard.press("End")


@pytest.mark.parametrize("theme", ["Dark", "Light"])
def test_it_can_be_read_in_both_themes(notebook, explorer, theme):
    in_kernel(notebook, "it.message = 'What went wrong'")
    change = (
        "(theme) => { window.jupyterapp.commands.execute('apputils:change-theme', { theme }); }"
    )
    notebook.page.evaluate(change, f"JupyterLab {theme}")
    changed = (
        "document.body.dataset.jpThemeName === b && !document.querySelector('#jupyterlab-splash')"
    )
    alert = explorer.get_by_role("alert").element_handle()
    notebook.until(
        f"{changed} && a.textContent", f"the theme {theme}", alert, f"JupyterLab {theme}"
    )
    notebook.shoot(f"explorer-{theme.lower()}")
    contrasts = explorer.evaluate(CONTRASTS)
    in_kernel(notebook, "it.message = ''")
    assert {"What went wrong", "denoised", "recompute with PGD"} <= {text for text, _ in contrasts}
    assert [(text, contrast) for text, contrast in contrasts if contrast < 4.5] == []
