"""Configurations: every flag is a field, every field a flag; files round-trip; each bad value is refused with a remedy."""

import dataclasses
import errno
import logging
import re
import sys

import pytest
import tensorflow as tf
from absl import flags

from kerakd import commandline, quantizers, scheme
from kerakd.config import Config, parse, read
from kerakd.errors import BadInput
from kerakd.teachers import Teacher

GOOD = {"dataset": "digits", "student": "resnet8", "phase": ("alone:3",)}
TAUGHT = {**GOOD, "teacher": ("resnet8",), "teacher_epochs": 1, "phase": ("trained_teacher:3",)}
MATCHED = {**TAUGHT, "hard_weight": 0.0, "view": "same/ic", "mixup": True}
FROM_FLOAT = {**TAUGHT, "float_epochs": 1, "start": "float"}
FLOAT = {**GOOD, "weights": "float", "activations": "float", "first": 0, "last": 0}


def test_a_flag_file_gives_the_same_configuration(tmp_path):
    made = Config(**TAUGHT, seeds=3, soft_weight=0.25, compare=True, override=("stage3=interval:8/interval:8", "add$=float/interval:8"))
    file = tmp_path / "flags.cfg"
    file.write_text(made.text())
    again, _ = parse(["x", f"--flagfile={file}"])
    assert again == made


@pytest.mark.parametrize(
    "restart, steps, expected",
    [
        (False, [200, 1000, 800], 100),
        (True, [200, 1000, 800], 100),
        (True, [1000], 50),  # a teacher that learns in one of the phases
        (True, [2000], 100),  # the student alone, as long in all
        (True, [100, 100, 100], 15),  # with --max_epochs=1
        (True, [2, 100, 100], 1),  # no more of the first phase than was asked of it
        (False, [1], 0),  # something is left to come down in
    ],
)
def test_the_warm_up_is_the_share_that_was_asked(restart, steps, expected):
    made = Config(**{**TAUGHT, "phase": ("alone:2", "co_study:10", "trained_teacher:8")}, warmup_epochs=1.0, restart=restart)
    assert made.warmup(steps) == expected


def test_every_flag_of_views_and_teachers_survives_its_file(tmp_path):
    made = Config(
        **{**MATCHED, "teacher": ("a.keras,size=8,weight=0.5", "b.h5,values=imagenet"), "teacher_epochs": 0},
        view_seed=7,
        ensemble="mean",
        teacher_cache="a folder/c",
        restart=True,
        transfer_dataset="cifar10",
    )
    file = tmp_path / "flags.cfg"
    file.write_text(made.text())
    again, _ = parse(["x", f"--flagfile={file}"])
    assert again == made
    assert again.teachers() == [Teacher("a.keras", 8, 0.5), Teacher("b.h5", values="imagenet")]


def test_hints_are_pairs_of_layers():
    assert Config(**TAUGHT, hint=("a=b", "c d=e/f")).hints() == [("a", "b"), ("c d", "e/f")]


@pytest.mark.parametrize(
    "change",
    [
        {"phase": ("alone:1", "co_study:1", "trained_teacher:1")},
        {"phase": ("joint:1", "trained_teacher:1"), "teacher_epochs": 0},
        {"phase": ("co_study:1", "trained_teacher:1"), "teacher_epochs": 0},
        {**FROM_FLOAT, "phase": ("finetune:1", "co_study:1")},
        {"phase": ("trained_teacher:1", "trained_teacher:1"), "view": "fix/ic_ens"},
        {**MATCHED, "teacher_cache": "c", "seeds": 2},
        {"view": "ind/ic", "teacher_cache": "c", "phase": ("alone:1", "trained_teacher:1")},
        {"hint": ("a=b",), "phase": ("alone:1", "trained_teacher:1")},
        {"warmup_epochs": 2.0, "phase": ("alone:2", "trained_teacher:1")},
        {**MATCHED, "mixup": False, "transfer_dataset": "cifar10", "view": "fix/cc"},
    ],
)
def test_phases_views_and_teachers_that_make_sense_are_taken(change):
    Config(**{**TAUGHT, **change})


def test_later_flags_win_over_a_flag_file(tmp_path):
    file = tmp_path / "flags.cfg"
    file.write_text("# a comment\n" + Config(**GOOD).text())
    assert parse(["x", f"--flagfile={file}", "--batch_size=7"])[0].batch_size == 7


def test_a_number_that_need_not_be_given_is_taken_back_by_nothing(tmp_path):
    file = tmp_path / "x.cfg"
    file.write_text("--dataset=digits\n--student=resnet8\n--phase=alone:1\n--weight_interval_rate=0.1\n--view_seed=3\n--weights=float\n--activations=float\n")
    flags = ["x", f"--flagfile={file}", "--first=0", "--last=0"]
    with pytest.raises(BadInput, match="leave it out, or take it back by --weight_interval_rate="):
        parse(flags)
    made, _ = parse([*flags, "--weight_interval_rate=", "--view_seed="])
    assert made.weight_interval_rate is None and made.view_seed is None
    assert parse([*flags, "--weight_interval_rate=", "--view_seed=0"])[0].view_seed == 0


def test_what_is_wrong_in_the_flags_of_a_run_names_their_file(tmp_path):
    (tmp_path / "flags.cfg").write_text("--dataset=digits\n--student=resnet8\n--phase=alone:1\n--sums=8\n")
    with pytest.raises(BadInput, match=f"--run: {tmp_path / 'flags.cfg'}: --sums: expected --activations of fewer bits"):
        read(tmp_path / "flags.cfg")


def test_a_path_may_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/me")
    told = ["--dataset=digits", "--phase=trained_teacher:1", "--student=~/a.keras", "--teacher=~/b.keras,size=8", "--teacher_cache=~", "--workdir=~/run~"]
    config, where = parse(["run", *told], extra=(("workdir", "", "where"),))
    assert (config.student, config.teacher, config.teacher_cache) == ("/me/a.keras", ("/me/b.keras,size=8",), "/me")
    assert where == {"workdir": "/me/run~"}


def test_every_field_is_a_flag_with_help():
    values = flags.FlagValues()
    commandline.define(values, Config)
    assert {field.name for field in dataclasses.fields(Config)} == set(values)
    assert all(values[name].help for name in values)


def test_parsing_defines_nothing_global():
    before = set(flags.FLAGS)
    parse(["x", "--dataset=digits", "--student=resnet8", "--phase=alone:1"])
    assert set(flags.FLAGS) == before


def test_help_shows_what_the_program_does_and_the_tables_and_exits_zero(capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "What it does.\n\npython -m it")
    with pytest.raises(SystemExit) as exit:
        parse(["x", "--help"])
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("What it does.\n\npython -m it\n\nusage: x [--flagfile=FILE]") and out.count("--flagfile:") == 1
    assert not re.search(r"^\S+:$", out, re.MULTILINE)  # no module's name
    shown = " ".join(out.split())
    assert "trained_teacher" in shown and "shift_flip" in shown and "resnet110" in shown


def test_phases_are_capped_by_max_epochs():
    made = Config(**{**TAUGHT, "phase": ("alone:3", "co_study:100")}, max_epochs=10)
    assert made.phases() == [("alone", 3), ("co_study", 10)]


def test_the_scheme_is_what_the_flags_say():
    made = Config(**GOOD, weights="interval:4,per_channel", activations="pact:3", first=0, override=("conv2=ternary/float",)).scheme()
    inner = scheme.Scheme(quantizers.Ternary(), None)
    assert made == scheme.Scheme(quantizers.Interval(4, per_channel=True), quantizers.Pact(3), None, 8, {"conv2": inner})


def test_a_flag_that_can_be_repeated_is_what_its_last_source_says(tmp_path):
    lines = {"inner": ["--override=a=float/float"], "one": [f"--flagfile={tmp_path / 'inner'}", "--phase=alone:1", "--phase=alone:2", "--student=resnet8"]}
    lines["two"] = ["--phase=alone:3", "--dataset=digits"]
    for name, text in lines.items():
        (tmp_path / name).write_text("\n".join(text) + "\n")

    def phases(*arguments):
        return parse(["x", "--student=resnet8", "--dataset=digits", *(a if a.startswith("--p") else f"--flagfile={tmp_path / a}" for a in arguments)])[0].phase

    assert phases("one") == ("alone:1", "alone:2") and phases("one", "two") == ("alone:3",)
    assert phases("one", "--phase=alone:4", "--phase=alone:5") == ("alone:4", "alone:5") == phases("--phase=alone:4", "one", "--phase=alone:5")
    assert phases("--phase=alone:4", "two") == ("alone:3",)
    spaced = ["x", "--phase", "alone:4", "--flagfile", str(tmp_path / "two"), "--student=resnet8"]
    assert parse(spaced)[0].phase == ("alone:3",) and parse([*spaced, "--phase", "alone:5"])[0].phase == ("alone:4", "alone:5")
    with pytest.raises(BadInput, match="received 'stray'"):
        parse([*spaced, "--", "stray"])
    assert parse(["x", f"--flagfile={tmp_path / 'one'}", "--dataset=digits"])[0].override == ("a=float/float",)


def test_an_override_takes_quantizers_with_options_and_patterns_with_equals_signs():
    texts = "stage3=ternary,scale=positive/interval:8", "conv(?=2)=interval:4,per_channel=true/float", "a/b=kbit:2/pact:2"
    rules = Config(**GOOD, override=texts, signed="interval:8,gradient_scale").scheme().overrides
    eight = quantizers.Interval(8, gradient_scale=True)
    assert rules == {
        "stage3": scheme.Scheme(quantizers.Ternary(scale="positive"), quantizers.Interval(8), signed=eight),
        "conv(?=2)": scheme.Scheme(quantizers.Interval(4, per_channel=True), None, signed=eight),
        "a/b": scheme.Scheme(quantizers.KBit(2), quantizers.Pact(2), signed=eight),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": ""}, "--dataset: expected a value, received none"),
        ({"student": ""}, "--student: expected a value"),
        ({"phase": ()}, "--phase: expected a value"),
        ({"student": "resnet9"}, "--student: expected one of resnet8, .*received 'resnet9'"),
        ({"view": "shuffle"}, "--view: expected one of whole"),
        ({"phase": ("alone",)}, "--phase: expected MODE:EPOCHS.*received 'alone'"),
        ({"phase": ("apart:3",)}, "--phase: expected MODE:EPOCHS, MODE one of alone"),
        ({"phase": ("alone:0",)}, "--phase: expected MODE:EPOCHS"),
        ({"phase": ("joint:3",)}, "--teacher: expected a network for phase 'joint'"),
        ({"phase": ("trained_teacher:3",), "teacher": ("resnet8",)}, "--teacher_epochs: expected more than 0.*untrained teacher"),
        ({"compare": True}, "--phase: expected one with a teacher"),
        ({"teacher": ("resnet8",), "teacher_epochs": 1}, "--phase: expected one with a teacher"),
        ({**TAUGHT, "teacher": ("x.keras",), "teacher_epochs": 0, "teacher_width": 2.0}, "--teacher_width: expected none beside a file"),
        ({"phase": ("alone:²",)}, "--phase: expected MODE:EPOCHS"),
        ({"start": "float"}, "--float_epochs: expected more than 0"),
        ({**TAUGHT, "phase": ("finetune:3",)}, "--start: expected float"),
        ({"batch_size": 0}, "--batch_size: expected more than 0, received 0"),
        ({"freeze": 0.2}, "--freeze: expected at most 0.1, from which the threshold falls to it, received 0.2"),
        ({"learning_rate": -1.0}, "--learning_rate: expected 0 or more, received -1.0"),
        ({"learning_rate": float("nan")}, "--learning_rate: expected 0 or more, received nan"),
        ({"weights": "interval:9"}, "expected a whole number from 2 to 8, received 9"),
        ({"weights": "octonary"}, "quantizer: expected float or one of ternary"),
        ({"activations": "ternary,per_channel=maybe"}, "expected per_channel"),
        ({"override": ("stage3",)}, "--override: expected REGEX=WEIGHTS/ACTIVATIONS"),
        ({"view_seed": -1}, "--view_seed: expected 0 or more, received -1"),
        ({"ensemble_views": 0}, "--ensemble_views: expected more than 0, received 0"),
        ({**TAUGHT, "ensemble": "vote"}, "--ensemble: expected one of sum, mean, received 'vote'"),
        ({**TAUGHT, "hint_loss": "cosine"}, "--hint_loss: expected one of hint, attention"),
        ({**TAUGHT, "hint": ("stage1",)}, "--hint: expected STUDENT_LAYER=TEACHER_LAYER, received 'stage1'"),
        ({**TAUGHT, "hint": ("a=b=c",)}, "--hint: expected STUDENT_LAYER=TEACHER_LAYER, received 'a=b=c'"),
        ({**TAUGHT, "teacher_cache": "c", "jit_compile": True}, "--jit_compile: expected none beside --teacher_cache"),
        ({"steps_per_execution": 0}, "--steps_per_execution: expected more than 0"),
        ({**TAUGHT, "hint": ("a=b",), "view": "fix/cc"}, "--hint: expected a view of which the teacher is asked, received 'fix/cc'"),
        ({**TAUGHT, "teacher": ("resnet9",)}, "--teacher: expected one of resnet8, .*or a .keras or .h5 file, received 'resnet9'"),
        ({**TAUGHT, "teacher": ("resnet8,size=x",)}, "--teacher: expected NETWORK"),
        ({**TAUGHT, "teacher": ("resnet8,values=imagenet",)}, "--teacher: expected values for files alone, received 'imagenet' for 'resnet8'"),
        ({**TAUGHT, "teacher": ("x.keras",)}, "--teacher_epochs: expected 0 beside files"),
        ({**TAUGHT, "teacher": ("x.keras", "resnet8"), "teacher_epochs": 0}, "--teacher_epochs: expected more than 0"),
        ({**TAUGHT, "teacher": ("x.keras,size=8",), "teacher_epochs": 0, "view": "fix/rs"}, "--teacher: expected no size with the fixed view 'fix/rs'"),
        ({**TAUGHT, "teacher_epochs": 0, "phase": ("trained_teacher:1", "co_study:1")}, "--teacher_epochs: expected more than 0.*untrained teacher"),
        ({**TAUGHT, "phase": ("alone:1", "joint:1")}, "--phase: expected 'joint' first, as it trains both networks from scratch, received it after 'alone'"),
        ({**FROM_FLOAT, "phase": ("co_study:1", "finetune:1")}, "--phase: expected 'finetune' first, .*received it after 'co_study'"),
        ({**MATCHED, "hard_weight": None}, "--mixup: expected phases that learn from a frozen teacher alone, --hard_weight=0.*received .*--hard_weight=None"),
        ({**MATCHED, "hard_weight": 0.5}, "--mixup: .*received trained_teacher:3, --hard_weight=0.5"),
        ({**MATCHED, "hard_weight": 0.5, "phase": ("alone:1", "trained_teacher:1")}, "--mixup: .*received alone:1, trained_teacher:1, --hard_weight=0.5"),
        ({"augment": ("CutMix",)}, "--augment: expected phases that learn from a frozen teacher alone"),
        ({"augment": ("RandAugment,much",)}, "--augment: expected NAME.*received 'RandAugment,much'"),
        ({**TAUGHT, "augment": ("RandAugment",), "view": "ind/ic"}, "--augment: expected a view of which .*--view=ind/ic"),
        ({**TAUGHT, "augment": ("RandAugment",), "view": "fix/rs"}, "--augment: expected a view of which .*--view=fix/rs"),
        ({**TAUGHT, "augment": ("RandAugment",), "teacher_cache": "c"}, "--augment: expected .*--teacher_cache=c"),
        ({**MATCHED, "augment": ("CutMix",), "mixup": False, "soft_loss": "dkd"}, "--soft_loss: expected one without labels"),
        ({"mixed_precision": "float8"}, "--mixed_precision: expected one of bfloat16, float16, received 'float8'"),
        ({"hard_weight": 0.0}, "--hard_weight: expected a phase with a teacher beside it, received 0.0 without one"),
        ({"soft_weight": 3.0}, "--soft_weight: expected a phase with a teacher"),
        ({**MATCHED, "dataset": "folder:a", "transfer_dataset": "folder:b", "data_dir": "tfds"}, "--data_dir: expected a dataset of TFDS beside it"),
        ({"temperature": 4.0}, "--temperature: expected a phase with a teacher"),
        ({"soft_loss": "dkd"}, "--soft_loss: expected a phase with a teacher"),
        ({"view": "ind/ic"}, "--view: expected a phase with a teacher"),
        ({"teacher_width": 2.0}, "--teacher_width: expected a teacher by name"),
        ({**TAUGHT, "ensemble": "mean"}, "--ensemble: expected several teachers beside it, received 'mean'"),
        ({**TAUGHT, "hint_loss": "attention"}, "--hint_loss: expected --hint beside it"),
        ({**TAUGHT, "hint_weight": 5.0}, "--hint_weight: expected --hint beside it"),
        ({"signed": "interval:4"}, "signed: expected an Interval of 8 bits"),
        ({"signed": "float"}, "signed: expected an Interval of 8 bits"),
        ({**MATCHED, "soft_loss": "dkd"}, "--soft_loss: expected one without labels beside images that are mixed or have none, received 'dkd'"),
        ({**MATCHED, "mixup": False, "transfer_dataset": "cifar10", "soft_loss": "dkd"}, "--soft_loss: expected one without labels"),
        ({"warmup_epochs": 3.0}, "--warmup_epochs: expected less than the 3 epochs that follow, received 3"),
        ({"warmup_epochs": 2.0, "phase": ("alone:2", "alone:9"), "restart": True}, "--warmup_epochs: expected less than the 2 epochs that follow"),
        ({"hint": ("a=b",)}, "--hint: expected a phase with a teacher, received none"),
        ({**TAUGHT, "hint": ("a=b",), "phase": ("trained_teacher:1", "co_study:1")}, "--teacher: expected one at the student's size and no --hint"),
        ({**TAUGHT, "teacher": ("resnet8", "resnet8"), "phase": ("co_study:1",)}, "--teacher: expected one at the student's size.* in phase 'co_study'"),
        ({**TAUGHT, "teacher": ("resnet8,size=4",), "phase": ("joint:1",)}, "--teacher: expected one at the student's size.* in phase 'joint'"),
        ({**MATCHED, "phase": ("co_study:1",)}, "--mixup: .*received co_study:1"),
        ({**MATCHED, "compare": True}, "--mixup: .*no --compare"),
        ({**TAUGHT, "transfer_dataset": "cifar10"}, "--transfer_dataset: expected phases that learn from a frozen teacher alone"),
        ({**TAUGHT, "transfer_dataset": "cifar10", "hard_weight": 0.0, "compare": True}, "--transfer_dataset: .*no labels of their own"),
        ({**TAUGHT, "view": "fix/cc", "phase": ("co_study:1",)}, "--view: expected phases with a frozen teacher for 'fix/cc', received co_study:1"),
        ({**TAUGHT, "view": "ind/ic", "phase": ("co_study:1",)}, "--view: expected one that teacher and student share in phase 'co_study', received 'ind/ic'"),
        ({"view": "fix/cc"}, "--view: expected phases with a frozen teacher for 'fix/cc', received alone:3"),
        ({**TAUGHT, "teacher_cache": "c", "phase": ("joint:1", "trained_teacher:1")}, "--teacher_cache: expected phases with a frozen teacher for 'c'"),
        ({"teacher_cache": "c"}, "--teacher_cache: expected phases with a frozen teacher for 'c', received alone:3"),
        ({**TAUGHT, "teacher_cache": "c", "view": "fix/ic_ens"}, "--teacher_cache: expected no fixed view and no --hint beside it"),
        ({**TAUGHT, "teacher_cache": "c", "hint": ("a=b",)}, "--teacher_cache: expected no fixed view and no --hint beside it"),
        ({"seed": 2**32 - 2, "seeds": 3}, "--seed: expected seeds below 2.32, as NumPy's are, received 4294967296"),
        ({"view_seed": 2**32}, "--view_seed: expected seeds below 2.32"),
        ({"student_width": float("inf")}, "--student_width: expected 0 or more, received inf"),
        ({"ensemble_views": 3}, "--ensemble_views: expected --view=fix/ic_ens beside it, received 3"),
        ({"sums": 8}, "--sums: expected --activations of fewer bits beside it, received 8"),
        ({**FLOAT, "first": 8, "signed": "interval:8,gradient_scale"}, "--signed: expected --activations that are quantized"),
        ({**FLOAT, "weights": "kbit:4", "weight_interval_rate": 0.1}, "--weight_interval_rate: expected kernels with learned intervals beside it"),
        ({**FLOAT, "first": 8, "activation_interval_rate": 0.1}, "--activation_interval_rate: expected activations with learned intervals beside it"),
        ({"activations": "interval:8,learned=false", "signed": "interval:8,learned=false", "activation_interval_rate": 0.1}, "--activation_interval_rate: "),
        ({**FLOAT, "weights": "interval:4,learned=false", "weight_interval_rate": 0.1}, "--weight_interval_rate: "),
        ({**FLOAT, "weights": "ternary", "calibration": "mse"}, "--calibration: expected quantizers with intervals beside it, received 'mse'"),
        ({**FLOAT, "calibration_images": 9}, "--calibration_images: expected quantizers with intervals beside it, received 9"),
        ({"clip_norm": 0.0}, "--clip_norm: expected more than 0, received 0.0"),
        ({**TAUGHT, "soft_loss": "logit_mse", "temperature": 4.0}, "--temperature: expected a phase with a teacher and another --soft_loss than logit_mse"),
        ({**TAUGHT, "hard_weight": 0.0, "soft_weight": 0.0}, "--soft_weight: expected more than 0 with --hard_weight=0 and no --hint, received 0"),
        ({**TAUGHT, "view": "fix/ic_ens", "soft_loss": "logit_mse"}, "--soft_loss: expected one of probabilities with --view=fix/ic_ens, received 'logit_mse'"),
    ],
)
def test_bad_values_are_refused(change, message):
    with pytest.raises(BadInput, match=message):
        Config(**{**GOOD, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"sums": 8, "activations": "interval:4"},
        {"sums": 8, "override": ("a=ternary/interval:4",)},
        {**FLOAT, "last": 8, "weight_interval_rate": 0.1, "calibration": "mse", "calibration_images": 9},
        {**FLOAT, "weights": "ternary,learned", "weight_interval_rate": 0.1},
        {**FLOAT, "weights": "interval:4,learned=false", "calibration": "mse"},
        {"activations": "pact:4", "signed": "interval:8,learned=false", "activation_interval_rate": 0.1},
        {**FLOAT, "override": ("a=float/interval:4",), "activation_interval_rate": 0.1, "signed": "interval:8,gradient_scale"},
        {**FLOAT, "shrink": 8, "ensemble_views": 3, "calibration_images": 16, "activation_interval_rate": 1e-6},  # smoke.cfg's
    ],
)
def test_a_flag_that_something_reads_is_taken(change):
    Config(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bacth_size=3"], "bacth_size.*--help"),
        (["--batch_size=three"], "three"),
        (["stray"], "arguments: expected flags as --name=value, received 'stray'"),
        (["--flagfile=/nowhere/x.cfg"], "nowhere"),
        (["--flagfile=BINARY"], "--flagfile: expected a text file, one flag a line, received one that is no text"),
    ],
)
def test_bad_command_lines_are_refused(tmp_path, arguments, message):
    (tmp_path / "x.cfg").write_bytes(bytes(range(256)))
    with pytest.raises(BadInput, match=message):
        parse(["x", *[text.replace("BINARY", str(tmp_path / "x.cfg")) for text in arguments]])


def test_what_is_shrunk_stays_a_size():
    assert Config(**GOOD, image_size=7, shrink=8).size() == 1 and Config(**GOOD, shrink=8).size() == 0


@pytest.mark.parametrize("number, remedy", [(errno.ENOSPC, "make room"), (errno.EACCES, "change its permissions, or take another")])
def test_what_the_system_refuses_is_one_line(refusal, number, remedy):
    def main():
        raise OSError(number, "refused", "x.png")

    assert refusal(main)[1] == f"kerakd: x.png: expected to read or write it, received an error (refused); {remedy}\n"


@pytest.mark.parametrize(
    "message, told",
    [
        (
            "Graph execution error:\n\nDetected at node x\nOOM when allocating tensor with shape[1,100000,100000,3]\n\t [[x]]",
            "memory: expected enough, received an error (OOM when allocating tensor with shape[1,100000,100000,3]); take smaller images, batches or networks",
        ),
        ("/runs/x/events.v2; No space left on device", "disk: expected enough, received an error (/runs/x/events.v2; No space left on device); make room"),
    ],
)
def test_what_is_full_is_one_line(capsys, message, told):
    def main():
        raise tf.errors.ResourceExhaustedError(None, None, message)

    with pytest.raises(SystemExit) as ended:
        commandline.program(main)
    assert ended.value.code == 2 and capsys.readouterr().err == f"kerakd: {told}\n"


def test_what_is_exhausted_otherwise_is_raised():
    def main():
        raise tf.errors.ResourceExhaustedError(None, None, "too many open streams")

    with pytest.raises(tf.errors.ResourceExhaustedError):
        commandline.program(main)


@pytest.mark.parametrize(
    "message, shown", [("5 out of the last 11 calls to f triggered tf.function retracing. Tracing is expensive", False), ("another", True)]
)
def test_advice_to_who_wrote_a_function_is_kept_from_who_trains(message, shown):
    record = logging.LogRecord("tensorflow", logging.WARNING, "", 0, message, None, None)
    assert bool(tf.get_logger().filter(record)) == shown
