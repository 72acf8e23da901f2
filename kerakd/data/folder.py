"""A folder of class folders as examples: the images that a user has."""

import hashlib
import os
import pathlib
import sys
import zlib

import numpy as np
import tensorflow as tf

from kerakd.errors import BadInput

KINDS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
TEST = "test"
TESTS = (TEST, "val", "valid", "validation")
TENTH = 10  # of a folder that is not split, one image in so many is tested on


def find(root):
    """The images of a folder and their classes.

    Args:
        root: a folder with a folder for each class, whose images are split by a hash of their paths in it, a tenth for the test; or one
            with folders "train" and "test" (or "val", "validation"), each with the same class folders. Where both are there, capitals don't
            matter; beside "test" a "val" is passed over, as TFDS's "validation" is, and said to be. What begins with a dot is passed over.
    Returns: (names of the classes, sorted, {"train": ([path], [class]), "test": the same}), each sorted by path.
    Raises: BadInput for a folder that is not there, one with fewer than two classes, a class or a split without images, a class without one to train on,
        splits of other classes, a test without "train", several of either of which none is "test".
    """
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise BadInput(f"dataset: expected a folder after folder:, received {str(root)!r}, which is none")
    trains, tests = _splits(root)
    tests = _test_before_val(root, tests) if trains else tests
    if tests and not trains:
        raise BadInput(
            f"dataset: expected a folder train beside {root}/{tests[0]}, received none; rename the training images' folder to "
            f"train or, if {tests[0]} is a class, give it a capital"
        )
    if trains and (len(trains) > 1 or len(tests) != 1):
        several = [*trains[1:], *tests]
        told = f"received {', '.join(several)}; move away what is neither trained nor tested on" if several else "received none; add one"
        raise BadInput(f"dataset: expected one folder of {', '.join(TESTS)} beside {root}/{trains[0]}, {told}")
    if trains:
        names, train = _classes(root / trains[0])
        others, test = _classes(root / tests[0])
        if others != names:
            apart = ", ".join(sorted(set(names) ^ set(others)))
            raise BadInput(f"dataset: expected the same class folders in {root}/{trains[0]} and {root}/{tests[0]}, received others ({apart})")
        return names, {"train": train, "test": test}
    names, (paths, labels) = _classes(root)
    found = {part: ([], []) for part in ("train", "test")}
    for path, label in zip(paths, labels, strict=True):
        into = found["test" if _is_tested(root, path) else "train"]
        into[0].append(path)
        into[1].append(label)
    for part, (paths, _) in found.items():
        if not paths:
            raise BadInput(f"dataset: expected images enough in {root} for a tenth to test on, received none for {part}; give it folders train and test")
    there = {part: set(labels) for part, (_, labels) in found.items()}
    for label, name in enumerate(names):
        if label not in there["train"]:
            raise BadInput(f"dataset: expected images enough of each class for a tenth to test on, received none of {name!r} to train on; add some")
        if label not in there["test"]:
            print(f"kerakd: no image of {name!r} is tested on; add some, or give {root} folders train and test", file=sys.stderr)
    return names, found


def read_of(root):
    """The folders of `root` in which images are looked for: its train and its folders to test on, or itself; none where it is not there."""
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        return []
    trains, tests = _splits(root)
    return [root / name for name in (*trains, *tests)] or [root]


def unlabelled(root):
    """[path] of images to teach on: all in the folder and those within it or, where it has a folder train, all in that. Without that one in ten is left
    out, as `find` does, so that images of the same folder that are tested on are not learned; a folder within that one is another to both.

    Raises: BadInput for a folder that is not there, or has no images, several that are train.
    """
    root = pathlib.Path(root).expanduser()
    if not root.is_dir():
        raise BadInput(f"transfer_dataset: expected a folder after folder:, received {str(root)!r}, which is none")
    trains, _ = _splits(root)
    if len(trains) > 1:
        raise BadInput(f"transfer_dataset: expected one folder train in {root}, received {', '.join(trains)}; move the others away")
    images, _ = _files(root / trains[0] if trains else root)
    images = images if trains else [path for path in images if not _is_tested(root, path)]
    if not images:
        tenth = "" if trains else " besides the tenth that is left out, as one to test on"
        raise BadInput(f"transfer_dataset: expected images ({', '.join(KINDS)}) in {root}{tenth}, received none")
    if trains:
        print(f"kerakd: of {root} images of {trains[0]} are taught on", file=sys.stderr)
    return images


def _is_tested(root, path):
    """Whether an image of a folder that is not split is one to test on; so that a new image moves no other, by its own path."""
    return zlib.crc32(os.fsencode(path.relative_to(root))) % TENTH == 0


def _splits(root):
    """Names of the folders of training images and of test images. One kind alone has capitals only as a class: Bus, Car, Train."""
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    found = [[name for name in folders if name.lower() in names] for names in (("train",), TESTS)]
    return found if all(found) else [[name for name in names if name.islower()] for names in found]


def _test_before_val(root, tests):
    """Of several folders the one that is named test, the others being said to be unread; without it all of them."""
    kept = [name for name in tests if name.lower() == TEST]
    unread = [name for name in tests if name not in kept]
    if len(kept) == 1 and unread:
        print(f"kerakd: {root} is tested on {kept[0]}; images of {', '.join(unread)} are neither trained nor tested on", file=sys.stderr)
    return kept if len(kept) == 1 else tests


def _classes(root):
    """(names of the class folders, (paths, classes)) of one split."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".") and path.name != "__MACOSX")
    if len(folders) < 2:
        raise BadInput(f"dataset: expected a folder for each of two classes or more in {root}, received {len(folders)}")
    paths, labels, others = [], [], []
    for label, folder in enumerate(folders):
        try:
            folder.name.encode()
        except UnicodeEncodeError:
            raise BadInput(f"dataset: expected names of classes in UTF-8, received {os.fsencode(folder.name)} in {root}; rename it") from None
        images, strange = _files(folder)
        others += strange
        if not images:
            raise BadInput(f"dataset: expected images ({', '.join(KINDS)}) in {folder}, received none")
        paths += images
        labels += [label] * len(images)
    if others:
        named = os.fsencode(others[0].relative_to(root)).decode(errors="replace")
        print(f"kerakd: files that are no images ({', '.join(KINDS)}) are passed over in {root}: {len(others)}, as {named}", file=sys.stderr)
    return [folder.name for folder in folders], (paths, labels)


def _files(folder):
    """(images, other files) in a folder and those within it, links to folders among them, each sorted. What begins with a dot is passed over."""
    found, seen = [], set()
    for path, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:  # by another link, or one to a folder around it, which would have no end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [pathlib.Path(path, name) for name in names if not name.startswith(".")]
    files = sorted(path for path in found if path.is_file())
    return [path for path in files if path.suffix.lower() in KINDS], [path for path in files if path.suffix.lower() not in KINDS]


def version(paths):
    """Hexadecimal digits that change where one of the files has another name, size or time, or is read in another way."""
    known = ["upright", *((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)]
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


def order(root, paths):
    """Hexadecimal digits that change where a split has another image, one of another size, or one at another place; a copy of the folder has the same."""
    root = pathlib.Path(root).expanduser()
    known = [os.fsencode(path.relative_to(root).as_posix()) + b" %d" % path.stat().st_size for path in paths]
    return hashlib.sha256(b"\n".join(known)).hexdigest()[:16]


def rows(paths, labels):
    """A tf.data.Dataset of {"path", "label": int64, "index": int64}, in this order, which `read` makes examples of."""
    columns = {"path": [os.fsencode(path) for path in paths], "label": np.asarray(labels, np.int64), "index": np.arange(len(paths))}
    return tf.data.Dataset.from_tensor_slices(columns)


def read(row):
    """{"image": uint8 [h, w, 3], "label", "index"} of a row; a gray image gets three equal channels, what is transparent is on
    white, what a camera turned is upright.

    An error names an image that can't be read.
    """
    image = tf.ensure_shape(tf.numpy_function(_read, [row["path"]], tf.uint8), [None, None, 3])
    return {"image": image, "label": row["label"], "index": row["index"]}


def unreadable(rows):
    """What is said of each image of `rows` that can't be read: [message]."""
    found = []
    for row in rows.as_numpy_iterator():
        try:
            _read(row["path"])
        except BadInput as error:
            found.append(str(error))
    return found


def _upright(image):
    """As every viewer shows what a camera turned; one whose EXIF is damaged as it is stored."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises whatever a damaged EXIF leads to; damaged pixels say so once they are read
        return image


def _read(path):
    from PIL import Image

    try:
        with Image.open(os.fsdecode(path)) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"its pixels have more than 8 bits, mode {image.mode}")
            image = _upright(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(
            f"image: expected one that can be read, received {path.decode(errors='replace')} ({error}); mend it, or take it away and begin another run"
        ) from error
