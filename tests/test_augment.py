"""Views are pure functions of their seed, of the asked size, and keep what they show."""

import numpy as np
import pytest
import tensorflow as tf

from kerakd import augment
from kerakd.errors import BadInput

IMAGE = tf.constant(np.random.default_rng(0).integers(0, 256, (12, 10, 3)), tf.uint8)


def seed(epoch, example):
    return tf.constant([epoch, example], tf.int64)


@pytest.mark.parametrize("name", augment.BY_NAME)
def test_same_seed_same_view_whatever_ran_before(name):
    view = augment.view(name)
    first = view(IMAGE, (8, 8), seed(3, 5))
    tf.random.uniform([7])
    np.testing.assert_array_equal(first, view(IMAGE, (8, 8), seed(3, 5)))


@pytest.mark.parametrize("name", [name for name in augment.BY_NAME if name != "whole"])
def test_another_epoch_or_example_is_another_view(name):
    view = augment.view(name)
    views = {view(IMAGE, (12, 10), seed(epoch, example)).numpy().tobytes() for epoch in range(4) for example in range(4)}
    assert len(views) >= 8  # 16 draws of 9 places


@pytest.mark.parametrize("name", augment.BY_NAME)
def test_the_view_has_the_asked_size(name):
    assert augment.view(name)(IMAGE, (7, 9), seed(0, 0)).shape == (7, 9, 3)


def test_whole_at_its_own_size_is_the_image():
    np.testing.assert_array_equal(augment.whole(IMAGE, (12, 10), None), IMAGE)


def test_shift_moves_by_at_most_an_eighth_and_fills_with_zeros():
    image = tf.fill([16, 16, 1], 9)
    for example in range(20):
        view = augment.shift(image, (16, 16), seed(0, example)).numpy()
        assert set(np.unique(view)) <= {0, 9}
        assert (view == 9).sum() >= 14 * 14


def test_half_of_the_flipped_views_are_mirrored():
    pixels = tf.reshape(tf.range(64), [8, 8, 1])
    rising = [bool(np.all(np.diff(augment.shift_flip(pixels, (8, 8), seed(1, example)).numpy()[4, 2:6, 0]) > 0)) for example in range(200)]
    assert 70 < sum(rising) < 130


def test_inception_crops_cover_five_to_all_percent():
    ramp = tf.broadcast_to(tf.range(100.0)[:, None, None], [100, 100, 1])
    extents = [float(np.ptp(augment.inception(ramp, (50, 50), seed(0, example)).numpy())) for example in range(100)]
    assert min(extents) < 40 and max(extents) > 85


def test_unit_range_takes_bytes_to_minus_one_to_one():
    np.testing.assert_allclose(augment.to_unit_range(tf.constant([0, 255], tf.uint8)), [-1, 1])


def test_unknown_view_names_the_choices():
    with pytest.raises(BadInput, match="view: expected one of whole, shift.*received 'nope'"):
        augment.view("nope")
