"""scikit-learn's handwritten digits as a TFDS dataset: 1,797 real images of 8x8, inside a wheel, nothing to download."""

import numpy as np
import tensorflow_datasets as tfds

TEST = 360  # the last 360 examples, as they stand in the wheel


class Digits(tfds.core.GeneratorBasedBuilder):
    """Optical recognition of handwritten digits (Alpaydin and Kaynak 1998), the 1,797 images that scikit-learn ships.

    Split as they stand: 1,437 to train, the last 360 to test. Pixels 0..16 are stored as 0..255.
    """

    name = "digits"
    pkg_dir_path = None
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(8, 8, 1)), "label": tfds.features.ClassLabel(num_classes=10)}),
            supervised_keys=("image", "label"),
            homepage="https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html",
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits  # a second's import, needed once

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        return {"train": self._generate_examples(images[:-TEST], digits.target[:-TEST]), "test": self._generate_examples(images[-TEST:], digits.target[-TEST:])}

    def _generate_examples(self, images, labels):
        for key, (image, label) in enumerate(zip(images, labels)):
            yield key, {"image": image, "label": int(label)}
