"""Laws of keras_cv's augmentations: batches of views stay batches of views, the same stream for the same seed, and what can't be is named."""

import numpy as np
import pytest
import tensorflow as tf

from kerakd import data
from kerakd.augmenters import augmenter
from kerakd.data import __main__ as program
from kerakd.errors import BadInput

SHAPE = (16, 16, 3)
VIEWS = np.random.default_rng(0).uniform(-1, 1, (6, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize(
    "names",
    [
        ("RandAugment,magnitude=0.5",),
        ("AugMix",),
        ("RandomFlip,mode=horizontal", "RandomContrast,factor=(0.1,0.5)", "CutMix"),
        ("MixUp", "RandomCutout,height_factor=0.3,width_factor=0.3"),
        ("GridMask",),
    ],
    ids=str,
)
def test_a_batch_of_views_stays_one(names):
    augment = augmenter(names, SHAPE, 0)
    made = np.concatenate([augment(tf.constant(VIEWS)) for _ in range(3)])
    assert made.shape == (18, *SHAPE) and made.dtype == np.float32 and np.abs(made).max() <= 1
    assert all((made[first : first + 6] != VIEWS).any() for first in (0, 6, 12)) and (made[:6] != made[6:12]).any()


def test_all_networks_see_the_same_pixels_and_labels_stay():
    split, _ = data.load("cifar10", synthetic=True)
    settings = {"view": "same/rc", "size": (16, 16), "batch_size": 8, "seed": 0, "epochs": 1}
    plain = list(data.training(split, **settings))
    for (x, y), (seen, labels) in zip(plain, data.training(split, **settings, augmenter=augmenter(("CutMix",), SHAPE, 0)), strict=True):
        assert seen.shape == x.shape and (seen != x).numpy().any()  # an array, which every network is given
        np.testing.assert_array_equal(y, labels)


def test_the_sheet_shows_them():
    split, _ = data.load("cifar10", synthetic=True)
    cutout = augmenter(("RandomCutout,height_factor=0.5,width_factor=0.5",), SHAPE, 0)
    sheets = [program.sheet(split, "whole", (16, 16), augmenter=one) for one in (None, cutout)]
    stored, *views = [axes.images[0].get_array() for axes in sheets[1].axes[:7]]
    np.testing.assert_array_equal(stored, sheets[0].axes[0].images[0].get_array())
    assert all((view != sheets[0].axes[1].images[0].get_array()).any() for view in views)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("RandomFlip,(1,2)", SHAPE, r"--augment: expected NAME\[,ARGUMENT=VALUE\]"),
        ("Cutmix", SHAPE, "--augment: expected one of AugMix, .*received 'Cutmix'"),
        ("BaseImageAugmentationLayer", SHAPE, "--augment: expected one of AugMix"),
        ("RandAugment,size=3", SHAPE, r"--augment: expected arguments of keras_cv.layers.RandAugment, received .*size"),
        ("RandomCrop,height=8,width=8", SHAPE, r"expected augmentations that keep images of shape \(16, 16, 3\), received RandomCrop"),
        ("RandAugment", (16, 16, 1), r"expected augmentations that keep images of shape \(16, 16, 1\), received RandAugment"),
    ],
)
def test_what_can_not_be_is_named(name, shape, message):
    with pytest.raises(BadInput, match=message):
        augmenter((name,), shape, 0)
