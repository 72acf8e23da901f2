"""Networks: each quantizes, takes ten training steps, survives its file, and converts to a file equal in every logit."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kerakd
from kerakd import models
from kerakd.models import bit, layers
from kerakd.quantizers import Interval, Ternary

L = keras.layers
RNG = np.random.default_rng(0)


def zoo(name, side=16, width=0.25):
    return lambda: models.build(name, (side, side, 3), 5, width)


def dense_block():
    """BatchNorms before convolutions, concatenations of concatenations, average pooling: DenseNet's parts."""
    inputs = keras.Input((16, 16, 3))
    x = L.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    for _ in range(2):
        y = L.ReLU()(L.BatchNormalization()(x))
        x = L.Concatenate()([x, L.Conv2D(4, 3, padding="same", use_bias=False)(y)])
    x = L.ReLU()(L.BatchNormalization()(x))
    x = L.AveragePooling2D(2)(L.Conv2D(8, 1)(x))
    x = L.GlobalAveragePooling2D()(L.ReLU()(L.BatchNormalization()(x)))
    return keras.Model(inputs, L.Dense(5)(x))


def squeeze_excite():
    """A product of a tensor with its own gates; the gates in ReLU6."""
    inputs = keras.Input((16, 16, 3))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, padding="same", use_bias=False)(inputs)))
    gates = L.Conv2D(4, 1, activation="relu")(L.GlobalAveragePooling2D(keepdims=True)(x))
    gates = L.ReLU(6.0)(L.Conv2D(8, 1)(gates))
    return keras.Model(inputs, L.Dense(5)(L.Flatten()(L.Multiply()([x, gates]))))


def nested():
    """A functional model inside another, with padding before a strided convolution."""
    inside = keras.Sequential([keras.Input((16, 16, 3)), L.ZeroPadding2D(1), L.Conv2D(8, 3, 2, use_bias=False), L.BatchNormalization(), L.ReLU()], name="stem")
    inputs = keras.Input((16, 16, 3))
    x = L.MaxPooling2D(2)(inside(inputs))
    return keras.Model(inputs, L.Dense(5)(L.Dropout(0.1)(L.Flatten()(x))))


NETS = {
    "resnet8": zoo("resnet8"),
    "resnet8v2": zoo("resnet8v2"),
    "resnet18": zoo("resnet18", side=32, width=0.125),
    "mobilenet_v2": lambda: models.build("mobilenet_v2", (16, 16, 3), 5, 0.25, shallow=True),
    "dense block": dense_block,
    "squeeze-excite": squeeze_excite,
    "nested": nested,
}
SCHEMES = {"W4A4": (Interval(4), Interval(4)), "ternary-A8": (Ternary(), Interval(8))}


def trained(make, scheme):
    """A student of random BatchNorm statistics after ten steps, and the images that it saw."""
    keras.utils.set_random_seed(1)
    net = make()
    for layer in net._flatten_layers():
        if isinstance(layer, L.BatchNormalization):
            shapes = [w.shape for w in layer.get_weights()]
            layer.set_weights([RNG.uniform(-1.5, 1.5, shapes[0]), RNG.normal(0, 0.3, shapes[1]), RNG.normal(0, 0.3, shapes[2]), RNG.uniform(0.3, 2, shapes[3])])
    images = RNG.normal(size=(40, *net.input_shape[1:])).astype(np.float32)
    student = kerakd.quantize(net, kerakd.Scheme(*scheme))
    kerakd.calibrate(student, images)
    distiller = kerakd.Distiller(student=student, mode="alone")
    distiller.compile(keras.optimizers.Adam(1e-3))
    last = student.trainable_variables[-1]
    before = last.numpy()
    distiller.fit(images, RNG.integers(0, 5, 40), batch_size=4, verbose=0)
    assert not np.array_equal(before, last)
    return student, images


CASES = [
    pytest.param(
        net, scheme, id=f"{net} {scheme}", marks=[] if net != "mobilenet_v2" and (scheme == "W4A4" or net in ("resnet8", "nested")) else [pytest.mark.slow]
    )
    for net in NETS
    for scheme in SCHEMES
]


@pytest.mark.parametrize(("net", "scheme"), CASES)
def test_a_network_trains_is_saved_and_ships_exactly(net, scheme, tmp_path):
    student, images = trained(NETS[net], SCHEMES[scheme])
    student.save(tmp_path / "student.keras")
    with kerakd.quantize_scope():
        loaded = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(loaded(images), student(images))
    proof = kerakd.verify(student, kerakd.to_tflite(student), images)
    assert proof.exact and proof.not_delegated == [], str(proof)


def parameters(net):
    return sum(int(np.prod(v.shape)) for v in net.trainable_variables)


PUBLISHED = {  # trainable parameters; those of the ImageNet nets are what torchvision and the official code count
    ("resnet20", (32, 32, 3), 10): 272_474,
    ("resnet18", (224, 224, 3), 1000): 11_689_512,
    ("resnet50", (224, 224, 3), 1000): 25_557_032,
    ("mobilenet_v2", (224, 224, 3), 1000): 3_504_872,
    ("mobilenet_v3_small", (224, 224, 3), 1000): 2_542_856,
    ("efficientnet_lite0", (224, 224, 3), 1000): 4_652_008,
    ("bit_r50x1", (224, 224, 3), 1000): 25_549_352,
}


@pytest.mark.parametrize(("name", "shape", "classes"), PUBLISHED)
def test_networks_have_the_parameters_of_the_published_ones(name, shape, classes):
    net = models.build(name, shape, classes)
    assert parameters(net) == PUBLISHED[name, shape, classes]


def test_every_network_answers_with_logits_of_the_asked_shape():
    for name in ("resnet8", "resnet8v2", "resnet18", "mobilenet_v2"):
        net = models.build(name, (32, 32, 1), 7, 0.25)
        assert net.output_shape == (None, 7) and getattr(net.layers[-1].activation, "__name__", "") == "linear"


@pytest.mark.parametrize(("classes", "width"), [(0, 1.0), (5, 0.0), (5, -1.0)])
def test_a_network_of_nothing_is_refused(classes, width):
    with pytest.raises(kerakd.BadInput, match=f"expected 1 class or more and a width of more than 0, received {classes} and {width}"):
        models.build("resnet8", (8, 8, 1), classes, width)


def test_an_unknown_network_is_refused():
    with pytest.raises(kerakd.BadInput, match="model: expected one of resnet8, .*received 'resnet9'"):
        models.build("resnet9", (8, 8, 1), 10)


APPLICATIONS = {  # networks of Keras, the first of their weights that ours has too, trainable parameters, and the channels that are squeezed to
    ("mobilenet_v3_large", 1.0): (  # a quarter of the expanded channels: of 72, 120, 120, 480, 672, 672, 960, 960, in multiples of 8
        lambda **k: keras.applications.MobileNetV3Large(alpha=1.0, include_preprocessing=False, **k),
        *(0, 5_483_032, [24, 32, 32, 120, 168, 168, 240, 240]),
    ),
    ("mobilenet_v3_small", 0.75): (  # of 16, 96, 192, 192, 96, 120, 240, 432, 432; the number is Keras's own
        lambda **k: keras.applications.MobileNetV3Small(alpha=0.75, include_preprocessing=False, **k),
        *(0, 2_041_872, [8, 24, 48, 48, 24, 32, 64, 112, 112]),
    ),
    ("efficientnet_b0", 1.0): (  # a quarter of the block's input: of 32, 16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192
        lambda **k: keras.applications.EfficientNetB0(**k),
        *(3, 5_288_548, [8, 4, 6, 6, 10, 10, 20, 20, 20, 28, 28, 28, 48, 48, 48, 48]),
    ),
}


@pytest.mark.parametrize(("name", "width"), APPLICATIONS)
def test_with_the_weights_of_keras_applications_the_logits_are_the_same(name, width):
    build, first, count, squeezes = APPLICATIONS[name, width]
    theirs = build(input_shape=(64, 64, 3), weights=None, classifier_activation=None)
    ours = models.build(name, (64, 64, 3), 1000, width)
    assert parameters(ours) == parameters(theirs) == count
    assert [layer.filters for layer in ours.layers if layer.name.endswith("_reduce")] == squeezes
    weights = [w if w.ndim > 1 else RNG.uniform(0.5, 1.5, w.shape) for w in theirs.get_weights()[first:]]
    theirs.set_weights(theirs.get_weights()[:first] + weights)
    ours.set_weights([w.reshape(v.shape) for w, v in zip(weights, ours.weights, strict=True)])  # Dense where Keras has a 1x1 convolution
    images = RNG.uniform(0, 1, (2, 64, 64, 3)).astype(np.float32)
    expected = theirs(images * 255 if first else images).numpy()
    assert expected.std() > 0.01
    np.testing.assert_allclose(ours(images), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


NEW = ("mobilenet_v3_small", "mobilenet_v3_large", "mobilenet_v3_large_gn", "mobilenet_v3_small_gn", "efficientnet_b0", "bit_r50x1", "bit_r152x2")


@pytest.mark.parametrize("name", [NEW[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NEW[1:])])
def test_a_network_survives_its_file_and_cloning(name, tmp_path):
    survives(models.build(name, (32, 32, 3), 7, 1 / 16), tmp_path)


def survives(net, directory):
    assert net.output_shape == (None, 7) and type(net.layers[-1]) is L.Dense and net.layers[-1].activation is keras.activations.linear
    net.set_weights([w + RNG.uniform(0, 0.5, w.shape) for w in net.get_weights()])
    images = RNG.normal(size=(2, *net.input_shape[1:])).astype(np.float32)
    expected = net(images).numpy()
    assert np.ptp(expected) > 0 and np.isfinite(expected).all()
    net.save(directory / "net.keras")
    np.testing.assert_array_equal(keras.models.load_model(directory / "net.keras")(images), expected)
    clone = keras.models.clone_model(net)
    clone.set_weights(net.get_weights())
    np.testing.assert_array_equal(clone(images), expected)


def test_the_hard_sigmoid_is_relu6_of_x_plus_3_by_6():
    x = np.linspace(-5, 5, 1001, dtype=np.float32)[:, None]
    inputs = keras.Input(1)
    gates = keras.Model(inputs, [layers.activate(inputs, "x", "hard_sigmoid"), layers.activate(inputs, "y", "hard_swish")])
    expected = tf.nn.relu6(x + 3) / 6
    for result, value in zip(gates(x), (expected, x * expected), strict=True):
        np.testing.assert_allclose(result, value, atol=5e-7)


@pytest.mark.parametrize(("count", "most", "expected"), [(64, 32, 32), (24, 32, 24), (40, 32, 20), (12, 8, 6), (7, 8, 7), (11, 8, 1)])
def test_groups_divide_the_channels(count, most, expected):
    assert layers.groups(count, most) == expected


def test_a_grouped_network_has_groups_of_8_and_no_batchnorm():
    net = models.build("mobilenet_v3_small_gn", (32, 32, 3), 5, 0.25)
    assert not any(isinstance(layer, L.BatchNormalization) for layer in net.layers)
    norms = [layer for layer in net.layers if isinstance(layer, L.GroupNormalization)]
    assert {layer.groups for layer in norms} == {8} and len(norms) == 1 + 2 + 3 * 10 + 1  # stem, block without expansion, blocks, head


def bit_shapes(units, width, classes):
    """{published name: shape} of a BiT network with `width` channels in its root."""
    shapes = {"root_block/standardized_conv2d/kernel": (7, 7, 3, width)}
    count = width
    for block, (middle, many) in enumerate(zip((width, 2 * width, 4 * width, 8 * width), units), 1):
        for unit in range(1, many + 1):
            at = f"block{block}/unit{unit:02d}"
            if unit == 1:
                shapes[f"{at}/a/proj/standardized_conv2d/kernel"] = (1, 1, count, 4 * middle)
            for part, kernel in {"a": (1, 1, count, middle), "b": (3, 3, middle, middle), "c": (1, 1, middle, 4 * middle)}.items():
                shapes[f"{at}/{part}/standardized_conv2d/kernel"] = kernel
                shapes.update({f"{at}/{part}/group_norm/{name}": kernel[2:3] for name in ("gamma", "beta")})
            count = 4 * middle
    shapes.update({f"group_norm/{name}": (count,) for name in ("gamma", "beta")})
    shapes.update({"head/conv2d/kernel": (1, 1, count, classes), "head/conv2d/bias": (classes,)})
    return {f"resnet/{name}": shape for name, shape in shapes.items()}


def bit_logits(arrays, images):
    """BiT's logits from the published arrays alone, with the root padded as bit_pytorch of big_transfer does."""

    def conv(x, name, stride=1, pad=0):
        kernel = arrays[f"resnet/{name}/standardized_conv2d/kernel"]
        kernel = (kernel - kernel.mean((0, 1, 2))) / np.sqrt(kernel.var((0, 1, 2)) + 1e-10)
        return tf.nn.conv2d(x, kernel, stride, [[0, 0], [pad, pad], [pad, pad], [0, 0]]).numpy()

    def norm(x, name):
        grouped = x.reshape(*x.shape[:3], min(32, x.shape[-1]), -1)
        grouped = (grouped - grouped.mean((1, 2, 4), keepdims=True)) / np.sqrt(grouped.var((1, 2, 4), keepdims=True) + 1e-5)
        return np.maximum(grouped.reshape(x.shape) * arrays[f"resnet/{name}group_norm/gamma"] + arrays[f"resnet/{name}group_norm/beta"], 0)

    x = np.pad(conv(images, "root_block", 2, 3), ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = tf.nn.max_pool2d(x, 3, 2, "VALID").numpy()
    for at in sorted({key[len("resnet/") : key.index("/a/")] for key in arrays if "/a/" in key}):
        y, stride = norm(x, f"{at}/a/"), 2 if at.endswith("unit01") and not at.startswith("block1") else 1
        shortcut = conv(y, f"{at}/a/proj", stride) if f"resnet/{at}/a/proj/standardized_conv2d/kernel" in arrays else x
        y = conv(norm(conv(y, f"{at}/a"), f"{at}/b/"), f"{at}/b", stride, 1)
        x = conv(norm(y, f"{at}/c/"), f"{at}/c") + shortcut
    return norm(x, "").mean((1, 2)) @ arrays["resnet/head/conv2d/kernel"][0, 0] + arrays["resnet/head/conv2d/bias"]


def tiny_bit(classes=7):
    """A BiT of eight units, with 8 channels in its root, and the names and shapes of its file."""
    return bit.bit_resnet(18, 1, (32, 32, 3), classes, 0.125), bit_shapes((2, 2, 2, 2), 8, classes)


def test_bit_has_the_parameters_of_the_published_networks():
    count = lambda *args: sum(int(np.prod(shape)) for shape in bit_shapes(*args).values())  # noqa: E731
    assert count((3, 4, 6, 3), 64, 1000) == PUBLISHED["bit_r50x1", (224, 224, 3), 1000]
    assert round(count((3, 8, 36, 3), 128, 1000) / 1e6, 2) == 236.34  # R152x2


@pytest.mark.slow
def test_bit_r152x2_has_the_shapes_of_the_published_network():
    net = models.build("bit_r152x2", (32, 32, 3), 1000, 1 / 16)
    assert {name: shape for name, (_, shape) in bit._published(net).items()} == bit_shapes((3, 8, 36, 3), 8, 1000)


def test_bit_survives_its_file_and_cloning(tmp_path):
    survives(tiny_bit()[0], tmp_path)


def test_bit_standardizes_the_kernel_of_each_output_channel():
    kernel = RNG.normal(3, 5, (3, 3, 16, 8)).astype(np.float32)
    standard = bit.standardize(kernel).numpy()
    np.testing.assert_allclose(standard.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(standard.var((0, 1, 2)), 1, rtol=1e-5)
    layer = bit.StandardizedConv2D(8, 3, use_bias=False)
    x = RNG.normal(size=(1, 5, 5, 16)).astype(np.float32)
    layer.build(x.shape)
    layer.set_weights([kernel])
    np.testing.assert_array_equal(layer(x), tf.nn.conv2d(x, standard, 1, "VALID"))
    np.testing.assert_array_equal(layer.kernel, kernel)


def test_bit_loads_the_published_names(tmp_path):
    random = np.random.default_rng(0)
    images = random.normal(size=(3, 32, 32, 3)).astype(np.float32)
    source, shapes = tiny_bit()
    source.set_weights([w + random.normal(0.2, 0.5, w.shape) for w in source.get_weights()])
    arrays = {}
    for key, shape in shapes.items():
        layer, name = key.removeprefix("resnet/").rsplit("/", 1)
        arrays[key] = getattr(source.get_layer("logits" if layer == "head/conv2d" else layer), name).numpy().reshape(shape)
    expected = bit_logits(arrays, images)
    np.testing.assert_allclose(source(images), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    numbered = {key.replace("c/standardized_conv2d/", "c/standardized_conv2d_12/"): value for key, value in arrays.items()}
    np.savez(tmp_path / "bit.npz", **numbered)
    target, _ = tiny_bit()
    assert not np.any(target(images))  # the fresh head is zero
    bit.load_bit_npz(target, tmp_path / "bit.npz")
    np.testing.assert_array_equal(target(images), source(images))

    other, _ = tiny_bit(classes=3)
    bit.load_bit_npz(other, tmp_path / "bit.npz", head=False)
    assert not np.any(other(images))
    features = [keras.Model(net.input, net.get_layer("pool").output)(images) for net in (other, source)]
    np.testing.assert_array_equal(*features)


FIRST, HEAD = "resnet/block1/unit01/a/group_norm/gamma", "resnet/head/conv2d/kernel"
SPOILT = {
    "missing": (lambda arrays: arrays.pop(FIRST), f"missing: {FIRST}, unknown: none; build the network of the file's depth"),
    "unknown": (lambda arrays: arrays.update(step=np.zeros(())), "missing: none, unknown: step; build"),
    "depth": (
        lambda arrays: [arrays.pop(key) for key in list(arrays) if "unit02" in key],
        "missing: resnet/block1/unit02/a/group_norm/beta, resnet/block1/unit02/a/group_norm/gamma, .*, and 33 more, unknown: none",
    ),
    "shape": (lambda arrays: arrays.update({FIRST: np.ones(9)}), rf"expected {FIRST} of shape \(8,\), received \(9,\) in .*; build .* width"),
    "classes": (lambda arrays: arrays.update({HEAD: np.ones((1, 1, 256, 5))}), r"of shape \(1, 1, 256, 7\), received \(1, 1, 256, 5\) in .* head=False"),
    "text": (lambda arrays: arrays.update({HEAD: np.array("x")}), "path: expected a BiT .npz file of arrays"),
}


def test_bit_refuses_another_file_and_changes_nothing(tmp_path):
    net, shapes = tiny_bit()
    before = net.get_weights()
    for name, (spoil, message) in SPOILT.items():
        arrays = {key: np.ones(shape) for key, shape in shapes.items()}
        spoil(arrays)
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(kerakd.BadInput, match=message):
            bit.load_bit_npz(net, tmp_path / f"{name}.npz")
    (tmp_path / "empty.npz").touch()
    (tmp_path / "text.npz").write_text("PK, but not a zip file")
    np.save(tmp_path / "one.npy", np.ones(3))
    for name in ("empty.npz", "text.npz", "one.npy", "absent.npz"):
        with pytest.raises(kerakd.BadInput, match=f"expected a BiT .npz file of arrays, received .*{name}"):
            bit.load_bit_npz(net, tmp_path / name)
    for old, new in zip(before, net.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
