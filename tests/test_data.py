"""Datasets: real digits through TFDS, batches that depend on (seed, epoch, example) alone, synthetic stand-ins, clear errors."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from kerakd import data
from kerakd.errors import BadInput


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return data.load("digits", str(tmp_path_factory.mktemp("tfds")))


def batches(split, **kwargs):
    settings = {"view": "shift", "size": (8, 8), "batch_size": 100, "seed": 1, "epochs": 2, **kwargs}
    return [(images.numpy(), labels.numpy()) for images, labels in data.training(split, **settings)]


def equal(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


def test_digits_are_scikit_learns_in_a_fixed_split(digits):
    train, test = digits
    source = load_digits()
    assert (train.count, test.count, train.classes, train.shape) == (1437, 360, 10, (8, 8, 1))
    stored = {(e["image"].tobytes(), int(e["label"])) for split in digits for e in split.examples.as_numpy_iterator()}
    original = {(np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(label)) for image, label in zip(source.images, source.target, strict=True)}
    assert stored == original
    tested = {(e["image"].tobytes(), int(e["label"])) for e in test.examples.as_numpy_iterator()}
    last = zip(source.images[-360:], source.target[-360:], strict=True)
    assert tested == {(np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(label)) for image, label in last}


def test_an_epoch_is_the_same_wherever_training_begins(digits):
    assert equal(batches(digits[0], epochs=4)[28:], batches(digits[0], epochs=4, first_epoch=2))


def test_an_epoch_shows_each_example_at_most_once(digits):
    images = np.concatenate([images for images, _ in batches(digits[0], view="whole", epochs=1)])
    source = {e["image"].tobytes() for e in digits[0].examples.as_numpy_iterator()}
    shown = [np.rint((image + 1) * 127.5).astype(np.uint8).tobytes() for image in images]
    assert len(shown) == 1400 and set(shown) <= source
    assert len(set(shown)) > 1390  # a few images of the set are twins


@pytest.mark.parametrize("change", [{"seed": 2}, {"view": "inception"}])
def test_another_seed_or_view_gives_other_batches(digits, change):
    assert not equal(batches(digits[0]), batches(digits[0], **change))


def test_epochs_differ_in_order_and_views(digits):
    both = batches(digits[0])
    assert not equal(both[:14], both[14:])


def test_the_programs_global_seed_does_not_matter(digits):
    import tensorflow as tf

    tf.random.set_seed(5)
    first = batches(digits[0], epochs=1)
    tf.random.set_seed(6)
    assert equal(first, batches(digits[0], epochs=1))


def test_testing_shows_every_example_in_order(digits):
    images, labels = data.arrays(data.testing(digits[1], size=(8, 8)))
    assert len(images) == 360 and images.min() >= -1 and images.max() <= 1
    np.testing.assert_array_equal(labels, [e["label"] for e in digits[1].examples.as_numpy_iterator()])


def test_arrays_stop_at_the_limit(digits):
    images, labels = data.arrays(data.testing(digits[1], size=(8, 8), batch_size=7), limit=10)
    assert images.shape == (10, 8, 8, 1) and labels.shape == (10,)


def test_synthetic_sets_have_the_shape_and_classes_of_their_own():
    train, test = data.load("imagenet2012", synthetic=True, image_size=32)
    assert (train.shape, train.classes, train.count) == ((32, 32, 3), 1000, 64)
    first = next(train.examples.as_numpy_iterator())
    again = next(data.load("imagenet2012", synthetic=True, image_size=32)[0].examples.as_numpy_iterator())
    np.testing.assert_array_equal(first["image"], again["image"])
    assert first["image"].dtype == np.uint8


def test_unknown_dataset_is_named():
    with pytest.raises(BadInput, match="dataset: expected digits or a TFDS name.*received 'no_such_set'"):
        data.load("no_such_set")


def test_a_dataset_that_is_not_there_and_has_no_host_says_how_to_get_it(tmp_path, monkeypatch):
    import socket

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)  # the one thing that can't be had for real: a machine that is surely offline
    with pytest.raises(BadInput, match="expected cifar10 in .* or to download it, received an error .*--data_dir"):
        data.load("cifar10", str(tmp_path))
    assert not list(tmp_path.rglob("*.tfrecord*"))


def test_a_dataset_without_labels_is_refused():
    with pytest.raises(BadInput, match='features "image" and "label"'):
        data.load("coco_captions")


def test_images_of_many_sizes_ask_for_one():
    train, _ = data.load("imagenet2012", synthetic=True, image_size=32)
    import dataclasses

    with pytest.raises(BadInput, match="image_size: expected a size"):
        dataclasses.replace(train, shape=(None, None, 3)).image_shape()


@pytest.mark.parametrize("size", [0, 1438])
def test_a_batch_larger_than_the_set_is_refused(digits, size):
    with pytest.raises(BadInput, match="batch_size: expected 1 to 1437"):
        data.training(digits[0], view="whole", size=(8, 8), batch_size=size, seed=0, epochs=1)
