"""Whether two models have the same outputs."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kerakd.errors import BadInput
from kerakd.keras3.words import reason

UNKNOWN_SIZE = 64  # in the final check, of an axis whose size the model leaves open


def check_outputs(graph, copy, tensors, keras3):
    """Raises BadInput unless both models have the same outputs on a random batch, or if Keras 3 can't run its own on one."""
    try:
        batch = {id(ref): _random(ref) for ref in graph.inputs}
        inputs = tf.nest.map_structure(lambda ref: batch[id(ref)], graph._inputs_struct)
        expected = graph(inputs, training=False)
    except Exception as error:  # Keras 3 raises whatever its layers do
        raise BadInput(f"model: expected one that Keras 3 can run here, received {graph.name!r} ({reason(error)}); change that layer") from error
    if _same(expected, copy(inputs, training=False), keras3):
        return
    probes = keras3.Model(graph.inputs, [ref for _, ref, _ in tensors]), keras.Model(copy.inputs, [value for _, _, value in tensors])
    flat = list(batch.values())
    pairs = zip(*(tf.nest.flatten(probe(flat, training=False)) for probe in probes))
    first = next((name for (name, _, _), (expected, got) in zip(tensors, pairs) if not _same(expected, got, keras3)), graph.name)
    raise BadInput(
        f"model: expected the same outputs from Keras 3 and from tf_keras, received others from {first!r} on; change that layer, or write the model in tf_keras"
    )


def _random(ref):
    """Values for an input: three samples of small, middling and large numbers, unless the model fixes the batch."""
    shape = [size or (UNKNOWN_SIZE if axis else 3) for axis, size in enumerate(ref.shape)]
    rng = np.random.default_rng(0)
    if not tf.as_dtype(ref.dtype).is_floating:
        return tf.cast(rng.integers(0, 2 if ref.dtype == "bool" else 100, shape), ref.dtype).numpy()
    sizes = np.resize([1.0, 10.0, 100.0], [shape[0], *[1] * (len(shape) - 1)])
    return tf.cast(sizes * rng.normal(size=shape), ref.dtype).numpy()


def _same(expected, got, keras3):
    """Whether two structures of outputs are close, an array's every sample on the scale of its largest number."""
    for one, other in zip(tf.nest.flatten(expected), tf.nest.flatten(got), strict=True):
        one, other = keras3.ops.convert_to_numpy(one), other.numpy()
        if one.shape != other.shape:
            return False
        largest = np.max(np.abs(np.where(np.isfinite(one), one, 0)), axis=tuple(range(1, one.ndim)), keepdims=True)
        if not np.allclose(one, other, rtol=1e-4, atol=1e-5 * np.maximum(largest, 1), equal_nan=True):
            return False
    return True
