"""The teachers of a run: which networks, how each takes its images, and what those say that always see the same."""

import dataclasses
import math
import sys

import numpy as np
import tensorflow as tf
import tf_keras as keras
import tqdm

from kerakd.errors import BadInput

# From the views' -1..1 to what a network was trained on: (scale, offset) of x -> scale * x + offset
VALUES = {
    "-1..1": None,
    "0..1": (0.5, 0.5),
    "0..255": (127.5, 127.5),
    "imagenet": ([0.5 / s for s in (0.229, 0.224, 0.225)], [(0.5 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]),
}


def is_file(name):
    """Whether a network is that of a model file rather than one by name."""
    return name.endswith((".keras", ".h5"))


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher as a flag names it: NETWORK[,size=PIXELS][,weight=NUMBER][,values=RANGE].

    network: a name or a file. size: height and width of its views, 0 for the student's. weight: of its soft loss, or of its
    logits in a mean. values: a key of VALUES, what it takes its images in.
    """

    network: str
    size: int = 0
    weight: float = 1.0
    values: str = "-1..1"

    @classmethod
    def parse(cls, text):
        """Raises: BadInput for another form, numbers that are none or not positive, unknown values."""
        network, *parts = text.split(",")
        given = {}
        for part in parts:
            name, _, value = part.partition("=")
            kind = {"size": int, "weight": float, "values": str}.get(name)
            try:
                given[name] = kind(value)
            except (TypeError, ValueError):
                raise BadInput(f"--teacher: expected NETWORK[,size=PIXELS][,weight=NUMBER][,values=RANGE], received {text!r}") from None
        made = cls(network, **given)
        if made.values not in VALUES:
            raise BadInput(f"--teacher: expected values among {', '.join(VALUES)}, received {made.values!r}")
        if made.size < 0 or not 0 < made.weight < math.inf:
            raise BadInput(f"--teacher: expected a size of 0 or more and a weight above 0, received {text!r}")
        return made

    def prepared(self, model):
        """`model` on views in -1..1. Raises: BadInput for values of three channels where the images have others."""
        if VALUES[self.values] is None:
            return model
        scale, offset = VALUES[self.values]
        if isinstance(scale, list) and model.input_shape[-1] != len(scale):
            raise BadInput(f"--teacher: expected images of {len(scale)} channels for values={self.values}, received {model.input_shape[-1]}; take 0..1 or so")
        images = keras.Input(model.input_shape[1:])
        return keras.Model(images, model(keras.layers.Rescaling(scale, offset)(images)), name=f"{model.name}_on_views")


def fixed_logits(teachers, views, per_image, count, begun=(0, None), keep=lambda done, said: None):
    """What teachers say of views that never change.

    Args:
        teachers: models of logits [n, C].
        views: a dataset of images [n, ...], those of one example one after the other.
        per_image: how many views an example has; its prediction is the mean of theirs (FunMatch's fix/ic_ens).
        count: of the examples.
        begun: (views that were asked about before, the sums of what was said of them), as `keep` had them. `views` are the others.
        keep: called after each batch of views but the last with (views that are done, the sums of what was said), to keep them or to stop.
    Returns: float32 [count, teachers, C]; log of the mean probability where there are several views, whose softmax at T = 1 it is.
    """

    @tf.function(reduce_retracing=True)
    def say(images):
        logits = tf.stack([tf.cast(teacher(images, training=False), tf.float32) for teacher in teachers], axis=1)
        return logits if per_image == 1 else tf.nn.softmax(logits)

    done, said = begun
    said = np.zeros((count, len(teachers), teachers[0].output_shape[-1])) if said is None else said
    total, told = count * per_image, {"desc": "fixed teacher", "unit": " views", "mininterval": 5}
    with tqdm.tqdm(total=total, initial=done, disable=not sys.stderr.isatty(), **told) as bar:
        for images in views:
            np.add.at(said, np.arange(done, done + len(images)) // per_image, say(images).numpy())
            before, done = done, done + len(images)
            bar.update(len(images))
            if bar.disable and 10 * done // total > 10 * before // total:  # a line for each tenth, where nobody sees a bar
                print(f"fixed teacher: {done} of {total} views", file=sys.stderr, flush=True)
            if done < total:
                keep(done, said)
    return (said if per_image == 1 else np.log(np.maximum(said / per_image, 1e-30))).astype(np.float32)
