"""The program that shows a dataset: its counts, its sheet of views, its refusals."""

import dataclasses
import re
import shutil

import matplotlib.image
import numpy as np
import pytest
from conftest import run_program
from PIL import Image

from kerakd import augment, data
from kerakd.data import __main__ as program


def test_the_program_prints_the_splits_and_draws_the_views(tmp_path, data_dir):
    status, out, err = run_program("kerakd.data", "--dataset=digits", f"--data_dir={data_dir}", f"--picture={tmp_path / 'views.png'}")
    assert status == 0, out + err
    assert "oneDNN" not in err
    assert "digits train: 1437 images of 8x8x1, 10 classes\ndigits test: 360 images of 8x8x1, 10 classes\n" in out
    assert matplotlib.image.imread(tmp_path / "views.png").std() > 0.05


@pytest.mark.parametrize("view", augment.BY_NAME)
def test_every_view_has_a_sheet_whose_rows_are_of_one_image(view):
    train, _ = data.load("cifar10", synthetic=True)
    train = dataclasses.replace(train, examples=train.examples.take(2), count=2)
    figure = program.sheet(train, view, (16, 16) if "ic" in view or view == "inception" else (32, 32))
    cells = [[axes.images[0].get_array() for axes in row] for row in np.reshape(figure.axes, (train.count, -1))]
    assert len(cells[0]) == 1 + program.EPOCHS * (1 + (augment.view(view).teacher is not None and not augment.view(view).fixed))
    stored = [e["image"] for e in train.examples.as_numpy_iterator()]
    for row, image in zip(cells, stored, strict=True):
        np.testing.assert_array_equal(row[0], image)
    if view == "whole":
        for row, image in zip(cells, stored, strict=True):
            for cell in row[1:]:
                np.testing.assert_allclose(cell, image / 255, atol=1e-2)


@pytest.mark.parametrize("each", [3, 5, 8])
def test_the_rows_of_a_folders_sheet_are_spread_over_it(tmp_path, each):
    for number in range(3 * each):
        folder = tmp_path / ["ape", "bee", "cat"][number // each]
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (6, 6)).save(folder / f"{number:02d}.png")
    (tmp_path / "train").mkdir()
    for name in ("ape", "bee", "cat"):
        (tmp_path / name).rename(tmp_path / "train" / name)
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    train, _ = data.load(f"folder:{tmp_path}")
    titles = [axes.get_title() for axes in program.sheet(train, "whole", (6, 6)).axes]
    assert {title for title in titles if title and not title.startswith("epoch")} == {"0 ape", "1 bee", "2 cat"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--dataset: expected a value"),
        (["--dataset=no_such_set"], "dataset: expected digits or a TFDS name"),
        (["--dataset=digits", "--view=none"], "--view: expected one of|view: expected one of"),
        (["--dataset=digits", "--view=ind/rc", "--augment=CutMix"], "--augment: expected a view that teacher and student share, received 'ind/rc'"),
        (["--dataset=folder:/nowhere", "--synthetic", "--check"], "--check: expected none beside --synthetic"),
        (["--dataset=folder:/nowhere", "--data_dir=tfds"], "--data_dir: expected none beside folder:/nowhere"),
        (["--dataset=digits", "--check"], "--check: expected a dataset folder:DIR beside it, received digits"),
        (["--dataset=digits", "--picture=x.txt"], "--picture: expected a .png file"),
        (["--dataset=digits", "--seed=-1"], "--seed: expected 0 or more"),
        (["--dataset=digits", "--source=ftp"], "--source: expected one of|--source: expected tfds or packages"),
        (["--dataset=digits", "--source=packages"], "--source: expected one of cifar10, fashion_mnist, mnist beside packages"),
        (["--dataset=folder:/nowhere"], "expected a folder after folder:"),
    ],
)
def test_bad_input_gets_one_line(refusal, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    _, err = refusal(program.main, *arguments)
    assert re.search(message, err) and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_picture_that_exists_is_kept(refusal, tmp_path):
    (tmp_path / "x.png").write_text("mine")
    _, err = refusal(program.main, "--dataset=digits", f"--picture={tmp_path / 'x.png'}")
    assert "give --overwrite" in err and (tmp_path / "x.png").read_text() == "mine"


def test_a_folder_shows_each_class_with_its_number_and_names_what_can_not_be_read(tmp_path, here):
    for shade, name in ((40, "ape"), (120, "bee"), (200, "cat")):
        for number in range(20):
            (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (6, 6), shade).save(tmp_path / "set" / name / f"{number}.png")
    train, _ = data.load(f"folder:{tmp_path / 'set'}")
    titles = [axes.get_title() for axes in program.sheet(train, "whole", (6, 6)).axes]
    assert {title for title in titles if title and not title.startswith("epoch")} == {"0 ape", "1 bee", "2 cat"}
    flags = f"--dataset=folder:{tmp_path / 'set'}", f"--picture={tmp_path / 'x.png'}", "--image_size=6", "--check"
    status, out, err = here(program.main, *flags)
    assert status == 0 and "every image can be read" in out, out + err
    counts = [sum(int(line.split(f"{label} {name} ")[1].split(",")[0]) for line in out.splitlines()[:2]) for label, name in enumerate(("ape", "bee", "cat"))]
    assert counts == [20, 20, 20]
    for broken in ("bee/3.png", "cat/7.png"):
        (tmp_path / "set" / broken).write_bytes(b"no image")
    status, out, err = here(program.main, *flags, "--overwrite")
    assert status == 2 and all(name in err for name in ("bee/3.png", "cat/7.png")) and "received 2 that can't; mend them" in err
