"""Image folders: the files that are found, how they are decoded, and what is refused."""

import io
import os
import shutil
import struct

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder

from nbsupport.data import image_folder
from nbsupport.data.benchmarks import fit_to_images, load
from nbsupport.study import Study


def picture(seed, mode="RGB", size=(9, 7)):
    """Noise of any mode, `size` as width and height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def tree(tmp_path):
    """A function that writes files of noise, by their paths below the tree's root."""

    def write(*names):
        for seed, name in enumerate(names):
            path = tmp_path / "tree" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(seed).save(path)
        return tmp_path / "tree"

    return write


def two_classes(number=6):
    return [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(number)]


def images(root, split="train"):
    return load(fit_to_images(Study.named("folder", "smoke", data=str(root), image_size=7)), split)


def decode(path):
    """A single file, which must lie in a class folder with neighbours."""
    files = image_folder.find(str(path.parents[1])).files
    assert path in dict([*files["train"], *files["test"]])
    return image_folder.read(path.parents[1], [(path, 0)], 7)[0]


def test_given_splits_are_kept(tree):
    train = {"train/a/0.png": 0, "train/a/1.png": 0, "train/b/0.png": 1}
    test = {"test/a/0.png": 0, "test/b/sub/0.png": 1}
    root = tree(*train, *test)
    found = image_folder.find(str(root))
    assert found.classes == ("a", "b") and not found.specification["gaps"]
    for split, expected in (("train", train), ("test", test)):
        assert {str(path.relative_to(root)): n for path, n in found.files[split]} == expected


@pytest.mark.parametrize(("classes", "number"), [(3, 9), (30, 1)])
def test_other_folders_are_split_by_thirds_of_each_class(classes, number, tree):
    names = [f"c{name}/{i}.png" for name in range(classes) for i in range(number)]
    files = image_folder.find(str(tree(*names))).files
    assert not set(files["train"]) & set(files["test"])
    assert len(files["train"]) == 2 * len(files["test"])
    counts = np.bincount([label for _, label in files["test"]], minlength=classes)
    assert np.all(np.abs(counts - number / 3) < 1)


def test_the_split_does_not_depend_on_the_place(tree, tmp_path):
    root = tree(*two_classes())
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    for split in image_folder.SPLITS:
        here, elsewhere = images(root, split), images(moved, split)
        assert torch.equal(here.images, elsewhere.images)
        assert here.labels.tolist() == elsewhere.labels.tolist()
        assert here.specification == elsewhere.specification
        assert str(tmp_path) not in str(here.specification)


@pytest.mark.parametrize("change", ["content", "name", "class"])
def test_other_data_have_another_specification(change, tree):
    root = tree(*two_classes())
    before, used = images(root).specification, image_folder.find(str(root)).files["train"][0][0]
    if change == "content":
        picture(99).save(used)
    else:
        used.rename(used.with_name("other.png") if change == "name" else root / "dog" / "other.png")
    assert images(root).specification != before


@pytest.mark.parametrize("numbers", [(0, 2, 10), (1, 3, 5)])
def test_numeric_names_are_class_numbers(numbers, tree):
    found = image_folder.find(str(tree(*(f"{number}/{i}.png" for number in numbers for i in "ab"))))
    files = [file for part in found.files.values() for file in part]
    assert {(path.parent.name, label) for path, label in files} == {(str(n), n) for n in numbers}
    assert found.classes == tuple(map(str, range(max(numbers) + 1)))
    assert found.specification["gaps"]


@pytest.mark.parametrize("names", [("10", "9", "100000"), ("10", "9", "x", "X", "я")], ids=str)
def test_other_names_are_numbered_as_by_torchvision(names, tree):
    root = tree(*(f"{name}/{i}.png" for name in names for i in range(3)))
    found, expected = image_folder.find(str(root)), ImageFolder(root)
    assert found.classes == tuple(expected.classes) and not found.specification["gaps"]
    files = [(str(path), label) for part in found.files.values() for path, label in part]
    assert sorted(files) == sorted(expected.samples)


def test_hidden_files_and_folders_do_not_count(tree):
    hidden = ["cat/.ipynb_checkpoints", "cat/@eaDir", "cat/sub/__MACOSX", "dog/.a/b"]
    hidden += [".git", "__MACOSX/cat", "@eaDir", "$RECYCLE.BIN", "#recycle/dog"]
    root = tree(*two_classes(), *(f"{name}/0.png" for name in hidden))
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (root / "cat" / name).write_bytes(b"nothing")
    assert len(images(root)) + len(images(root, "test")) == 12


def test_a_study_asks_for_no_more_images_than_there_are(tree):
    study = Study.named("folder", "smoke", data=str(tree(*two_classes())), adaptive_images=9)
    fitted = fit_to_images(study)
    assert (fitted.train_images, fitted.validation_images, fitted.test_images) == (7, 1, 4)
    assert fitted.adaptive_images == 4
    with pytest.raises(ValueError, match="8 train images, but 48"):
        load(study, "train", study.train_images)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode, tree):
    made = picture(0, mode, (7, 7))
    path = tree(*two_classes(3)) / "cat" / ("x.tiff" if mode == "CMYK" else "x.png")
    made.save(path)
    oracle = np.asarray(made.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(decode(path).numpy(), oracle, atol=1e-6)


def test_16_bits_and_transparency_count(tree):
    folder = tree(*two_classes(3)) / "cat"
    deep = np.linspace(0, 65535, 49).reshape(7, 7).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    np.testing.assert_allclose(decode(folder / "deep.png")[1].numpy(), deep / 65535, atol=1e-6)
    Image.new("RGBA", (7, 7), (200, 0, 0, 0)).save(folder / "glass.png")
    assert torch.equal(decode(folder / "glass.png"), torch.ones(3, 7, 7))


@pytest.mark.parametrize(
    ("orientation", "damage"),
    [*((number, "none") for number in range(1, 9)), (6, "type"), (6, "offset"), (6, "cut")],
)
def test_the_orientation_counts_beside_damaged_tags(orientation, damage, tree):
    wrong = {"type": (0x100, 2, 4, 0x41FF42FE), "offset": (0x10F, 2, 99, 0xFFFFFF)}
    tags = [(0x112, 3, 1, orientation), *([wrong[damage]] if damage in wrong else [])]
    number = len(tags) + (damage == "cut")  # of tags, the last of which is not there
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", number)
    exif += b"".join(struct.pack("<HHLL", *tag) for tag in tags) + b"\0" * 4 * (damage != "cut")
    path = tree(*two_classes(3)) / "cat" / "x.jpg"
    clean, memory, pixels = Image.Exif(), io.BytesIO(), picture(5, size=(7, 7))
    clean[0x112] = orientation
    pixels.save(path, exif=exif)
    pixels.save(memory, "jpeg", exif=clean)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(memory)))
    np.testing.assert_allclose(decode(path), upright.transpose(2, 0, 1) / 255, atol=1e-6)


@pytest.mark.parametrize(("bits", "scale", "channels"), [(8, 257, 1), (12, 16, 3)])
def test_16_bits_that_are_nearly_black_are_refused(bits, scale, channels, tree):
    root = tree(*two_classes(3))
    shape = (7, 7, 3)[: 3 if channels == 3 else 2]
    dim = np.linspace(0, 2**bits - 1, 49 * channels).reshape(shape).astype(np.uint16)
    tifffile.imwrite(root / "cat/dim.tif", dim)
    with pytest.raises(ValueError, match=rf"^folder: .* nearly black; multiply them by {scale}$"):
        images(root)
    tifffile.imwrite(root / "dog/bright.tif", dim * scale)
    assert len(images(root)) + len(images(root, "test")) == 8  # the other is just dark


@pytest.mark.parametrize(("width", "height"), [(7, 12), (40, 31), (1, 1)])
def test_all_sizes_become_one(width, height, tree):
    made = picture(1, size=(width, height))
    made.save(path := tree(*two_classes(3)) / "cat" / "x.png")
    image = decode(path)
    assert image.shape == (3, 7, 7)
    assert 0 <= image.min() <= image.max() <= 1
    scale = 7 / min(width, height)
    resized = made.resize((int(width * scale), int(height * scale)), Image.Resampling.BILINEAR)
    left, top = (resized.width - 7) / 2, (resized.height - 7) / 2
    middle = resized.crop((round(left), round(top), round(left) + 7, round(top) + 7))
    oracle = np.asarray(middle, dtype=np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(image.numpy(), oracle, atol=1.5 / 255)


def test_all_unreadable_files_are_named_at_once(tree):
    root = tree(*(f"{split}/{name}" for split in ("train", "test") for name in two_classes()))
    (root / "test/cat/notes.txt").write_text("no image")
    (root / "test/cat/gone.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "test/cat/pipe.png")
    (root / "train/dog/empty.jpg").write_bytes(b"")
    whole = (root / "train/dog/5.png").read_bytes()
    (root / "train/dog/5.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((7, 7), 300.0, dtype=np.float32)).save(root / "train/dog/float.tiff")
    for name in (b"caf\xe9.png", "два\nряда.png".encode()):
        (root / "train/dog" / os.fsdecode(name)).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"^folder: cannot read 8 files") as error:
        images(root)
    names = [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]]
    expected = {f"test/cat/{name}" for name in ("notes.txt", "gone.png", "pipe.png")}
    damaged = ("5.png", "empty.jpg", "float.tiff", r"caf\udce9.png", r"два\nряда.png")
    assert set(names) == expected.union(f"train/dog/{name}" for name in damaged)


@pytest.mark.parametrize("name", ["", "nowhere", "file.png"])
def test_a_folder_must_be_named_and_there(name, tmp_path):
    picture(0).save(tmp_path / "file.png")
    with pytest.raises(FileNotFoundError, match=r"--study folder --data DIR"):
        images(tmp_path / name if name else "")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0.png", "1.png"], "got the folders none"),
        ([f"train/{x}/0.png" for x in "ab"] + [f"test/{x}/0.png" for x in "ac"], "has b, c"),
        (["a/0.png", "a/b/1.png"], "got the folders a in .* two classes"),
        (["train/a/0.png", "train/b/0.png", "test/a/0.png"], "got the folders a in .*/test; "),
        (["TRAIN/a/0.png", "Valid/a/0.png"], "TRAIN, Valid in .* splits"),
        (["train2017/0.png", "val2017/0.png"], "train2017, val2017 in .* splits"),
        (["a/train/0.png", "a/test/0.png", "b/train/0.png"], "got the folders a, b in .* above"),
        (["x/a/0.png", "x/b/0.png", "y/a/0.png", "y/b/0.png"], "each of them holds a, b"),
        (["1/0.png", "2/0.png", "3/0.png"], "numbers from 0, got .* 1 to 3"),
        (["0/0.png", "1/0.png", "01/0.png"], "same number"),
        (["a/0.png", "b/0.png"], "2 images are too few"),
    ],
)
def test_other_trees_are_refused(names, message, tree):
    with pytest.raises(ValueError, match=f"^folder: .*{message}"):
        images(tree(*names))


def test_empty_classes_are_named(tree):
    root = tree(*two_classes(3))
    for name in ("ant", "bee"):
        (root / name).mkdir()
    with pytest.raises(ValueError, match=r"^folder: .*ant, bee.* Fill or remove"):
        images(root)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["0", "1", "2", "10"], {0: 0, 1: 1, 10: 2, 2: 3}),  # as text 0, 1, 10, 2
        (["2021", "20210101", "3000"], {0: 0, 1: 2, 2: 1}),  # ids, numbered as text
        (["cat", "dog10", "dog2"], None),
    ],
)
def test_numbered_folders_have_another_order_as_text(names, expected, tree):
    root = tree(*(f"{name}/{i}.png" for name in names for i in range(3)))
    tree_found = image_folder.find(str(root))
    other = tree_found.specification.get("other_order")
    assert (dict(other) if other else None) == expected
    if names[0] == "0":  # the other order is torchvision's
        indices = ImageFolder(root).class_to_idx
        assert {int(name): index for name, index in indices.items()} == expected
