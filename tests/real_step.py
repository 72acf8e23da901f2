"""Two real steps of each phase (the first of a warm-up has rate 0) of a configuration, at its real size, on two synthetic images.

python tests/real_step.py CONFIG.cfg WORKDIR    prints a line with the seconds of each phase and the peak memory.
"""

import pathlib
import resource
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import kerakd.quiet  # noqa: E402, F401
from kerakd import training  # noqa: E402
from kerakd.config import parse  # noqa: E402
from kerakd.rundir import RunDirectory  # noqa: E402

BATCH = 2


def main(path, workdir):
    flags = ["x", f"--flagfile={path}", "--synthetic", f"--batch_size={BATCH}", "--batchnorm_batches=0", f"--data_dir={workdir}"]
    config, _ = parse(flags)
    if config.exports():
        config, _ = parse([*flags, f"--calibration_images={BATCH}"])
    run = training.Training(config, RunDirectory(workdir))
    if config.float_epochs and config.from_float():  # what its stage would leave
        run.directory.claim(config.text(), resume=False, overwrite=True)
        run.directory.save_model("float", run.networks.float_student())
    stage = run.stages[-1]
    distiller, _ = run.ready(stage)
    student = distiller.student
    before, took = [weight.copy() for weight in student.get_weights()], []
    for mode, _ in stage.phases:
        started = time.perf_counter()
        distiller.enter(mode)
        views = run.lessons.heard(distiller, 0, 0, 1) if distiller.mode.frozen_teacher else run.lessons.views(0, 0, 1)
        logs = distiller.fit(views, steps_per_epoch=2, epochs=1, verbose=0).history
        assert all(abs(values[0]) < float("inf") for values in logs.values()), logs
        took.append(f"{mode} {time.perf_counter() - started:.0f} s")
    assert any((now != then).any() for now, then in zip(student.get_weights(), before, strict=True)), "the step moved no weight"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{pathlib.Path(path).stem}: images {run.shape}, {run.train.classes} classes, {', '.join(took)}, peak {peak:.1f} GB")


if __name__ == "__main__":
    main(*sys.argv[1:])
