"""A run directory to both TFLite containers, with their proof, their card and a table of what was trained.

python -m export.tflite --run=runs/digits
"""

import dataclasses
import hashlib
import io
import pathlib
import sys
import textwrap

from kerakd import quiet  # first: it keeps TensorFlow quiet

with quiet.native_chatter_off():
    import numpy as np
    import tensorflow as tf

    import kerakd
    from export import card
    from kerakd import commandline, data, scores
    from kerakd import config as config_module
    from kerakd.commandline import flag
    from kerakd.errors import BadInput
    from kerakd.files import write_together
    from kerakd.rundir import MEASURED, WRITTEN, RunDirectory, kind_of
    from kerakd.tflite import Settling, flatfile, runtime
    from kerakd.tflite.codes import ideal_bytes
    from kerakd.tflite.convert import IO_TYPES


def _kept(proof):
    """Whether rounding for integers, or a student that is not what was folded, changed no more than one answer in a hundred."""
    return round((1 - proof.moved_top1) * proof.images) <= max(1, proof.images // 100)


def _astray(proof):
    """What names another class, and than what, on more images than `_kept` allows, of a proof of the int4 container: [the middle of a sentence]."""
    told = [] if _kept(proof) else [", whose biases are coarser, names another class than the student"]
    if round((1 - proof.top1_equal) * proof.images) > max(1, proof.images // 100):
        why = ", which runs outside XNNPACK in kernels that round twice (a file of kerakd.unpack does not)," if proof.not_delegated else ""
        told.append(f"{why} names another class than its snapped copy")
    return told


REQUIREMENTS = {  # what a proof has to show before anything is written
    "codes": ("every weight code equal in both containers, and none that nobody trained", lambda proofs: all(map(_codes, proofs.values()))),
    "int8": (
        "every logit, top-1 and code of the int8 container equal to those of the student's snapped copy, and nothing in it float",
        lambda proofs: proofs["int8"].exact,
    ),
    "unpacked": ("the same of the int4 container after kerakd.unpack", lambda proofs: proofs["int4, unpacked"].exact),
    "emulated": ("every logit of the int4 container as it is equal to its emulation in NumPy", lambda proofs: proofs["int4"].emulated_equal == 1),
    "kept": ("the class that the float32 student names on 99 of 100 images, by the int8 container", lambda proofs: _kept(proofs["int8"])),
    "none": ("nothing", lambda proofs: True),
}


SUFFIXES = {"int8": ".tflite", "int4": ".tflite", "json": ".json", "md": ".md", "codes": ".npz"}  # of what is written


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of this program."""

    run: str = flag("", "the run directory")
    out: str = flag("", "the int8 file; the small one takes .int4.tflite, the card .json and .md; empty: RUN/student.tflite")
    overwrite: bool = flag(False, "replace files that exist")
    images: int = flag(1000, "test images of the proof; 0: all")
    require: tuple = flag(
        tuple(name for name in REQUIREMENTS if name != "none"),
        f"what the proof has to show, or nothing is written; {'; '.join(f'{name}: {what}' for name, (what, _) in REQUIREMENTS.items())}; repeat it for more",
        REQUIREMENTS,
    )
    io: str = flag("float32", "type of the files' input and output; integers are by the scale and zero point in the file", tuple(IO_TYPES))
    codes: str = flag("", "write the trained codes and scales to this .npz file as well")

    def __post_init__(self):
        for name in self.require:
            if name not in REQUIREMENTS:
                raise BadInput(f"--require: expected some of {', '.join(REQUIREMENTS)}, received {name!r}")
        if self.io not in IO_TYPES:
            raise BadInput(f"--io: expected one of {', '.join(IO_TYPES)}, received {self.io!r}")
        if self.images < 0:
            raise BadInput(f"--images: expected 0 or more, received {self.images}")
        if self.codes and not self.codes.endswith(".npz"):
            raise BadInput(f"--codes: expected a .npz file, received {self.codes}")


def float_file(model):
    """`model` as a float32 TFLite file, to compare with."""
    function = tf.function(lambda x: model(x, training=False))
    with quiet.native_chatter_off():
        concrete = function.get_concrete_function(tf.TensorSpec([1, *model.input_shape[1:]], tf.float32))
        return tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert()


class Export:
    """One run on its way out: its flags, its test images, its networks."""

    def __init__(self, options):
        self.directory, self.io, self.measured = RunDirectory(options.run), options.io, {}
        self.results = self.directory.results()
        self.config = config_module.read(self.directory.path / "flags.cfg")
        train, test = data.load(self.config.dataset, self.config.data_dir or None, self.config.synthetic, self.config.largest())
        data.check_classes(self.directory.data().get("classes"), test)
        self.classes = test.names
        self.test = data.testing(test, size=train.image_shape(self.config.size())[:2], keep=True)
        self.proving, _ = data.arrays(self.test, options.images or None)

    def row(self, network, accuracy, file):
        """A line of the table; `file` gives bytes and time, which is measured once."""
        if file not in self.measured:
            self.measured[file] = {"bytes": len(file), "zipped": card.zipped(file), "ms": runtime.milliseconds(file)}
        return {"network": network, "accuracy": accuracy, **self.measured[file]}

    def seeds(self, kind):
        """[(name, accuracy)] of the students of one kind, the first seed first."""
        return [(name, accuracy) for name, accuracy in self.results.items() if kind_of(name) == kind]

    def float_rows(self):
        """Rows of the table for the float networks of the run."""
        teachers = [(name, f"{name.replace('_', ' ')}, float32") for name, _ in self.seeds("teacher")]
        for name, title in (*teachers, ("float", "student, float32")):
            if self.directory.has_model(name):
                yield self.row(title, self.results[name], float_file(self.directory.load_model(name)))

    def student_rows(self, kind, title, file):
        """The Keras student: mean over seeds; bytes and time are those of the first seed's int8 file."""
        accuracies = [accuracy for _, accuracy in self.seeds(kind)]
        if accuracies:
            seeds = f" (mean of {len(accuracies)} seeds)" if len(accuracies) > 1 else ""
            yield self.row(title + seeds, float(np.mean(accuracies)), file)

    def run(self):
        """({container: bytes}, card, the student)."""
        name = self.seeds("taught")[0][0]
        student = self.directory.load_model(name)
        print(f"converting {name} of {self.directory.path}")
        files = {container: kerakd.to_tflite(student, container, self.io) for container in ("int8", "int4")}
        proofs = {container: kerakd.verify(student, file, self.proving) for container, file in files.items()}
        proofs["int4, unpacked"] = kerakd.verify(student, kerakd.unpack(files["int4"]), self.proving)
        rows = list(self.float_rows())
        for first, _ in self.seeds("alone")[:1]:
            rows += self.student_rows("alone", f"student, {self.config.weights}, alone", kerakd.to_tflite(self.directory.load_model(first)))
        title = f"student, {self.config.weights}" + ", taught" * self.config.taught()
        rows += self.student_rows("taught", title, files["int8"])
        rows.append(self.row(f"  {name} in Keras", self.results[name], files["int8"]))
        for container, file in files.items():
            rows.append(self.row(f"  {name} on the {container} .tflite", scores.accuracy(file, self.test), file))
        source, output = flatfile.ends(flatfile.read(files["int8"]))  # those of the int4 container too
        return (
            files,
            {
                "run": str(self.directory.path),
                "config": self.config.text(),
                "table": rows,
                "ideal_bytes": ideal_bytes(student),
                "proofs": proofs,
                "settled": Settling(**self.directory.settled()[name]) if name in self.directory.settled() else None,
                "classes": list(self.classes),
                "input": {"shape": [1, *student.input_shape[1:]], "range": [-1, 1], **source},
                "output": {"shape": [1, *student.output_shape[1:]], **output},
                "census": {container: flatfile.census(file) for container, file in files.items()},
                "oldest_litert": {container: runtime.oldest(file) for container, file in files.items()},
                "sha256": {container: hashlib.sha256(file).hexdigest() for container, file in files.items()},
                "versions": card.versions(),
            },
            student,
        )


def table(rows):
    """The table for a terminal."""
    width = max(len(row["network"]) for row in rows)
    lines = [f"{'network':{width}}  accuracy     bytes    zipped  ms an image"]
    lines += [f"{row['network']:{width}}    {row['accuracy']:.4f}  {row['bytes']:8d}  {row['zipped']:8d}  {row['ms']:11.4f}" for row in rows]
    return "\n".join(lines)


def _outputs(options):
    """{what: path}, none of which exists. Raises: BadInput where one does, or its folder does not."""
    out = pathlib.Path(options.out or pathlib.Path(options.run) / "student.tflite")
    paths = {"int8": out, "int4": out.with_suffix(".int4.tflite"), "md": out.with_suffix(".md")}
    if options.codes:
        paths["codes"] = pathlib.Path(options.codes)
    paths["json"] = out.with_suffix(".json")  # the last to be there, as programs look for it
    for what, path in paths.items():
        if path.parent.resolve() == pathlib.Path(options.run).resolve() and any(path.match(pattern) for pattern in (*WRITTEN, *MEASURED)):
            name = "codes" if what == "codes" else "out"
            raise BadInput(f"--{name}: expected a name that is no file's of the run, received {path.name}, which the export would write; take another --{name}")
        commandline.check_new("codes" if what == "codes" else "out", str(path), (SUFFIXES[what],), options.overwrite)
    return paths


def _codes(proof):
    return proof.codes_equal == 1 and not proof.foreign_kernels


def _check(proofs, required):
    """Raises BadInput where the proofs fall short of a requirement."""
    short = [name for name in required if not REQUIREMENTS[name][1](proofs)]
    if short:
        less = "; ".join(f"{name} ({REQUIREMENTS[name][0]}): {_found(name, proofs)}" for name in short)
        rest = " ".join(f"--require={name}" for name in required if name not in short) or "--require=none"
        raise BadInput(f"proof: expected what --require asks, received less for {less}; nothing was written, give {rest} if that will do")


def _found(name, proofs):
    """What a proof shows of a requirement that it falls short of."""
    if name == "codes":
        return ", ".join(f"{proof.codes_equal:.2%} in {container}" + _others(proof.foreign_kernels, "untrained kernels") for container, proof in proofs.items())
    if name == "emulated":
        equal = proofs["int4"].emulated_equal
        return "it has operators that the emulation does not model" if equal is None else f"{equal:.2%}"
    if name == "kept":
        return f"{proofs['int8'].moved_top1:.2%}"
    proof = proofs["int8" if name == "int8" else "int4, unpacked"]
    equal = f"{proof.logits_equal:.2%} of the logits, {proof.top1_equal:.2%} of the top-1, {proof.codes_equal:.2%} of the codes"
    return equal + _others(proof.float_tensors, "float tensors inside") + _others(proof.foreign_kernels, "untrained kernels")


def _others(names, what):
    return f", {len(names)} {what} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" if names else ""


def _as_npz(arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def main():
    options, _ = commandline.parse(["python -m export.tflite", *sys.argv[1:]], Options)
    if not options.run:
        raise BadInput("--run: expected a run directory, received none; give --run=runs/NAME")
    export = Export(options)
    paths = _outputs(options)
    files, made, student = export.run()
    print("\n" + table(made["table"]))
    print(f"the kernels at their trained widths alone: {made['ideal_bytes']} bytes\n")
    for name, proof in made["proofs"].items():
        print(f"proof, {name}\n{textwrap.indent(str(proof), '  ')}")
    if made["settled"]:
        print(f"settling\n  before the proof {made['settled']}")
    _check(made["proofs"], options.require)
    for reason in _astray(made["proofs"]["int4"]):
        print(f"kerakd: the int4 container{reason} on more than one image in a hundred", file=sys.stderr)
    contents = {**files, "json": card.as_json(made).encode(), "md": card.as_markdown(made, paths["int8"].name).encode()}
    if options.codes:
        contents["codes"] = _as_npz(kerakd.codes(student))
    write_together({path: lambda aside, key=key: aside.write_bytes(contents[key]) for key, path in paths.items()})
    print(f"\nwrote {', '.join(str(path) for path in paths.values())}")


if __name__ == "__main__":
    commandline.program(main)
