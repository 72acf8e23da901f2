"""A run directory to both TFLite containers, with their proof, their card and a table of what was trained.

python -m export.tflite --run=runs/digits
"""

import dataclasses
import pathlib
import sys

from kerakd import quiet  # first: it keeps TensorFlow quiet

with quiet.native_chatter_off():
    import numpy as np
    import tensorflow as tf

    import kerakd
    from export import card
    from kerakd import config as config_module
    from kerakd import data, evaluate
    from kerakd.errors import BadInput
    from kerakd.rundir import RunDirectory, write_aside
    from kerakd.tflite import flatfile, runtime


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of this program."""

    run: str = dataclasses.field(default="", metadata={"help": "the run directory", "choices": None})
    out: str = dataclasses.field(
        default="", metadata={"help": "the int8 file; the small one takes .int4.tflite, the card .json and .md; empty: RUN/student.tflite", "choices": None}
    )
    overwrite: bool = dataclasses.field(default=False, metadata={"help": "replace files that exist", "choices": None})
    images: int = dataclasses.field(default=1000, metadata={"help": "test images of the proof; 0: all", "choices": None})


def float_file(model):
    """`model` as a float32 TFLite file, to compare with."""
    function = tf.function(lambda x: model(x, training=False))
    with quiet.native_chatter_off():
        concrete = function.get_concrete_function(tf.TensorSpec([1, *model.input_shape[1:]], tf.float32))
        return tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert()


class Export:
    """One run on its way out: its flags, its test images, its networks."""

    def __init__(self, options):
        self.directory = RunDirectory(options.run)
        self.results = self.directory.results()
        flags = self.directory.path / "flags.cfg"
        self.config, _ = config_module.parse(["run", f"--flagfile={flags}"])
        train, test = data.load(self.config.dataset, self.config.data_dir or None, self.config.synthetic, self.config.image_size)
        self.images, self.labels = data.arrays(data.testing(test, size=train.image_shape(self.config.image_size)[:2]))
        self.proving = self.images[: options.images or None]

    def row(self, network, accuracy, file):
        """A line of the table; `file` gives bytes and time."""
        return {"network": network, "accuracy": accuracy, "bytes": len(file), "zipped": card.zipped(file), "ms": runtime.milliseconds(file)}

    def seeds(self, kind):
        """[(name, accuracy)] of the students of one kind, the first seed first."""
        return [(name, accuracy) for name, accuracy in self.results.items() if name.split("_")[0] == kind]

    def float_rows(self):
        for name, title in (("teacher", "teacher, float32"), ("float", "student, float32")):
            if self.directory.has_model(name):
                yield self.row(title, self.results[name], float_file(self.directory.load_model(name)))

    def student_rows(self, kind, title, file):
        """The Keras student: mean over seeds; bytes and time are those of the first seed's int8 file."""
        accuracies = [accuracy for _, accuracy in self.seeds(kind)]
        if accuracies:
            seeds = f" (mean of {len(accuracies)} seeds)" if len(accuracies) > 1 else ""
            yield self.row(title + seeds, float(np.mean(accuracies)), file)

    def run(self):
        """({container: bytes}, card)."""
        name = self.seeds("taught")[0][0]
        student = self.directory.load_model(name)
        print(f"converting {name} of {self.directory.path}")
        files = {container: kerakd.to_tflite(student, container) for container in ("int8", "int4")}
        proofs = {container: kerakd.verify(student, file, self.proving) for container, file in files.items()}
        proofs["int4, unpacked"] = kerakd.verify(student, kerakd.unpack(files["int4"]), self.proving)
        rows = list(self.float_rows())
        for first, _ in self.seeds("alone")[:1]:
            rows += self.student_rows("alone", f"student, {self.config.weights}, alone", kerakd.to_tflite(self.directory.load_model(first)))
        title = f"student, {self.config.weights}" + ", taught" * self.config.taught()
        rows += self.student_rows("taught", title, files["int8"])
        rows.append(self.row(f"  {name} in Keras", self.results[name], files["int8"]))
        for container, file in files.items():
            rows.append(self.row(f"  {name} on the {container} .tflite", evaluate.accuracy(file, self.images, self.labels), file))
        return files, {
            "run": str(self.directory.path),
            "config": self.config.text(),
            "table": rows,
            "proofs": {key: card.proof_as_dict(proof) for key, proof in proofs.items()},
            "census": {container: flatfile.census(file) for container, file in files.items()},
            "versions": card.versions(),
        }


def table(rows):
    """The table for a terminal."""
    width = max(len(row["network"]) for row in rows)
    lines = [f"{'network':{width}}  accuracy     bytes    zipped  ms an image"]
    lines += [f"{row['network']:{width}}    {row['accuracy']:.4f}  {row['bytes']:8d}  {row['zipped']:8d}  {row['ms']:11.4f}" for row in rows]
    return "\n".join(lines)


def _outputs(options):
    out = pathlib.Path(options.out or pathlib.Path(options.run) / "student.tflite")
    paths = {"int8": out, "int4": out.with_suffix(".int4.tflite"), "json": out.with_suffix(".json"), "md": out.with_suffix(".md")}
    for path in paths.values():
        if path.exists() and not options.overwrite:
            raise BadInput(f"--out: expected new files, received {path}, which exists; give --overwrite or another --out")
    if not out.parent.is_dir():
        raise BadInput(f"--out: expected a folder that exists, received {out.parent}; make it first")
    return paths


def main():
    options, _ = config_module.parse(["python -m export.tflite", *sys.argv[1:]], Options)
    if not options.run:
        raise BadInput("--run: expected a run directory, received none; give --run=runs/NAME")
    export = Export(options)
    paths = _outputs(options)
    files, made = export.run()
    print("\n" + table(made["table"]) + "\n")
    for name, proof in made["proofs"].items():
        print(f"proof, {name}: {proof['text']}")
    short = [name for name in ("int8", "int4, unpacked") if not made["proofs"][name]["exact"]]
    if short:
        raise BadInput(f"proof: expected every code and every logit equal, received less for {', '.join(short)}; nothing was written, please report this model")
    contents = {**files, "json": card.as_json(made).encode(), "md": card.as_markdown(made).encode()}
    for key, path in paths.items():
        write_aside(path, lambda aside, key=key: aside.write_bytes(contents[key]))
    print(f"\nwrote {', '.join(str(path) for path in paths.values())}")


if __name__ == "__main__":
    config_module.program(main)
