"""Reading and rewriting the TFLite flatbuffer: tensors, census, matching with what was folded, packing of few bits."""

import collections
import dataclasses

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from kerakd.errors import BadInput

TYPES = {value: name for name, value in vars(schema.TensorType).items() if not name.startswith("_")}
OPS = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
PACKED = {"INT4": 4, "INT2": 2}  # types of several codes to a byte, and their bits
NUMPY = {"INT8": np.int8, "UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64, "FLOAT32": np.float32, "INT16": np.int16}


def read(data):
    """The file as a schema ModelT. Raises: BadInput for what is not a whole TFLite file."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise BadInput(f"file: expected the bytes of a TFLite file, received {type(data).__name__}; give pathlib.Path(path).read_bytes()")
    if len(data) < 8 or data[4:8] != b"TFL3":
        raise BadInput(f"file: expected a TFLite flatbuffer, received {len(data)} bytes without its mark TFL3; is it a .tflite file, and whole?")
    try:
        model = schema.ModelT.InitFromPackedBuf(bytes(data), 0)
        for tensor in model.subgraphs[0].tensors:
            values(model, tensor)
        return model
    except Exception as error:  # a cut flatbuffer fails anywhere in the generated reader
        raise BadInput(
            f"file: expected a whole TFLite flatbuffer, received {len(data)} bytes that end too early or are damaged ({type(error).__name__}); copy it again"
        ) from error


class _Builder(flatbuffers.Builder):
    """Writes equal vectors once: the zero points of kernels and biases, 8 bytes a channel, are a tenth of a MobileNetV2 in 4 bits."""

    def __init__(self, size):
        super().__init__(size)
        self.written = {}

    def CreateNumpyVector(self, x):  # the name is flatbuffers'
        key = x.dtype.str, x.tobytes()
        if key not in self.written:
            if x.dtype == np.uint8:
                self.Prep(16, x.size)  # the schema's force_align of a buffer, which the generated writer forgets
            self.written[key] = super().CreateNumpyVector(x)
        return self.written[key]


def write(model):
    """The bytes of a file that `read` took apart."""
    builder = _Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def op_name(model, operator):
    """The name of an operator's kind, as "CONV_2D"."""
    code = model.operatorCodes[operator.opcodeIndex]
    return OPS[max(code.builtinCode, code.deprecatedBuiltinCode)]


def values(model, tensor):
    """A constant tensor as NumPy, 4-bit codes unpacked; None for a tensor that is computed."""
    raw = model.buffers[tensor.buffer].data
    if raw is None or not len(raw):
        return None
    raw = np.asarray(raw, np.uint8)
    if TYPES[tensor.type] in PACKED:
        return unpack_codes(raw, PACKED[TYPES[tensor.type]], int(np.prod(tensor.shape))).reshape(tensor.shape)
    return raw.view(NUMPY[TYPES[tensor.type]]).reshape(tensor.shape) if TYPES[tensor.type] in NUMPY else raw


def as_input(images, tensor):
    """Real images as the file's input takes them: as they are, or by the scale and zero point in the file.

    Raises: BadInput for images of another shape or type, or none.
    """
    if hasattr(images, "element_spec"):
        raise BadInput("images: expected an array [n, ...], received a dataset; give a batch of it: images, labels = next(iter(dataset))")
    shape, kind = tuple(map(int, tensor.shape[1:])), TYPES[tensor.type]
    try:
        images = np.asarray(images)
    except ValueError as error:
        raise BadInput(f"images: expected at least one of shape {shape}, as the file takes them, received rows of several lengths ({error})") from error
    if images.ndim != len(shape) + 1 or images.shape[1:] != shape or not len(images):
        raise BadInput(f"images: expected at least one of shape {shape}, as the file takes them, received an array of shape {images.shape}")
    if images.dtype.kind not in "fiu" or not np.isfinite(images).all():
        raise BadInput(f"images: expected finite numbers, received {images.dtype} with NaN, infinity or no numbers at all; scale them as for the Keras model")
    if kind == "FLOAT32":
        return np.asarray(images, np.float32)
    codes = np.rint(np.asarray(images, np.float32) * (np.float32(1) / np.float32(tensor.quantization.scale[0]))) + tensor.quantization.zeroPoint[0]
    limits = np.iinfo(NUMPY[kind])
    return np.clip(codes, limits.min, limits.max).astype(NUMPY[kind])


def as_real(outputs, tensor):
    """What the file's output holds, as float32 real values."""
    if TYPES[tensor.type] == "FLOAT32":
        return outputs
    return (outputs.astype(np.float32) - np.float32(tensor.quantization.zeroPoint[0])) * np.float32(tensor.quantization.scale[0])


def ends(model):
    """({"type", "scale", "zero_point"} of the input, the same of the output), as NumPy names the type; of floats the type alone."""
    graph = model.subgraphs[0]
    return tuple(_end(graph.tensors[indices[0]]) for indices in (graph.inputs, graph.outputs))


def _end(tensor):
    kind = {"type": TYPES[tensor.type].lower()}
    if kind["type"] == "float32":
        return kind
    return {**kind, "scale": float(tensor.quantization.scale[0]), "zero_point": int(tensor.quantization.zeroPoint[0])}


def unpack_codes(raw, bits, count):
    """int8 codes [count] of 4 or 2 bits from 8 // bits to a byte, the lowest bits first."""
    fields = np.stack([raw >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)], axis=1).reshape(-1)[:count].astype(np.int8)
    return np.where(fields >= 1 << bits - 1, fields - (1 << bits), fields).astype(np.int8)


def pack_codes(codes, bits):
    """The inverse of unpack_codes: uint8 [ceil(count * bits / 8)]."""
    fields = np.append(codes.reshape(-1), np.zeros(-codes.size % (8 // bits), codes.dtype)).astype(np.uint8) & (1 << bits) - 1
    return np.bitwise_or.reduce([fields[k :: 8 // bits] << bits * k for k in range(8 // bits)]).astype(np.uint8)


def weighted(model):
    """(operator, kernel tensor, bias tensor or None) of each convolution and dense operator, in the file's order."""
    tensors = model.subgraphs[0].tensors
    for operator in model.subgraphs[0].operators:
        if op_name(model, operator) in WEIGHTED:
            bias = operator.inputs[2] if len(operator.inputs) > 2 and operator.inputs[2] >= 0 else None
            yield operator, tensors[operator.inputs[1]], None if bias is None else tensors[bias]


@dataclasses.dataclass
class Match:
    """A folded layer and the operator of the file that holds it."""

    name: str
    kernel: object
    codes_equal: float
    steps_equal: bool
    bias_equal: bool

    @property
    def equal(self):
        return self.codes_equal == 1 and self.steps_equal and self.bias_equal


def _in_file_order(linear, op):
    """A Linear's codes as the file lays them out: output channels first; depthwise [1, h, w, C]."""
    codes = linear.codes
    if op == "DEPTHWISE_CONV_2D":
        return codes.reshape(1, *codes.shape[:2], -1)
    return np.moveaxis(codes, -1, 0)


def matches(data, linears):
    """One Match for each Linear of a fold, {name: Linear}: the operator of the same step per channel and most of its codes.

    Steps are all but unique, so a layer finds its own operator; one that finds none has codes_equal 0.
    """
    model = read(data)
    free = list(weighted(model))
    found = []
    for linear in linears.values():
        scored = [(_compare(model, linear, *candidate), candidate) for candidate in free]
        scored = [(match, candidate) for match, candidate in scored if match is not None]
        if not scored:
            found.append(Match(linear.name, None, 0.0, False, False))
            continue
        best, candidate = max(scored, key=lambda pair: (pair[0].equal, pair[0].steps_equal, pair[0].codes_equal))
        free.remove(candidate)
        found.append(best)
    return found


def foreign_kernels(data, found):
    """Names of the integer matrices and kernels of a file that no Match holds: of layers that the scheme leaves float, rounded by the converter."""
    model, ours = read(data), {match.kernel.name for match in found if match.kernel is not None}
    kernels = [tensor for tensor in model.subgraphs[0].tensors if TYPES[tensor.type] in ("INT8", *PACKED) and np.size(tensor.shape) > 1]
    return [tensor.name.decode() for tensor in kernels if tensor.name not in ours and values(model, tensor) is not None]


def _compare(model, linear, operator, kernel, bias):
    expected = _in_file_order(linear, op_name(model, operator))
    codes = values(model, kernel)
    if codes is None or codes.size != expected.size or kernel.quantization is None or kernel.quantization.scale is None:
        return None
    scales = np.asarray(kernel.quantization.scale, np.float32)
    steps = linear.steps.astype(np.float32)
    units = np.zeros(len(steps), np.int64) if bias is None else values(model, bias)
    return Match(
        linear.name,
        kernel,
        float(np.mean(codes.reshape(-1) == expected.reshape(-1))),
        bool(np.array_equal(scales, steps) or (len(scales) == 1 and (steps == scales[0]).all())),
        bool(np.array_equal(units, linear.bias)),
    )


def with_outputs(data, indices):
    """The file with the tensors of these indices as its outputs: runtimes then compute and keep them, by the same kernels."""
    model = read(data)
    model.subgraphs[0].outputs = list(indices)
    model.signatureDefs = None  # they name the outputs that were
    return write(model)


def pack(data, linears):
    """The file with the codes of `linears` stored in their `bits`: same codes, same steps."""
    model = read(data)
    bits = {match.kernel.name: linears[match.name].bits for match in matches(data, linears)}
    for operator, kernel, _ in list(weighted(model)):
        if kernel.name in bits:
            count = bits[kernel.name]
            _store(model, kernel, pack_codes(values(model, kernel), count), {4: schema.TensorType.INT4, 2: schema.TensorType.INT2}[count])
            _make_dense(model, operator)
    _raise_versions(model)
    _drop_unread_buffers(model)
    return write(model)


def _make_dense(model, operator):
    """A 1x1 convolution becomes the FULLY_CONNECTED of each pixel that it is, one step for all units one for each: XNNPACK takes those alone in few bits."""
    x, kernel = (model.subgraphs[0].tensors[index] for index in operator.inputs[:2])
    if op_name(model, operator) == "FULLY_CONNECTED":
        kernel.quantization.scale = np.broadcast_to(kernel.quantization.scale, kernel.shape[:1])
        kernel.quantization.zeroPoint = np.zeros(kernel.shape[0], np.int64)
        return
    convolution = operator.builtinOptions
    pointwise = kernel.shape[1] == kernel.shape[2] == convolution.strideH == convolution.strideW == 1 and kernel.shape[3] == x.shape[3]
    if op_name(model, operator) != "CONV_2D" or not pointwise:
        return
    kernel.shape, kernel.shapeSignature = [kernel.shape[0], kernel.shape[3]], None
    dense = schema.FullyConnectedOptionsT()
    dense.fusedActivationFunction, dense.keepNumDims = convolution.fusedActivationFunction, True
    operator.builtinOptions, operator.builtinOptionsType = dense, schema.BuiltinOptions.FullyConnectedOptions
    operator.opcodeIndex = _opcode(model, "FULLY_CONNECTED")


def _opcode(model, name):
    """Index of the operator's code in the file, which gets one if it had none."""
    kind = getattr(schema.BuiltinOperator, name)
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == kind:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = kind
    code.version = INT4_VERSIONS[name]
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def unpack(data):
    """The fast container from the small one: codes of 4 and 2 bits stored in 8, everything else as it is.

    Args: data: bytes of a TFLite file; one without such tensors comes back with the same content.
    Returns: bytes.
    Raises: BadInput for what is not a TFLite file.
    """
    model = read(data)
    for tensor in model.subgraphs[0].tensors:
        if TYPES[tensor.type] in PACKED:
            _store(model, tensor, values(model, tensor).reshape(-1).view(np.uint8), schema.TensorType.INT8)
    _drop_unread_buffers(model)
    return write(model)


def _store(model, tensor, raw, kind):
    buffer = schema.BufferT()
    buffer.data = raw
    model.buffers.append(buffer)
    tensor.buffer, tensor.type = len(model.buffers) - 1, kind


def _drop_unread_buffers(model):
    read_by = {tensor.buffer for subgraph in model.subgraphs for tensor in subgraph.tensors} | {entry.buffer for entry in model.metadata or []}
    for index, buffer in enumerate(model.buffers):
        if index not in read_by:
            buffer.data = None


# The version of an operator from which it takes weights of 4 bits, or 2 (tensorflow/lite/tools/versioning/op_version.cc)
INT4_VERSIONS = {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 10}


def _raise_versions(model):
    for operator, kernel, _ in weighted(model):
        if TYPES[kernel.type] in PACKED:
            code = model.operatorCodes[operator.opcodeIndex]
            code.version = max(code.version, INT4_VERSIONS[op_name(model, operator)])


def census(data):
    """What the file is made of: {"operators": {name: count}, "weights": {type: count}, "float_tensors": [names], "kernels": [...]}.

    `float_tensors` are those besides the model's inputs and outputs. Each kernel is {"name", "op", "type", "codes"}, codes the
    sorted distinct ones.
    """
    model = read(data)
    sub = model.subgraphs[0]
    ends = {*sub.inputs, *sub.outputs}
    kernels = [
        {"name": kernel.name.decode(), "op": op_name(model, op), "type": TYPES[kernel.type], "codes": np.unique(values(model, kernel)).tolist()}
        for op, kernel, _ in weighted(model)
        if values(model, kernel) is not None
    ]
    floats = [t.name.decode() for i, t in enumerate(sub.tensors) if TYPES[t.type] == "FLOAT32" and i not in ends]
    return {
        "operators": dict(collections.Counter(op_name(model, op) for op in sub.operators)),
        "weights": dict(collections.Counter(kernel["type"] for kernel in kernels)),
        "float_tensors": floats,
        "kernels": kernels,
    }
