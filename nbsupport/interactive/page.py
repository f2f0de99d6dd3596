"""The explorer of the pretrained networks as one page; run as a module, it writes it."""

import sys
from pathlib import Path

from .explorer import explore
from .screen import embed

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>AdvFilter: an explorer</title>
<meta name="viewport" content="width=device-width">
<style>:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { max-width: 1000px; margin: 12px auto; padding: 0 12px; } h1 { font-size: 20px; }</style>
</head><body><h1>An attack, and a filter before the classifier</h1>
<p>Eight CIFAR-10 images under PGD attacks of rising strength ε on a ResNet-20, denoised by networks
that predict a kernel per pixel. The attacker is gray-box: it knows the classifier alone. A
white-box attacker, which knows the filter, too, defeats it.</p>
"""


def write_page(path: Path) -> None:
    """Write a page that needs neither a network nor a kernel."""
    text = f"{_PAGE}{embed(explore())}</body></html>\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_page(Path(sys.argv[1]))
