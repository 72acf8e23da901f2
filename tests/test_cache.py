"""The cache of what teachers said: bit for bit, refused where it is of something else, whole after SIGKILL, and never asking twice."""

import dataclasses
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from conftest import ROOT

from kerakd import data
from kerakd.cache import TeacherCache, fingerprint
from kerakd.config import Config
from kerakd.distiller import Distiller
from kerakd.errors import BadInput
from kerakd.keep import Every, Keeping, Stopped
from kerakd.lessons import Lessons
from kerakd.modelfile import load_model
from kerakd.rundir import RunDirectory

L = keras.layers
MADE_FROM = {"teachers": ["a", "b"], "images": "digits, 1437", "views": "same/ic, (8, 8, 1)", "view_seed": 3}
SHAPE = (4, 2, 5)
BATCHES, EPOCHS, BATCH = 3, 2, 479  # of digits


def said(place, shape=SHAPE):
    return np.random.default_rng(place).normal(size=shape).astype(np.float32)


def opened(folder, batches=3, shape=SHAPE, **change):
    return TeacherCache(folder, {**MADE_FROM, **change}, batches, shape)


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in pathlib.Path(folder).rglob("*")}


# ---- A folder ------------------------------------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read_bit_for_bit_and_nothing_else_is_there(tmp_path):
    cache, places = opened(tmp_path / "c"), [(0, 0), (0, 2), (7, 1)]
    for place in places:
        cache.write(*place, said(place))
    for again in (cache, opened(tmp_path / "c")):
        for place in np.ndindex(8, 3):
            logits, there = again.read(*place)
            assert there == (place in places) and logits.dtype == np.float32
            np.testing.assert_array_equal(logits, said(place) if there else np.zeros(SHAPE))
    assert (again.read_batches, again.written_batches, cache.written_batches) == (3, 0, 3)


def test_logits_are_on_the_disk_before_their_mark(tmp_path, monkeypatch):
    cache, seen = opened(tmp_path / "c"), []
    logits, marks = cache._epoch(0)
    monkeypatch.setattr(np.memmap, "flush", lambda array: seen.append((array is logits, int(marks[1]), bool((logits[1] == said((0, 1))).all()))))
    cache.write(0, 1, said((0, 1)))
    assert seen == [(True, 0, True)] and marks[1] == 1


def test_what_fails_to_be_written_is_not_there(tmp_path):
    cache = opened(tmp_path / "c")
    with pytest.raises(ValueError):
        cache.write(0, 0, np.zeros((7, 7)))
    assert not cache.read(0, 0)[1]


@pytest.mark.parametrize(
    "change, telling",
    [
        ({"teachers": ["a", "c"]}, r"teachers \['a', 'b'\] and not \['a', 'c'\]"),
        ({"images": "digits, 7"}, "images 'digits, 1437' and not 'digits, 7'"),
        ({"views": "same/rc, (8, 8, 1)"}, r"views 'same/ic, \(8, 8, 1\)' and not 'same/rc, \(8, 8, 1\)'"),
        ({"view_seed": 4}, "view_seed 3 and not 4"),
        ({"batches": 5}, "batches 3 and not 5"),
        ({"shape": (8, 2, 5)}, r"shape \[4, 2, 5\] and not \[8, 2, 5\]"),
        ({"more": 1, "view_seed": 4}, "more None and not 1; view_seed 3 and not 4"),
    ],
)
def test_logits_of_something_else_are_refused_and_named(tmp_path, change, telling):
    opened(tmp_path / "c").write(0, 0, said((0, 0)))
    before = contents(tmp_path)
    with pytest.raises(BadInput, match=f"teacher_cache: .*with {telling}; take another folder"):
        opened(tmp_path / "c", **change)
    assert contents(tmp_path) == before
    assert opened(tmp_path / "c").read(0, 0)[1]


@pytest.mark.parametrize("foreign", [lambda path: path.write_text("mine"), lambda path: (path.mkdir(), (path / "notes.txt").write_text("mine"))])
def test_what_is_no_cache_is_refused_and_untouched(tmp_path, foreign):
    foreign(tmp_path / "c")
    before = contents(tmp_path)
    with pytest.raises(BadInput, match="teacher_cache: expected a cache, or a new or empty folder, received .*other files"):
        opened(tmp_path / "c")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ["logits", "marks"])
def test_a_file_of_another_size_is_refused_and_untouched(tmp_path, kind):
    opened(tmp_path / "c").write(0, 0, said((0, 0)))
    (tmp_path / "c" / f"epoch_00000.{kind}").write_bytes(b"1234567")
    before = contents(tmp_path)
    with pytest.raises(BadInput, match=f"teacher_cache: expected [0-9]+ bytes in .*{kind}, received 7; delete it"):
        opened(tmp_path / "c").read(0, 0)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ["logits", "marks"])
def test_after_the_remedy_of_that_error_the_epoch_is_asked_again(tmp_path, kind):
    opened(tmp_path / "c").write(0, 0, said((0, 0)))
    (tmp_path / "c" / f"epoch_00000.{kind}").unlink()
    assert not opened(tmp_path / "c").read(0, 0)[1]


def begun_at_once(folder, seeds):
    """What each of some threads gets that all open one cache, which is not there, at one moment: None or the error."""
    start, got = threading.Barrier(len(seeds)), [None] * len(seeds)

    def run(number, seed):
        start.wait()
        try:
            opened(folder, view_seed=seed)
        except BadInput as error:
            got[number] = str(error)

    threads = [threading.Thread(target=run, args=(number, seed)) for number, seed in enumerate(seeds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


def test_runs_can_begin_with_one_new_cache_at_once(tmp_path):
    assert all(begun_at_once(tmp_path / str(number), [3] * 8) == [None] * 8 for number in range(50))


def test_of_two_that_begin_one_cache_with_unlike_views_one_is_refused(tmp_path):
    for number in range(50):
        refused = [error for error in begun_at_once(tmp_path / str(number), [3, 4]) if error]
        assert len(refused) == 1 and "expected logits of the same teachers and views" in refused[0]


def test_a_killed_process_loses_nothing_that_it_marked(tmp_path):
    """SIGKILL while it writes: what it said to be written is there, and of what is there each bit is right."""
    shape = (64, 2, 500)
    program = f"""
        import itertools
        import kerakd.quiet
        from test_cache import opened, said
        cache = opened({str(tmp_path / "c")!r}, 50, {shape})
        for number in itertools.count():
            place = divmod(number, 50)
            cache.write(*place, said(place, {shape}))
            print(number, flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT / "tests", env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    lines = [process.stdout.readline() for _ in range(60)]
    process.send_signal(signal.SIGKILL)
    lines += process.communicate()[0].splitlines()
    assert process.returncode == -signal.SIGKILL
    cache, count = opened(tmp_path / "c", 50, shape), len(lines)
    there = {place for place in np.ndindex(count // 50 + 1, 50) if cache.read(*place)[1]}
    assert {divmod(number, 50) for number in range(count)} <= there
    for place in there:
        np.testing.assert_array_equal(cache.read(*place)[0], said(place, shape))


def test_a_fingerprint_is_of_every_weight():
    model = keras.Sequential([keras.Input((3,)), L.Dense(2), L.BatchNormalization()])
    prints = [fingerprint(model)] * 2
    for variable in model.variables:
        variable.assign_add(tf.one_hot(0, variable.shape[-1]) * 1e-6 + tf.zeros_like(variable))
        prints.append(fingerprint(model))
    assert len(set(prints)) == 1 + len(model.variables) and prints[0] == prints[1]
    assert fingerprint(keras.models.clone_model(model)) != prints[-1]


# ---- Training ------------------------------------------------------------------------------------------------------------------------------------


class Counting(keras.Model):
    """A teacher that counts how often it is asked, in a graph too."""

    def __init__(self, seed, side=8):
        super().__init__()
        self.head, self.asked, self.side = L.Dense(10, kernel_initializer=keras.initializers.GlorotUniform(seed)), 0, side

    def call(self, images, training=None):
        def count(x):
            self.asked += 1
            return x

        pixels = tf.numpy_function(count, [images], tf.float32)[:, : self.side, : self.side]
        return self.head(tf.reshape(pixels, [-1, self.side**2]))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return data.load("digits", str(tmp_path_factory.mktemp("tfds")))[0]


def train(digits, cache=None):
    """(history, how often each teacher was asked): function matching under two teachers of two sizes."""
    keras.utils.set_random_seed(0)
    student = keras.Sequential([keras.Input((8, 8, 1)), L.Flatten(), L.Dense(10)])
    teachers = [Counting(1), Counting(2, side=6)]
    model = Distiller(student=student, teacher=teachers, hard_weight=0.0, soft_weight=1.0, teacher_cache=cache)
    for teacher in teachers:
        teacher.asked = 0
    model.compile(keras.optimizers.Adam(0.01))
    settings = {"batch_size": BATCH, "seed": 1, "epochs": EPOCHS, "mixup": True, "teacher_sizes": ((8, 8), (6, 6)), "places": cache is not None}
    views = data.training(digits, view="same/ic", size=(8, 8), **settings)
    views = views if cache is None else cache.join(views)
    history = model.fit(views, steps_per_epoch=BATCHES, epochs=EPOCHS, verbose=0).history
    return history, [teacher.asked for teacher in teachers]


def of_digits(folder, teachers=1):
    return opened(folder, BATCHES, (BATCH, teachers, 10))


def test_live_recording_half_filled_and_warm_runs_are_one_and_only_what_is_not_there_is_asked(digits, tmp_path):
    folder = tmp_path / "c"
    live, asked = train(digits)
    assert asked == [BATCHES * EPOCHS] * 2
    recording = of_digits(folder, 2)
    assert train(digits, recording) == (live, asked)
    assert (recording.read_batches, recording.written_batches) == (0, BATCHES * EPOCHS)
    (folder / "epoch_00000.marks").write_bytes(bytes([1, 0, 1]))  # as if killed in between
    (folder / "epoch_00001.marks").write_bytes(bytes([0, 0, 0]))
    half = of_digits(folder, 2)
    assert train(digits, half) == (live, [4, 4])
    assert (half.read_batches, half.written_batches) == (2, 4)
    before = contents(folder)
    warm = of_digits(folder, 2)
    assert train(digits, warm) == (live, [0, 0])
    assert (warm.read_batches, warm.written_batches) == (BATCHES * EPOCHS, 0)
    assert contents(folder) == before


def test_check_compares_what_is_there_with_the_live_teacher(digits, tmp_path):
    teacher, cache = Counting(3), of_digits(tmp_path / "c")
    model = Distiller(student=keras.Sequential([keras.Input((8, 8, 1)), L.Flatten(), L.Dense(10)]), teacher=teacher, teacher_cache=cache)
    views = cache.join(data.training(digits, view="same/ic", size=(8, 8), batch_size=BATCH, seed=1, epochs=1, places=True))
    assert cache.check(views, model.ask) == 0  # nothing is there yet
    for x, _ in views.skip(1):
        cache.write(*x["place"].numpy(), model.ask(x))
    assert cache.check(views, model.ask) == 1 and cache.check(views, model.ask, batches=3) == 2
    logits = cache._epoch(0)[0]
    logits[1, 7, 0, 4] += 1e-5
    assert cache.check(views, model.ask) == 1  # within what another order of the sums gives
    logits[1, 7, 0, 4] += 0.1
    with pytest.raises(BadInput, match=f"expected the logits of the live teachers in {tmp_path / 'c'}, received others, up to 0.1 apart; take another"):
        cache.check(views, model.ask)
    logits[1, 7, 0, 4] = np.nan
    with pytest.raises(BadInput, match="received others"):
        cache.check(views, model.ask)


# ---- The program's -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """Two teachers of digits in files, which differ in one weight."""
    folder = tmp_path_factory.mktemp("nets")
    model = keras.Sequential([keras.Input((8, 8, 1)), L.Flatten(), L.Dense(10)])
    model.save(folder / "one.keras")
    model.layers[-1].bias.assign_add(tf.one_hot(3, 10))
    model.save(folder / "two.keras")
    return folder


@pytest.mark.parametrize(
    "change, telling",
    [
        ({"teacher": ("two.keras",)}, "teachers"),
        ({"teacher": ("one.keras", "two.keras")}, "shape .*teachers"),
        ({"teacher": ("one.keras,values=0..1",)}, "teachers"),
        ({"teacher": ("one.keras,size=8",)}, "teachers"),
        ({"dataset": "mnist", "image_size": 8}, "images"),
        ({"transfer_dataset": "mnist"}, "images"),
        ({"version": "2"}, "images"),
        ({"view": "same/rc"}, "views"),
        ({"mixup": False}, "views"),
        ({"batch_size": 16}, "batches .*shape"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_a_run_with_other_views_or_teachers_is_refused_and_names_it(nets, tmp_path, change, telling):
    settings = {"dataset": "digits", "synthetic": True, "batch_size": 32, "view": "same/ic", "mixup": True, "hard_weight": 0.0}
    settings |= {"student": "s.keras", "teacher": ("one.keras",), "phase": ("trained_teacher:1",), "teacher_cache": str(tmp_path / "cache")}

    def made(version="1", **change):
        config = Config(**{**settings, **change})
        images = dataclasses.replace(data.load(config.dataset, synthetic=True, image_size=config.largest())[0], version=version)
        teachers = [one.prepared(load_model(nets / one.network)) for one in config.teachers()]
        return Lessons(config, RunDirectory(tmp_path / "run"), images, images.image_shape(config.size())).cache(0, teachers)

    made()
    made(weights="interval:4", learning_rate=0.1, temperature=2.0, seed=3)  # what the teacher does not see
    with pytest.raises(BadInput, match=f"teacher_cache: .*with {telling}"):
        made(**change)
    made(**change, view_seed=5)  # in a folder of its own


@pytest.mark.parametrize("contents", [b"", b"PK no archive", b"\x93NUMPY"])
def test_damaged_logits_of_fixed_views_are_named(tmp_path, contents):
    (tmp_path / "fixed_logits.npz").write_bytes(contents)
    with pytest.raises(BadInput, match="fixed_logits.npz as it was written, received something damaged .*; delete it, then --resume"):
        Lessons._remembered(tmp_path / "fixed_logits.npz", {})


def test_an_ensemble_that_was_stopped_goes_on_where_it_was_to_the_same_logits(tmp_path):
    told = {"dataset": "digits", "synthetic": True, "view": "fix/ic_ens", "ensemble_views": 5, "student": "s.keras", "teacher": ("t.keras",)}
    config, images = Config(**told, batch_size=32, phase=("trained_teacher:1",)), data.load("digits", synthetic=True)[0]
    keras.utils.set_random_seed(0)
    teacher = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    batches = -(-images.count * 5 // 64)

    def lessons(name):
        directory = RunDirectory(tmp_path / name)
        directory.path.mkdir(exist_ok=True)
        return Lessons(config, directory, images, (8, 8, 1)), directory.path / "fixed_logits_begun.npz"

    class Asked(Keeping):
        """Asked to stop at its second question, after a checkpoint at the first."""

        def agreed(self, over=False):
            questions.append(over)
            return 15 if len(questions) >= 2 else 1

    questions, (whole, _) = [], lessons("whole")
    whole.prepare([teacher], Keeping(Every("1000")))
    stopped, part = lessons("stopped")
    with pytest.raises(Stopped):
        stopped.prepare([teacher], Asked())
    assert batches > 3 and np.load(part)["done"] == 128 and not (part.parent / "fixed_logits.npz").exists()
    again, _ = lessons("stopped")
    again.prepare([teacher], Keeping(Every("1000")))
    np.testing.assert_array_equal(again.fixed_logits, whole.fixed_logits)
    assert not part.exists() and (part.parent / "fixed_logits.npz").exists()


def test_a_fingerprint_knows_the_shape_of_weights():
    shaped = [types.SimpleNamespace(get_weights=lambda shape=shape: [np.zeros(shape)]) for shape in ((2, 3), (3, 2))]
    assert fingerprint(shaped[0]) != fingerprint(shaped[1])


def test_what_teachers_say_in_another_precision_is_something_else(tmp_path):
    told = {"dataset": "digits", "synthetic": True, "batch_size": 32, "view": "same/ic", "student": "s.keras", "teacher": ("t.keras",)}
    images = data.load("digits", synthetic=True)[0]
    teacher = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    made = []
    for precision in ({}, {"mixed_precision": "bfloat16"}):
        config = Config(**told, phase=("trained_teacher:1",), **precision)
        made.append(Lessons(config, RunDirectory(tmp_path), images, (8, 8, 1))._made_from([teacher], 0))
    assert made[0] != made[1]
