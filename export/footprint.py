"""Memory at inference, weights beside activations, at batch 1 and 8 and at each width: Apprentice's figure 1 for any network.

python -m export.footprint --model=resnet18 --model=resnet50 --model=net.keras --out=footprint.png

Everything is counted in the graph that `kerakd.quantize` starts from; the networks are not run and not trained (but a file of
Keras 3 is run once while it is read). An MB is 1,000,000 bytes.

Weights at W32 are float32. Below that each kernel has the bits that kerakd's default scheme gives it: 8 in the first and
the last weighted layer, the width in all others; W2 is ternary, 2 bits a weight. Kernels are packed, each rounded up to a byte.
A weighted layer has a bias, 4 bytes for each output channel, with its BatchNorm folded in; where its kernel is lowered,
a scale of 4 bytes for each output channel too. A BatchNorm that nothing folds has a scale and a bias of 4 bytes for each channel.
Weights of layers that the scheme leaves in float (GroupNorm, a transposed convolution) have 4 bytes at every width.

Activations are the tensors that exist at inference: images, and what an operation writes with the BatchNorm and the
ReLU behind it; reshapes and dropout write nothing. A tensor has the bits that the scheme gives it: the width, but 8 at any
lower width for the images, the last layer's input, the logits and whatever can be negative, so half the width is not half
the bytes. Each is rounded up to a byte in each image. At W8A8 they are the tensors of kerakd's int8 file, but for its reshapes,
its float copies of images and logits, and what a file moves to another grid by a multiplication by 1 (`NAME_narrow`, `NAME_apart`). There are two readings:

peak  the most bytes that must be alive at once if the operations run one by one in the graph's order, each tensor from the
      operation that writes it to the last one that reads it, none written over another. A runtime's arena needs that at least;
      with alignment, gaps and scratch more, in another order or with in-place operations perhaps less.
sum   all of them, as if each had a place of its own.

Which of the two the paper's figure counts is not known here. The picture shows peak unless
--activations=sum asks for the other; that is a choice, because the peak is what a device must have. The table and the JSON have both.
"""

import collections
import contextlib
import dataclasses
import math
import pathlib
import sys

from kerakd import quiet  # first: it keeps TensorFlow quiet

with quiet.native_chatter_off():
    import numpy as np
    import tensorflow as tf
    import tf_keras as keras
    from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

    from export.footprint_figure import READINGS, ROWS, figure_of, flat, table
    from kerakd import commandline, graph, models
    from kerakd.commandline import flag
    from kerakd.errors import BadInput, first_line
    from kerakd.files import write_aside, write_json
    from kerakd.kinds import fuses, passes_on
    from kerakd.modelfile import load_model
    from kerakd.plan import plan
    from kerakd.quantizers import Interval
    from kerakd.rewrite import simplify
    from kerakd.scheme import Scheme, is_quantized
    from kerakd.teachers import is_file
    from kerakd.wrapper import Narrowing, QuantizedActivation, QuantizedLayer, kernel_name

L = keras.layers
FLOAT = 32
VIEWS = (  # layers that write nothing at inference: their output is their input
    *(L.Flatten, L.Reshape, L.Identity, L.ActivityRegularization),
    *(L.Dropout, L.SpatialDropout1D, L.SpatialDropout2D, L.AlphaDropout, L.GaussianDropout, L.GaussianNoise),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of this program. Raises: BadInput for values that can't be, or that don't go together."""

    model: tuple = flag((), "a network by name or a .keras or .h5 file, float or quantized; repeat it for more", models.BY_NAME)
    image_size: int = flag(224, "height and width of the images, of a network by name and of a file that leaves them open")
    classes: int = flag(1000, "length of the logits of a network by name")
    channels: int = flag(3, "channels of the images of a network by name")
    activations: str = flag("peak", "which reading of activations the picture shows", READINGS)
    out: str = flag("footprint.png", "the picture")
    json: str = flag("", "write one flat object of bytes to this .json file, a name for each figure")
    overwrite: bool = flag(False, "replace files that exist")

    def __post_init__(self):
        if not self.model:
            raise BadInput("--model: expected a network, received none; give --model=resnet18 or --model=FILE.keras, once or more")
        for name in self.model:
            if name not in models.BY_NAME and not is_file(name):
                raise BadInput(f"--model: expected one of {', '.join(models.BY_NAME)}, or a .keras or .h5 file, received {name!r}; is it spelled right?")
        if len({pathlib.Path(name).resolve() for name in self.model}) < len(self.model):
            raise BadInput(f"--model: expected each network once, received {', '.join(self.model)}; leave the repeated one out")
        for name in ("image_size", "classes", "channels"):
            if getattr(self, name) < 1:
                raise BadInput(f"--{name}: expected 1 or more, received {getattr(self, name)}; {self.__dataclass_fields__[name].default} is the default")
        if self.activations not in READINGS:
            raise BadInput(f"--activations: expected one of {', '.join(READINGS)}, received {self.activations!r}; peak is the default")
        commandline.check_new("out", self.out, (".png",), self.overwrite)
        if self.json:
            commandline.check_new("json", self.json, (".json",), self.overwrite)


@contextlib.contextmanager
def unallocated():
    """Variables made inside have a shape and no memory, so that a network of any size is built for its graph alone."""

    def create(following, **given):
        if given.get("shape") is None:
            return following(**given)
        return UninitializedVariable(**{key: given[key] for key in ("shape", "dtype", "name", "trainable")})

    with tf.variable_creator_scope(create):
        yield


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes of weights, and of activations in both readings."""

    weights: int
    peak: int
    sum: int


@dataclasses.dataclass(eq=False)
class Tensor:
    """A tensor that exists at inference: its numbers in one image, the first and the last operation that need it."""

    numbers: int
    born: int
    last: int


class Network:
    """The graph of a model, read once for all widths.

    model: as `simplify` writes it, without weights. calls: its calls. tensors: {id of a Value: Tensor}; Values that never
    exist in memory are not in it. operations: how many there are. folded: ids of the BatchNorms that are part of another operation.
    """

    def __init__(self, model):
        graph.check_functional(model)
        with unallocated():
            self.model, _ = simplify(_as_float(model) if is_quantized(model) else model)
        self.image = "x".join(str(side) for side in self.model.inputs[0].shape[1:])
        self.calls = graph.calls(self.model)
        self.tensors, self.folded, self.operations = {}, set(), 0
        places = {}  # id of a Value: the keys of the tensors that are in memory for it
        for call, (read, made) in zip(self.calls, _symbols(self.model), strict=True):
            for value, symbol in zip(call.inputs, read, strict=True):
                if id(value) not in places:
                    self._add(value, symbol, places, born=0)  # an image is there from the start
            needed = [place for value in call.inputs for place in places[id(value)]]
            reader = call.sole_reader
            fused = reader is not None and fuses(call, reader)
            if fused and isinstance(reader.layer, L.BatchNormalization):
                self.folded.add(id(reader.layer))
            if fused or isinstance(call.layer, VIEWS):
                places[id(call.outputs[0])] = needed
                continue
            for value, symbol in zip(call.outputs, made, strict=True):
                self._add(value, symbol, places, born=self.operations)
            self._keep(needed)
            self.operations += 1
        for value in (value for call in self.calls for value in call.outputs if value.is_output):
            self._keep(places[id(value)])

    def _add(self, value, symbol, places, born):
        shape = symbol.shape[1:]
        if not shape.is_fully_defined():
            raise BadInput(f"model: expected tensors of known size, received {shape} in {symbol.name!r}; build the model for images of one size")
        self.tensors[id(value)] = Tensor(math.prod(shape), born, born)
        places[id(value)] = [id(value)]

    def _keep(self, keys):
        """Up to the operation at hand."""
        for key in keys:
            self.tensors[key].last = self.operations

    def left_float(self):
        """{class of layer: how many} of those with weights that no width lowers."""
        kept = {id(call.layer): call.layer for call in self.calls if call.layer.weights and not kernel_name(call.layer)}
        return collections.Counter(type(layer).__name__ for layer in kept.values() if not isinstance(layer, L.BatchNormalization))

    def weights(self, todo):
        """Bytes of all weights under a Plan."""
        kernels = {}  # of a layer that is called twice the first call's, as in `quantize`
        for step in todo.steps:
            kernels.setdefault(id(step.call.layer), (step.call.layer, step.kernel))
        return sum(_bytes_of_weights(layer, quantizer, id(layer) in self.folded) for layer, quantizer in kernels.values())

    def activations(self, todo):
        """[bytes] of each of `tensors` in one image under a Plan."""
        bits = {key: _bits(todo.input) for key in self.tensors}
        passed = {}  # id of a Value: its bits, those that never exist included
        for call, step in zip(self.calls, todo.steps, strict=True):
            before = max((passed.get(id(value), bits.get(id(value), FLOAT)) for value in call.inputs), default=FLOAT)
            own = _bits(step.output) if step.output else before if passes_on(call.layer) else FLOAT
            passed.update((id(value), own) for value in call.outputs)
        bits |= {key: passed[key] for key in self.tensors if key in passed}
        return [_packed(tensor.numbers, bits[key]) for key, tensor in self.tensors.items()]

    def footprint(self, bits_w, bits_a, batch=1):
        """The Footprint at bits_w-bit kernels and bits_a-bit activations, the ends as `scheme_of` has them. Raises: BadInput for no image."""
        if batch < 1:
            raise BadInput(f"batch: expected 1 image or more, received {batch}; 1 is the default")
        todo = plan(self.model, scheme_of(bits_w, bits_a))
        held = [0] * (self.operations + 1)  # the last one holds the outputs
        sizes = [batch * size for size in self.activations(todo)]
        for size, tensor in zip(sizes, self.tensors.values(), strict=True):
            for step in range(tensor.born, tensor.last + 1):
                held[step] += size
        return Footprint(self.weights(todo), max(held), sum(sizes))


def footprint(model, bits_w, bits_a, batch=1):
    """The Footprint of a model at inference.

    Args:
        model: a functional or built Sequential tf_keras model, float or quantized; it is not touched.
        bits_w, bits_a: of weights and of activations, 2..8, or 32 for float.
        batch: images at a time.
    Raises: BadInput for bits outside that, for a model that `kerakd.quantize` would not take, for images of unknown size.
    """
    return Network(model).footprint(bits_w, bits_a, batch)


def scheme_of(bits_w, bits_a):
    """kerakd's default Scheme of these widths; with float weights the first and last layer are float too."""
    ends = None if bits_w == FLOAT else 8
    return Scheme(*(None if bits == FLOAT else Interval(bits) for bits in (bits_w, bits_a)), first=ends, last=ends)


def _bits(quantizer):
    """The bits of a code of `quantizer`, 32 without one."""
    return quantizer.width if quantizer else FLOAT


def _packed(numbers, bits):
    return -(-numbers * bits // 8)


def _bytes_of_weights(layer, quantizer, folded):
    if name := kernel_name(layer):
        shape = getattr(layer, name).shape.as_list()
        outputs = shape[-1] * shape[-2] if isinstance(layer, L.DepthwiseConv2D) else shape[-1]
        return _packed(math.prod(shape), _bits(quantizer)) + 4 * outputs * (2 if quantizer else 1)
    if isinstance(layer, L.BatchNormalization):
        return 0 if folded else 2 * 4 * layer.moving_mean.shape[0]
    if isinstance(layer, L.Rescaling):
        return 4 * (np.size(layer.scale) + np.size(layer.offset))
    return 4 * sum(weight.shape.num_elements() for weight in layer.weights)


def _as_float(model):
    """A quantized model without its quantizers and multiplications by 1, which move tensors to other grids: a ReLU where a quantizer stands for it."""
    made = {}

    def strip(layer, args, kwargs):
        narrowed = isinstance(layer, QuantizedActivation) and isinstance(layer._inbound_nodes[0].inbound_layers, Narrowing)
        same = isinstance(layer, L.Rescaling) and (layer.scale, layer.offset) == (1.0, 0.0)
        if same or narrowed or (isinstance(layer, QuantizedActivation) and not layer.relu):
            return args[0]
        if layer.name not in made:
            inner = layer.layer if isinstance(layer, QuantizedLayer) else layer
            made[layer.name] = L.ReLU(layer.bound, name=layer.name) if isinstance(layer, QuantizedActivation) else graph.clone_layer(inner)
        return made[layer.name](*args, **kwargs)

    return graph.rebuild(model, strip)


def _symbols(model):
    """[(tensors read, tensors made)] of each call of `graph.calls(model)`, in that order: Keras's symbolic tensors, which know their shapes."""
    found = []

    def follow(layer, args, kwargs):
        read = [value for value in tf.nest.flatten((args, kwargs)) if hasattr(value, "_keras_history")]
        node = next(node for node in layer._inbound_nodes if list(map(id, node.keras_inputs)) == list(map(id, read)))
        found.append((read, tf.nest.flatten(node.outputs)))
        return node.outputs

    graph.walk(model, model._nested_inputs, follow)
    return found


def load(name, options):
    """The model of a name or a file, for images of options.image_size where a file leaves their size open.

    Raises: BadInput for a file that is not there or no model, and for sizes that the network can't have.
    """
    try:
        if not is_file(name):
            with unallocated():
                return models.build(name, (options.image_size, options.image_size, options.channels), options.classes)
        model = load_model(name)
        graph.check_functional(model, name)
        open_sizes = [ref for ref in model.inputs if None in ref.shape[1:]]
        return _sized(model, options.image_size) if open_sizes else model
    except BadInput:
        raise
    except (ValueError, OverflowError, tf.errors.OpError) as error:
        received = f"--image_size={options.image_size} --classes={options.classes} --channels={options.channels} ({first_line(error)})"
        raise BadInput(f"sizes: expected some that the network can have, received {received}; leave them out for the defaults") from error


def _sized(model, size):
    """A model on images of height and width `size`, where its own are open."""
    inputs = []
    for ref in model.inputs:
        height, width, *rest = [*ref.shape[1:], None, None]
        if len(ref.shape) != 4 or rest[0] is None:
            raise BadInput(f"model: expected images [height, width, channels], received an input {ref.shape[1:]}; build the model for inputs of known size")
        inputs.append(keras.Input((height or size, width or size, rest[0]), name=ref.node.layer.name))
    structure = tf.nest.pack_sequence_as(model._nested_inputs, inputs)
    return keras.Model(structure, graph.walk(model, structure, lambda layer, args, kwargs: layer(*args, **kwargs)), name=model.name)


def main():
    options, _ = commandline.parse(["python -m export.footprint", *sys.argv[1:]], Options)
    short = [pathlib.Path(name).name for name in options.model]
    networks, found = {}, {}
    for base, path in zip(short, options.model):
        name = base if short.count(base) == 1 else path
        try:
            networks[name] = Network(load(path, options))
            found[name] = {widths: networks[name].footprint(*widths) for widths in ROWS}
        except BadInput as error:
            raise BadInput(f"--model={path}: {error}") from error
    print(f"MB, of weights and of activations in both readings; shares are of weights and {options.activations}\n")
    print(table(networks, found, options.activations) + "\n")
    for name, network in networks.items():
        if kept := network.left_float():
            print(f"{name}: float at every width: {', '.join(f'{count} {kind}' for kind, count in kept.items())}")
    write_aside(options.out, lambda aside: figure_of(networks, found, options.activations).savefig(aside, dpi=120))
    if options.json:
        write_json(options.json, flat(found))
    print(f"wrote {', '.join(filter(None, (options.out, options.json)))}")


if __name__ == "__main__":
    commandline.program(main)
