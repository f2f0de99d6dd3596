"""The explorer's frames against networks called one by one, its refusals, and what it sends."""

import io
import math
import zlib
from datetime import UTC, datetime

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image
from small import CLASSES, SIDE, disturbed, linear, pictures
from torch import nn
from torchvision.transforms import Normalize

from nbsupport.attacks.pgd import pgd
from nbsupport.classifiers.models import Classifier
from nbsupport.denoisers.filtering import filter_pixels, uncertainty_map
from nbsupport.denoisers.models import Additive, Filtering, PAFilter
from nbsupport.interactive import explorer as module
from nbsupport.interactive.explorer import Exploration, Explorer, explore
from nbsupport.interactive.widgets import embed

EPS, NUMBER = (0.0, 0.02, 0.1), 3
KINDS = {"PA-Filt(L_img)": PAFilter, "Filt(L_img)": Filtering, "Add(L_img)": Additive}
METHODS = ["attacked", *KINDS]


@pytest.fixture(autouse=True)
def _no_widgets_left():
    yield
    for widget in list(ipywidgets.widgets.widget._instances.values()):
        if isinstance(widget, Explorer):
            widget._tokens.join()  # whose thread would go on in the next test
    ipywidgets.Widget.close_all()


def explored(number=NUMBER, eps=EPS, classes=("one", "two"), classifier=None, **denoisers):
    labels = torch.arange(number) % CLASSES
    return explore(classifier or linear(), denoisers, pictures(number), labels, classes, eps=eps)


@pytest.fixture
def sent(monkeypatch):
    """All messages to the browser."""
    messages = []
    send = lambda _, content, buffers=None: messages.append((content, buffers))  # noqa: E731
    monkeypatch.setattr(Explorer, "send", send)
    return messages


@pytest.fixture
def explorer(sent):
    explorer = explored(**{name: disturbed(kind, 0.05) for name, kind in KINDS.items()})
    explorer.page_state()  # waits for all pieces
    return explorer


@pytest.fixture
def exploration(explorer):
    return explorer.exploration


def ask(explorer, what, **options):
    explorer._answer(explorer, {"ask": what, "count": 7, **options})
    explorer._tokens.join()


# -- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "strength"), [(0, 2), (1, 1), (2, 0)])
def test_a_frame_agrees_with_networks_called_one_by_one(exploration, number, strength):
    clean, eps = exploration.images[number : number + 1], EPS[strength]
    hat = exploration.frames[number, strength, "attacked"].pictures["denoised"][None]
    attacked = pgd(linear(), clean, exploration.labels[number : number + 1], eps)
    assert torch.allclose(hat, attacked, atol=1e-6)
    for name, denoiser in exploration.denoisers.items():
        frame, denoised = exploration.frames[number, strength, name], denoiser(hat)
        probabilities = linear()(denoised)[0].softmax(0)
        assert torch.allclose(frame.pictures["denoised"], denoised[0], atol=1e-6)
        assert torch.allclose(frame.probabilities, probabilities, atol=1e-5)
        error = float(((denoised - clean) ** 2).mean())
        psnr = -10 * math.log10(error) if error else math.inf
        assert frame.psnr == pytest.approx(psnr, abs=0.01)
    kernels = exploration.denoisers["Filt(L_img)"].kernels(hat)
    frame = exploration.frames[number, strength, "Filt(L_img)"]
    assert torch.allclose(frame.kernels[""].float(), kernels[0], atol=1e-3)
    assert torch.allclose(frame.pictures["U"], uncertainty_map(kernels)[0], atol=1e-6)


def test_w_and_both_kernels_of_pa_filt_make_its_image(exploration):
    hat = exploration.frames[0, 2, "attacked"].pictures["denoised"][None]
    frame = exploration.frames[0, 2, "PA-Filt(L_img)"]
    kernels, weight = frame.kernels, frame.pictures["W"]
    sl, m = (filter_pixels(hat, kernels[name].float()[None]).clamp(0, 1)[0] for name in ("sl", "m"))
    assert torch.allclose(weight * sl + (1 - weight) * m, frame.pictures["denoised"], atol=2e-3)


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [(0.1, 0.2), (0.0, 0.2, 0.1), (0.0, 2.0)])
def test_other_strengths_are_refused(eps):
    with pytest.raises(ValueError, match="strengths"):
        explored(eps=eps)


class Reader(nn.Module):
    """As a classifier, reads the first pixel; as a denoiser, clears images whose second is 1."""

    def __init__(self, denoises):
        super().__init__()
        self.denoises = denoises

    def forward(self, images):
        if self.denoises:
            return images * (images[:, :1, :1, 1:2] == 0)
        return 2.0 * nn.functional.one_hot(images[:, 0, 0, 0].long(), 2)


def test_it_opens_on_the_first_image_that_is_fooled_and_repaired(monkeypatch):
    images = torch.zeros(4, 3, 2, 2)
    images[2, :, 0, 1] = 1  # will be repaired
    hats = images.clone()
    hats[1:, :, 0, 0] = 1  # the first is not fooled
    monkeypatch.setattr(module, "pgd", lambda *_, **__: hats)
    labels, classifier = (
        torch.zeros(4, dtype=torch.int64),
        Classifier(Reader(False), (0.0,), (1.0,)),
    )
    exploration = Exploration(classifier, {"mine": Reader(True)}, images, labels, (0.0, 0.1))
    assert exploration.order(1, "mine") == [2, 1, 0, 3]


def test_a_part_of_the_arguments_is_refused():
    with pytest.raises(ValueError, match="no arguments at all"):
        explore(linear())


def test_a_denoiser_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"explore, mine: it is in training mode"):
        explore(linear(), {"mine": nn.Dropout()}, pictures(1), torch.tensor([0]))


def test_images_out_of_range_are_refused():
    with pytest.raises(ValueError, match="divide by 255"):
        explore(linear(), {}, 255 * pictures(1), torch.tensor([0]))


def test_too_much_is_refused_before_anything_is_attacked(monkeypatch):
    monkeypatch.setattr(module, "MOST_GIB", 1e-6)
    monkeypatch.setattr(module, "pgd", lambda *arguments, **options: pytest.fail("attacked"))
    with pytest.raises(ValueError, match="fewer or smaller images"):
        explored()


def test_a_custom_classifier_is_checked_and_wrapped():
    plain = nn.Sequential(Normalize((0.5,) * 3, (0.5,) * 3), linear().network).eval()
    with pytest.raises(ValueError, match="probabilities"):
        explored(CLASSES, classifier=nn.Sequential(plain, nn.Softmax(dim=1)).eval())
    (explorer := explored(CLASSES, classifier=plain)).page_state()
    frames = explorer.exploration.frames
    same = linear()(pictures(CLASSES)).softmax(dim=1)
    assert torch.allclose(frames[1, 0, "attacked"].probabilities, same[1], atol=1e-5)


# -- pieces --------------------------------------------------------------------------------------


def unpack(explorer, image, method):
    """Images, maps and the grid's kernels at all strengths, as floats, and what is read."""
    read, data = explorer.pieces[image, method]
    parts, number = np.frombuffer(zlib.decompress(data), np.uint8), len(EPS)
    sizes = [3 * SIDE**2, *[SIDE**2] * len(read["limits"]), *[27 * SIDE**2] * len(read["scales"])]
    arrays = np.split(parts, np.cumsum(np.multiply(number, sizes))[:-1])
    images, *others = (array.reshape(number, -1) for array in arrays)
    (clean,) = [each["pixels"] for each in explorer.images if each["number"] == image]
    clean = np.frombuffer(clean, np.uint8)
    before = clean
    if method != "attacked":
        before = 255 * unpack(explorer, image, "attacked")[0].reshape(number, -1)
    images = (images + before.round().astype(np.uint8)).astype(np.uint8) / 255
    others = [np.cumsum(other, axis=0, dtype=np.uint8) for other in others]
    maps, kernels = others[: len(read["limits"])], others[len(read["limits"]) :]
    limits = zip(maps, read["limits"], strict=True)
    maps = [low + (high - low) * map / 255 for map, (low, high) in limits]
    kernels = [kernel.view(np.int8) / 127 for kernel in kernels]
    kernels = [np.sign(x) * x**2 * scale for x, scale in zip(kernels, read["scales"], strict=True)]
    return images.reshape(number, SIDE, SIDE, 3), maps, kernels, read


@pytest.mark.parametrize("method", METHODS)
def test_a_piece_holds_the_frames_of_an_image_behind_a_denoiser(explorer, method):
    images, maps, kernels, read = unpack(explorer, 2, method)
    clean = explorer.exploration.images[2]
    for strength, eps in enumerate(EPS):
        frame = explorer.exploration.frames[2, strength, method]
        wanted = frame.pictures["denoised"].permute(1, 2, 0)
        assert np.allclose(images[strength], wanted, rtol=0, atol=0.501 / 255)
        views = {name: map for name, map in frame.pictures.items() if name != "denoised"}
        if method == "attacked":
            views["perturbation"] = (frame.pictures["denoised"] - clean).mean(0) / (eps or 1)
        assert len(maps) == len(views)
        for map, (name, wanted) in zip(maps, views.items(), strict=True):
            step = 1 / 255 if name == "W" else 2 / 255
            assert np.allclose(map[strength], wanted.flatten(), rtol=0, atol=step)
        for kernel, taps in zip(kernels, frame.kernels.values(), strict=True):
            wanted = taps.float().permute(1, 2, 0).flatten()  # the grid has all pixels of 8x8
            step = 2 * (wanted.abs() * max(read["scales"])).sqrt() / 254 + 1e-3  # of roots
            assert (abs(kernel[strength] - wanted.numpy()) <= step.numpy()).all()
        (first, *_), labels = read["top"][strength], [label for label, _ in read["top"][strength]]
        assert first[0] == frame.probabilities.argmax() and 2 in labels
        for label, probability in read["top"][strength]:
            assert probability == pytest.approx(float(frame.probabilities[label]), abs=1e-4)
        assert read["ssim"][strength] == pytest.approx(frame.ssim, abs=1e-4)


def test_the_true_class_is_always_read():
    victim, label = linear(classes=30), torch.tensor([17])
    explorer = explore(victim, {}, pictures(1), label, eps=(0.0, 0.5))
    explorer.page_state()
    read, _ = explorer.pieces[0, "attacked"]
    for strength in (0, 1):
        probabilities = explorer.exploration.frames[0, strength, "attacked"].probabilities
        best = probabilities.topk(5).indices.tolist()
        wanted = best if 17 in best else [*best[:4], 17]
        assert [label for label, _ in read["top"][strength]] == wanted
    assert 17 not in best


# -- the thread ----------------------------------------------------------------------------------


def interrupted(monkeypatch, stop):
    """An explorer of 20 images whose thread calls `stop` before the fifth."""
    attack, count = Exploration._attack, iter(range(30))
    stopping = lambda *given: (next(count) == 4 and stop(given[0]), attack(*given))  # noqa: E731
    monkeypatch.setattr(Exploration, "_attack", stopping)
    explorer = explored(20)
    explorer._tokens.join()
    return explorer


def test_what_is_computed_stays_after_an_error_and_can_be_completed(monkeypatch, sent):
    explorer = interrupted(monkeypatch, lambda _: 1 / 0)
    progress = explorer.progress
    assert (progress["images"], progress["done"], progress["paused"]) == (4, 4, 16)
    assert progress["error"].startswith("ZeroDivisionError")
    assert len(explorer.page_state()["images"]) == 4
    ask(explorer, "go on")
    assert len(explorer.pieces) == 20
    assert explorer.progress == {"done": 20, "waiting": 0, "paused": 0, "images": 20, "error": ""}


def test_a_page_of_nothing_is_an_error(monkeypatch):
    monkeypatch.setattr(Exploration, "compute", lambda *given: 1 / 0)
    with pytest.raises(RuntimeError, match="nothing was computed; ZeroDivisionError"):
        embed(explored())


# -- what the browser asks for -------------------------------------------------------------------


def test_a_pixel_asks_for_its_kernels_alone(explorer, sent):
    del sent[:]
    asked = {"image": 1, "strength": 2, "method": "PA-Filt(L_img)", "row": 2, "column": 5}
    ask(explorer, "kernels", **asked)
    (content, buffers), (heard, _) = sent
    assert content["kernels"].items() >= asked.items() and heard == {"heard": 7, "error": ""}
    kernels = explorer.exploration.frames[1, 2, "PA-Filt(L_img)"].kernels
    for buffer, taps in zip(buffers, kernels.values(), strict=True):
        assert np.array_equal(np.frombuffer(buffer, np.float32), taps[:, 2, 5].float())
    assert sum(map(len, buffers)) < 20_000


def test_another_attack_changes_its_frames_alone_and_is_sent_before_what_depends_on_it(
    explorer, sent
):
    frames, before = dict(explorer.exploration.frames), unpack(explorer, 1, "attacked")[0]
    del sent[:]
    ask(explorer, "attack", image=1, strength=2)
    again = explorer.exploration.frames
    changed = {key for key in frames if again[key] is not frames[key]}
    assert changed == {(1, 2, method) for method in METHODS}
    keys = [content["piece"]["key"] for content, _ in sent if "piece" in content]
    assert keys == [[1, method] for method in METHODS] and sent[1][0] == {"changed": 1}
    after = unpack(explorer, 1, "attacked")[0]
    assert np.array_equal(after[:2], before[:2]) and not np.array_equal(after[2], before[2])


def upload(explorer, name, content):
    told = {"name": name, "type": "", "size": 1, "last_modified": datetime.now(UTC)}
    explorer.upload.value = (told | {"content": content},)
    explorer._tokens.join()


def test_an_own_image_is_cut_classified_attacked_and_filtered(explorer):
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    wide = np.pad(np.kron(colours, np.ones((40, 40, 1), np.uint8)), ((0, 0), (16, 16), (0, 0)))
    Image.fromarray(wide).save(file := io.BytesIO(), format="PNG")
    upload(explorer, "own.png", file.getvalue())
    assert explorer.image == NUMBER and explorer.images[-1]["own"]
    image = explorer.exploration.images[NUMBER]
    corners = image[:, [[0, 0], [7, 7]], [[0, 7], [0, 7]]].permute(1, 2, 0)
    assert np.allclose(corners, colours / 255, atol=0.1)
    assert explorer.images[-1]["label"] == linear()(image[None]).argmax()
    assert {(NUMBER, method) for method in METHODS} <= set(explorer.pieces)


def test_beyond_the_limit_pieces_are_sent_when_asked_for_and_a_page_has_fewer_images(
    explorer, sent, monkeypatch
):
    order = [shown["number"] for shown in explorer.images]
    sizes = [len(data) for (n, _), (_, data) in explorer.pieces.items() if n in order[:2]]
    monkeypatch.setattr(module, "MOST_BYTES", sum(sizes))
    del sent[:]
    ask(explorer, "hello")
    assert [buffers for content, buffers in sent if "piece" in content] == [None] * 3 * len(METHODS)
    ask(explorer, "piece", image=2, method="Filt(L_img)")
    assert sent[-2][1] == [explorer.pieces[2, "Filt(L_img)"][1]]
    state = explorer.page_state()
    assert [shown["number"] for shown in state["images"]] == order[:2]
    assert {read["key"][0] for read, _ in state["pieces"]} == set(order[:2])
