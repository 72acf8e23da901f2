"""The program that trains: teacher, float student, quantized students, one after the other, in a run directory.

python -m kerakd.train --flagfile=configs/digits_ternary.cfg --workdir=runs/digits
"""

import os
import shlex
import sys

from kerakd import quiet  # first: it keeps TensorFlow quiet

with quiet.native_chatter_off():
    import tensorflow as tf
    import tf_keras as keras

    from kerakd import commandline, data, halfspeed
    from kerakd import config as config_module
    from kerakd.devices import NAMES as DEVICES
    from kerakd.devices import devices, lost
    from kerakd.errors import BadInput
    from kerakd.keep import Every, Keeping, Stopped
    from kerakd.rundir import RunDirectory, kind_of
    from kerakd.training import Training


FLAGS = (  # of this program, besides those of a Config: (name, default, help)
    ("workdir", "", "the run directory, new or empty"),
    ("resume", False, "go on with the run in --workdir"),
    ("overwrite", False, "delete the run in --workdir and start anew"),
    ("checkpoint_every", "10min", 'keep a checkpoint after so many steps, as "500", or so long, as "90s" or "10min"; each epoch\'s end is kept as well'),
    ("checkpoints", 2, "how many checkpoints of the network under way are kept"),
    ("distribute", "none", f"the devices that share each batch, one of {', '.join(DEVICES)}; multi_worker: those of the processes in TF_CONFIG"),
    ("devices", 0, "with --distribute=mirrored, how many GPUs or parts of the CPU; 0: every GPU"),
    ("tpu", "", "with --distribute=tpu, its name or address; local on a TPU VM"),
)


def table(results, taught):
    """The lines that end a run: test accuracy of each kind of network, students as mean over seeds."""
    rows = []
    student = "student, taught" if taught else "student"
    for kind, title in (("teacher", "teacher"), ("float", "float student"), ("alone", "student, alone"), ("taught", student)):
        found = [accuracy for name, accuracy in results.items() if kind_of(name) == kind]
        if found:
            spread = f"  (mean of {len(found)}{' seeds' * (kind != 'teacher')}, {min(found):.4f} to {max(found):.4f})" if len(found) > 1 else ""
            rows.append(f"  {title:28}{sum(found) / len(found):.4f}{spread}")
    return "\n".join(["test accuracy", *rows])


def _deterministic(seed):
    """Has TensorFlow and Keras compute and draw the same for the same flags."""
    tf.config.experimental.enable_op_determinism()
    keras.backend.experimental.enable_tf_random_generator()  # dropout draws from a state that checkpoints hold
    keras.utils.set_random_seed(seed)
    tf.random.set_global_generator(tf.random.Generator.from_seed(seed))  # keras_cv's layers draw from it


def main():
    config, where = config_module.parse(["python -m kerakd.train", *sys.argv[1:]], extra=FLAGS)
    if not where["workdir"]:
        raise BadInput("--workdir: expected a directory, received none; give --workdir=runs/NAME")
    if where["checkpoints"] < 1:
        raise BadInput(f"--checkpoints: expected 1 or more, received {where['checkpoints']}")
    keeping = Keeping(Every(where["checkpoint_every"]), where["checkpoints"], devices=devices(where["distribute"], where["devices"], where["tpu"]))
    chief = keeping.devices.chief
    keeping.request.listen()
    _deterministic(config.seed)
    if config.augment:
        print("kerakd: --augment draws from streams: the same flags give the same run, but one that was resumed sees other views", file=sys.stderr)
    if config.mixed_precision and chief and where["distribute"] != "tpu":  # which has them
        halfspeed.warn(config.mixed_precision)
    directory, claimed = RunDirectory(where["workdir"], own=chief), False
    try:
        if chief:
            for name in (config.dataset, config.transfer_dataset):
                data.check_outside(name, {"workdir": where["workdir"], "teacher_cache": config.teacher_cache})
            directory.check(config.text(), where["resume"], where["overwrite"])
            if where["overwrite"]:
                directory.check_apart(config.files())
        training = Training(config, directory, keeping)
        if chief and where["resume"]:
            directory.check_data(training.data())
        directory.claim(config.text(), where["resume"], where["overwrite"])
        directory.save_data(training.data())
        claimed = keeping.devices.largest(1)
        if not chief:  # the run that the chief has begun or goes on with
            directory.check(config.text(), resume=True, overwrite=False)
            directory.check_data(training.data())
        print(table(training.run(), config.taught()))
    except Stopped as stopped:
        print(f"kerakd: stopped by {stopped.name}; --resume goes on from what the run has kept", file=sys.stderr)
        raise
    except tf.errors.OpError as error:
        if not lost(error):
            raise
        print("kerakd: another worker was lost; begins again, from the last checkpoint, as soon as all are there", file=sys.stderr, flush=True)
        directory.close()
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "kerakd.train", *sys.argv[1:], *(["--nooverwrite", "--resume"] if claimed else [])])
    finally:
        directory.close()
    print(f"run: {directory.path}  (curves.png, metrics.jsonl, flags.cfg; python -m kerakd.report --run={shlex.quote(str(directory.path))} --out=report.html)")
    if config.exports():
        print(f"next: python -m export.tflite --run={shlex.quote(str(directory.path))}")


if __name__ == "__main__":
    commandline.program(main)
