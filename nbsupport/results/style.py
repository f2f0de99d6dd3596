"""The style of all figures: one sheet, and one colour and one marker per method everywhere."""

from contextlib import AbstractContextManager

import matplotlib.pyplot as plt

from ..denoisers.baselines import BASELINES

COLOURS = {
    "attacked": "#000000",
    "Add(L_sem)": "#e69f00", "Add(L_img)": "#d55e00",
    "Filt(L_sem)": "#56b4e9", "Filt(L_img)": "#0072b2", "Filt(L_img*)": "#332288",
    "head_1": "#b3a2e0", "head_2": "#8c63cf", "head_3": "#662fb0", "head_4": "#35106b",
    "PA-Filt(L_img)_sl": "#cc79a7", "PA-Filt(L_img)_m": "#882255",
    "PA-Filt(L_img)": "#009e73", "PA-Filt(L_img)_literal": "#1b5e20", "PA-Filt(L_adv)": "#8a8a1f",
    **dict.fromkeys(("Adv", "FPD", "FD"), "#661100"), **dict.fromkeys(("Add+Adv", "Add+FPD", "Add+FD"), "#cc6677"),
    **dict.fromkeys(("Filt+Adv", "Filt+FPD", "Filt+FD"), "#6699cc"), "PA-Filt+Adv": "#004d40",
    **dict.fromkeys(BASELINES, "#6b6b6b"),
}  # fmt: skip
"""One colour per method, before whatever robust classifier. Relatives share a hue: adding is orange, filtering
blue, the heads are violet, PA-Filt is green. The baselines are grey and differ in their dashes."""

MARKERS = {
    "attacked": "o",
    "Add(L_sem)": "^", "Add(L_img)": "v",
    "Filt(L_sem)": "s", "Filt(L_img)": "D", "Filt(L_img*)": "p",
    "head_1": "$1$", "head_2": "$2$", "head_3": "$3$", "head_4": "$4$",
    "PA-Filt(L_img)_sl": "<", "PA-Filt(L_img)_m": ">",
    "PA-Filt(L_img)": "*", "PA-Filt(L_img)_literal": "8", "PA-Filt(L_adv)": "h",
    **dict.fromkeys(("Adv", "FPD", "FD"), "H"), **dict.fromkeys(("Add+Adv", "Add+FPD", "Add+FD"), "P"),
    **dict.fromkeys(("Filt+Adv", "Filt+FPD", "Filt+FD"), "X"), "PA-Filt+Adv": "d",
    **dict.fromkeys(BASELINES, "o"),
}  # fmt: skip
"""One marker per method, so that curves are told apart in grey print and whatever colours one sees."""

DASHES = dict(
    zip(BASELINES, ((4, 2), (1, 1), (3, 1, 1, 1), (5, 1, 1, 1, 1, 1), (1, 3)), strict=True)
)


def sheet() -> AbstractContextManager[None]:
    """Within it, figures are drawn and saved in the one style, whatever the user's own settings are."""
    return plt.style.context("nbsupport.results.style", after_reset=True)
