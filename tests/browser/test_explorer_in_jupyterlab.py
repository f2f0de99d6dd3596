"""The explorer in JupyterLab: what the kernel answers, and what is shown when it does not."""

import io
import re
from contextlib import closing

import numpy as np
import pytest
from homes import WIDTHS, agrees, check_layout, pixels, walk_all, write_notebook
from lab import PANEL, Opened
from PIL import Image


@pytest.fixture(scope="module")
def notebook(lab, browser):
    path = write_notebook(lab.root / "notebooks" / "small.ipynb", str(__file__).rpartition("/")[0])
    with closing(Opened(lab, browser.new_page(), path)) as opened:
        opened.run()
        yield opened


@pytest.fixture
def root(notebook):
    root = notebook.show(1).locator(".nbs")
    root.evaluate("(root) => root.scrollIntoView({ block: 'end' })")
    yield root
    assert notebook.reported() == []


def status(root):
    return root.locator(".nbs-line [role=status]").element_handle()


def in_kernel(notebook, code):
    execute = f"{PANEL}.sessionContext.session.kernel.requestExecute({{ code }})"
    reply = notebook.page.evaluate(f"async (code) => (await {execute}.done).content", code)
    assert reply["status"] == "ok", reply


def click_pixel(root, row, column):
    pad = root.get_by_role("application", name="clean image")
    box = pad.bounding_box()
    place = {"x": box["width"] * (column + 0.5) / 32, "y": box["height"] * (row + 0.5) / 32}
    pad.click(position=place)


def sums(root):
    texts = root.locator(".nbs-kernels figcaption").all_inner_texts()
    return [float(each[2:].replace("−", "-")) for each in texts]


def test_pictures_and_words_are_those_of_every_choice(notebook, root, explorer):
    notebook.until("a.textContent === ''", "all pieces", status(root), seconds=300)
    notebook.shoot("explorer")
    walk_all(root, explorer.exploration, explorer.fixed["classes"], explorer.image)


# With the question itself, for newer JupyterLabs answer while another cell runs.
BUSY = """
import pathlib, time
class Busy(dict):
    def __getitem__(self, key):
        while not pathlib.Path({free!r}).exists(): time.sleep(0.05)
        return super().__getitem__(key)
it.exploration.frames = Busy(it.exploration.frames)
"""


def test_a_busy_kernel_is_waited_for_where_it_is_needed_alone(notebook, root, explorer):
    root.get_by_role("combobox", name="method").select_option("Filt(L_img)")
    free = notebook.lab.root / "free"
    in_kernel(notebook, BUSY.format(free=str(free)))
    click_pixel(root, 5, 7)
    waiting = "a.textContent.startsWith('waiting for the kernel')"
    notebook.until(waiting, "the explorer", status(root))
    assert sums(root) == []  # no kernels of another pixel
    notebook.shoot("explorer-waiting")
    root.get_by_role("slider").press("Home")  # needs no kernel
    agrees(root, explorer.exploration, explorer.fixed["classes"], explorer.image, 0, "Filt(L_img)")
    root.get_by_role("slider").press("End")
    free.touch()
    notebook.until("a.textContent === ''", "the kernel's answer", status(root))
    notebook.until("a.querySelector('.nbs-kernels canvas')", "the kernels", root.element_handle())
    kernels = explorer.exploration.frames[explorer.image, 3, "Filt(L_img)"].kernels[""]
    taps = kernels[:, 5, 7].float()
    assert np.allclose(sums(root), taps.view(3, -1).sum(dim=1), atol=0.01)


def test_an_error_is_shown_and_goes(notebook, root, explorer):
    in_kernel(notebook, "kept, it.exploration.frames = it.exploration.frames, {}")
    root.get_by_role("combobox", name="method").select_option("Filt(L_img)")
    root.get_by_role("slider").press("End")
    click_pixel(root, 9, 9)
    alert = root.get_by_role("alert").element_handle()
    notebook.until("a.textContent.includes('run this cell again')", "the error", alert)
    assert sums(root) == []
    agrees(root, explorer.exploration, explorer.fixed["classes"], explorer.image, 3, "Filt(L_img)")
    notebook.shoot("explorer-error")
    in_kernel(notebook, "it.exploration.frames = kept")
    click_pixel(root, 9, 10)
    notebook.until("a.textContent === ''", "the message to go", alert)


def choose(notebook, root, file):
    with notebook.page.expect_file_chooser() as chooser:
        root.get_by_role("button", name="own image").click()
    chooser.value.set_files(file)


def test_an_own_image_is_attacked_and_filtered(notebook, root):
    picture = np.zeros((64, 64, 3), np.uint8) + np.array([200, 30, 30], np.uint8)
    Image.fromarray(picture).save(file := io.BytesIO(), format="PNG")
    given = {"name": "red.png", "mimeType": "image/png", "buffer": file.getvalue()}
    number = root.locator(".nbs-strip button").count()
    choose(notebook, root, given)
    shown = "a.querySelector('.nbs-verdict').textContent.startsWith('class before the attack')"
    notebook.until(shown, "the own image", root.element_handle(), seconds=120)
    assert root.locator(".nbs-strip button").count() == number + 1
    assert np.array_equal(pixels(root, "clean")[16, 16], [200, 30, 30])
    notebook.shoot("explorer-own")
    choose(notebook, root, given | {"name": "notes.txt", "buffer": b"x"})
    alert = root.get_by_role("alert").element_handle()
    notebook.until("a.textContent.includes('expected a picture')", "a refusal", alert)
    in_kernel(notebook, "it._report()")
    root.locator(".nbs-strip button").first.click()


def test_its_keys_are_not_jupyterlabs(notebook, root):
    """Which would cut the cell and insert others."""
    cells = f"() => {PANEL}.content.widgets.map((cell) => cell.model.id)"
    before = notebook.page.evaluate(cells)
    root.get_by_role("button").first.focus()
    for key in "abxdd":
        notebook.page.keyboard.press(key)
    assert notebook.page.evaluate(cells) == before


def test_recomputing_changes_the_attack_and_says_so(notebook, root):
    before = pixels(root, "attacked")
    button = root.get_by_role("button", name="recompute with PGD")
    button.evaluate("watch")
    button.click()
    notebook.until(
        "a.ariaBusy === 'false' && window.seen.includes('true attacking …')",
        "another attack",
        root.locator("[aria-busy]").element_handle(),
    )
    for _ in range(100):  # until it is unpacked
        if not np.array_equal(pixels(root, "attacked"), before):
            return
        notebook.page.wait_for_timeout(100)
    pytest.fail("the same attack")


@pytest.mark.parametrize(
    "theme", [pytest.param("Dark"), pytest.param("Light", marks=pytest.mark.matrix)]
)
def test_it_can_be_read_at_every_width_in_both_themes(notebook, root, theme):
    in_kernel(notebook, "it._report('What went wrong')")
    notebook.execute(f"'apputils:change-theme', {{ theme: 'JupyterLab {theme}' }}")
    alert = root.get_by_role("alert").element_handle()
    ready = "document.body.dataset.jpThemeName.endsWith(b) && a.textContent && !document.querySelector('#jupyterlab-splash')"
    notebook.until(ready, f"the theme {theme}", alert, theme)
    notebook.page.wait_for_timeout(300)
    notebook.shoot(f"explorer-{theme}")
    try:
        for width in WIDTHS:
            root.evaluate("(root, width) => { root.style.width = `${width}px`; }", width)
            notebook.page.wait_for_timeout(100)
            check_layout(root)
    finally:
        root.evaluate("(root) => { root.style.width = ''; }")
        in_kernel(notebook, "it._report()")


SLOW = """
import time
from nbsupport.interactive.explorer import Exploration
make = Exploration.compute
def slow(*given):
    time.sleep(0.3)
    make(*given)
Exploration.compute = slow
slowly = small(number=20, eps=(0.0, 0.01))
"""


def test_what_is_not_computed_is_said_and_can_be_completed(notebook, root):
    in_kernel(notebook, SLOW)
    in_kernel(notebook, "slowly.strength = 1; it.close(); it = slowly")
    insert = f"{PANEL}.content.widgets[1].model.sharedModel.setSource('it')"
    notebook.page.evaluate(f"() => {{ {insert}; {PANEL}.content.activeCellIndex = 1; }}")
    notebook.execute("'notebook:run-cell'")
    root = notebook.show(1).locator(".nbs")
    go = root.get_by_role("button", name="stop")
    go.click()
    said = "/^stopped after \\d+ of 20 images/.test(a.textContent)"
    notebook.until(said, "the explorer to stop", status(root))
    root.locator(".nbs-strip button").last.click()
    assert root.locator("figure.empty").count() > 3
    assert "not computed" in root.locator(".nbs-verdict").inner_text()
    notebook.shoot("explorer-stopped")
    root.get_by_role("button", name="go on").click()
    done = "a.querySelector('.nbs-verdict').textContent.startsWith('true class')"
    notebook.until(done, "the last image", root.element_handle(), seconds=120)
    in_kernel(notebook, "Exploration.compute = make")


def test_a_restarted_kernel_leaves_all_that_was_computed(notebook, root, explorer):
    """Run again first, so that the explorer is the local one."""
    in_kernel(notebook, "it = small(); it.page_state()")
    source = f"{PANEL}.content.widgets[1].model.sharedModel.setSource('it')"
    notebook.page.evaluate(f"() => {{ {source}; {PANEL}.content.activeCellIndex = 1; }}")
    notebook.execute("'notebook:run-cell'")
    root = notebook.show(1).locator(".nbs")
    notebook.until("a.querySelectorAll('.nbs-strip button').length === 4 && a.querySelector('.nbs-verdict').textContent.startsWith('true class')",
                   "the explorer", root.element_handle())  # fmt: skip
    whole = "a.querySelector('.nbs-plot h4').textContent === 'accuracy on 4 images'"
    notebook.until(whole, "all pieces", root.element_handle())
    root.get_by_role("slider").press("Home")
    restart = f"{PANEL}.sessionContext.session.kernel.restart()"
    notebook.page.evaluate(f"async () => {{ await {restart}; }}")
    notebook.page.evaluate("() => { window.kernel.statuses.length = 0; }")
    said = "a.textContent.startsWith('The kernel has ended or restarted: run this cell again')"
    notebook.until(said, "the explorer", status(root))
    notebook.shoot("explorer-restarted")
    walk_all(root, explorer.exploration, explorer.fixed["classes"], explorer.image)
    notebook.page.evaluate("() => { window.kernel.reported.length = 0; }")  # a new kernel's notes
    for name in ("recompute", "own image", "stop", "go on"):
        assert root.get_by_role("button", name=re.compile(name)).count() == 0


def test_a_notebook_that_is_opened_again(lab, browser):
    """With its kernel it shows the last picture, without one it says what to do."""
    path = write_notebook(lab.root / "notebooks" / "again.ipynb", str(__file__).rpartition("/")[0])
    with closing(Opened(lab, browser.new_page(), path)) as opened:
        opened.run()
        done = "document.querySelector('.nbs-verdict')?.textContent.startsWith('true class')"
        opened.until(done, "the explorer")
        opened.page.evaluate(f"async () => {{ await {PANEL}.context.save(); }}")
        opened.page.reload()
        opened.until(done, "the last picture")
        sliders = "document.querySelector('.nbs-sliders img')?.naturalWidth > 0"
        opened.until(sliders, "the last sliders")
        visible = "[...document.querySelectorAll('.nbs-again')].filter((each) => each.checkVisibility()).length"
        assert opened.page.evaluate(f"() => {visible}") == 0
        opened.page.evaluate(f"async () => {{ await {PANEL}.sessionContext.shutdown(); }}")
        opened.page.reload()
        opened.until(f"{visible} === 2", "both cells to say what to do")
        opened.page.wait_for_timeout(1000)
        opened.shoot("opened")
        assert opened.page.get_by_text("model not found").filter(visible=True).count() == 0
