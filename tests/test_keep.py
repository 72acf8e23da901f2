"""When a run is kept: intervals, requests to stop, states of dropout, where a network is no longer finite."""

import os
import signal
import types

import numpy as np
import pytest
import tf_keras as keras

from kerakd.checks import check_finite, first_not_finite
from kerakd.errors import BadInput, Diverged
from kerakd.graph import random_states
from kerakd.keep import Every, Keep, Keeping, Stopped, StopRequest

L = keras.layers


def test_an_interval_of_steps():
    every = Every("3")
    assert [every.due() for _ in range(3)] == [False, False, True]
    every.begin()
    assert [every.due() for _ in range(3)] == [False, False, True]


def test_steps_of_one_execution_count_each():
    every = Every("10")
    assert [every.due(4) for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize("text, seconds", [("90s", 90), ("10min", 600)])
def test_an_interval_of_time(monkeypatch, text, seconds):
    clock = [5.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    every = Every(text)
    clock[0] += seconds - 0.1
    assert not every.due()
    clock[0] += 0.2
    assert every.due()


@pytest.mark.parametrize("text", ["", "0", "0s", "-3", "1h", "1.5min", "ten"])
def test_another_interval_is_refused(text):
    with pytest.raises(BadInput, match="--checkpoint_every: expected steps"):
        Every(text)


@pytest.fixture
def request_():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    asked = StopRequest()
    asked.listen()
    yield asked
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_waits_for_the_step_at_hand_and_a_second_does_not(request_, number):
    request_.training = True
    os.kill(os.getpid(), number)
    with pytest.raises(Stopped) as stopped:
        Keeping(request=request_).heed()
    assert stopped.value.code == 128 + number and stopped.value.name == number.name
    with pytest.raises(Stopped):
        os.kill(os.getpid(), number)


def test_where_nothing_trains_a_request_is_heeded_at_once(request_):
    Keeping(request=request_).heed()
    with pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_request_whose_exception_is_lost_is_heeded_later(request_):
    """As in a destructor, whose exceptions Python prints and forgets."""

    class Dying:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    Dying()
    with pytest.raises(Stopped):
        Keeping(request=request_).heed()


def test_layers_that_draw_have_a_state_to_keep():
    keras.backend.experimental.enable_tf_random_generator()
    try:
        net = keras.Sequential([keras.Input((4,)), L.Dropout(0.5), L.Dense(3), L.GaussianNoise(0.1)])
        (first, second) = random_states(net)
        then, x = first.state.numpy().copy(), np.ones((1, 4), np.float32)
        net(x, training=True)
        assert (first.state.numpy() != then).any()
        assert random_states(keras.Sequential([keras.Input((4,)), L.Dense(3)])) == []
    finally:
        keras.backend.experimental.disable_tf_random_generator()


def small():
    x = keras.Input((4,))
    y = L.Dense(3, name="one")(x)
    return keras.Model(x, L.Dense(2, name="three")(L.Lambda(lambda t: 1 / t, name="two")(y)))


def test_a_network_is_finite_or_says_where_it_first_is_not():
    net, x = small(), np.ones((2, 4), np.float32)
    assert first_not_finite(net, x) is None
    net.get_layer("one").set_weights([np.zeros((4, 3)), np.zeros(3)])
    assert first_not_finite(net, x) == "'two'"
    net = small()
    net.get_layer("three").set_weights([np.full((3, 2), np.inf), np.zeros(2)])
    assert first_not_finite(net, x) == "the weights of 'three'"
    assert first_not_finite(small(), np.full((2, 4), np.nan, np.float32)) == "the images"


def test_the_statistics_of_a_batchnorm_and_nested_models_hide_nothing():
    x = keras.Input((4,))
    inner = keras.Model(x, L.BatchNormalization(name="norm")(L.Dense(3, name="one")(x)))
    net = keras.Model(x, L.Dense(2)(inner(L.Rescaling(2.0)(x))))
    norm = inner.get_layer("norm")
    norm.moving_mean.assign(np.full(3, np.nan))
    assert first_not_finite(net, np.ones((2, 4), np.float32)) is None  # in training mode they are not read
    inner.get_layer("one").kernel.assign(np.full((4, 3), 3e38))
    assert first_not_finite(net, np.ones((2, 4), np.float32)) == "'one'"


def test_what_is_not_finite_is_not_kept():
    net = small()
    check_finite(net)
    net.get_layer("three").set_weights([np.full((3, 2), np.nan), np.zeros(2)])
    with pytest.raises(Diverged, match="in 'three/kernel:0'"):
        check_finite(net)


def keeper(every, steps):
    """(a Keep of epochs of so many steps, the places that it keeps, its request)."""
    kept, request = [], StopRequest()
    directory = types.SimpleNamespace(checkpoint=lambda stage, place, *_: kept.append(place))
    keep = Keep(directory, "s", {}, steps=steps, last=1, place=(0, 0), metrics={}, keeping=Keeping(every=Every(every), request=request))
    keep.model = types.SimpleNamespace(metrics=[])
    return keep, kept, request


def begin(keep):
    keep.on_train_begin()
    keep.on_epoch_begin(0)


def test_checkpoints_are_an_interval_apart_and_none_is_at_an_epochs_last_step():
    keep, kept, _ = keeper("2", 6)
    begin(keep)
    for batch in range(6):
        keep.on_train_batch_end(batch, {"loss": 1.0})
    assert kept == [(0, 2), (0, 4)]  # the sixth is the epoch's own, after its validation


def test_an_epoch_that_is_done_is_validated_before_a_request_to_stop_is_heeded():
    keep, kept, request = keeper("100", 3)
    begin(keep)
    request.number = signal.SIGTERM
    keep.on_train_batch_end(2, {"loss": 1.0})
    assert kept == []


def test_the_interval_begins_with_the_stage():
    keep, kept, _ = keeper("100", 3)
    keep.keeping.every.done = 99
    begin(keep)
    keep.on_train_batch_end(0, {"loss": 1.0})
    assert kept == []


def test_between_stages_nothing_trains():
    keep, _, request = keeper("100", 3)
    keep.on_train_begin()
    assert request.training
    keep.on_train_end()
    assert not request.training
