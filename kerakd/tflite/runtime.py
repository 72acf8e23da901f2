"""Running a TFLite file with LiteRT: outputs, milliseconds, and which operators XNNPACK took."""

import re
import time
from importlib import metadata

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from kerakd.chatter import native_chatter_off
from kerakd.errors import BadInput
from kerakd.tflite import flatfile

# The oldest LiteRT that gave the logits of a file with such kernels: 1.2.0 gave others for INT4, 2.1.0 for INT2 (BUILD.md)
OLDEST = {"INT8": "1.2.0", "INT4": "1.3.0", "INT2": "2.1.5"}


def oldest(data):
    """The oldest ai-edge-litert that computes the file right, as "major.minor.patch"."""
    kinds = {flatfile.TYPES[kernel.type] for _, kernel, _ in flatfile.weighted(flatfile.read(data))} & set(OLDEST)
    return max((OLDEST[kind] for kind in kinds), key=_numbers, default=OLDEST["INT8"])


def _numbers(version):
    return tuple(int(re.match(r"\d*", part).group() or 0) for part in version.split(".")[:3])


def interpreter(data, threads=1, xnnpack=True):
    """A LiteRT interpreter of the file with its tensors allocated.

    Raises: BadInput for what is not a whole TFLite file, for a LiteRT that is too old for it.
    """
    installed, needed = metadata.version("ai-edge-litert"), oldest(data)
    if _numbers(installed) < _numbers(needed):
        raise BadInput(f"file: expected ai-edge-litert {needed} or newer for its kernels, received {installed}; upgrade it, or take kerakd.unpack of the file")
    resolver = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with native_chatter_off():
        made = Interpreter(model_content=bytes(data), num_threads=threads, experimental_op_resolver_type=resolver)
        made.allocate_tensors()
    return made


def run(data, images, threads=1, xnnpack=True):
    """The file's logits, real values, on each image.

    Args:
        data: bytes of a file with one input [1, ...] and one output [1, classes].
        images: [n, ...] float, as the Keras model takes them.
    Returns: float32 [n, classes].
    Raises: BadInput for a file that is not TFLite, for images of another shape.
    """
    return next(batches(data, [images], threads, xnnpack))


def batches(data, several, threads=1, xnnpack=True):
    """Yields what `run` gives of each of several arrays of images, by one interpreter, as each would prepare the file's kernels anew."""
    graph, made = flatfile.read(data).subgraphs[0], interpreter(data, threads, xnnpack)
    for images in several:
        outputs = np.stack([values for (values,) in _each(made, graph, images)])
        yield flatfile.as_real(outputs, graph.tensors[graph.outputs[0]])


def each(data, images, threads=1, xnnpack=True):
    """Yields, image by image, what the file's outputs hold: a list of arrays without the batch dimension, where it is one of 1. Raises: as `run`."""
    graph = flatfile.read(data).subgraphs[0]
    yield from _each(interpreter(data, threads, xnnpack), graph, images)


def _each(made, graph, images):
    for image in flatfile.as_input(images, graph.tensors[graph.inputs[0]]):
        made.set_tensor(graph.inputs[0], image[None])
        made.invoke()
        yield [values[0] if len(values) == 1 else values for values in map(made.get_tensor, graph.outputs)]


def milliseconds(data, threads=1, xnnpack=True, runs=50):
    """Median milliseconds of one image, after warm-up."""
    made = interpreter(data, threads, xnnpack)
    detail = made.get_input_details()[0]
    made.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
    times = []
    for _ in range(runs + 5):
        start = time.perf_counter()
        made.invoke()
        times.append(time.perf_counter() - start)
    return float(np.median(times[5:]) * 1e3)


def not_delegated(data):
    """The operators of the file that XNNPACK did not take, as [name], in the order of the walk from the outputs back."""
    made = interpreter(data)
    nodes = made._get_ops_details()
    by_output = {}
    for node in nodes:  # a delegate's node comes after those that it replaced
        by_output.update({int(tensor): node for tensor in node["outputs"]})
    left, seen = [], set()
    queue = [int(detail["index"]) for detail in made.get_output_details()]
    while queue:
        node = by_output.get(queue.pop())
        if node is None or node["index"] in seen:
            continue
        seen.add(node["index"])
        if node["op_name"] != "DELEGATE":
            left.append(node["op_name"])
        queue += [int(tensor) for tensor in node["inputs"] if tensor >= 0]
    return left
