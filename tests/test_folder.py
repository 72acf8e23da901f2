"""A folder of class folders: its splits, its images as they are, what it refuses."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from kerakd import data
from kerakd.data import folder
from kerakd.errors import BadInput


def write(path, size=(8, 6), mode="RGB", value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, value // 2, 0)).save(path)


@pytest.fixture
def root(tmp_path):
    """Two classes of 30 images each, of other sizes, some gray, one of a single pixel; the path has a space and an umlaut."""
    for name, count in (("Bär", 30), ("cat", 30)):
        for k in range(count):
            write(tmp_path / "my bïlder" / name / f"{k:02d}.png", size=(8 + k, 6), mode="L" if k % 7 == 0 else "RGB", value=10 + k)
    write(tmp_path / "my bïlder" / "cat" / "dot.PNG", size=(1, 1))
    (tmp_path / "my bïlder" / "cat" / "notes.txt").write_text("no image")
    return tmp_path / "my bïlder"


def test_a_tenth_is_for_the_test_and_a_new_image_moves_no_other(root):
    names, before = folder.find(root)
    assert names == ["Bär", "cat"]
    assert {part: len(paths) for part, (paths, _) in before.items()} == {"train": 61 - len(before["test"][0]), "test": len(before["test"][0])}
    assert 2 <= len(before["test"][0]) <= 12
    write(root / "Bär" / "15b.png")
    after = folder.find(root)[1]
    for part in ("train", "test"):
        assert set(before[part][0]) <= set(after[part][0])


def test_its_version_is_of_names_sizes_and_times(root):
    versions = [data.load(f"folder:{root}")[0].version for _ in range(2)]
    path = folder.find(root)[1]["train"][0][0]
    path.write_bytes(path.read_bytes() + b"0")
    assert versions[0] == versions[1] != data.load(f"folder:{root}")[0].version


def test_folders_named_train_and_test_are_the_splits(root, tmp_path):
    for part, name in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")):
        write(tmp_path / "split" / part / name / "deep" / "x.jpg")
    train, test = data.load(f"folder:{tmp_path / 'split'}")
    assert (train.count, test.count, train.classes, train.names) == (2, 2, 2, ("a", "b"))


def test_images_are_as_stored_gray_ones_in_three_channels(root):
    train, test = data.load(f"folder:{root}")
    assert train.shape == (None, None, 3)
    seen = list(train.examples.as_numpy_iterator()) + list(test.examples.as_numpy_iterator())
    assert [e["index"] for e in seen] == [*range(train.count), *range(test.count)]
    names, found = folder.find(root)
    for e, path, label in zip(seen, found["train"][0] + found["test"][0], found["train"][1] + found["test"][1], strict=True):
        with Image.open(path) as image:
            np.testing.assert_array_equal(e["image"], np.asarray(image.convert("RGB")))
        assert e["label"] == label and path.parent.name == names[label]


def test_views_of_images_of_any_size_train(root):
    train, _ = data.load(f"folder:{root}")
    batches = data.training(train, view="inception", size=(16, 16), batch_size=8, seed=0, epochs=1)
    for x, y in batches:
        assert x.shape == (8, 16, 16, 3) and np.isfinite(x).all() and set(y.numpy()) <= {0, 1}


def test_without_labels_its_images_teach(root):
    images = data.images_of(f"folder:{root}")
    assert not images.labelled and images.count == data.load(f"folder:{root}")[0].count


def test_synthetic_images_have_its_classes(root):
    train, _ = data.load(f"folder:{root}", synthetic=True, image_size=12)
    assert train.shape == (12, 12, 3) and train.names == ("Bär", "cat")


def test_an_image_that_can_not_be_read_is_named(root):
    (root / "cat" / "00.png").write_bytes((root / "cat" / "01.png").read_bytes()[:40])
    train, test = data.load(f"folder:{root}")
    with pytest.raises(Exception, match=r"BadInput: image: expected one that can be read, received .*cat/00.png"):
        for split in (train, test):
            list(split.examples)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "expected a folder after folder:"),
        (lambda root: root.mkdir(), "expected a folder for each of two classes or more in .*, received 0"),
        (lambda root: (write(root / "train" / "a" / "x.png"), (root / "other").mkdir()), "expected one folder of test, val, .* received none"),
        (
            lambda root: [write(root / p / "x.png") for p in ("training/a", "training/b", "test/a", "test/b")],
            "expected a folder train beside .*/test, received none",
        ),
        (lambda root: [(root / part).mkdir(parents=True) for part in ("train", "val", "valid")], "received val, valid"),
        (lambda root: [(root / part).mkdir(parents=True) for part in ("Train", "train", "test")], "received train, test"),
        (lambda root: write(root / "only" / "x.png"), "two classes or more in .*, received 1"),
        (lambda root: (write(root / "a" / "x.png"), (root / "b").mkdir()), "expected images .* in .*b, received none"),
        (lambda root: [write(root / name / "x.png") for name in ("a", "b")], "images enough in .* for a tenth"),
        (lambda root: [write(root / name / f"{k}.png") for name, count in (("a", 40), ("b", 1)) for k in range(41, 41 + count)], "none of 'b' to train on"),
        (lambda root: [write(root / p / "x.png") for p in ("train/a", "train/b", "test/a", "test/c")], r"same class folders in .* received others \(b, c\)"),
    ],
)
def test_what_is_no_such_folder_is_refused(tmp_path, make, message):
    make(tmp_path / "x")
    with pytest.raises(BadInput, match=message):
        data.load(f"folder:{tmp_path / 'x'}")


def test_beside_test_a_val_is_passed_over_and_said_to_be(tmp_path, capsys):
    for part, count in (("train", 3), ("val", 5), ("Test", 2)):
        for name in ("a", "b"):
            for k in range(count):
                write(tmp_path / part / name / f"{k}.png")
    assert [split.count for split in data.load(f"folder:{tmp_path}")] == [6, 4]
    assert f"kerakd: {tmp_path} is tested on Test; images of val are neither trained nor tested on" in capsys.readouterr().err


def test_its_order_is_of_paths_and_sizes_and_a_copy_has_the_same(root, tmp_path):
    order, (path, *_) = data.load(f"folder:{root}")[0].order, folder.find(root)[1]["train"][0]
    shutil.copytree(root, tmp_path / "copy")
    assert data.load(f"folder:{tmp_path / 'copy'}")[0].order == order
    write(path, size=(50, 40))  # another image of the same name
    assert data.load(f"folder:{root}")[0].order != order


def test_links_to_folders_are_followed_once(root, tmp_path):
    write(tmp_path / "more" / "z.png")
    before = sum(split.count for split in data.load(f"folder:{root}"))
    (root / "cat" / "more").symlink_to(tmp_path / "more")
    (root / "cat" / "more again").symlink_to(tmp_path / "more")
    (root / "cat" / "round").symlink_to(root / "cat")
    assert sum(split.count for split in data.load(f"folder:{root}")) == before + 1


def test_images_to_teach_on_need_no_classes(tmp_path):
    for k in range(40):
        write(tmp_path / "flat" / f"{k}.png")
        write(tmp_path / "split" / "train" / "only" / f"{k}.png")
    flat, split = (data.images_of(f"folder:{tmp_path / name}") for name in ("flat", "split"))
    assert 30 <= flat.count < 40 == split.count and not flat.labelled and flat.classes == 0
    assert [example["label"] for example in flat.examples.take(2).as_numpy_iterator()] == [-1, -1]
    with pytest.raises(BadInput, match="^transfer_dataset: expected a folder after folder:, received none"):
        data.images_of("folder:")
    for name, message in (("nowhere", "expected a folder after folder:"), ("empty", "expected images .* received none")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(BadInput, match=f"^transfer_dataset: {message}"):
            data.images_of(f"folder:{tmp_path / name}")


def test_no_image_to_test_on_is_taught_on(root):
    taught = [os.fsdecode(row["path"]) for row in data.images_of(f"folder:{root}").rows.as_numpy_iterator()]
    assert sorted(taught) == sorted(map(str, folder.find(root)[1]["train"][0]))


@pytest.mark.parametrize("inside", ["run", "cat/run", "."])
def test_nothing_is_written_where_it_would_be_a_class(root, inside):
    with pytest.raises(BadInput, match=f"--workdir: expected a folder outside {root}, which is read for images"):
        data.check_outside(f"folder:{root}", {"teacher_cache": "", "workdir": str(root / inside)})
    data.check_outside(f"folder:{root}", {"workdir": str(root.parent / "run")})
    data.check_outside("digits", {"workdir": str(root / inside)})
    data.check_outside("folder:", {"workdir": str(root / inside)})  # which `load` refuses
    for part in ("train/a", "train/b", "test/a", "test/b"):
        write(root / part / "x.png")
    data.check_outside(f"folder:{root}", {"workdir": str(root / "run")})  # beside those two nothing is read
    with pytest.raises(BadInput, match=f"--workdir: expected a folder outside {root}/train, which is read for images"):
        data.check_outside(f"folder:{root}", {"workdir": str(root / "train" / "run")})


def test_an_image_of_more_than_8_bits_is_refused(root):
    Image.fromarray(np.full((8, 8), 3000, np.uint16)).save(root / "cat" / "00.png")
    with pytest.raises(Exception, match=r"cat/00.png .its pixels have more than 8 bits"):
        for split in data.load(f"folder:{root}"):
            list(split.examples)


def test_what_begins_with_a_dot_is_no_image_and_other_kinds_are_said(root, capsys):
    before = data.load(f"folder:{root}")[0].count
    assert "files that are no images (.jpg, .jpeg, .png, .bmp, .gif, .webp) are passed over in" in capsys.readouterr().err
    (root / "cat" / "._00.png").write_bytes(b"no image")
    write(root / "cat" / ".ipynb_checkpoints" / "00-checkpoint.png")
    write(root / "__MACOSX" / "x.png")
    (root / "Bär" / "photo.tif").write_bytes(b"no image")
    train, _ = data.load(f"folder:{root}")
    assert train.count == before and train.names == ("Bär", "cat") and ": 2, as Bär/photo.tif" in capsys.readouterr().err


def test_a_class_that_is_not_tested_on_is_said(tmp_path, capsys):
    for name, count in (("a", 40), ("b", 2)):
        for k in range(count):
            write(tmp_path / name / f"{k}.png")
    labels = folder.find(tmp_path)[1]["test"][1]
    assert set(labels) == {0} and "no image of 'b' is tested on" in capsys.readouterr().err


def test_names_that_are_not_utf8_are_read(root):
    write(root / "cat" / "plain.png", value=77)
    os.rename(root / "cat" / "plain.png", os.fsencode(root / "cat") + b"/caf\xe9.png")
    found = folder.find(root)[1]
    paths = [path for part in found.values() for path in part[0]]
    at = next(k for k, path in enumerate(paths) if b"caf" in os.fsencode(path))
    image = next(iter(folder.rows(paths[at : at + 1], [0]).map(folder.read)))["image"]
    assert image[0, 0, 0] == 77 and len(folder.order(root, paths)) == len(folder.version(paths)) == 16
    os.rename(root / "Bär", root / "ice\u00a0cream")  # a space of another kind
    assert folder.find(root)[0] == ["cat", "ice\u00a0cream"]
    os.rename(root / "cat", os.fsencode(root) + b"/caf\xe9")
    with pytest.raises(BadInput, match="expected names of classes in UTF-8, received b'caf"):
        folder.find(root)


@pytest.mark.parametrize("mode, dark", [("RGBA", (0, 0, 0)), ("LA", (0,))])
def test_what_is_transparent_is_white(root, mode, dark):
    path = root / "cat" / "00.png"
    image = Image.new(mode, (4, 2), (*dark, 0))
    image.putpixel((1, 1), (*dark, 255))
    image.save(path)
    read = next(iter(folder.rows([path], [0]).map(folder.read)))["image"].numpy()
    assert read[1, 1].tolist() == [0, 0, 0] and read.sum() == 255 * 3 * 7


def test_what_a_camera_turned_is_upright(root):
    path, image = root / "cat" / "00.jpg", Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees clockwise
    image.save(path, exif=exif)
    read = next(iter(folder.rows([path], [0]).map(folder.read)))["image"].numpy()
    assert read.shape == (16, 8, 3) and read[:6].min() > 200 and read[10:].max() < 50
    for damaged in (b"Exif\0\0junk", b"Exif\0\0II"):
        image.save(path, exif=damaged)
        assert next(iter(folder.rows([path], [0]).map(folder.read)))["image"].shape == (8, 16, 3)


def test_no_folder_is_not_this_one():
    with pytest.raises(BadInput, match="expected a folder after folder:, received none"):
        data.load("folder:")


def test_a_folder_whose_classes_have_other_names_is_refused(tmp_path):
    for root, names in (("a", ("cat", "dog")), ("b", ("cat", "dog")), ("c", ("Cat", "dog"))):
        for name in names:
            for number in range(12):
                (tmp_path / root / name).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4)).save(tmp_path / root / name / f"{number}.png")
    trained = data.load(f"folder:{tmp_path / 'a'}")[0].names
    data.check_classes(trained, data.load(f"folder:{tmp_path / 'b'}")[1])
    data.check_classes(None, data.load(f"folder:{tmp_path / 'c'}")[1])  # a file alone says nothing of its classes
    with pytest.raises(BadInput, match="expected the class folders on which the run was trained, received others in folder:.*c test .Cat, cat."):
        data.check_classes(trained, data.load(f"folder:{tmp_path / 'c'}")[1])


def empty_images(root):
    for name in "ab":
        (root / name).mkdir(parents=True)
        for k in range(40):
            (root / name / f"{k}.png").write_bytes(b"")


def test_an_image_that_was_written_again_is_another_version(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"0")
    os.utime(path, ns=(1, 1))
    before = folder.version([path])
    os.utime(path, ns=(2, 2))
    assert folder.version([path]) != before


def test_an_image_too_large_to_be_opened_is_named(tmp_path, monkeypatch):
    Image.new("RGB", (100, 100)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert len(folder.unreadable(folder.rows([tmp_path / "x.png"], [0]))) == 1


def test_a_folder_may_be_below_one_with_a_dot(tmp_path):
    empty_images(tmp_path / ".cache" / "images")
    assert folder.find(tmp_path / ".cache" / "images")[0] == ["a", "b"]


def test_equal_folders_are_split_alike_wherever_they_are(tmp_path):
    found = []
    for root in (tmp_path / "one", tmp_path / "two"):
        empty_images(root)
        found.append([str(path.relative_to(root)) for path in folder.find(root)[1]["test"][0]])
    assert found[0] == found[1] and 0 < len(found[0]) < 40


def test_a_folder_called_validation_holds_the_test_images(tmp_path):
    for part in ("train", "validation"):
        empty_images(tmp_path / part)
    assert len(folder.find(tmp_path)[1]["test"][0]) == 80


def test_train_and_test_may_have_capitals_and_a_class_alone_may_be_called_train(tmp_path):
    for part in ("Train", "TEST"):
        empty_images(tmp_path / "split" / part)
    assert folder.find(tmp_path / "split")[0] == ["a", "b"]
    for name in ("Bus", "Train"):
        empty_images(tmp_path / "vehicles" / name)
    assert folder.find(tmp_path / "vehicles")[0] == ["Bus", "Train"]
