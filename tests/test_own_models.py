"""Models as people write them: what they compute is quantized, trained and shipped, or refused with the reason, never something else in silence."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from networks import randomize
from tensorflow_model_optimization.quantization import keras as tfmot

import kerakd
from kerakd import batchnorm, oscillation
from kerakd.errors import BadInput
from kerakd.tflite.fold import fold
from kerakd.tflite.runtime import run
from kerakd.wrapper import QuantizedActivation, QuantizedLayer, interval_variables

L = keras.layers
W8, W4 = (kerakd.Scheme(kerakd.Interval(bits), kerakd.Interval(bits)) for bits in (8, 4))
NOTHING = kerakd.Scheme(None, None, first=None, last=None)
SHAPE = (8, 8, 8)  # an axis of any other meaning has as many entries
IMAGES = np.random.default_rng(0).normal(size=(24, *SHAPE)).astype(np.float32)


def net(body, shape=SHAPE, head=True):
    """`body` on images, with logits behind it, and weights as training leaves them."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input(shape)
    outputs = body(inputs)
    return randomize(keras.Model(inputs, L.Dense(5, name="logits")(L.Flatten()(outputs)) if head else outputs))


def calibrated(model, images=IMAGES, scheme=W8):
    student = kerakd.quantize(model, scheme)
    kerakd.calibrate(student, images)
    return student


# ---- What the file computes ----------------------------------------------------------------------------------------------------------------------


class Block(L.Layer):
    """A residual block as a layer of its own, with layers inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.norm, self.second = L.Conv2D(8, 3, padding="same"), L.BatchNormalization(), L.Conv2D(8, 1)

    def call(self, inputs, training=None):
        return inputs + self.second(tf.nn.relu(self.norm(self.first(inputs), training=training)))


def conv(x, **kwargs):
    return L.Conv2D(8, 3, padding="same", **kwargs)(x)


class Squared(L.ReLU):
    def call(self, inputs):
        return tf.square(tf.nn.relu(inputs))


class OneVariance(L.BatchNormalization):
    def call(self, inputs, training=None):
        return (inputs - self.moving_mean) * self.gamma / tf.sqrt(self.moving_variance + 1.0) + self.beta


class Difference(L.Add):
    def _merge_function(self, inputs):
        return inputs[0] - inputs[1]


class Sum(L.Add):
    """As the four below: another name for the same."""


class Mean(L.AveragePooling2D):
    pass


class Join(L.Concatenate):
    pass


class Norm(L.BatchNormalization):
    pass


class Positive(L.ReLU):
    pass


def by_other_names(x):
    mean = Mean()
    y, z = (Positive(6.0)(Norm()(conv(x))) for _ in range(2))
    return Join()([mean(Sum()([y, z, conv(x)])), Norm()(mean(y)), mean(x)])


def joined_twice(x):
    join = L.Concatenate()
    return join([conv(join([conv(x, activation="relu"), conv(x)]), activation="relu"), conv(x)])


class Smaller(L.Layer):
    """What averages inside a function of its own."""

    @tf.function
    def _smaller(self, inputs):
        return tf.nn.avg_pool2d(tf.image.resize(inputs, [6, 6]), 3, 3, "VALID")

    def call(self, inputs):
        return self._smaller(inputs)


BODIES = {  # and whether all of it is integers
    "norm over rows behind a convolution": (lambda x: L.ReLU()(L.BatchNormalization(axis=1)(conv(x))), False),
    "norm over columns alone": (lambda x: conv(L.BatchNormalization(axis=2)(L.MaxPooling2D()(conv(x)))), False),
    "concat": (lambda x: tf.concat([conv(x, activation="relu"), conv(x)], -1), True),
    "concat of rows": (lambda x: tf.concat([conv(x, activation="relu"), conv(x)], 1), False),
    "reshape": (lambda x: tf.reshape(conv(x, activation="relu"), [-1, 512]), True),
    "reshape by its shape": (lambda x: tf.reshape(conv(x), [tf.shape(x)[0], 512]), True),
    "resize between pixels": (lambda x: conv(tf.image.resize(conv(x), [4, 4])), False),
    "averages in a function": (lambda x: conv(Smaller()(conv(x))), False),
    "averages that pad": (lambda x: conv(tf.nn.avg_pool2d(conv(x), 3, 2, "SAME")), False),
    "pools of operators": (lambda x: conv(tf.nn.max_pool(tf.nn.avg_pool2d(conv(x), 2, 2, "VALID"), [1, 2, 2, 1], [1, 1, 1, 1], "SAME")), True),
    "averages of rows": (
        lambda x: L.AveragePooling1D(3, 3, padding="same")(L.Conv1D(6, 2)(L.AveragePooling1D(3)(L.Reshape((48, 8))(conv(x)[:, :6])))),
        True,
    ),
    "averages of a row": (
        lambda x: L.AveragePooling1D(5, padding="same")(L.Conv1D(6, 2, activation="relu")(L.AveragePooling1D(3, 3)(L.Reshape((64, 8))(conv(x))))),
        True,
    ),
    "resize by its sizes": (lambda x: tf.image.resize(conv(x), tf.shape(x)[1:3] * 2, "nearest"), False),
    "gate": (lambda x: (y := conv(x)) * L.Dense(8, activation="sigmoid")(L.GlobalAveragePooling2D()(y))[:, None, None, :], True),
    "crop": (lambda x: conv(x)[:, 1:-1], True),
    "largest": (lambda x: tf.reduce_max(conv(x), [1, 2]), False),
    "one minus": (lambda x: 1.0 - conv(x, activation="relu"), True),
    "one over": (lambda x: 1.0 / (3.0 + conv(x, activation="relu")), False),
    "where": (lambda x: tf.where((y := conv(x)) > 0, y, y * 0.1), False),
    "a layer of layers": (lambda x: Block()(conv(x, activation="relu")), False),
    "ReLU behind a maximum": (lambda x: L.ReLU()(L.MaxPooling2D()(conv(x))), True),
    "ReLU behind a mean": (lambda x: L.ReLU()(L.AveragePooling2D()(conv(x))), True),
    "ReLU of rows": (lambda x: L.ReLU()(L.Flatten()(conv(x))), True),
    "ReLU of a concatenation": (lambda x: L.ReLU()(L.Concatenate()([conv(x), conv(x)])), True),
    "ReLU of a product": (lambda x: L.ReLU()(L.Multiply()([conv(x), conv(x)])), True),
    "ReLU of what an addition reads": (lambda x: L.Add()([y := conv(x), conv(L.ReLU()(y))]), True),
    "ReLU of the images": (lambda x: conv(L.ReLU(2.0)(x)), True),
    "two rescalings of one tensor": (lambda x: L.Add()([conv(L.Rescaling(2.0, 1.0)(x)), conv(L.Rescaling(2.0, -1.0)(x))]), True),
    "two means of one tensor": (lambda x: L.Concatenate()([(y := L.AveragePooling2D())(z := conv(x)), conv(y(z)), conv(L.AveragePooling2D()(z))]), True),
    "means and maxima together": (
        lambda x: L.Concatenate()([L.GlobalAveragePooling2D()(y := L.Add()([conv(x, activation="relu"), conv(x)])), L.GlobalMaxPooling2D()(y)]),
        True,
    ),
    "frozen": (lambda x: L.ReLU()(L.BatchNormalization(trainable=False)(conv(x, trainable=False))), True),
    "a ReLU that squares": (lambda x: Squared()(conv(Squared()(conv(x)))), False),
    "a norm of its own": (lambda x: L.ReLU()(OneVariance()(conv(x))), False),
    "an addition that subtracts": (lambda x: conv(Difference()([conv(x, activation="relu"), conv(x, activation="relu")])), False),
    "layers by other names": (by_other_names, True),
    "a concatenation called twice": (joined_twice, True),
    "equal means behind dropouts": (lambda x: L.Add()([conv(L.AveragePooling2D()(L.Dropout(0.1)(y))) for y in [conv(x)] * 2]), True),
    "equal ReLUs behind maxima": (lambda x: L.Add()([conv(L.ReLU()(L.MaxPooling2D()(y))) for y in [conv(x)] * 2]), True),
    "augmentation": (lambda x: conv(tf.cast(L.RandomRotation(0.1)(L.RandomFlip()(x)), tf.float32), activation="relu"), True),
    "names that quantizers would take": (lambda x: conv(conv(x, name="conv", activation="relu"), name="conv_relu_out"), True),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_file_answers_as_the_student_does(name):
    body, exact = BODIES[name]
    student = calibrated(net(body))
    data = kerakd.to_tflite(student)
    proof, ours, files = kerakd.verify(student, data, IMAGES), student(IMAGES, training=False).numpy(), run(data, IMAGES)
    assert proof.logits_equal > 0.98 and proof.exact >= exact, proof
    assert np.abs(ours - files).max() < 0.02 * np.ptp(ours)
    assert np.abs(ours - net(body)(IMAGES, training=False)).max() < 0.1 * np.ptp(ours)  # 8 bits are near to float
    assert bool(kerakd.lint(student)) != exact


@pytest.mark.parametrize("scheme, constants", [(W8, 0), (kerakd.Scheme(kerakd.Ternary(), kerakd.Interval(8)), 16)], ids=["W8A8", "ternary-A8"])
def test_kernels_of_zeros_are_exact_and_ternary_ones_constants(scheme, constants):
    """As networks are born whose residual branches begin with none."""
    inputs = keras.Input(SHAPE)
    x = conv(inputs, activation="relu")
    for _ in range(2):
        x = L.Add()([x, conv(x, kernel_initializer="zeros")])
    student = calibrated(keras.Model(inputs, L.Dense(5)(L.Flatten()(x))), scheme=scheme)
    proof = kerakd.verify(student, kerakd.to_tflite(student), IMAGES)
    assert proof.exact and proof.dead_channels == constants, proof


SMALL = {
    "a kernel": lambda x: L.Rescaling(1e6)(conv(conv(x), kernel_initializer=keras.initializers.RandomNormal(stddev=5e-7), activation="relu")),
    "a rescaling": lambda x: conv(L.Rescaling(1e-6)(L.Rescaling(1e6)(conv(x, activation="relu"))), activation="relu"),
    "images": lambda x: conv(L.Rescaling(1e-6)(x), activation="relu"),
}


@pytest.mark.parametrize("name", SMALL)
def test_what_is_small_beside_its_input_is_not_lost(name):
    images = np.abs(IMAGES) * 1e6 if name == "images" else IMAGES
    keras.utils.set_random_seed(1)
    inputs = keras.Input(SHAPE)
    scheme = kerakd.Scheme(kerakd.Ternary(), kerakd.Interval(8))
    student = calibrated(keras.Model(inputs, L.Dense(5)(L.Flatten()(SMALL[name](inputs)))), images, scheme)
    data = kerakd.to_tflite(student)
    proof = kerakd.verify(student, data, images)
    assert proof.exact and proof.dead_channels == 0 and proof.moved_steps < 2 and np.ptp(run(data, images)) > 0.1, proof


@pytest.mark.parametrize("gamma", [3e-5, 3e-7])
def test_a_channel_that_hardly_counts_is_no_reason_to_refuse_the_others(gamma):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 64))
    norm = L.BatchNormalization(name="norm")
    model = keras.Model(inputs, L.Dense(5)(L.Flatten()(L.ReLU()(norm(L.Conv2D(8, 3, use_bias=False, name="kernel")(conv(inputs)))))))
    norm.set_weights([np.r_[gamma, np.ones(7)], np.full(8, 0.1), np.zeros(8), np.ones(8)])
    images = np.random.default_rng(0).normal(size=(24, 6, 6, 64)).astype(np.float32)
    student = calibrated(model, images, W4)
    assert fold(student).linears["kernel"].headroom == 127 // 7
    proof = kerakd.verify(student, kerakd.to_tflite(student), images)
    assert proof.exact and proof.moved_steps < 3, proof


def equal_norms(x):
    y = conv(x)
    return L.Concatenate()([conv(L.BatchNormalization()(y)) for _ in range(3)])


def equal_sums(x):
    y, z = conv(x), conv(x)
    return L.Concatenate()([conv(L.BatchNormalization()(L.Add()([y, z]))) for _ in range(2)])


@pytest.mark.parametrize("body", [equal_norms, equal_sums])
def test_equal_operations_are_told_apart_before_and_after_settling(body):
    inputs = keras.Input(SHAPE)
    student = calibrated(keras.Model(inputs, L.Dense(5)(L.Flatten()(body(inputs)))))
    for one in (student, kerakd.settle(student)):
        assert kerakd.verify(one, kerakd.to_tflite(one), IMAGES).exact


def test_what_32_bits_cannot_hold_is_refused():
    student = calibrated(net(lambda x: conv(L.Rescaling(1e-12, name="unit")(x))), np.abs(IMAGES) * 1e12)
    with pytest.raises(BadInput, match="expected kernels and biases that 32-bit integers compute, received 8 channels of 'unit' whose weights are too small"):
        kerakd.to_tflite(student)


def test_tensors_that_are_alike_on_a_blank_image_are_told_apart():
    images = IMAGES.copy()
    images[0] = 0
    branches = lambda x: L.Concatenate()([conv(x, use_bias=False, activation="relu") for _ in range(2)])  # noqa: E731
    inputs = keras.Input(SHAPE)
    student = calibrated(keras.Model(inputs, L.Dense(5)(L.Flatten()(branches(inputs)))), images)
    assert kerakd.verify(student, kerakd.to_tflite(student), images).exact


@pytest.mark.parametrize("scheme", [W8, kerakd.Scheme(kerakd.Interval(8, per_channel=True), kerakd.Interval(8))], ids=["a layer", "a channel"])
def test_dense_layers_on_rows_are_exact_with_their_norms(scheme):
    rows = np.random.default_rng(0).normal(size=(24, 6, 4)).astype(np.float32)
    twice = lambda x: L.ReLU()(L.BatchNormalization()(L.Dense(8)(L.ReLU()(L.BatchNormalization()(L.Dense(8)(x))))))  # noqa: E731
    student = calibrated(net(twice, (6, 4)), rows, scheme)
    assert kerakd.verify(student, kerakd.to_tflite(student), rows).exact


@pytest.mark.parametrize("keepdims", [False, True])
def test_a_mean_over_a_row_is_exact(keepdims):
    mean = L.GlobalAveragePooling1D(keepdims=keepdims)
    model = net(lambda x: L.Concatenate()([mean(L.Conv1D(6, 3, activation="relu")(x)), mean(x)]), (32, 4))
    student = calibrated(model, SENSORS)
    assert kerakd.verify(student, kerakd.to_tflite(student), SENSORS).exact and not kerakd.lint(student)
    assert student(SENSORS).shape == model(SENSORS).shape


def test_augmentation_inside_a_model_moves_no_interval():
    found = []
    for amount in (0.9, 0.01):
        student = calibrated(net(lambda x, amount=amount: conv(L.RandomContrast(amount)(x), activation="relu")))
        found.append([float(variable) for _, _, variable in interval_variables(student)])
    assert found[0] == found[1] and len(found[0]) > 3


def test_a_gate_on_images_without_a_grid_is_float():
    scheme = kerakd.Scheme(kerakd.Interval(8), kerakd.Interval(8), first=None)
    student = calibrated(net(lambda x: conv(L.Activation("swish")(x), activation="relu")), scheme=scheme)
    assert kerakd.verify(student, kerakd.to_tflite(student), IMAGES).float_tensors


def squeezed_and_read(x):
    """A gate and the head take the mean of one tensor."""
    y = conv(x, activation="relu")
    gate = L.Dense(8, activation="sigmoid")(L.GlobalAveragePooling2D()(y))
    return L.Concatenate()([L.Flatten()(y * gate[:, None, None, :]), L.Dense(4)(L.GlobalAveragePooling2D()(y))])


def branches_of_equal_activations(x):
    y = conv(x)
    return L.Concatenate()([conv(L.Activation("swish")(y)), conv(L.Activation("swish")(y))])


def a_sum_and_its_relu(x):
    a, b = conv(x), conv(x)
    return L.Concatenate()([conv(a + b), conv(tf.nn.relu(b + a))])


@pytest.mark.parametrize("body", [squeezed_and_read, branches_of_equal_activations, a_sum_and_its_relu], ids=lambda body: body.__name__)
def test_equal_operations_on_the_same_tensors_are_exact_after_training_too(body):
    """The converter merges them; two intervals that training has moved apart made the one result float."""
    student = calibrated(net(body))
    rng = np.random.default_rng(0)
    for _, _, interval in interval_variables(student):
        interval.assign(interval * float(rng.uniform(0.8, 1.0)))
    proof = kerakd.verify(student, kerakd.to_tflite(student), IMAGES)
    assert proof.exact and proof.emulated_equal == 1 and kerakd.lint(student) == []


def once_behind_a_kernel_and_once_alone(x):
    norm = L.BatchNormalization(name="norm")
    y = L.ReLU()(norm(conv(x)))
    return norm(L.Add()([y, conv(y)]))


REFUSED = {
    "called in training mode": (lambda x: L.BatchNormalization(name="norm")(conv(x), training=True), "received norm: called with training=True"),
    "dropout in training mode": (lambda x: L.Dropout(0.5, name="drop")(conv(x), training=True), "received drop: called with training=True"),
    "noise in training mode": (lambda x: L.GaussianDropout(0.5, name="drop")(conv(x), training=True), "received drop: called with training=True"),
    "means of oblong steps": (
        lambda x: L.AveragePooling2D((1, 4), name="pool")(conv(x)),
        "received pool: average pooling with strides .1, 4., which is refused; take equal ones",
    ),
    "a bound in a concatenation": (
        lambda x: L.Concatenate()([L.ReLU(2.5, name="bound")(conv(x)), L.ReLU()(conv(x))]),
        "received bound: a bound of 2.5 in a concatenation; take 6 or none",
    ),
    "a norm in two places": (once_behind_a_kernel_and_once_alone, "received norm: called 2 times, which has 2 steps in a file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_file_computes_is_found_by_lint_and_refused(name):
    body, message = REFUSED[name]
    student = calibrated(net(body))
    assert [finding.refused for finding in kerakd.lint(student) if finding.refused] == [True]
    with pytest.raises(BadInput, match=message):
        kerakd.to_tflite(student)


@pytest.mark.parametrize("pool", [{"padding": "same"}, {"strides": (1, 2)}], ids=["padded", "oblong"])
def test_an_average_of_float_tensors_that_is_no_convolution_stays_float(pool):
    x = keras.Input((7, 7, 8))
    model = keras.Model(x, L.Dense(5)(L.Flatten()(conv(L.AveragePooling2D(2, **pool, name="pool")(x), name="first"))))
    left = {"^pool$": kerakd.Scheme(None, None), "^input": kerakd.Scheme(None, None)}
    images = IMAGES[:, :7, :7]
    student = calibrated(model, images, kerakd.Scheme(kerakd.Interval(8), kerakd.Interval(8), first=None, overrides={"^pool$": left["^pool$"]}))
    found = [finding for finding in kerakd.lint(student) if finding.layer == "pool"]
    assert [finding.refused for finding in found] == [False] and "stays float" in found[0].problem
    assert kerakd.verify(student, kerakd.to_tflite(student), images).top1_equal > 0.9


def test_a_layer_around_an_exact_one_is_not_taken_for_it():
    student = calibrated(net(lambda x: L.TimeDistributed(L.Dense(4), name="each")(conv(x))))
    assert [finding.layer for finding in kerakd.lint(student)] == ["each"]


def test_what_a_copied_model_gives_by_name_stays_float_too():
    """As attention's second input: the converter gave its float kernels integers to read, and no runtime took the file."""
    rows = L.Reshape((64, 8))
    student = calibrated(net(lambda x: L.MultiHeadAttention(2, 4)(rows(y := conv(x, activation="relu")), L.Reshape((64, 8))(y)), SHAPE))
    for made in (student, keras.models.clone_model(student)):
        made.set_weights(student.get_weights())
        assert kerakd.verify(made, kerakd.to_tflite(made), IMAGES).logits_equal > 0.9


def test_images_of_any_size_train_and_are_refused_by_the_file():
    student = calibrated(net(lambda x: L.GlobalAveragePooling2D()(conv(x, activation="relu")), (None, None, 8)))
    assert student(IMAGES[:, :5]).shape == (24, 5)
    assert [str(finding).split(";")[0] for finding in kerakd.lint(student)] == [f"{student.name}: images of any size, (None, None, 8), where a file has one"]
    for refuses in (kerakd.to_tflite, kerakd.settle):
        with pytest.raises(BadInput, match="images of any size, .None, None, 8., where a file has one; build it with the size"):
            refuses(student)


def test_logits_may_be_joined_and_named():
    inputs = keras.Input(SHAPE)
    x = L.GlobalAveragePooling2D()(conv(inputs, activation="relu"))
    student = calibrated(keras.Model(inputs, {"logits": L.Concatenate()([L.Dense(2)(x), L.Dense(3)(x)])}))
    proof = kerakd.verify(student, kerakd.to_tflite(student), IMAGES)
    assert proof.exact and proof.logits == 24 * 5


def test_a_bound_where_activations_stay_float_is_no_finding():
    rules = {"^bound": kerakd.Scheme(None, None), "^between": kerakd.Scheme(None, None)}
    scheme = kerakd.Scheme(kerakd.Interval(8), kerakd.Interval(8), overrides=rules)
    student = calibrated(net(lambda x: conv(L.ReLU(1.0, name="bound")(L.LayerNormalization(name="between")(conv(x))))), scheme=scheme)
    assert not [finding for finding in kerakd.lint(student) if "bound" in finding.problem]


def test_the_codes_say_where_a_relu_before_a_shared_grid_ends():
    student = calibrated(net(lambda x: L.Concatenate()([L.ReLU(6.0)(L.Conv2D(2, 1, name="a")(x * 9.0)), L.ReLU()(L.Conv2D(2, 1, name="b")(x * 9.0)), conv(x)])))
    arrays = kerakd.codes(student)
    assert (arrays["a/output_low"], arrays["b/output_low"], arrays["b/output_high"]) == (0, 0, 127)
    assert arrays["a/output_high"] == round(6 / arrays["a/output_step"]) < 127


# ---- Which bits ----------------------------------------------------------------------------------------------------------------------------------


def bits(student):
    """{name: bits of a kernel or of a tensor's quantizer}."""
    kernels = {layer.name: layer.kernels[0][1].bits for layer in student.layers if isinstance(layer, QuantizedLayer)}
    return kernels | {layer.name: layer.quantizer.bits for layer in student.layers if isinstance(layer, QuantizedActivation)}


def pooled_logits(x):
    return L.GlobalAveragePooling2D(name="pool")(conv(conv(conv(x), activation="relu", name="before"), activation="relu", name="last"))


def joined(x):
    x = conv(x, activation="relu")
    y = [L.GlobalAveragePooling2D(name=name)(y) for name, y in (("a", x), ("b", conv(x, activation="relu", name="branch")))]
    return L.Dense(5, name="last")(L.Concatenate()(y))


def two_heads(x):
    x = L.GlobalAveragePooling2D(name="pool")(conv(conv(x, activation="relu"), activation="relu", name="before"))
    return [L.Dense(5, name=name)(x) for name in ("a", "b")]


@pytest.mark.parametrize(
    "body, eight, four",
    [
        (pooled_logits, {"before_relu_out", "last", "last_relu_out", "pool_out"}, {"before"}),
        (joined, {"a_out", "last", "last_out"}, {"branch", "branch_relu_out"}),
        (two_heads, {"pool_out", "a", "a_out", "b", "b_out"}, {"before", "before_relu_out"}),
    ],
)
def test_the_last_layers_their_inputs_and_the_outputs_have_8_bits(body, eight, four):
    found = bits(kerakd.quantize(net(body, head=False), W4))
    assert {name: found[name] for name in eight | four} == dict.fromkeys(eight, 8) | dict.fromkeys(four, 4)


def adapted(data):
    layer = L.Normalization()
    layer.adapt(data)
    return layer


SENSORS = (np.random.default_rng(1).normal(size=(64, 32, 4)) * [1, 2, 3, 4]).astype(np.float32)
PIXELS = np.random.default_rng(2).integers(0, 256, (64, 8, 8, 3)).astype(np.float32)
INPUTS = {  # what the model does to its input, images, and whether they are taken for pixels
    "nothing": (lambda x: x, SENSORS, False),
    "Normalization of sensors": (adapted(SENSORS), SENSORS, False),
    "half": (lambda x: x * 0.5, SENSORS, False),
    "Rescaling": (L.Rescaling(1 / 127.5, -1), PIXELS, True),
    "by 255": (lambda x: x / 255.0, PIXELS, True),
    "Rescaling behind augmentation": (lambda x: L.Rescaling(1 / 127.5, -1)(L.RandomContrast(0.1)(L.RandomFlip()(x))), PIXELS, True),
    "Normalization of pixels": (adapted(PIXELS), PIXELS, True),
    "their mean away": (lambda x: x - tf.constant([123.7, 116.8, 103.9]), PIXELS, True),
}


@pytest.mark.parametrize("name", INPUTS)
def test_the_inputs_grid_holds_what_the_model_takes(name):
    first, images, pixels = INPUTS[name]
    kernel = L.Conv1D(8, 3, activation="relu") if images.ndim == 3 else L.Conv2D(8, 3, activation="relu")
    model = net(lambda x: kernel(first(x)), images.shape[1:])
    student = calibrated(model, images)
    assert student.layers[1].quantizer.levels() == ((0, 255) if pixels else (-128, 127))
    assert np.abs(student(images, training=False) - model(images, training=False)).max() < 0.05 * np.ptp(model(images, training=False))
    if pixels:
        with pytest.raises(BadInput, match="images: expected pixels, 0 and more, as the model begins with a rescaling of them, received -"):
            kerakd.calibrate(student, images - 300)


# ---- Training ------------------------------------------------------------------------------------------------------------------------------------


def test_a_frozen_layer_stays_and_is_saved_in_its_order(tmp_path):
    model = net(lambda x: conv(conv(x, name="stem", trainable=False, activation="relu"), name="new", activation="relu"))
    student = calibrated(model, scheme=W4)
    assert not [v.name for v in student.trainable_variables if "stem/" in v.name] and [v.name for v in student.trainable_variables if "new/" in v.name]
    before, student.get_layer("new").trainable = student.get_weights(), False
    assert not [v.name for v in student.trainable_variables if "new/" in v.name]
    np.testing.assert_array_equal(student(IMAGES), calibrated(model, scheme=W4)(IMAGES))
    distiller = kerakd.Distiller(student=student, mode="alone")
    distiller.compile(keras.optimizers.Adam(0.01))
    distiller.fit(IMAGES, np.arange(24) % 5, verbose=0)
    moved = {v.name for v, old in zip(student.weights, before, strict=True) if not np.array_equal(v, old)}
    assert "logits/kernel:0" in moved and not [name for name in moved if name.startswith(("stem/", "new/"))]
    student.save(tmp_path / "student.keras")
    with kerakd.quantize_scope():
        np.testing.assert_array_equal(keras.models.load_model(tmp_path / "student.keras")(IMAGES), student(IMAGES))


def two_inputs():
    images, numbers = keras.Input((8, 8, 8), name="img"), keras.Input((3,), name="aux")
    x = L.Flatten()(L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3)(images))))
    return keras.Model([images, numbers], L.Dense(5)(L.Concatenate()([x, L.Dense(4, activation="relu")(numbers)])))


def test_several_inputs_are_taken_as_keras_takes_them():
    numbers, labels = IMAGES[:, 0, 0, :3], np.arange(24) % 5
    listed, named = [IMAGES, numbers], {"img": IMAGES, "aux": numbers}
    found = []
    for inputs in (listed, named):
        keras.utils.set_random_seed(0)
        student = kerakd.quantize(two_inputs(), W4)
        kerakd.calibrate(student, inputs)
        distiller = kerakd.Distiller(student=student, mode="alone")
        distiller.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"])
        distiller.fit(inputs, labels, validation_data=(inputs, labels), shuffle=False, verbose=0)
        batchnorm.reestimate(student, [inputs] * 2)
        found.append(student.get_weights())
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(BadInput, match=r"images: expected \(None, 8, 8, 8\), \(None, 3\), one image or more, received \(24, 3\)"):
        kerakd.calibrate(student, [numbers, IMAGES])


def test_a_student_inside_another_model_is_watched():
    student = calibrated(net(lambda x: conv(conv(x, activation="relu"), activation="relu")), scheme=W4)
    inputs = keras.Input(SHAPE)
    around = keras.Model(inputs, student(inputs))
    assert len(oscillation.kernels(around)) == len(oscillation.kernels(student)) == 1
    assert float(oscillation.dampening(around)) == float(oscillation.dampening(student)) > 0


# ---- Refusals ------------------------------------------------------------------------------------------------------------------------------------


def squared(x):
    """An activation that Keras does not know by name."""
    return x * x


class Wrapped(keras.Model):
    def call(self, inputs, training=None, mask=None):
        return super().call(inputs / 255.0, training=training)


def wrapped():
    model = net(conv)
    return Wrapped(model.inputs, model.outputs)


def with_nan():
    model = net(conv)
    model.get_layer("logits").kernel.assign(model.get_layer("logits").kernel * np.nan)
    return model


def with_loss(loss):
    model = net(conv)
    model.add_loss(loss(model))
    return model


def ends_in(function):
    return lambda: net(lambda x: function(L.Dense(5)(L.Flatten()(conv(x)))), head=False)


@pytest.mark.parametrize(
    "make, message",
    [
        (wrapped, "received Wrapped, which has a call.. of its own; put what that adds into layers"),
        (with_nan, "expected finite weights, received NaN or infinity in 'logits/kernel:0'"),
        (lambda: net(lambda x: conv(x, activity_regularizer="l2", name="c")), "expected no activity_regularizer, received one of 'c'"),
        (lambda: with_loss(lambda model: tf.reduce_mean(model.output**2)), "expected no add_loss, received one in 'add_loss"),
        (lambda: with_loss(lambda model: lambda: tf.reduce_sum(model.weights[0] ** 2)), "expected no add_loss, received one in 'model"),
        (lambda: tfmot.quantize_annotate_model(net(conv)), "expected layers of Keras, received '.*', tfmot's QuantizeAnnotate; take the model before"),
        (lambda: net(lambda x: conv(L.Rescaling(np.ones((8, 1, 1)), name="by_row")(x))), "for all or for each channel, received those of 'by_row' by place"),
        (lambda: net(lambda x: conv(L.AveragePooling2D(data_format="channels_first", name="p")(x))), "received data_format='channels_first' in 'p'"),
        (lambda: net(lambda x: L.Dense(3)(L.Masking(name="mask")(x))), "expected layers without masks, received 'mask'"),
        (lambda: net(lambda x: conv(x, dtype="float64", name="wide")), "expected float32 variables, received float64 in 'wide'"),
        (lambda: keras.Sequential([keras.Input((4,), dtype="float64"), L.Dense(2)]), "expected float inputs, received float64"),
        (lambda: net(lambda x: conv(x, activation=squared, name="own")), "made again from their configuration, received 'own"),
        (ends_in(tf.nn.softmax), "expected logits, received probabilities: 'tf.nn.softmax' ends in"),
        (ends_in(lambda x: L.Reshape((5,))(L.Activation("softmax", name="soft")(x))), "expected logits, received probabilities: 'soft' ends in"),
    ],
)
def test_what_would_be_taken_for_something_else_is_refused(make, message):
    with pytest.raises(BadInput, match=message):
        kerakd.quantize(make(), W8)


def test_a_rank_4_conv1d_is_quantized():
    model = net(lambda x: L.Conv1D(6, 3, activation="relu")(x), (4, 20, 3))
    images = np.random.default_rng(0).normal(size=(8, 4, 20, 3)).astype(np.float32)
    np.testing.assert_allclose(kerakd.quantize(model, NOTHING)(images), model(images), atol=1e-5)


@pytest.mark.parametrize("images", [None, "images", object()])
def test_what_are_no_images_do_not_calibrate(images):
    with pytest.raises(BadInput, match="images: expected "):
        kerakd.calibrate(kerakd.quantize(net(conv), W8), images)


def test_a_student_of_two_outputs_is_refused():
    student = kerakd.quantize(net(two_heads, head=False), W8)
    with pytest.raises(BadInput, match="student: expected one output, the logits, received 2"):
        kerakd.Distiller(student=student, mode="alone")
