"""Running a TFLite file with LiteRT: outputs, milliseconds, and which operators XNNPACK took."""

import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from kerakd.chatter import native_chatter_off
from kerakd.errors import BadInput
from kerakd.tflite import flatfile


def interpreter(data, threads=1, xnnpack=True):
    """A LiteRT interpreter of the file with its tensors allocated. Raises: BadInput for what is not a whole TFLite file."""
    flatfile.read(data)
    resolver = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with native_chatter_off():
        made = Interpreter(model_content=bytes(data), num_threads=threads, experimental_op_resolver_type=resolver)
        made.allocate_tensors()
    return made


def _quantized(images, detail):
    """Images as the file's input takes them: as they are, or by the scale and zero point in the file."""
    if detail["dtype"] == np.float32:
        return np.asarray(images, np.float32)
    scale, zero = detail["quantization"]
    limits = np.iinfo(detail["dtype"])
    codes = np.rint(np.asarray(images, np.float32) * (np.float32(1) / np.float32(scale))) + zero
    return np.clip(codes, limits.min, limits.max).astype(detail["dtype"])


def run(data, images, threads=1, xnnpack=True):
    """The file's logits, real values, on each image.

    Args:
        data: bytes of a file with one input [1, ...] and one output [1, classes].
        images: [n, ...] float, as the Keras model takes them.
    Returns: float32 [n, classes].
    Raises: BadInput for a file that is not TFLite, for images of another shape.
    """
    made = interpreter(data, threads, xnnpack)
    (source,), (target,) = made.get_input_details(), made.get_output_details()
    shape = tuple(map(int, source["shape"][1:]))
    if tuple(images.shape[1:]) != shape:
        raise BadInput(f"images: expected {shape} each, as the file takes them, received {tuple(images.shape[1:])}")
    outputs = []
    for image in _quantized(images, source):
        made.set_tensor(source["index"], image[None])
        made.invoke()
        outputs.append(made.get_tensor(target["index"])[0])
    outputs = np.stack(outputs)
    if target["dtype"] != np.float32:
        scale, zero = target["quantization"]
        outputs = (outputs.astype(np.float32) - zero) * np.float32(scale)
    return outputs


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
