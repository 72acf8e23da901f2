"""The device program: real files timed by real LiteRT, a phone played by a script in adb's place, every refusal one line."""

import json
import os
import shlex
import stat
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from conftest import run_program

import kerakd
from export import card, device
from kerakd import commandline
from kerakd.tflite import flatfile, runtime

L = keras.layers

# What benchmark_model prints, in the words of tflite/tools/benchmark/benchmark_model.cc, benchmark_tflite_model.cc and
# xla/tsl/util/stats_calculator.h; put together like the logs in Texas Instruments' AM62x SDK documentation (TFLite, --use_xnnpack=true)
# and the -report_peak_memory_footprint logs of public repositories. The numbers are invented.
SAMPLE = """\
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Min num runs: [200]
INFO: Num threads: [{threads}]
INFO: Report the peak memory footprint: [1]
INFO: Graph: [/data/local/tmp/kerakd_0.tflite]
INFO: Signature to run: []
INFO: #threads used for CPU inference: [{threads}]
INFO: Use xnnpack: [1]
INFO: Loaded model /data/local/tmp/kerakd_0.tflite
INFO: Initialized TensorFlow Lite runtime.
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
VERBOSE: Replacing {taken} out of 8 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 3 partitions for subgraph 0.
INFO: XNNPACK delegate created.
INFO: Explicitly applied XNNPACK delegate, and the model graph will be partially executed by the delegate w/ 3 delegate kernels.
INFO: The input model file size (MB): 0.030672
INFO: Initialized session in 18.5ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=9 first=87112 curr=51629 min=51629 max=87112 avg=58147.4 std=11478 p5=51629 median=51962 p95=87112

INFO: Running benchmark for at least 200 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=200 first=52162 curr=49785 min=49088 max=86105 avg=53743.2 std=6071 p5=49620 median={median} p95=68628

INFO: Inference timings in us: Init: 18500, First inference: 87112, Warmup (avg): 58147.4, Inference (avg): 53743.2
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory footprint of the \
model at runtime. Take the information at your discretion.
INFO: Memory footprint delta from the start of the tool (MB): init=2.4375 overall=8.543
INFO: Overall peak memory footprint (MB) via periodic monitoring: {peak}
INFO: Memory status at the end of exeution:
INFO: - VmRSS              : 13 MB
INFO: + RssAnnon           : 7 MB
INFO: + RssFile + RssShmem : 6 MB
"""
# The same of about 2021 to 2023: no percentiles, no prefix, slow enough for a stream's exponent.
OLD = """\
Num threads: [4]
count=1 curr=1041765

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=977738 curr=964908 min=911877 max=1112273 avg=1.00152e+06 std=39112

Inference timings in us: Init: 6418, First inference: 1041765, Warmup (avg): 1.04176e+06, Inference (avg): 1.00152e+06
Peak memory footprint (MB): init=6.14844 overall=109.848
"""
FAILED = "ERROR: Node number 57 (BATCH_MATMUL) failed to prepare.\nERROR: Failed to allocate tensors!\nERROR: Benchmarking failed.\n"


def float_file(shape, units):
    """A float TFLite file of one Dense layer."""
    net = keras.Sequential([keras.Input(shape[1:]), L.Flatten(), L.Dense(units)])
    return tf.lite.TFLiteConverter.from_concrete_functions([tf.function(net).get_concrete_function(tf.TensorSpec(shape, tf.float32))], net).convert()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """int8.tflite and int4.tflite of one student, two float files, and files that are no good."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 1))
    x = L.Conv2D(8, 3, activation="relu")(inputs)
    for _ in range(3):
        x = L.Conv2D(8, 3, padding="same", activation="relu")(x)
    net = keras.Model(inputs, L.Dense(5)(L.GlobalAveragePooling2D()(x)))
    student = kerakd.quantize(net, kerakd.Scheme(kerakd.Ternary(), kerakd.Interval(8)))
    kerakd.calibrate(student, np.random.default_rng(0).normal(size=(32, 16, 16, 1)).astype(np.float32))
    made = tmp_path_factory.mktemp("device files")
    for container in ("int8", "int4"):
        (made / f"{container}.tflite").write_bytes(kerakd.to_tflite(student, container))
    (made / "large.tflite").write_bytes(float_file((1, 1000), 2000))
    (made / "batch.tflite").write_bytes(float_file((2, 4), 3))
    whole = (made / "int8.tflite").read_bytes()
    (made / "cut.tflite").write_bytes(whole[: len(whole) // 2])
    (made / "text.tflite").write_bytes(b"not a flatbuffer")
    model = flatfile.read(whole)
    model.operatorCodes[0].version = 99
    (made / "future.tflite").write_bytes(flatfile.write(model))
    (made / "there.json").write_text("{}")
    (made / "benchmark_model").write_text("the phone's")
    return made


@pytest.fixture
def run(monkeypatch, capfd):
    """The program in this process: (exit status, stdout, stderr)."""

    def program(*arguments):
        monkeypatch.setattr(sys, "argv", ["device", *map(str, arguments)])
        status = 0
        try:
            commandline.program(device.main)
        except SystemExit as end:
            status = end.code
        return status, *capfd.readouterr()

    return program


def refused(answer, message):
    status, out, err = answer
    assert status == 2 and message in err and "expected" in err and "received" in err, err
    assert len(err.splitlines()) == 1 and out == "", (out, err)
    return True


# On this machine


@pytest.fixture(scope="module")
def timed(folder, tmp_path_factory):
    """stdout and the JSON of the program as a process, on both containers."""
    out = tmp_path_factory.mktemp("out") / "figures.json"
    models = [f"--model={folder}/{name}.tflite" for name in ("int8", "int4")]
    status, stdout, stderr = run_program("export.device", *models, "--threads=2", "--runs=60", f"--json={out}")
    assert (status, stderr) == (0, ""), stderr
    assert [path.name for path in out.parent.iterdir()] == ["figures.json"]
    return stdout, json.loads(out.read_text())


OPERATORS = {"QUANTIZE": 1, "CONV_2D": 4, "MEAN": 1, "FULLY_CONNECTED": 1, "DEQUANTIZE": 1}


def test_the_json_has_a_name_for_every_figure(timed):
    fixed = {"container", "bytes", "zipped", "operators", "outside XNNPACK", "peak MB", *(f"operators {kind}" for kind in OPERATORS)}
    times = {f"ms {figure} {threads}" for figure in ("median", "p90") for threads in ("1 thread", "2 threads")}
    expected = {f"{name}.tflite {figure}" for name in ("int8", "int4") for figure in fixed | times}
    assert set(timed[1]) == expected | {"int4.tflite outside XNNPACK CONV_2D"}


def test_the_figures_are_the_files(timed, folder):
    for name in ("int8", "int4"):
        data = (folder / f"{name}.tflite").read_bytes()
        mine = {key.removeprefix(f"{name}.tflite "): value for key, value in timed[1].items() if key.startswith(name)}
        left = runtime.not_delegated(data)
        assert (mine["container"], mine["bytes"], mine["zipped"]) == (name, len(data), card.zipped(data))
        assert {kind: mine[f"operators {kind}"] for kind in OPERATORS} == OPERATORS and mine["operators"] == 8
        assert mine["outside XNNPACK"] == len(left) == mine.get("outside XNNPACK CONV_2D", 0)
        assert bool(left) == (name == "int4")
        for threads in ("1 thread", "2 threads"):
            assert 0 < mine[f"ms median {threads}"] <= mine[f"ms p90 {threads}"] < 1000
        assert 1 < mine["peak MB"] < 20  # LiteRT's own pages; TensorFlow's hundreds are not in it


def test_the_table_and_the_recommendation_say_what_the_json_says(timed):
    out, figures = timed
    head, *rows, empty, last = out.splitlines()
    assert head.split("  ")[0] == "file" and empty == ""
    for title in ("container", "bytes", "ms median 1t", "ms p90 1t", "ms median 2t", "ms p90 2t", "peak MB", "outside XNNPACK"):
        assert title in head
    for row, name in zip(rows, ("int8", "int4"), strict=True):
        mine = [figures[f"{name}.tflite {key}"] for key in ("ms median 1 thread", "ms p90 1 thread", "ms median 2 threads", "ms p90 2 threads")]
        fixed = [f"{name}.tflite", name, str(figures[f"{name}.tflite bytes"])]
        assert row.split()[:8] == [*fixed, *(f"{value:.4f}" for value in mine), f"{figures[f'{name}.tflite peak MB']:.1f}"]
    assert rows[0].endswith("  0 of 8")
    count = figures["int4.tflite outside XNNPACK"]
    assert rows[1].endswith(f"  {count} of 8: {count} CONV_2D")
    assert last.startswith("ship int") and "times its bytes (zipped " in last


def test_one_file_with_one_thread(run, folder):
    status, out, err = run(f"--model={folder}/int4.tflite", "--threads=1", "--runs=3")
    assert (status, err) == (0, "")
    assert "ms median 1t" in out and "2t" not in out
    assert "int4.tflite: int4 container, outside XNNPACK " in out and "; time what kerakd.unpack makes of it too" in out


def test_peak_memory_counts_the_weights_and_is_stable(folder):
    peaks = {}
    for name in ("int8", "large"):
        for _ in range(2):
            file = device.load(name, str(folder / f"{name}.tflite"))
            device.add_peak(file, 1)
            peaks.setdefault(name, []).append(file.figures["peak MB"])
    weights = 1000 * 2000 * 4 / 2**20
    assert weights < peaks["large"][0] - peaks["int8"][0] < 3 * weights  # the mapped file, and what XNNPACK repacks
    for first, second in peaks.values():
        assert abs(first - second) < 0.5
    assert file.figures["container"] == "float32"


def test_files_take_turns_and_the_statistics_are_of_their_own_images(monkeypatch):
    """Two interpreters on a clock that they alone advance."""
    clock, calls = [0.0], []

    def interpreter(data, threads):
        def invoke():
            calls.append(data)
            late = data == b"slow" and calls.count(data) % 5 == 0
            clock[0] += {b"slow": 3e-3, b"fast": 1e-3}[data] + 1e-3 * late

        return SimpleNamespace(invoke=invoke, set_tensor=lambda *_: None, get_input_details=lambda: [{"index": 0, "shape": [1], "dtype": np.int8}])

    monkeypatch.setattr(runtime, "interpreter", interpreter)
    monkeypatch.setattr(device, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    files = [device.File(name, name, name.encode(), {}) for name in ("slow", "fast")]
    device.add_times(files, 2, 25)
    slow, fast = (file.figures for file in files)
    assert (round(slow["ms median 2 threads"], 6), round(fast["ms median 2 threads"], 6)) == (3, 1)
    assert (round(slow["ms p90 2 threads"], 6), round(fast["ms p90 2 threads"], 6)) == (4, 1)
    assert calls.count(b"slow") == calls.count(b"fast") == 5 + 3 + 25  # warm-up, one before each burst, what is timed
    rounds = [calls[10:32], calls[32:54], calls[54:]]
    assert all(each.count(b"slow") == each.count(b"fast") for each in rounds)


# The recommendation


def timed_file(name, ms, size, zipped=None, **figures):
    return device.File(name, name, b"", {"container": "int8", "bytes": size, "zipped": zipped or size, "operators": 9, "ms median 1 thread": ms, **figures})


def test_the_fastest_is_recommended_against_the_smallest():
    files = [timed_file("b", 3.1, 100, 100), timed_file("a", 1.0, 190, 105), timed_file("c", 2.0, 150)]
    assert device.recommendation(files) == "ship a (1 thread): 3.10 times faster than b, 1.90 times its bytes (zipped 1.05 times)"


def test_the_fastest_and_smallest_is_recommended_against_the_next_in_speed():
    files = [timed_file("a", 1.0, 100), timed_file("b", 4.0, 150), timed_file("c", 2.0, 200)]
    assert device.recommendation(files) == "ship a (1 thread): 2.00 times faster than c, 0.50 times its bytes (zipped 0.50 times)"


def test_of_equally_fast_ones_the_smaller_is_recommended():
    files = [timed_file("a", 1.0, 200), timed_file("b", 1.04, 100)]
    assert device.recommendation(files) == "ship b (1 thread): as fast as a, 0.50 times its bytes (zipped 0.50 times)"


def test_each_file_counts_with_its_better_number_of_threads():
    files = [timed_file("a", 4.0, 200, **{"ms median 4 threads": 1.0}), timed_file("b", 2.0, 100, **{"ms median 4 threads": 3.0})]
    assert device.recommendation(files).startswith("ship a (4 threads): 2.00 times faster than b")


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"outside XNNPACK": 0}, "a: int8 container, all inside XNNPACK, fastest with 1 thread (1.0000 ms)"),
        ({"outside XNNPACK": 2, "outside XNNPACK TANH": 2}, "a: int8 container, outside XNNPACK 2 of 9: 2 TANH, fastest with"),
        ({"outside XNNPACK": 2}, "a: int8 container, outside XNNPACK 2 of 9, fastest with"),
        ({}, "a: int8 container, XNNPACK's share unknown, fastest with"),
    ],
)
def test_of_a_single_file_container_and_share_are_said(figures, words):
    assert device.recommendation([timed_file("a", 1.0, 100, **figures)]).startswith(words)


# On a phone


def test_what_benchmark_model_prints_is_read():
    found = device.parse(SAMPLE.format(threads=4, taken=5, median=51891, peak=13.1797), 4)
    assert found == pytest.approx(
        {
            "ms avg 4 threads": 53.7432,
            "ms median 4 threads": 51.891,
            "ms p95 4 threads": 68.628,
            "peak MB of benchmark_model": 13.1797,
            "outside XNNPACK": 3,
        }
    )


def test_an_older_benchmark_model_gives_what_it_has():
    assert device.parse(OLD, 1) == {"ms avg 1 thread": 1001.52}
    assert device.parse("count=50 curr=7(all same) p5=7 median=7 p95=7\nInference (avg): 7\n", 1) == {
        "ms avg 1 thread": 0.007,
        "ms median 1 thread": 0.007,
        "ms p95 1 thread": 0.007,
    }
    assert device.parse(FAILED, 1) == {}


PHONE = """#!{python}
import json, sys
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
for words, (status, out, err) in json.load(open({answers!r})).items():
    if all(word in " ".join(sys.argv[1:]) for word in words.split()):
        print(out, end="")
        print(err, end="", file=sys.stderr)
        sys.exit(status)
"""


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """A script in adb's place: call it with {words of the command: (exit status, stdout, stderr)}; it returns what was asked so far."""
    place = tmp_path / "bin"
    place.mkdir()
    log, answers = tmp_path / "log", tmp_path / "answers"
    log.touch()
    (place / "adb").write_text(PHONE.format(python=sys.executable, log=str(log), answers=str(answers)))
    (place / "adb").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")

    def plays(**answered):
        answers.write_text(json.dumps({"get-state": (0, "device\n", ""), **answered}))
        return lambda: [json.loads(line) for line in log.read_text().splitlines()]

    return plays


def phone_flags(folder, *models):
    return [*(f"--model={folder}/{name}.tflite" for name in models), "--adb", f"--benchmark_binary={folder}/benchmark_model"]


def test_dry_run_prints_the_exact_commands_and_runs_none(run, folder, phone):
    asked = phone()
    status, out, err = run(*phone_flags(folder, "int8", "int4"), "--dry_run", "--serial=R58M1", "--runs=80")
    assert (status, err, asked()) == (0, "", [])
    there, tail = "/data/local/tmp", "--use_xnnpack=true --num_runs=80 --report_peak_memory_footprint=true"
    assert out.splitlines() == [
        "adb -s R58M1 get-state",
        f"adb -s R58M1 push '{folder}/benchmark_model' {there}/benchmark_model",
        f"adb -s R58M1 shell chmod +x {there}/benchmark_model",
        f"adb -s R58M1 push '{folder}/int8.tflite' {there}/kerakd_0.tflite",
        f"adb -s R58M1 push '{folder}/int4.tflite' {there}/kerakd_1.tflite",
        f"adb -s R58M1 shell {there}/benchmark_model --graph={there}/kerakd_0.tflite --num_threads=1 {tail}",
        f"adb -s R58M1 shell {there}/benchmark_model --graph={there}/kerakd_1.tflite --num_threads=1 {tail}",
        f"adb -s R58M1 shell {there}/benchmark_model --graph={there}/kerakd_0.tflite --num_threads=4 {tail}",
        f"adb -s R58M1 shell {there}/benchmark_model --graph={there}/kerakd_1.tflite --num_threads=4 {tail}",
    ]


def test_dry_run_needs_no_adb(run, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, out, err = run(*phone_flags(folder, "int8"), "--dry_run", "--threads=1")
    assert (status, err) == (0, "") and len(out.splitlines()) == 5 and out.startswith("adb get-state\n")


def test_a_phone_is_asked_by_those_commands_and_its_figures_are_shown(run, folder, phone, tmp_path):
    def sample(name, threads, **figures):
        return {f"shell --graph=/data/local/tmp/kerakd_{name}.tflite --num_threads={threads}": (0, SAMPLE.format(threads=threads, **figures), "")}

    answers = {
        **sample(0, 1, taken=8, median=52000, peak=13.0),
        **sample(0, 2, taken=8, median=26000, peak=13.5),
        **sample(1, 1, taken=5, median=104000, peak=12.0),
        **sample(1, 2, taken=5, median=78000, peak=12.5),
    }
    asked = phone(**answers)
    arguments = [*phone_flags(folder, "int8", "int4"), "--threads=2"]
    status, out, err = run(*arguments, f"--json={tmp_path}/phone.json")
    assert (status, err) == (0, "")
    assert [["adb", *command] for command in asked()] == [shlex.split(line) for line in run(*arguments, "--dry_run")[1].splitlines()]
    head, int8, int4, _, last = out.splitlines()
    sizes = {name: (folder / f"{name}.tflite").stat().st_size for name in ("int8", "int4")}
    assert "ms avg 1t  ms median 1t  ms p95 1t  ms avg 2t  ms median 2t  ms p95 2t  peak MB of benchmark_model" in head
    times = ["53.7432", "52.0000", "68.6280", "53.7432", "26.0000", "68.6280"]
    assert int8.split() == ["int8.tflite", "int8", str(sizes["int8"]), *times, "13.5", "0", "of", "8"]
    assert int4.endswith("3 of 8")
    assert last.startswith(f"ship int8.tflite (2 threads): 3.00 times faster than int4.tflite, {sizes['int8'] / sizes['int4']:.2f} times its bytes")
    figures = json.loads((tmp_path / "phone.json").read_text())
    assert figures["int4.tflite ms median 2 threads"] == 78.0 and figures["int4.tflite outside XNNPACK"] == 3


def test_what_a_phone_does_not_say_is_a_dash(run, folder, phone):
    phone(**{"shell benchmark_model kerakd_0": (0, SAMPLE.format(threads=1, taken=8, median=52000, peak=13.0), ""), "shell kerakd_1": (0, OLD, "")})
    status, out, err = run(*phone_flags(folder, "int8", "int4"), "--threads=1")
    assert (status, err) == (0, "")
    assert out.splitlines()[2].split()[3:] == ["1001.5200", "-", "-", "-", "-"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"get-state": (1, "", "* daemon started successfully\nerror: no devices/emulators found\n")}, "'error: no devices/emulators found'; connect it"),
        (
            {"get-state": (1, "", "error: more than one device/emulator\n")},
            "'error: more than one device/emulator'; connect it with USB debugging on, or choose",
        ),
        ({"get-state": (0, "recovery\n", "")}, "expected a phone that answers, received 'recovery'"),
        ({"push benchmark_model": (1, "", "adb: error: failed to copy: No space left on device\n")}, "received exit status 1 (adb: error: failed to copy"),
        (
            {"--graph": (1, "INFO: STARTING!\n", FAILED)},
            "(ERROR: Node number 57 (BATCH_MATMUL) failed to prepare.; ERROR: Failed to allocate tensors!; ERROR: Ben",
        ),
        ({"--graph": (0, "hello\n", "")}, "expected a line 'Inference (avg)', received 'hello'"),
        ({"--graph": (0, "", "")}, "expected a line 'Inference (avg)', received 'no output'"),
    ],
)
def test_a_phone_that_fails_gets_one_line(run, folder, phone, answers, message, tmp_path):
    phone(**answers)
    assert refused(run(*phone_flags(folder, "int8"), f"--json={tmp_path}/out.json"), message)
    assert not (tmp_path / "out.json").exists()


def test_without_adb_there_is_one_line(run, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused(run(*phone_flags(folder, "int8")), "--adb: expected adb on PATH, received none; install")


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model: expected a .tflite file, received none"),
        (["--model=DIR/nowhere.tflite"], "nowhere.tflite (No such file or directory)"),
        (["--model=DIR"], "(Is a directory)"),
        (["--model=DIR/int8.tflite", "--model=DIR/cut.tflite"], "cut.tflite: file: expected a whole TFLite flatbuffer"),
        (["--model=DIR/text.tflite"], "text.tflite: file: expected a TFLite flatbuffer, received 16 bytes without its mark TFL3"),
        (["--model=DIR/batch.tflite"], "expected one input of shape [1, ...], received [[2, 4]]"),
        (["--model=DIR/int8.tflite", "--model=DIR/../DIR/int8.tflite"], "expected each file once"),
        (["--model=DIR/int8.tflite", "--threads=0"], "--threads: expected a whole number of 1 or more, received '0'"),
        (["--model=DIR/int8.tflite", "--threads=-2"], "received '-2'"),
        (["--model=DIR/int8.tflite", "--threads=1.5"], "received '1.5'"),
        (["--model=DIR/int8.tflite", "--runs=0"], "--runs: expected 1 or more, received 0"),
        (["--model=DIR/int8.tflite", "--dry_run"], "--dry_run: expected --adb beside it"),
        (["--model=DIR/int8.tflite", "--serial=X"], "--serial: expected --adb beside it"),
        (["--model=DIR/int8.tflite", "--benchmark_binary=DIR/benchmark_model"], "--benchmark_binary: expected --adb beside it"),
        (["--model=DIR/int8.tflite", "--adb"], "--benchmark_binary: expected TFLite's benchmark_model built for the phone, received none"),
        (["--model=DIR/int8.tflite", "--adb", "--benchmark_binary=DIR/none"], "none, which is no file"),
        (["--model=DIR/int8.tflite", "--json=DIR/no/out.json"], "--json: expected a folder that exists"),
        (["--model=DIR/int8.tflite", "--json=DIR"], "--json: expected a .json file"),
        (["--model=DIR/int8.tflite", "--json=DIR/int8.tflite", "--overwrite"], "--json: expected a .json file"),
        (["--model=DIR/int8.tflite", "--json=DIR/there.json"], "--json: expected a new file"),
        (["--model=DIR/int8.tflite", "--adb", "--benchmark_binary=DIR/benchmark_model", "--dry_run", "--json=x"], "--json: expected none beside --dry_run"),
        (["DIR/int8.tflite"], "expected flags as --name=value"),
    ],
)
def test_bad_input_gets_one_line(run, folder, arguments, message):
    assert refused(run(*[text.replace("DIR/../DIR", f"{folder}/../{folder.name}").replace("DIR", str(folder)) for text in arguments]), message)


def test_an_operator_that_litert_does_not_have_is_refused(run, folder):
    status, out, err = run(f"--model={folder}/future.tflite")
    assert status == 2 and out == "" and "kerakd: --model=" in err.splitlines()[-1] and "received one that it refuses" in err


def test_the_program_as_a_process_ends_with_status_2(folder):
    assert refused(run_program("export.device", f"--model={folder}/cut.tflite"), "cut.tflite: file: expected a whole TFLite flatbuffer")
