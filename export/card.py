"""The card that goes with a file: what it is, what was proved, and the numbers, as JSON and as Markdown."""

import dataclasses
import io
import json
import re
import zipfile
from importlib import metadata

PACKAGES = ("tensorflow", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy")


FLOATS = """
# image: uint8 [height, width, channels], of that size
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], (image[None] / 127.5 - 1).astype("float32"))
interpreter.invoke()
logits = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]
"""
INTEGERS = """
# image: uint8 [height, width, channels], of that size
source, output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
(scale, zero_point), limits = source["quantization"], np.iinfo("{0}")
codes = np.rint((image[None] / 127.5 - 1) / scale) + zero_point
interpreter.set_tensor(source["index"], np.clip(codes, limits.min, limits.max).astype("{0}"))
interpreter.invoke()
scale, zero_point = output["quantization"]
logits = (interpreter.get_tensor(output["index"])[0].astype("float32") - zero_point) * scale
"""


def zipped(data):
    """Bytes of `data` in a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("model.tflite", data)
    return len(buffer.getvalue())


def versions():
    """{package: version} of what made the file."""
    return {name: metadata.version(name) for name in PACKAGES}


def _code(name):
    """A name as code in Markdown, whatever characters it has."""
    marks = "`" * (1 + max(map(len, re.findall("`+", name)), default=0))  # more than the name has in a row
    return f"{marks} {name} {marks}" if "`" in name else f"{marks}{name}{marks}"


def _grid(end):
    """The scale and zero point of a file's input or output in words, the scale with the digits that make a float32 of it again."""
    return f" (scale {end['scale']:.9g}, zero point {end['zero_point']})"


def _use(card, file):
    """How the int8 file is called, for who has nothing but it."""
    source, output, classes = card["input"], card["output"], card["classes"]
    kind, shape, (low, high), integers = source["type"], source["shape"], source["range"], source["type"] != "float32"
    return [
        "## Use",
        "",
        f"* input: {kind} {shape}, one image, channels last{', RGB' * (shape[-1] == 3)}, pixels scaled to {low:g}..{high:g} (`pixel / 127.5 - 1`)"
        f"{', then `round(x / scale) + zero_point`' + _grid(source) if integers else ''}; "
        "one of another size resized whole as by `tf.image.resize`: bilinear, half-pixel centers, aspect not kept, no antialiasing",
        f"* output: {output['type']} {output['shape']}, logits{', by `(q - zero_point) * scale`' + _grid(output) if integers else ''}; "
        f"the class is the largest: {', '.join(f'{k} {_code(name)}' for k, name in enumerate(classes))}",
        "",
        "```python",
        *(["import numpy as np"] * integers),
        "from ai_edge_litert.interpreter import Interpreter",
        "",
        f'interpreter = Interpreter("{file}")',
        "interpreter.allocate_tensors()",
        *(INTEGERS if integers else FLOATS).format(kind).strip().splitlines(),
        "```",
        "",
        "LiteRT in C++, on Android and iOS calls it the same way. `export.tflite --io=int8` or `uint8` makes files whose input and output are integers.",
        "",
    ]


def as_json(card):
    """The card for a program."""
    proofs = {key: {**dataclasses.asdict(proof), "exact": proof.exact, "text": str(proof)} for key, proof in card["proofs"].items()}
    settled = card["settled"] and dataclasses.asdict(card["settled"])
    return json.dumps({**card, "proofs": proofs, "settled": settled}, indent=1) + "\n"


def as_markdown(card, file):
    """The card for a reader, beside the int8 file of that name."""
    lines = [
        f"# {card['run']}",
        "",
        "```",
        card["config"].strip(),
        "```",
        "",
        *_use(card, file),
        "| network | test accuracy | bytes | zipped | ms an image |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {row['network']} | {row['accuracy']:.4f} | {row['bytes']} | {row['zipped']} | {row['ms']:.3f} |" for row in card["table"]]
    lines += ["", f"The kernels at their trained widths alone: {card['ideal_bytes']} bytes.", "", "## Proof", ""]
    for key, proof in card["proofs"].items():
        lines += [f"{key}:", "", "```", str(proof), "```", ""]
    lines += [f"Before it, by settling, {card['settled']}.", ""] if card["settled"] else []
    for container, census in card["census"].items():
        kernels = ", ".join(f"{count} {kind}" for kind, count in census["weights"].items())
        operators = ", ".join(f"{count} {name}" for name, count in census["operators"].items())
        lines += [
            f"## Census of the {container} container",
            "",
            f"* kernels: {kernels}",
            f"* operators: {operators}",
            f"* float tensors inside: {len(census['float_tensors'])}",
            "",
        ]
    sums = ", ".join(f"`{digits}` of the {container} container" for container, digits in card["sha256"].items())
    lines += [f"The files that this is said of have the sha256 {sums}.", ""]
    needs = ", ".join(f"{version} for the {container} container" for container, version in card["oldest_litert"].items())
    lines += [f"Oldest LiteRT (ai-edge-litert) that computes them right: {needs}.", ""]
    for key, proof in card["proofs"].items():
        lines += [f"## Tensors inside, {key}, {proof.layer_images} images", "", "| tensor | values | equal | steps apart, at most |", "|---|---|---|---|"]
        lines += [f"| {layer.layer} | {layer.values} | {layer.equal:.4%} | {layer.max_steps} |" for layer in proof.layers]
        lines += [""]
    lines += ["## Made with", "", *(f"* {name} {version}" for name, version in card["versions"].items())]
    return "\n".join(lines) + "\n"
