"""Image trees: what is found, how it is decoded, and what is refused."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from nbsupport.data import image_folder as folders
from nbsupport.data.benchmarks import fitted, load
from nbsupport.study import Study


def picture(seed, mode="RGB", size=(9, 7)):
    """Noise of any mode, `size` as width and height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def tree(tmp_path):
    """Writes files of noise, named by their paths below the tree's root."""

    def write(*names, root="tree"):
        for seed, name in enumerate(names):
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(seed).save(path)
        return tmp_path / root

    return write


def two_classes(number=6):
    return [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(number)]


def images(root, split="train", number=None, size=7):
    return load(Study.named("folder", "smoke", data=str(root), image_size=size), split, number)


def one(path, size):
    """A single file as it comes out; it must lie in a class folder with neighbours."""
    found = folders.find(str(path.parents[1]))
    number = {
        file: position
        for split in folders.SPLITS
        for position, (file, _) in enumerate(found.files[split])
    }
    split = "train" if path in {file for file, _ in found.files["train"]} else "test"
    return folders.read(found.root, found.files[split], size)[number[path]]


# -- what is found -------------------------------------------------------------------------------


def test_a_tree_with_splits_is_taken_as_it_is(tree):
    root = tree(
        "train/b/0.png", "train/a/0.png", "train/a/1.png", "test/a/0.png", "test/b/sub/0.png"
    )
    found = folders.find(str(root))
    assert found.classes == ("a", "b")
    assert {path.relative_to(root).as_posix(): label for path, label in found.files["train"]} == {
        "train/a/0.png": 0,
        "train/a/1.png": 0,
        "train/b/0.png": 1,
    }
    assert {path.name for path, _ in found.files["test"]} == {"0.png"}
    assert not found.gaps


def test_a_tree_without_splits_is_split_by_thirds_of_each_class(tree):
    found = folders.find(str(tree(*(f"{name}/{i}.png" for name in "abc" for i in range(9)))))
    train, test = (found.files[split] for split in folders.SPLITS)
    assert not set(train) & set(test)
    assert [sum(label == c for _, label in train) for c in range(3)] == [6, 6, 6]
    assert [sum(label == c for _, label in test) for c in range(3)] == [3, 3, 3]


def test_classes_of_one_image_are_split_too(tree):
    found = folders.find(str(tree(*(f"{number}/x.png" for number in range(30)))))
    assert (len(found.files["train"]), len(found.files["test"])) == (20, 10)


def test_the_first_images_are_a_mixture(tree):
    labels = images(tree(*two_classes(30)), number=20).labels
    assert 4 <= labels.sum() <= 16


def test_the_split_is_always_the_same_and_knows_no_place(tree, tmp_path):
    root = tree(*two_classes())
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    for split in folders.SPLITS:
        first, again, elsewhere = images(root, split), images(root, split), images(moved, split)
        assert torch.equal(first.images, elsewhere.images)
        assert first.labels.tolist() == again.labels.tolist()
        assert first.specification == elsewhere.specification
        assert str(tmp_path) not in str(first.specification)


@pytest.mark.parametrize("change", ["content", "name", "class"])
def test_other_data_have_another_key(change, tree):
    root = tree(*two_classes())
    before, used = images(root).specification, folders.find(str(root)).files["train"][0][0]
    if change == "content":
        picture(99).save(used)
    else:
        used.rename(used.with_name("other.png") if change == "name" else root / "dog" / "other.png")
    assert images(root).specification != before


def test_numbers_are_class_numbers(tree):
    found = folders.find(str(tree("10/a.png", "2/a.png", "2/b.png", "0/a.png")))
    assert {path.parent.name: label for part in found.files.values() for path, label in part} == {
        "0": 0,
        "2": 2,
        "10": 10,
    }
    assert found.classes == tuple(map(str, range(11)))
    assert found.gaps


def test_hidden_files_do_not_count(tree):
    root = tree(*two_classes())
    for name in (".DS_Store", "Thumbs.db"):
        (root / "cat" / name).write_bytes(b"nothing")
    (root / ".git").mkdir()
    assert len(images(root)) + len(images(root, "test")) == 12


def test_a_study_asks_for_no_more_than_there_is(tree):
    study = Study.named("folder", "smoke", data=str(tree(*two_classes())))
    assert (fitted(study).train_images, fitted(study).test_images) == (8, 4)
    assert fitted(Study.named("digits", "smoke")) == Study.named("digits", "smoke")
    with pytest.raises(ValueError, match="load: folder has 8 train images, but 48 were asked for"):
        load(study, "train", study.train_images)


# -- how it is decoded ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("RGB", "png"),
        ("L", "png"),
        ("P", "png"),
        ("1", "png"),
        ("LA", "png"),
        ("RGBA", "png"),
        ("CMYK", "tiff"),
    ],
)
def test_every_mode_becomes_rgb(mode, ending, tree):
    root = tree(*two_classes(3))
    made = picture(0, mode, (7, 7))
    made.save(path := root / "cat" / f"x.{ending}")
    oracle = np.asarray(made.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(one(path, 7).numpy(), oracle, atol=1e-6)


def test_16_bits_are_not_clipped(tree):
    root = tree(*two_classes(3))
    pixels = np.linspace(0, 65535, 49).reshape(7, 7).astype(np.uint16)
    Image.fromarray(pixels).save(path := root / "cat" / "deep.png")
    np.testing.assert_allclose(one(path, 7)[1].numpy(), pixels / 65535, atol=1e-6)


def test_what_is_transparent_is_white(tree):
    root = tree(*two_classes(3))
    Image.new("RGBA", (7, 7), (200, 0, 0, 0)).save(path := root / "cat" / "glass.png")
    assert torch.equal(one(path, 7), torch.ones(3, 7, 7))


def test_a_photograph_stands_upright(tree):
    root, pixels = tree(*two_classes(3)), picture(5, size=(7, 7))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by half a turn
    pixels.save(path := root / "cat" / "turned.png", exif=exif)
    expected = torch.from_numpy(np.asarray(pixels).copy()).permute(2, 0, 1).flip(1, 2) / 255
    torch.testing.assert_close(one(path, 7), expected)


@pytest.mark.parametrize(("width", "height"), [(7, 7), (9, 7), (7, 12), (40, 31), (3, 5), (1, 1)])
def test_mixed_sizes_become_one(width, height, tree):
    root = tree(*two_classes(3))
    made = picture(1, size=(width, height))
    made.save(path := root / "cat" / "x.png")
    image = one(path, 7)
    assert image.shape == (3, 7, 7)
    assert image.min() >= 0
    assert image.max() <= 1
    scale = 7 / min(width, height)
    resized = made.resize((int(width * scale), int(height * scale)), Image.Resampling.BILINEAR)
    left, top = (resized.width - 7) / 2, (resized.height - 7) / 2
    middle = resized.crop((round(left), round(top), round(left) + 7, round(top) + 7))
    oracle = np.asarray(middle, dtype=np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(image.numpy(), oracle, atol=1.5 / 255)


# -- what is refused -----------------------------------------------------------------------------


def test_all_unreadable_files_are_named_at_once(tree):
    root = tree(*two_classes())
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "dog" / "empty.jpg").write_bytes(b"")
    whole = (root / "dog" / "5.png").read_bytes()
    for number in (
        0,
        1,
        2,
        3,
        4,
    ):  # all of them, whether or not they are among the images which are used
        (root / "dog" / f"{number}.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=r"(?s)^folder: 7 of \d+ files below .* cannot be read as images; mend"
    ) as error:
        images(root)
    lines = str(error.value).splitlines()[1:]
    assert "  cat/notes.txt: no image that Pillow knows" in lines
    assert any(line.startswith("  dog/empty.jpg: ") for line in lines)
    assert sum("truncated" in line for line in lines) == 5


def test_many_unreadable_files_are_counted(tree):
    root = tree(*two_classes(3))
    for number in range(25):
        (root / "cat" / f"{number}.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"(?s)folder: 25 of \d+ files .*\n  and 5 more$"):
        images(root)


def test_pixels_of_no_known_range_are_refused(tree):
    root = tree("train/a/0.png", "test/a/0.png")
    Image.fromarray(np.full((7, 7), 300.0, dtype=np.float32)).save(root / "train/a/float.tiff")
    with pytest.raises(
        ValueError, match=r"train/a/float.tiff: its pixels \(mode F\) have no known range"
    ):
        images(root)


@pytest.mark.parametrize("name", ["", "nowhere", "file.png"])
def test_a_folder_must_be_named_and_there(name, tmp_path):
    picture(0).save(tmp_path / "file.png")
    with pytest.raises(
        FileNotFoundError, match=r"python -m nbsupport compute --study folder --data DIR"
    ):
        images(tmp_path / name if name else "")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0.png", "1.png"], r"holds no class folders; expected tree/<class>/<image>"),
        (
            ["train/a/0.png", "train/b/0.png"],
            r"has train/ alone; add the other of train/ and test/",
        ),
        (
            ["train/a/0.png", "train/b/0.png", "test/a/0.png"],
            r"train/ and test/ differ in their classes: b in one",
        ),
        (
            ["1/0.png", "2/0.png", "3/0.png"],
            r"class numbers from 0, got folders named 1 to 3; subtract 1 from each",
        ),
        (
            ["train/1/0.png", "test/2/0.png"],
            r"class numbers from 0, got folders named 1 to 2; subtract 1",
        ),
        (["0/0.png", "1/0.png", "01/0.png"], r"two class folders stand for the same number"),
        (["a/0.png", "b/0.png"], r"2 images below .* are too few"),
    ],
    ids=[
        "no classes",
        "one split",
        "other classes",
        "from 1",
        "from 1 in two splits",
        "twice",
        "too few",
    ],
)
def test_other_trees_are_refused(names, message, tree):
    with pytest.raises(ValueError, match=f"^folder: .*{message}"):
        images(tree(*names))


@pytest.mark.parametrize("part", ["", "test"])
def test_empty_classes_are_named(part, tree):
    root = tree(
        *(f"{split}/{name}" for split in folders.SPLITS for name in two_classes(1))
        if part
        else two_classes(3)
    )
    for name in ("ant", "bee"):
        for split in folders.SPLITS if part else [""]:
            (root / split / name).mkdir()
    if part:
        for name in ("ant", "bee"):
            picture(0).save(root / "train" / name / "0.png")
    with pytest.raises(
        ValueError,
        match=f"^folder: no image in the class folders ant, bee of .*{part}; fill or remove",
    ):
        images(root)


def test_only_this_study_has_a_folder(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"Study.data: a folder of images belongs to the study 'folder', not to 'digits'",
    ):
        Study.named("digits", "smoke", data=str(tmp_path))


@pytest.mark.parametrize("names", [("1", "3", "5"), ("2", "3", "4")])
def test_class_numbers_with_gaps_may_be_a_part_of_more_classes(names, tree):
    assert images(tree(*(f"{name}/{i}.png" for name in names for i in range(6))))
