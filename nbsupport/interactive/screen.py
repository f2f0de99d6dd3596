"""A widget that one JavaScript module draws: in JupyterLab, and in pages that have no kernel."""

import json
import os
import uuid
from base64 import b64encode
from importlib.resources import files
from typing import Any

import anywidget
from IPython.display import display

EXPORT = "NBSUPPORT_EXPORT"
"""Set where notebooks become pages: there a screen is shown as `embed` makes it."""
# Beside the widget; JupyterLab says "model not found" where the kernel no longer knows it.
_AGAIN = """<style>
.nbs-again, .jp-OutputArea-child:not(:has(.nbs)):has(+ .jp-OutputArea-child .nbs-again),
.jp-OutputArea:has(.nbs-again) [data-mime-type*="widget-view"]:not(:has(*)) { display: none; }
.jp-OutputArea-child:not(:has(.nbs)) + .jp-OutputArea-child .nbs-again { display: block; }
</style><p class="nbs-again"><b>Run this cell:</b> its kernel has ended, and this picture with it.
</p>"""


class Screen(anywidget.AnyWidget):
    """Its state is all that `screen.js` needs, so that a page can hold it."""

    _esm = files(__package__).joinpath("screen.js").read_text(encoding="utf-8")
    _css = files(__package__).joinpath("screen.css").read_text(encoding="utf-8")

    def page_state(self) -> dict[str, Any]:
        """The state of a page without a kernel; bytes become base64."""
        raise NotImplementedError

    def _ipython_display_(self) -> None:
        if os.environ.get(EXPORT):
            display({"text/html": embed(self)}, raw=True)
        else:
            view, about = self._repr_mimebundle_() or ({}, {})
            display(view, metadata=about, raw=True)
            display({"text/html": _AGAIN, "text/plain": "run this cell"}, raw=True)


def embed(screen: Screen) -> str:
    """HTML that shows a screen in any page, also from a file: no network, no kernel.

    Waits for what is still being computed.
    """
    text = json.dumps(
        screen.page_state(), separators=(",", ":"), default=lambda data: b64encode(data).decode()
    )
    name, state = f"nbs-{uuid.uuid4().hex}", text.replace("<", "\\u003c")
    return (
        f'<div id="{name}"></div>\n<style>{screen._css}</style>\n'
        f'<script type="application/json" id="{name}-state">{state}</script>\n'
        f'<script type="module">{screen._esm}\nopenPage("{name}");</script>\n'
    )
