"""Laws of Shampoo: the formula's steps, blocks by themselves, every shape, fewer steps than SGD, a restored run that goes on bit for bit."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tensorflow.python.framework import config  # tf.config can't switch op determinism off again

from kerakd import calibration, models, optimizers, scheme, shampoo
from kerakd.errors import BadInput
from kerakd.quantizers import Interval
from kerakd.shampoo import Shampoo

L = keras.layers


def gradients(shape, steps=4, seed=0):
    """Gradients of different size at each step."""
    random = np.random.default_rng(seed)
    return [np.float32(random.normal(size=shape) * 10.0 ** random.integers(-3, 2)) for _ in range(steps)]


def run(optimizer, shape, given, name="kernel", start=1.0):
    """The values of a variable after each step."""
    variable = tf.Variable(tf.fill(shape, start), name=name)
    seen = []
    for gradient in given:
        optimizer.apply_gradients([(tf.constant(gradient), variable)])
        seen.append(variable.numpy())
    return seen


def root(matrix, epsilon):
    """(matrix + epsilon * greatest eigenvalue)^(-1/4), of a symmetric matrix without negative eigenvalues."""
    u, s, _ = np.linalg.svd(matrix)
    return u @ np.diag((s + epsilon * s[0]) ** -0.25) @ u.T


def paper(given, cuts, rate=0.1, momentum=0.9, beta2=0.999, epsilon=1e-6, every=1, start=1.0):
    """The values of a matrix after each step, in float64, from the formulas; cuts = the slices of its rows, of its columns."""
    value, m, v = np.full(given[0].shape, start), np.zeros(given[0].shape), np.zeros(given[0].shape)
    left, right, roots, seen = {}, {}, {}, []
    for t, g in enumerate(given, 1):
        g = np.float64(g)
        new = 1 - beta2 if beta2 < 1 else 1
        v = beta2 * v + new * g * g
        diagonal = g / (np.sqrt(v / (1 - beta2**t) if beta2 < 1 else v) + 1e-8)
        p = np.zeros_like(g)
        for rows in cuts[0]:
            for columns in cuts[1]:
                key, b = (str(rows), str(columns)), g[rows, columns]
                left[key] = beta2 * left.get(key, 0) + new * b @ b.T
                right[key] = beta2 * right.get(key, 0) + new * b.T @ b
                if (t - 1) % every == 0:
                    roots[key] = root(left[key], epsilon), root(right[key], epsilon)
                p[rows, columns] = roots[key][0] @ b @ roots[key][1]
        u = p * np.linalg.norm(diagonal) / np.linalg.norm(p)
        m = momentum * m + (1 - momentum) * u
        value = value - rate * (momentum * m + (1 - momentum) * u)
        seen.append(value)
    return seen


WHOLE = ([slice(None)], [slice(None)])


@pytest.mark.parametrize("options", [{}, {"beta2": 1.0}, {"beta2": 0.9, "momentum": 0.5, "epsilon": 1e-3}, {"momentum": 0.0}], ids=str)
@pytest.mark.parametrize("shape", [(6, 4), (3, 7), (5, 5), (4, 1), (1, 1)])
def test_the_steps_are_the_formulas(shape, options):
    given = gradients(shape)
    np.testing.assert_allclose(run(Shampoo(0.1, **options), shape, given), paper(given, WHOLE, **options), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("every", [2, 3])
def test_the_roots_are_computed_every_so_often_and_the_statistics_always(every):
    given = gradients((5, 3), steps=7)
    np.testing.assert_allclose(run(Shampoo(0.1, inverse_every=every), (5, 3), given), paper(given, WHOLE, every=every), rtol=1e-3, atol=2e-4)


def test_the_first_step_is_the_golden_number():
    """diag(4, 1) alone: L = R = diag(16, 1)/1000, P = L^-1/4 G R^-1/4 is the unit matrix times sqrt(1000), of norm sqrt 2 like D; 0.19 of it."""
    (after,) = run(Shampoo(0.1, epsilon=0.0), (2, 2), [np.diag([4.0, 1.0]).astype("float32")], start=0.0)
    np.testing.assert_allclose(after, -0.1 * 0.19 * np.eye(2), atol=1e-6)


@pytest.mark.parametrize(
    "shape, rows, columns",
    [((300, 200), (100, 100, 100), (100, 100)), ((257, 3), (86, 86, 85), (3,)), ((5, 129), (5,), (65, 64)), ((128, 128), (128,), (128,))],
    ids=str,
)
def test_blocks_are_preconditioned_each_by_itself(shape, rows, columns):
    cuts = [[slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))] for sizes in (rows, columns)]
    given = gradients(shape, steps=2)
    optimizer = Shampoo(0.1, epsilon=1e-4)
    np.testing.assert_allclose(run(optimizer, shape, given), paper(given, cuts, epsilon=1e-4), rtol=1e-3, atol=2e-4)
    left = next(v for v in optimizer.variables if "left/" in v.name)
    assert left.shape == (len(rows), len(columns), max(rows), max(rows))


def test_a_block_in_a_kernel_steps_as_one_alone_does_but_for_the_length():
    given = gradients((300, 200), steps=2)
    together = run(Shampoo(0.1), (300, 200), given, start=0.0)[0]
    for rows in (slice(0, 100), slice(200, 300)):
        for columns in (slice(0, 100), slice(100, 200)):
            alone = run(Shampoo(0.1), (100, 100), [g[rows, columns] for g in given], start=0.0)[0]
            mine = together[rows, columns]
            np.testing.assert_allclose(mine / np.linalg.norm(mine), alone / np.linalg.norm(alone), atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (128, 128), (129, 5), (300, 200), (1000, 3)])
@pytest.mark.parametrize("block", [1, 4, 128])
def test_join_undoes_split(shape, block):
    matrix = tf.reshape(tf.range(shape[0] * shape[1]), shape)
    blocks = shampoo.split(matrix, block)
    assert max(blocks.shape[2:]) <= block
    np.testing.assert_array_equal(shampoo.join(blocks, shape), matrix)


@pytest.mark.parametrize(
    "argument", [{"momentum": 1.0}, {"momentum": -0.1}, {"beta2": 0.0}, {"beta2": 1.1}, {"block": 0}, {"inverse_every": 0}, {"epsilon": -1e-9}]
)
def test_a_number_out_of_its_range_is_refused(argument):
    ((name, value),) = argument.items()
    with pytest.raises(BadInput, match=f"{name}: expected .*, received {value}"):
        Shampoo(0.1, **argument)


@pytest.mark.parametrize(
    "name, shape, matrix",
    [
        ("conv2d/kernel", (3, 3, 8, 16), (72, 16)),
        ("conv1d/kernel", (5, 8, 4), (40, 4)),
        ("depthwise_conv2d/kernel", (3, 3, 8, 16), (72, 16)),  # a name that somebody gave a Conv2D
        ("dense/kernel", (64, 10), (64, 10)),
        ("depthwise_conv2d/depthwise_kernel", (3, 3, 64, 1), (9, 64)),
        ("depthwise_conv2d/depthwise_kernel", (3, 3, 8, 2), (9, 16)),
        ("depthwise_conv1d/depthwise_kernel", (5, 8, 1), (5, 8)),
        ("embedding/embeddings", (50, 4), (50, 4)),
    ],
)
def test_a_kernel_is_this_matrix(name, shape, matrix):
    assert shampoo.matrix_shape(tf.Variable(tf.zeros(shape), name=name)) == matrix
    flat = [gradient.reshape(matrix) for gradient in gradients(shape)]
    found = run(Shampoo(0.1), shape, gradients(shape), name=name)
    np.testing.assert_allclose([value.reshape(matrix) for value in found], paper(flat, WHOLE), rtol=1e-3, atol=5e-4)


@pytest.mark.parametrize("beta2", [0.9, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(), (1,), (6,)])
def test_of_a_bias_an_interval_or_a_gamma_the_step_is_diagonal(shape, beta2):
    given = gradients(shape)
    value, m, v, expected = np.ones(shape), 0.0, 0.0, []
    for t, g in enumerate(given, 1):
        v = beta2 * v + (1 - beta2 if beta2 < 1 else 1) * np.float64(g) ** 2
        u = g / np.sqrt(v / (1 - beta2**t) if beta2 < 1 else v)
        m = 0.9 * m + 0.1 * u
        value = value - 0.1 * (0.9 * m + 0.1 * u)
        expected.append(value)
    np.testing.assert_allclose(run(Shampoo(0.1, beta2=beta2), shape, given), expected, rtol=1e-4)


@pytest.mark.parametrize("shape", [(6, 4), (3, 3, 8, 16)])
def test_a_kernels_step_is_as_long_as_rmsprops(shape):
    given = gradients(shape, steps=3)
    v, before = 0.0, np.ones(shape)
    for t, (g, after) in enumerate(zip(given, run(Shampoo(0.1, momentum=0.0), shape, given), strict=True), 1):
        v = 0.999 * v + 0.001 * np.float64(g) ** 2
        assert np.linalg.norm(after - before) == pytest.approx(0.1 * np.linalg.norm(g / np.sqrt(v / (1 - 0.999**t))), rel=1e-3)
        before = after


def test_the_size_of_the_loss_does_not_matter():
    given = gradients((6, 4))
    np.testing.assert_allclose(run(Shampoo(0.1), (6, 4), [1000 * g for g in given]), run(Shampoo(0.1), (6, 4), given), atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 3), (3,)])
def test_zero_gradients_are_no_step_and_nan_is_no_error(shape):
    zero = np.zeros(shape, "float32")
    np.testing.assert_array_equal(run(Shampoo(0.1), shape, [zero, zero])[-1], np.ones(shape))
    assert np.isnan(run(Shampoo(0.1), shape, [zero + np.nan])[0]).all()
    dead = gradients((4, 3), steps=1)[0] * np.float32([[1], [0], [1], [0]])  # rows without gradient stay
    np.testing.assert_array_equal(run(Shampoo(0.1), (4, 3), [dead])[0][[1, 3]], 1.0)


def test_an_embeddings_slices_are_a_gradient():
    table, dense = (tf.Variable(tf.ones((5, 3)), name=name) for name in ("embeddings", "kernel"))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(table, [1, 1, 4]) ** 2)
    slices = tape.gradient(loss, table)
    assert isinstance(slices, tf.IndexedSlices)
    Shampoo(0.1).apply_gradients([(slices, table)])
    Shampoo(0.1).apply_gradients([(tf.convert_to_tensor(slices), dense)])
    np.testing.assert_array_equal(table, dense)


def steps_to_a_thousandth(optimizer, limit=400):
    """Steps that sum (a_i w_ij b_j)^2 / 2 of a rotated kernel takes to a thousandth, or limit; condition number 10^4, each term alike at first."""
    random = np.random.default_rng(0)
    a, b = (np.float32(np.logspace(-1, 0, n)) for n in (10, 8))
    left, right = (tf.constant(np.linalg.qr(random.normal(size=(n, n)))[0].astype("float32")) for n in (10, 8))
    kernel = tf.Variable(tf.matmul(left, tf.matmul(0.01 / (a[:, np.newaxis] * b), right)), name="kernel")
    optimizer.build([kernel])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            straight = tf.matmul(left, tf.matmul(kernel, right, transpose_b=True), transpose_a=True)
            loss = tf.reduce_sum((a[:, np.newaxis] * straight * b) ** 2) / 2
        optimizer.apply_gradients([(tape.gradient(loss, kernel), kernel)])
        return loss

    first = float(step())
    return next((count for count in range(1, limit) if float(step()) < first / 1000), limit)


def test_shampoo_needs_fewer_steps_than_the_best_sgd_and_adam_where_the_condition_is_bad():
    mine = steps_to_a_thousandth(Shampoo(0.1))
    assert mine < min(steps_to_a_thousandth(keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)) for rate in (0.1, 0.3, 1.0, 1.5)) / 2
    assert mine < min(steps_to_a_thousandth(keras.optimizers.Adam(rate)) for rate in (0.01, 0.03, 0.1)) / 2


SHAPES = {"conv/kernel": (3, 3, 4, 6), "conv/depthwise_kernel": (3, 3, 4, 1), "dense/kernel": (140, 3), "conv/bias": (6,), "conv/kernel_interval": ()}


def train(variables, optimizer, steps, first=0):
    @tf.function
    def step(seed):
        found = [tf.random.stateless_normal(v.shape, [seed, i]) + 0.1 * v for i, v in enumerate(variables)]
        optimizer.apply_gradients(zip(found, variables, strict=True))

    for seed in range(first, first + steps):
        step(tf.constant(seed))
    return [v.numpy() for v in (*variables, *optimizer.variables)]


def fresh(**options):
    variables = [tf.Variable(tf.ones(shape), name=name) for name, shape in SHAPES.items()]
    return variables, optimizers.build("shampoo", 0.1, 20, variables, 2, 0.5, 1.0, **options)


@pytest.mark.parametrize("every", [1, 2])
def test_a_restored_run_goes_on_bit_for_bit(every, tmp_path):
    def start():
        variables, optimizer = fresh()
        optimizer.inverse_every = every
        return variables, optimizer, tf.train.Checkpoint(variables=variables, optimizer=optimizer)

    variables, optimizer, checkpoint = start()
    train(variables, optimizer, 3)
    path = checkpoint.save(tmp_path / "at")
    expected = train(variables, optimizer, 4, first=3)
    variables, optimizer, checkpoint = start()
    checkpoint.restore(path).assert_consumed()
    for mine, theirs in zip(train(variables, optimizer, 4, first=3), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_under_op_determinism_two_runs_are_one():
    config.enable_op_determinism()
    try:
        one, other = (train(*fresh(), 5) for _ in range(2))
    finally:
        config.disable_op_determinism()
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_clipping_decay_and_its_exceptions_are_the_base_classs():
    given = {name: gradients(shape, steps=1)[0] for name, shape in SHAPES.items()}
    norm = np.sqrt(sum(np.sum(g**2) for g in given.values()))
    variables = [tf.Variable(tf.ones(shape), name=name) for name, shape in SHAPES.items()]
    optimizer = optimizers.build("shampoo", 0.1, 10**9, variables, weight_decay=0.5, clip_norm=0.01)
    optimizer.apply_gradients(zip(given.values(), variables, strict=True))
    for variable, (name, gradient) in zip(variables, given.items(), strict=True):
        start = 1 - 0.1 * 0.5 if name.endswith("kernel") else 1.0
        (expected,) = run(Shampoo(0.1), gradient.shape, [gradient * np.float32(0.01 / norm)], name=name, start=start)
        np.testing.assert_allclose(variable, expected, atol=1e-4, err_msg=name)


def test_a_config_makes_the_same_optimizer_again():
    rate = optimizers.SCHEDULES["quadratic"](0.1, 100, 10)
    optimizer = Shampoo(rate, 0.8, 0.99, 64, 5, 1e-4, weight_decay=0.01, global_clipnorm=1.0)
    again = keras.optimizers.deserialize(json.loads(json.dumps(keras.optimizers.serialize(optimizer))))
    assert type(again) is Shampoo and again.get_config() == optimizer.get_config()
    made = again.get_config()
    expected = {"momentum": 0.8, "beta2": 0.99, "block": 64, "inverse_every": 5, "epsilon": 1e-4, "weight_decay": 0.01, "global_clipnorm": 1.0}
    assert {name: made[name] for name in expected} == expected
    assert again._learning_rate.get_config() == {"rate": 0.1, "steps": 100, "warmup_steps": 10}
    assert Shampoo.from_config(Shampoo(0.25).get_config()).get_config() == Shampoo(0.25).get_config()


def test_it_trains_a_quantized_student_of_every_kind_of_layer_in_a_saved_model(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, padding="same")(inputs)))
    x = L.ReLU()(L.DepthwiseConv2D(3, padding="same")(x))
    net = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x)))
    student = scheme.quantize(net, scheme.Scheme(Interval(4), Interval(8)))
    assert sum("depthwise_kernel:" in v.name for v in student.trainable_variables) == 1
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 64)
    images = np.float32(random.normal(size=(3, 8, 8, 2))[labels] + 0.1 * random.normal(size=(64, 8, 8, 2)))
    calibration.calibrate(student, images)
    student.compile(Shampoo(0.03), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    found = student.fit(images, labels, batch_size=32, epochs=15, verbose=0).history["loss"]
    assert found[-1] < found[0] / 2
    student.save(tmp_path / "student.keras")
    again = keras.models.load_model(tmp_path / "student.keras")
    for mine, theirs in zip(again.optimizer.variables, student.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_resnets_preconditioners_are_no_larger_than_its_blocks():
    net = models.build("resnet8", (8, 8, 1), 10, 1.0)
    optimizer = optimizers.build("shampoo", 0.1, 10, net.trainable_variables)
    sides = [v.shape for v in optimizer.variables if "left" in v.name or "right" in v.name]
    assert len(sides) == 4 * sum(v.shape.rank > 1 for v in net.trainable_variables) and max(s[-1] for s in sides) <= 128


def test_roots_of_a_matrix_without_full_rank_are_numbers_without_epsilon_too():
    g = np.float32(np.random.default_rng(0).normal(size=(20, 6, 1)))
    assert np.isfinite(shampoo.inverse_fourth_root(tf.constant(g @ g.transpose(0, 2, 1)), 0.0)).all()
