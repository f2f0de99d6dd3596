"""Frames for the slider of the static page: each one is what was measured, pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from nbsupport.experiments.evaluation import Evaluation
from nbsupport.results.frames import frames, painted
from nbsupport.study import EPS

FUSED, IMAGE = "PA-Filt(L_img)", 3


@pytest.fixture(scope="module")
def evaluation(artefacts):
    return Evaluation(artefacts)


@pytest.fixture(scope="module")
def found(evaluation):
    return frames(evaluation, IMAGE)


def picture(sheet, row, column):
    size = sheet.size
    return sheet.pixels[row * size : (row + 1) * size, column * size : (column + 1) * size]


@pytest.mark.parametrize("row", range(len(EPS)))
def test_frame_k_is_the_image_under_strength_k(row, found, evaluation, tmp_path):
    Image.fromarray(found.pixels).save(tmp_path / "sheet.png")
    stored = frames(evaluation, IMAGE)
    stored.pixels[:] = np.asarray(Image.open(tmp_path / "sheet.png"))
    artefacts = evaluation.artefacts
    clean, hat = (
        artefacts.images("test").images[IMAGE],
        artefacts.attacked("test").at(EPS[row])[IMAGE],
    )
    shown = [
        clean,
        hat,
        *(artefacts.denoiser(f"{FUSED}{part}")(hat[None])[0] for part in ("_sl", "_m", "")),
    ]
    for column, image in zip((0, 1, 2, 3, 5), shown, strict=True):
        expected = (255 * image.detach().double().clamp(0, 1)).permute(1, 2, 0).numpy()
        assert np.abs(picture(stored, row, column) - expected).max() <= 0.5 + 1e-3, found.names[
            column
        ]


def test_words_are_those_that_are_measured(found, evaluation):
    labels = evaluation.artefacts.images("test").labels
    assert (found.image, found.truth) == (IMAGE, str(int(labels[IMAGE])))
    for column, method in ((1, "attacked"), (2, f"{FUSED}_sl"), (3, f"{FUSED}_m"), (5, FUSED)):
        said = [str(int(word)) for word in evaluation.measurement(method).predictions[:, IMAGE]]
        assert [words[column] for words in found.words] == said
    assert {words[4] for words in found.words} == {None}  # W is no image


def test_its_notes_are_the_psnr_and_the_mean_of_w(found, evaluation):
    psnr, weight = (
        evaluation.measurement(FUSED).psnr[:, IMAGE],
        evaluation.measurement(FUSED).extra["weight"][:, IMAGE],
    )
    assert [notes[5] for notes in found.notes] == [f"{value:.1f} dB" for value in psnr]
    assert [notes[4] for notes in found.notes] == [f"mean {value:.2f}" for value in weight]
    assert {notes[0] for notes in found.notes} == {""}


def test_the_sheet_holds_all_of_them(found):
    assert found.pixels.shape == (13 * found.size, 6 * found.size, 3)
    assert found.eps == EPS
    assert found.names == ("clean I", "attacked Î", "Ĩ_sl", "Ĩ_m", "W", "Ĩ")
    assert "pixels" not in found.index()


def test_a_map_is_dark_at_0_and_bright_at_1():
    dark, bright = painted(torch.tensor([[0.0, 1.0]]))[0].astype(int)
    assert bright.sum() > dark.sum() + 200


def test_an_image_is_rounded_and_stays_within_8_bits():
    values = torch.tensor([0.0, 0.5 / 255 + 1e-4, 1.0]).view(1, 1, 3).expand(3, -1, -1)
    assert painted(values)[0, :, 0].tolist() == [0, 1, 255]
