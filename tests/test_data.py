"""Datasets: real digits through TFDS, batches that depend on (seed, epoch, example) alone, what teachers see, synthetic stand-ins, clear errors."""

import dataclasses
import os

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

import kerakd.data.batches
from kerakd import augment, data
from kerakd.data import splits
from kerakd.data.digits import Digits
from kerakd.errors import BadInput


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def digits(digits_dir):
    return data.load("digits", digits_dir)


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


def test_what_memory_does_not_hold_is_shuffled_as_files_and_gives_the_same_batches(digits, digits_dir, monkeypatch):
    monkeypatch.setattr(splits, "KEPT", 0)
    train, test = data.load("digits", digits_dir)
    assert train.version == f"{digits[0].version}, drawn as files" == train.order  # whose order is another where they are many
    monkeypatch.setitem(splits.SPLITS, "digits", ("train[:50%]", "test"))
    assert data.load("digits", digits_dir)[0].row_bytes == train.row_bytes and data.load("digits", digits_dir)[0].count == 718
    monkeypatch.delitem(splits.SPLITS, "digits")
    assert train.rows is not None and 60 < train.row_bytes < 250  # a PNG of 8x8 with what TFDS keeps beside it
    assert equal(batches(train), batches(digits[0])) and digits[0].rows is None
    assert data.indices(train, 1, 1, 3, 100) == data.indices(digits[0], 1, 1, 3, 100)
    assert equal([data.arrays(data.testing(test, size=(8, 8)))], [data.arrays(data.testing(digits[1], size=(8, 8)))])
    monkeypatch.setattr(kerakd.data.batches, "SHUFFLED", 10 * train.row_bytes)
    near = data.indices(train, 1, 0, 0, 100)
    assert max(near) < 100 + 10 and near != sorted(near)


def test_the_programs_global_seed_does_not_matter(digits):
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
    monkeypatch.setenv("https_proxy", "http://localhost:8080")
    assert splits._unreachable_host(splits._builder("cifar10", str(tmp_path))) is None  # the proxy would look it up
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with pytest.raises(BadInput, match="expected cifar10 in .* or to download it, received an error .*--data_dir"):
        data.load("cifar10", str(tmp_path))
    assert not list(tmp_path.rglob("*.tfrecord*"))


class Unsplit(Digits):
    """The digits under another name, with the splits of `parts` alone."""

    name, parts = "unsplit", ("train",)

    def _split_generators(self, dl_manager):
        made = super()._split_generators(dl_manager)
        return dict(zip(self.parts, (made["train"], made["test"])))


@pytest.mark.parametrize("parts, expected", [(("train", "validation"), 360), (("train",), None), (("rest", "some"), None)])
def test_a_dataset_without_a_test_is_tested_on_its_validation_or_refused(tmp_path, monkeypatch, parts, expected):
    monkeypatch.setattr(Unsplit, "parts", parts)
    if expected:
        assert [split.count for split in data.load("unsplit", str(tmp_path))] == [1437, expected]
    else:
        with pytest.raises(BadInput, match=f"expected splits train and test, or validation, received unsplit with {', '.join(parts)}; save its images"):
            data.load("unsplit", str(tmp_path))


def test_images_to_teach_on_need_a_training_split(tmp_path, monkeypatch):
    monkeypatch.setattr(Unsplit, "parts", ("test", "validation"))
    with pytest.raises(BadInput, match="transfer_dataset: expected a split train, received unsplit with test, validation; save its images"):
        data.images_of("unsplit", str(tmp_path))


def test_a_name_with_its_version_has_the_splits_of_the_name():
    import tensorflow_datasets as tfds

    builder = tfds.builder("oxford_iiit_pet:4.*.*", try_gcs=False)
    assert splits._parts(builder, "oxford_iiit_pet:4.*.*") == ("train[:90%]", "test")


@pytest.mark.parametrize("name", ["cifar10:9.9.9", "cifar10/bogus"])
def test_a_version_or_configuration_that_there_is_not_is_refused(name):
    with pytest.raises(BadInput, match=f"expected a configuration and a version that TFDS has, received '{name}'"):
        data.load(name)


def test_a_dataset_without_labels_is_refused():
    with pytest.raises(BadInput, match='features "image" and "label"'):
        data.load("coco_captions")


def test_images_of_many_sizes_ask_for_one():
    train, _ = data.load("imagenet2012", synthetic=True, image_size=32)
    with pytest.raises(BadInput, match="image_size: expected a size"):
        dataclasses.replace(train, shape=(None, None, 3)).image_shape()


@pytest.mark.parametrize("size", [0, 1438])
def test_a_batch_larger_than_the_set_is_refused(digits, size):
    with pytest.raises(BadInput, match="batch_size: expected 1 to 1437"):
        data.training(digits[0], view="whole", size=(8, 8), batch_size=size, seed=0, epochs=1)


# ---- What teachers see ---------------------------------------------------------------------------------------------------------------------------

FIXED = [name for name, view in augment.BY_NAME.items() if view.fixed]
APART = [name for name, view in augment.BY_NAME.items() if view.teacher and not view.fixed]
SHARED = [name for name, view in augment.BY_NAME.items() if not view.teacher]
OF_THE_IMAGE = [name for name in SHARED if augment.BY_NAME[name].student in augment.CROPS_OF_THE_IMAGE]


@pytest.fixture(scope="module")
def ramps():
    """12 images each of whose pixels says where it is: they differ in contrast."""
    contrast = 0.4 + np.arange(12)[:, None, None, None] / 20
    images = tf.constant(np.stack(np.mgrid[0:100, 0:80] * 2.5, -1)[None] * contrast, tf.uint8)
    examples = tf.data.Dataset.from_tensor_slices({"image": images, "label": tf.range(12, dtype=tf.int64), "index": tf.range(12, dtype=tf.int64)})
    return data.Split("ramps", examples, 12, 12, (100, 80, 2))


def views(split, **kwargs):
    """The batches of `data.training`, NumPy."""
    settings = {"size": (8, 8), "batch_size": 479, "seed": 1, "epochs": 1, **kwargs}
    return list(data.training(split, **settings).as_numpy_iterator())


def assert_same(one, other):
    tf.nest.map_structure(np.testing.assert_array_equal, one, other)


def means(images):
    return images.mean((1, 2), dtype=np.float64)


@pytest.mark.parametrize("view", SHARED + FIXED)
def test_where_the_teacher_is_asked_of_nothing_else_the_batch_is_the_students_pixels(digits, view):
    """So that it gets the very tensor."""
    with_teachers = views(digits[0], view=view, teacher_sizes=((8, 8), (8, 8)))
    assert all(isinstance(x, np.ndarray) and x.dtype == np.float32 for x, _ in with_teachers)
    assert_same(with_teachers, views(digits[0], view=view))


@pytest.mark.parametrize("view", APART)
def test_an_independent_teacher_has_a_crop_of_its_own(digits, view):
    both = views(digits[0], view=view, teacher_sizes=((8, 8),), epochs=2)
    for x, _ in both:
        same = [np.array_equal(mine, theirs) for mine, theirs in zip(x["student"], x["teachers"][0])]
        assert np.mean(same) < 0.3  # of random_crop there are 9 places, mirrored or not
    assert not np.array_equal(both[0][0]["teachers"][0], both[3][0]["teachers"][0])
    assert_same(both[3:], views(digits[0], view=view, teacher_sizes=((8, 8),), first_epoch=1, epochs=2))
    assert_same([(x["student"], y) for x, y in both[:3]], views(digits[0], view=shared_alike(view)))


def shared_alike(view):
    """The view whose student sees the same and whose teacher sees that too."""
    return next(name for name in SHARED if augment.BY_NAME[name].student is augment.BY_NAME[view].student)


@pytest.mark.parametrize("view", OF_THE_IMAGE)
def test_teachers_of_other_sizes_see_the_students_boxes(ramps, view):
    sizes = ((32, 32), (16, 16), (20, 10))
    for x, _ in views(ramps, view=view, size=(16, 16), batch_size=6, teacher_sizes=sizes):
        assert [seen.shape for seen in x["teachers"]] == [(6, *size, 2) for size in sizes]
        np.testing.assert_array_equal(x["teachers"][1], x["student"])
        for seen in x["teachers"]:
            np.testing.assert_allclose(means(seen), means(x["student"]), atol=0.02)
            columns = [np.sign(images[:, 2, -2, 1] - images[:, 2, 1, 1]) for images in (seen, x["student"])]
            np.testing.assert_array_equal(*columns)  # mirrored together


@pytest.mark.parametrize("view", APART)
def test_independent_teachers_share_a_box_in_their_sizes(ramps, view):
    for x, _ in views(ramps, view=view, size=(16, 16), batch_size=6, teacher_sizes=((32, 32), (20, 10))):
        np.testing.assert_allclose(*map(means, x["teachers"]), atol=0.02)
        assert np.abs(means(x["student"]) - means(x["teachers"][0])).max() > 0.1


def share_of(mixed, plain):
    """a of mixed = a plain + (1 - a) (plain rolled by one), and whether that is what it is."""
    partner = np.roll(plain, 1, axis=0)
    share = ((mixed - partner) * (plain - partner)).sum() / ((plain - partner) ** 2).sum()
    np.testing.assert_allclose(mixed, share * plain + (1 - share) * partner, atol=1e-5)
    return share


@pytest.mark.parametrize("view", ["same/rc", "same/ic"])
def test_mixup_is_the_same_for_student_and_teachers_and_another_for_each_batch(ramps, view):
    settings = {"view": view, "size": (16, 16), "batch_size": 4, "teacher_sizes": ((32, 32), (16, 16)), "epochs": 2}
    both, shares = views(ramps, **settings, mixup=True), []
    for (mixed, label), (plain, same_label) in zip(both, views(ramps, **settings), strict=True):
        shares.append(share_of(mixed["student"], plain["student"]))
        assert [share_of(*seen) for seen in zip(mixed["teachers"], plain["teachers"], strict=True)] == pytest.approx([shares[-1]] * 2, abs=1e-4)
        np.testing.assert_array_equal(label, same_label)
    assert 0.5 <= min(shares) < max(shares) <= 1 and len({round(share, 4) for share in shares}) == 6
    assert_same(views(ramps, **settings, mixup=True, first_epoch=1), both[3:])


@pytest.mark.parametrize("view", FIXED)
def test_fixed_logits_follow_their_example_through_every_shuffle(digits, view):
    labels = np.array([e["label"] for e in digits[0].examples.as_numpy_iterator()])
    said = np.stack([np.arange(1437), labels], 1)[:, :, None].astype(np.float32)  # of two "teachers": which example, which label
    orders = []
    for x, y in views(digits[0], view=view, fixed_logits=said, epochs=2):
        assert x.keys() == {"student", "logits"} and x["logits"].shape == (479, 2, 1)
        np.testing.assert_array_equal(x["logits"][:, 1, 0], y)
        orders.append(x["logits"][:, 0, 0].astype(int))
    first, second = np.concatenate(orders[:3]), np.concatenate(orders[3:])
    assert sorted(first) == sorted(second) == list(range(1437)) and not np.array_equal(first, second)


def test_fixed_logits_are_those_of_the_image_beside_them(digits):
    images = np.stack([e["image"] for e in digits[0].examples.as_numpy_iterator()])
    for x, _ in views(digits[0], view="whole", fixed_logits=np.arange(1437, dtype=np.float32)[:, None, None]):
        np.testing.assert_allclose(x["student"], augment.to_minus_one_one(images[x["logits"][:, 0, 0].astype(int)]), atol=1e-6)


@pytest.mark.parametrize("view", ["same/ic", "ind/ic"])
def test_places_are_the_epoch_and_the_batch_and_change_nothing_else(digits, view):
    settings = {"view": view, "teacher_sizes": ((8, 8),), "first_epoch": 2, "epochs": 4}
    placed, plain = views(digits[0], **settings, places=True), views(digits[0], **settings)
    assert [x.pop("place").tolist() for x, _ in placed] == [[epoch, batch] for epoch in (2, 3) for batch in range(3)]
    assert_same([(x if "teachers" in x else x["student"], y) for x, y in placed], plain)


@pytest.mark.parametrize("mixup", [False, True])
def test_an_epoch_can_begin_at_any_batch(ramps, mixup):
    settings = {"view": "same/ic", "size": (16, 16), "batch_size": 4, "teacher_sizes": ((8, 8),), "places": True, "mixup": mixup}
    whole = views(ramps, **settings, first_epoch=1, epochs=3)
    assert_same(views(ramps, **settings, first_epoch=1, first_batch=2, epochs=3), whole[2:])


def test_the_images_of_a_batch_are_known_by_their_place_in_the_split(digits):
    images = np.stack([e["image"] for e in digits[0].examples.as_numpy_iterator()])
    batches = views(digits[0], view="whole", seed=3, first_epoch=2, epochs=3)
    for number, (x, _) in enumerate(batches):
        found = data.indices(digits[0], seed=3, epoch=2, batch=number, batch_size=479)
        np.testing.assert_allclose(x, augment.to_minus_one_one(images[found]), atol=1e-6)


@pytest.mark.parametrize("view", FIXED)
@pytest.mark.parametrize("batch_size", [3, 64])
def test_a_fixed_teacher_sees_its_crops_in_the_order_of_the_split(ramps, view, batch_size):
    chosen = augment.view(view)
    seen, per_image = data.fixed(ramps, view=view, size=(16, 12), seed=5, ensemble=4, batch_size=batch_size)
    assert per_image == (4 if chosen.ensemble else 1)
    images = [e["image"] for e in ramps.examples.as_numpy_iterator()]
    expected = [chosen.teacher(image, (16, 12), tf.constant([5 + k, index], tf.int64)) for index, image in enumerate(images) for k in range(per_image)]
    np.testing.assert_allclose(np.concatenate(list(seen.as_numpy_iterator())), augment.to_minus_one_one(np.stack(expected)), atol=1e-5)


# ---- Images without labels -----------------------------------------------------------------------------------------------------------------------


def test_images_of_a_dataset_come_without_its_labels(digits, digits_dir):
    split = data.images_of("digits", digits_dir)
    assert (split.count, split.classes, split.shape, split.labelled, digits[0].labelled) == (1437, 0, (8, 8, 1), False, True)
    for (x, *nothing), (same, _) in zip(views(split, view="same/ic"), views(digits[0], view="same/ic"), strict=True):
        assert nothing == []
        np.testing.assert_array_equal(x, same)


@pytest.mark.parametrize("name", ["digits", "celeb_a", "imagenet2012"])
def test_synthetic_images_of_have_the_shape_and_no_labels(name):
    split = data.images_of(name, synthetic=True, image_size=32)
    assert not split.labelled and split.shape == {"digits": (8, 8, 1), "celeb_a": (218, 178, 3), "imagenet2012": (32, 32, 3)}[name]
    ((x,),) = views(split, view="same/rc", size=(8, 8), batch_size=64)
    assert x.shape == (64, 8, 8, split.shape[2])


@pytest.mark.parametrize("name, telling", [("imdb_reviews", 'transfer_dataset: expected one with a feature "image"'), ("no_such_set", "dataset: expected")])
def test_a_dataset_without_images_is_refused(name, telling):
    with pytest.raises(BadInput, match=f"{telling}.*received '{name}'"):
        data.images_of(name)


@pytest.mark.parametrize("view", FIXED + APART)
def test_views_that_are_not_shared_cannot_be_mixed(digits, view):
    with pytest.raises(BadInput, match=f"mixup: expected a view that teacher and student share, as same/ic, received '{view}'"):
        views(digits[0], view=view, mixup=True)


@pytest.mark.parametrize("view", sorted(set(SHARED) - set(OF_THE_IMAGE)))
def test_what_moves_pixels_of_one_size_has_no_teacher_of_another(digits, view):
    with pytest.raises(BadInput, match=f"view: expected a crop of the original image for a teacher of another size.*received '{view}'"):
        views(digits[0], view=view, teacher_sizes=((8, 8), (6, 6)))


# ---- Parts of a batch for replicas and workers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "replicas"), [(1, 2), (2, 1), (2, 3)])
@pytest.mark.parametrize(
    "settings",
    [{"view": "shift"}, {"view": "same/rc", "mixup": True, "teacher_sizes": [(8, 8)]}, {"view": "ind/ic", "teacher_sizes": [(6, 6), (8, 8)]}],
    ids=lambda settings: settings["view"],
)
def test_parts_of_workers_and_replicas_make_the_batches_of_one_device(digits, workers, replicas, settings):
    split = digits[0]
    settings = {"size": (8, 8), "batch_size": 12, "seed": 3, "epochs": 2, "first_batch": split.count // 12 - 2, **settings}
    whole = [tf.nest.flatten(taken) for taken in data.training(split, **settings).take(3)]
    parts = [data.training(split, **settings, part=(worker, workers, replicas)).take(3 * replicas) for worker in range(workers)]
    parts = [[tf.nest.flatten(taken) for taken in part] for part in parts]
    for step, expected in enumerate(whole):
        dealt = [part[step * replicas + replica] for part in parts for replica in range(replicas)]
        for tensors, tensor in zip(zip(*dealt, strict=True), expected, strict=True):
            np.testing.assert_array_equal(np.concatenate(tensors), tensor)


def test_a_batch_that_can_not_be_dealt_out_is_refused(digits):
    with pytest.raises(BadInput, match="batch_size: expected a multiple of 6, the replicas that share a batch, received 8"):
        data.training(digits[0], view="shift", size=(8, 8), batch_size=8, seed=0, epochs=1, part=(0, 2, 3))


def test_the_first_images_are_drawn_from_all():
    split = data.Split("x", tf.data.Dataset.range(2000).map(lambda i: {"index": i}), 2000, 10, (8, 8, 1))
    assert max(data.indices(split, 0, 0, 0, 100)) > 1500


def test_synthetic_classes_look_alike_in_training_and_test():
    means = []
    for split in data.load("cifar10", synthetic=True):
        means.append(np.mean([np.float32(e["image"]) for e in split.examples.as_numpy_iterator() if e["label"] == 3], axis=0))
    assert np.corrcoef(means[0].ravel(), means[1].ravel())[0, 1] > 0.9


def test_splits_are_those_of_the_papers():
    assert splits.SPLITS["food101"] == ("train[:90%]", "validation") and splits.SPLITS["imagenet2012"] == ("train", "validation")
