"""Views are pure functions of their seed, of the asked size, and keep what they show; sizes share a box; mixup shares a coefficient."""

import numpy as np
import pytest
import tensorflow as tf

from kerakd import augment
from kerakd.errors import BadInput

IMAGE = tf.constant(np.random.default_rng(0).integers(0, 256, (12, 10, 3)), tf.uint8)
RAMP = tf.constant(np.stack(np.mgrid[0:100, 0:80], -1), tf.uint8)  # each pixel says where it is
CROPS = {crop.__name__: crop for view in augment.BY_NAME.values() for crop in (view.student, view.teacher) if crop}
STILL = {"whole": 1, "central_crop": 1, "whole_flip": 2}  # how many views these have; the others have many
every = pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS)
every_of_the_image = pytest.mark.parametrize("crop", augment.CROPS_OF_THE_IMAGE, ids=lambda crop: crop.__name__)


def seed(epoch, example):
    return tf.constant([epoch, example], tf.int64)


def slope(view, axis):
    """The steepest step from pixel to pixel in y or x: an upscaled edge is flat."""
    steps = np.diff(np.float64(view)[..., axis], axis=axis).ravel()
    return steps[np.abs(steps).argmax()]


def box(view):
    """(centre, extent) in y and x of the box of RAMP that a view shows, from its mean and its slopes; a mirrored one has a negative extent in x."""
    return np.mean(view, (0, 1), dtype=np.float64), np.multiply([slope(view, 0), slope(view, 1)], view.shape[:2])


@every
def test_same_seed_same_view_whatever_ran_before(crop):
    first = crop(IMAGE, (8, 8), seed(3, 5))
    tf.random.uniform([7])
    np.testing.assert_array_equal(first, crop(IMAGE, (8, 8), seed(3, 5)))


@every
def test_another_epoch_or_example_is_another_view(crop):
    for place in (lambda k: seed(k, 0), lambda k: seed(0, k)):
        views = {crop(IMAGE, (12, 10), place(k)).numpy().tobytes() for k in range(16)}
        assert len(views) == STILL[crop.__name__] if crop.__name__ in STILL else len(views) >= 5  # shift has 9 places


@every
def test_the_view_has_the_asked_size(crop):
    assert crop(IMAGE, (7, 9), seed(0, 0)).shape == (7, 9, 3)


@every_of_the_image
def test_two_sizes_see_the_same_box(crop):
    for example in range(10):
        (centre, extent), *others = (box(crop(RAMP, size, seed(1, example))) for size in ((50, 40), (128, 160), (30, 30)))
        for other in others:
            np.testing.assert_allclose(other[0], centre, atol=0.02)
            np.testing.assert_allclose(other[1], extent, rtol=0.01)


@pytest.mark.parametrize("crop, share", [(augment.whole, 1.0), (augment.whole_flip, 1.0), (augment.random_crop, 0.8), (augment.central_crop, 0.8)])
def test_crops_cover_their_share_of_each_side(crop, share):
    for example in range(10):
        _, extent = box(crop(RAMP, (50, 40), seed(0, example)))
        np.testing.assert_allclose(np.abs(extent), [share * 100, share * 80], rtol=1e-3)


def test_a_random_crop_lies_anywhere_and_a_central_one_in_the_centre():
    centres = np.array([box(augment.random_crop(RAMP, (50, 40), seed(0, example)))[0] for example in range(200)])
    np.testing.assert_allclose(centres.min(0), [39.5, 31.5], atol=0.6)  # at the upper left: half of the extent
    np.testing.assert_allclose(centres.max(0), [59.5, 47.5], atol=0.6)
    np.testing.assert_allclose(box(augment.central_crop(RAMP, (50, 40), None))[0], [49.5, 39.5], atol=1e-3)


@pytest.mark.parametrize("crop", [augment.shift_flip, augment.whole_flip, augment.random_crop, augment.inception], ids=lambda crop: crop.__name__)
def test_half_of_the_flipped_views_are_mirrored(crop):
    rising = [slope(crop(RAMP, (20, 16), seed(1, example))[4:12, 4:12], 1) > 0 for example in range(200)]
    assert 70 < sum(rising) < 130


@pytest.mark.parametrize("crop", [augment.whole, augment.shift, augment.central_crop], ids=lambda crop: crop.__name__)
def test_others_are_never_mirrored(crop):
    assert all(slope(crop(RAMP, (20, 16), seed(1, example))[4:12, 4:12], 1) > 0 for example in range(20))


def test_whole_at_its_own_size_is_the_image():
    np.testing.assert_array_equal(augment.whole(IMAGE, (12, 10), None), IMAGE)


def test_shift_moves_by_at_most_an_eighth_and_fills_with_zeros():
    image = tf.fill([16, 16, 1], 9)
    for example in range(20):
        view = augment.shift(image, (16, 16), seed(0, example)).numpy()
        assert set(np.unique(view)) <= {0, 9}
        assert (view == 9).sum() >= 14 * 14


def test_inception_crops_cover_five_to_all_percent_in_aspects_of_3_to_4():
    extents = np.abs([box(augment.inception(RAMP, (50, 40), seed(0, example)))[1] for example in range(200)])
    areas, aspects = extents.prod(1) / 8000, extents[:, 1] / extents[:, 0]
    assert 0.04 < areas.min() < 0.1 and 0.8 < areas.max() < 1.01
    assert 0.7 < aspects.min() < 0.8 and 1.25 < aspects.max() < 1.4


def test_unit_range_takes_bytes_to_minus_one_to_one():
    np.testing.assert_allclose(augment.to_minus_one_one(tf.constant([0, 255], tf.uint8)), [-1, 1])


def test_the_names_say_what_the_teacher_sees():
    for name, view in augment.BY_NAME.items():
        kind = name.partition("/")[0] if "/" in name else "same"
        assert (view.teacher is None) == (kind == "same") and view.fixed == (kind == "fix") and view.ensemble == name.endswith("_ens")
        assert kind != "ind" or view.teacher is view.student
        assert view.teacher is None or view.teacher in augment.CROPS_OF_THE_IMAGE
    for suffix, crop in {"rc": augment.random_crop, "ic": augment.inception}.items():
        assert augment.view(f"same/{suffix}").student is augment.view(f"ind/{suffix}").student is crop


def test_unknown_view_names_the_choices():
    with pytest.raises(BadInput, match="view: expected one of whole, shift.*received 'nope'"):
        augment.view("nope")


# ---- mixup ---------------------------------------------------------------------------------------------------------------------------------------


def mix(n, key=0):
    """The matrix W of mixup(x) = W x: row i is what image i of the mixed batch is made of."""
    return augment.mixup(tf.reshape(tf.eye(n), [n, 1, 1, n]), seed(0, key)).numpy().reshape(n, n)


@pytest.mark.parametrize("n", [2, 5])
def test_mixup_has_one_share_a_batch_and_the_neighbour_as_partner(n):
    for key in range(5):
        share = mix(n, key)[0, 0]
        np.testing.assert_allclose(mix(n, key), share * np.eye(n) + (1 - share) * np.roll(np.eye(n), 1, axis=0), atol=1e-6)


def test_a_batch_of_one_is_mixed_with_itself():
    np.testing.assert_allclose(mix(1), [[1]])


def test_the_shares_are_uniform_in_a_half_to_one_and_of_the_seed():
    shares = np.array([mix(2, key)[0, 0] for key in range(200)])
    assert shares.min() >= 0.5 and shares.max() <= 1
    np.testing.assert_allclose(np.quantile(shares, [0.02, 0.5, 0.98]), [0.51, 0.75, 0.99], atol=0.05)
    tf.random.uniform([7])
    np.testing.assert_array_equal(shares[:20], [mix(2, key)[0, 0] for key in range(20)])
