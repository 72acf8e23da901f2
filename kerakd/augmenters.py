"""keras_cv's augmentations by name: RandAugment, AugMix, CutMix and friends, on whole batches of views.

Their randomness is a stream and no function of (seed, epoch, example): a run that was resumed draws other views than one that was not,
and what a teacher said of a view is not worth keeping.
"""

import ast
import inspect

import tensorflow as tf

from kerakd.errors import BadInput

MIXING = ("CutMix", "MixUp", "FourierMix", "Mosaic")  # images of several labels
BYTES = (0, 255)


def parse(text):
    """(name, {argument: value}) of "NAME[,argument=value]"; a value is a Python literal or a bare word. Raises: BadInput for another form."""
    name, _, given = text.partition(",")
    try:
        call = ast.parse(f"f({given})", mode="eval").body
        arguments = {one.arg: one.value.id if isinstance(one.value, ast.Name) else ast.literal_eval(one.value) for one in call.keywords}
    except (ValueError, SyntaxError, AttributeError):
        call = None
    if call is None or call.args or None in arguments:
        raise BadInput(f"--augment: expected NAME[,ARGUMENT=VALUE], as RandAugment,magnitude=0.3 or RandomFlip,mode=horizontal, received {text!r}")
    return name, arguments


def mixes(text):
    """Whether an augmentation makes images of several labels."""
    return parse(text)[0] in MIXING


def augmenter(texts, shape, seed):
    """A function of a batch of views, float32 [n, h, w, c] in -1..1, that gives the same batch after keras_cv's layers, one after the other.

    Args:
        texts: as `parse` takes them; the values that layers expect (0..255) and the seed are theirs without being said.
        shape: (h, w, c) of a view.
        seed: of the streams.
    Raises: BadInput for a name that is no image augmentation of keras_cv, arguments that it does not take, one that changes the
        images' shape or does not take images of this shape.
    """
    import keras_cv  # costs two seconds; only runs that name a layer pay it

    kinds = keras_cv.layers.BaseImageAugmentationLayer, keras_cv.layers.VectorizedBaseImageAugmentationLayer
    there = {name: one for name, one in vars(keras_cv.layers).items() if inspect.isclass(one) and issubclass(one, kinds) and one not in kinds}
    layers = []
    for number, text in enumerate(texts):
        name, arguments = parse(text)
        if name not in there:
            raise BadInput(f"--augment: expected one of {', '.join(sorted(there))}, received {name!r}")
        takes = inspect.signature(there[name].__init__).parameters
        given = {key: value for key, value in (("value_range", BYTES), ("seed", seed + number)) if key in takes or (key == "seed" and "kwargs" in takes)}
        try:
            layers.append(there[name](**{**given, **arguments}))
        except (TypeError, ValueError) as error:
            raise BadInput(f"--augment: expected arguments of keras_cv.layers.{name}, received {text!r} ({_reason(error)})") from error

    @tf.function(input_signature=[tf.TensorSpec([None, *shape])])  # its layers are converted by AutoGraph, whoever calls it
    def augment(views):
        images = (views + 1) * 127.5
        for layer in layers:
            images = layer({"images": images, "labels": tf.ones([tf.shape(images)[0], 1])}, training=True)["images"]
        return tf.ensure_shape(tf.clip_by_value(tf.cast(images, tf.float32) / 127.5 - 1, -1.0, 1.0), views.shape)

    try:
        augment.get_concrete_function()
    except Exception as error:  # keras_cv raises whatever its layers raise
        raise BadInput(f"--augment: expected augmentations that keep images of shape {tuple(shape)}, received {', '.join(texts)} ({_reason(error)})") from error
    return augment


def _reason(error):
    """What an error says, without TensorFlow's account of where."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("File", "•", "Call arguments", "in user code", "Exception encountered"))]
    return (said[-1] if said else type(error).__name__)[:200]
