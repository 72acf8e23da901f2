"""Laws of the medicine: what counts as oscillation, what dampening pulls at, and that a frozen weight stays on its code."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kerakd
from kerakd import optimizers, oscillation
from kerakd.errors import BadInput

L = keras.layers
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(32, 6, 6, 2)).astype(np.float32)
LABELS = RNG.integers(0, 3, 32)
SCHEMES = {
    "ternary": kerakd.Ternary(),
    "learned ternary": kerakd.Ternary(learned=True, per_channel=True),
    "W4": kerakd.Interval(4),
    "W2 per channel": kerakd.Interval(2, per_channel=True),
    "KBit": kerakd.KBit(3),
}


def student(weights, overrides=None):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, name="first")(inputs)))
    x = L.ReLU()(L.BatchNormalization()(L.DepthwiseConv2D(3, depth_multiplier=2, name="deep")(x)))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(5, 1, name="wide")(x)))
    made = kerakd.quantize(keras.Model(inputs, L.Dense(3, name="head")(L.Flatten()(x))), kerakd.Scheme(weights, kerakd.Interval(4), overrides=overrides or {}))
    kerakd.calibrate(made, IMAGES)
    return made


def codes(made):
    return [quantizer.codes(tf.convert_to_tensor(kernel), variables).numpy() for kernel, quantizer, variables in oscillation.kernels(made)]


def trained(made, rate, batch_size, epochs, **medicine):
    """The Distiller that trained a student."""
    distiller = kerakd.Distiller(student=made, mode="alone")
    distiller.compile(keras.optimizers.SGD(rate), **medicine)
    distiller.fit(IMAGES, LABELS, batch_size=batch_size, epochs=epochs, verbose=0)
    return distiller


def test_only_kernels_of_at_most_four_bits_are_watched():
    assert [kernel.name.split("/")[0] for kernel, _, _ in oscillation.kernels(student(kerakd.Interval(4)))] == ["deep", "wide"]  # the ends have 8 bits
    assert not oscillation.kernels(student(kerakd.Interval(5)))
    assert len(oscillation.kernels(student(kerakd.DoReFa(4)))) == 2 and not oscillation.kernels(student(kerakd.DoReFa(5)))  # of odd codes
    with pytest.raises(BadInput, match="expected kernels of 4 bits or fewer, received none"):
        oscillation.Watch(student(kerakd.Interval(5)))


def test_frequency_counts_turns_and_nothing_else():
    made = student(kerakd.KBit(2))
    watch = oscillation.Watch(made)
    kernel, state = watch.watched[1][0], watch.states[1]
    shape = kernel.shape
    up_and_down, only_up, still = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    up_and_down[0, 0, 0, 0] = only_up[0, 0, 0, 1] = 1
    kernel.assign(still)
    watch.update()
    for state_variable in (state["frequency"], state["direction"]):
        state_variable.assign(still)
    watch.states[0]["frequency"].assign(tf.zeros_like(watch.states[0]["frequency"]))
    expected, sequence = 0.0, [1, 0, 1, 1, 0]  # of the first weight: up, down, up, stays, down: three turns
    for step, value in enumerate(sequence):
        kernel.assign(value * up_and_down - only_up * (step == 0) + only_up * (step > 0))
        watch.update()
        turned = step > 0 and sequence[step] != sequence[step - 1]
        expected = 0.99 * expected + 0.01 * turned
    np.testing.assert_allclose(state["frequency"][0, 0, 0, 0], expected, rtol=1e-5)
    assert expected > 0.02 and state["frequency"][0, 0, 0, 1] > 0  # down and up again: one turn
    assert np.count_nonzero(state["frequency"]) == 2
    np.testing.assert_allclose(watch.share(), np.mean(np.concatenate([s["frequency"].numpy().ravel() > 0.005 for s in watch.states])), rtol=1e-6)


@pytest.mark.parametrize("weights", SCHEMES.values(), ids=SCHEMES)
def test_a_frozen_weight_stays_on_its_code_whatever_the_optimizer_does(weights):
    made = student(weights)
    watch = oscillation.Watch(made)
    for state in watch.states:
        state["frequency"].assign(np.where(RNG.random(state["frequency"].shape) < 0.5, 1.0, 0.0))
    watch.update(0.5)
    frozen, before = [state["frozen"].numpy() for state in watch.states], codes(made)
    assert all(0.2 < mask.mean() < 0.8 for mask in frozen)
    distiller = kerakd.Distiller(student=made, mode="alone")
    distiller.compile(keras.optimizers.SGD(0.05), freezing=lambda step: 1.1)  # freezes no others
    for variable, state in zip(distiller.watch.states, watch.states, strict=True):
        for name in variable:
            variable[name].assign(state[name])
    distiller.fit(IMAGES, LABELS, batch_size=8, epochs=3, verbose=0)
    after = codes(made)
    assert all(np.array_equal(a[mask], b[mask]) for a, b, mask in zip(before, after, frozen, strict=True))
    assert any((a[~mask] != b[~mask]).any() for a, b, mask in zip(before, after, frozen, strict=True))


def test_a_weight_is_frozen_at_the_rounded_mean_of_its_codes_and_counts_as_oscillating():
    watch = oscillation.Watch(student(kerakd.KBit(3)))  # steps of a third
    kernel, state = watch.watched[1][0], watch.states[1]
    for mean, held in ((1.495, 2), (1.2, 1)):  # the first is 1.50005 after the update, the code being 2
        kernel.assign(tf.fill(kernel.shape, 2 / 3))
        state["frozen"].assign(tf.zeros(kernel.shape, tf.bool))
        state["mean"].assign(tf.fill(kernel.shape, mean))
        state["frequency"].assign(tf.ones(kernel.shape))
        watch.update(0.5)
        np.testing.assert_allclose(kernel, np.full(kernel.shape, held / 3), rtol=1e-6)
    for _ in range(3):
        watch.update(0.5)
    np.testing.assert_allclose(state["mean"], np.full(kernel.shape, 1.2 + oscillation.MOMENTUM * 0.8), rtol=1e-6)  # as it was when it froze
    state["frequency"].assign(tf.zeros(kernel.shape))
    np.testing.assert_allclose(watch.share(), kernel.shape.num_elements() / sum(one.shape.num_elements() for one, *_ in watch.watched))


def test_a_weight_of_dampening_may_be_a_function_of_the_step():
    made = student(kerakd.Interval(3))
    first, second = trained(made, 0.0, 32, 2, dampening=lambda step: tf.cast(step, tf.float32)).history.history["loss"]
    assert second - first == pytest.approx(float(oscillation.dampening(made)), rel=1e-3)


def test_dampening_is_the_papers_and_pulls_at_the_kernels_alone():
    made = student(kerakd.Interval(3))
    with tf.GradientTape() as tape:
        loss = oscillation.dampening(made)
    moved = {variable.name: gradient for variable, gradient in zip(made.trainable_variables, tape.gradient(loss, made.trainable_variables), strict=True)}
    expected = 0.0
    for kernel, _, variables in oscillation.kernels(made):
        w, interval = kernel.numpy(), float(variables["interval"])
        quantized = interval / 3 * np.rint(np.clip(w * 3 / interval, -3, 3))
        expected += ((quantized - np.clip(w, -interval, interval)) ** 2).sum()
        np.testing.assert_allclose(moved.pop(kernel.name), 2 * (np.clip(w, -interval, interval) - quantized) * (np.abs(w) <= interval), atol=1e-6)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert all(gradient is None for gradient in moved.values())


def test_dampening_brings_weights_to_the_middle_of_their_codes():
    def off_the_middle(dampening):
        made = student(kerakd.Interval(3))
        trained(made, 0.05, 8, 5, dampening=dampening)
        return float(oscillation.dampening(made))

    assert off_the_middle(1.0) < 0.5 * off_the_middle(None)


def test_the_share_is_in_the_history_and_evaluate_does_not_know_it():
    distiller = trained(student(kerakd.Interval(2)), 0.5, 4, 4, watch=True)
    history = distiller.history.history
    assert len(history["oscillating"]) == 4 and 0 < history["oscillating"][-1] < 1
    assert "oscillating" not in distiller.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)


@pytest.mark.parametrize("way", ["weights", "calibration"])
def test_kernels_that_changed_between_compile_and_fit_are_watched_from_there(way):
    made, other = student(kerakd.Interval(2)), trained(student(kerakd.Interval(2)), 0.1, 8, 2).student
    distiller = kerakd.Distiller(student=made, mode="alone")
    distiller.compile(keras.optimizers.SGD(0.0), freezing=0.5)
    before = codes(made)
    for state in distiller.watch.states:
        state["frozen"].assign(tf.ones_like(state["frozen"]))
    if way == "weights":
        made.set_weights(other.get_weights())
    else:
        for _, _, variables in distiller.watch.watched:
            variables["interval"].assign(variables["interval"] * 0.2)
    after = codes(made)
    assert all((old != new).any() for old, new in zip(before, after, strict=True))
    distiller.fit(IMAGES, LABELS, verbose=0)
    assert all((old == new).all() for old, new in zip(after, codes(made), strict=True))
    for old, now, state in zip(before, after, distiller.watch.states, strict=True):
        np.testing.assert_array_equal(state["mean"], now)
        np.testing.assert_array_equal(state["frozen"], old == now)  # of the others nothing is known yet


def test_what_is_compiled_again_watches_anew():
    made = student(kerakd.Interval(2))
    distiller = kerakd.Distiller(student=made, mode="alone")
    for _ in range(2):
        distiller.compile(keras.optimizers.SGD(0.0), freezing=0.5)
        made.set_weights([weight * 0.3 if weight.ndim > 1 else weight for weight in made.get_weights()])
        distiller.fit(IMAGES, LABELS, verbose=0)
        for now, state in zip(codes(made), distiller.watch.states, strict=True):
            np.testing.assert_array_equal(state["mean"], now)
            assert not state["direction"].numpy().any()


def test_freezing_lowers_the_share_of_weights_that_still_move():
    def changes(freezing):
        made = student(kerakd.Interval(2))
        distiller = trained(made, 0.1, 4, 3, freezing=freezing)
        before = codes(made)
        distiller.fit(IMAGES, LABELS, batch_size=4, epochs=1, verbose=0)
        return sum((a != b).sum() for a, b in zip(before, codes(made), strict=True))

    assert changes(0.005) < changes(lambda step: 2.0)  # which nothing reaches


def test_the_ramp_starts_ends_and_stays():
    ramp = optimizers.Ramp(0.1, 0.01, 10)
    np.testing.assert_allclose([ramp(step) for step in (0, 5, 10, 99)], [0.1, 0.055, 0.01, 0.01], rtol=1e-5)


TOO_FAR = [{"freezing": value} for value in (0.0, 1.0, -1.0, True)] + [{"dampening": value} for value in (-5.0, np.nan)]


@pytest.mark.parametrize("argument", TOO_FAR)
def test_what_would_treat_nothing_or_everything_is_refused(argument):
    distiller = kerakd.Distiller(student=student(SCHEMES["W4"]), mode="alone")
    (name,) = argument
    with pytest.raises(BadInput, match=f"{name}: expected a (frequency between 0 and 1|number of 0 or more).*, received"):
        distiller.compile("sgd", **argument)


@pytest.mark.parametrize("argument", [{"freezing": 0.01}, {"dampening": 0.1}])
@pytest.mark.parametrize("only", ["deep", "wide"])
@pytest.mark.parametrize("weights", [kerakd.DoReFa(3), kerakd.Ternary(scale="positive")], ids=repr)
def test_kernels_that_do_not_stay_on_a_code_are_refused(argument, weights, only):
    distiller = kerakd.Distiller(student=student(kerakd.Interval(8), {only: kerakd.Scheme(weights, kerakd.Interval(4))}), mode="alone")
    with pytest.raises(BadInput, match="expected kernels that stay at a code"):
        distiller.compile("sgd", **argument)


def test_a_watch_owns_its_states_alone():
    made = student(kerakd.Interval(4))
    watch = oscillation.Watch(made)
    assert len(watch.weights) == 5 * len(watch.watched) and not watch.trainable_weights
    assert not {variable.ref() for variable in watch.weights} & {variable.ref() for variable in made.weights}


def test_what_is_frozen_stays_so_in_the_next_fit():
    distiller = trained(student(kerakd.Interval(2)), 0.1, 8, 2, freezing=0.01)
    before = [state["frozen"].numpy() for state in distiller.watch.states]
    assert any(frozen.any() for frozen in before)
    distiller.fit(IMAGES, LABELS, batch_size=8, verbose=0)
    assert all(state["frozen"].numpy()[frozen].all() for state, frozen in zip(distiller.watch.states, before, strict=True))
