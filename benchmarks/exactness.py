"""How many logits of the int8 file equal the student's, for networks trained on real images and proved on real test images.

    python -m benchmarks.exactness --workdir=DIR [--data_dir=DIR] [--row=REGEX] [--images=1000] [--json=FILE]

Every network is trained in float, then lowered to each of its schemes, calibrated and trained on. The float networks and the
rows that are done are kept in --workdir: the same command goes on where it was interrupted.
"""

import argparse
import json
import pathlib
import re
import time

import kerakd.quiet

with kerakd.quiet.native_chatter_off():
    import tf_keras as keras

    import kerakd
    from kerakd import batchnorm, data, models, scores
    from kerakd.files import write_aside, write_json

BATCH = 128
TERNARY_A8, W8A8, W4A4, W4A8 = (kerakd.Ternary(), 8), (8, 8), (4, 4), (4, 8)
NETS = {  # name: (width, epochs in float, steps lowered, {scheme: (weights, activations)})
    "resnet20": (1.0, 6, 390, {"ternary-A8": TERNARY_A8, "W4A4": W4A4, "W3A3": (3, 3), "W2A2": (2, 2), "W8A8": W8A8, "W5A6": (5, 6)}),
    "mobilenet_v2": (0.5, 3, 100, {"W4A4": W4A4, "W8A8": W8A8, "ternary-A8": TERNARY_A8}),
    "resnet20v2": (1.0, 2, 100, {"W4A4": W4A4}),
    "mobilenet_v3_small": (1.0, 2, 100, {"W8A8": W8A8, "W4A8": W4A8}),
    "efficientnet_b0": (0.25, 1, 100, {"W8A8": W8A8, "W4A8": W4A8}),
}


def train(model, split, steps, rate, seed):
    """`steps` of Adam on one cosine, then BatchNorm statistics for the final weights."""
    epochs = -(-steps // (split.count // BATCH))
    views = data.training(split, view="shift_flip", size=split.image_shape()[:2], batch_size=BATCH, seed=seed, epochs=epochs)
    distiller = kerakd.Distiller(student=model, mode="alone")
    distiller.compile(optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)), metrics=["accuracy"])
    distiller.fit(views, steps_per_epoch=steps // epochs, epochs=epochs, verbose=2)
    batchnorm.reestimate(model, views.map(lambda images, _: images).take(50))
    return model


def float_net(name, width, epochs, train_split, folder):
    """The trained float network, from `folder` if it is there."""
    path = folder / f"{name}.keras"
    if path.exists():
        return keras.models.load_model(path)
    keras.utils.set_random_seed(0)
    net = train(models.build(name, train_split.image_shape(), train_split.classes, width), train_split, epochs * (train_split.count // BATCH), 2e-3, seed=0)
    write_aside(path, net.save)
    return net


def quantizer(bits):
    return kerakd.Interval(bits) if isinstance(bits, int) else bits


def prove(net, weights, activations, steps, train_split, test, proving):
    """{figure: value} of one row."""
    keras.utils.set_random_seed(0)
    student = kerakd.quantize(net, kerakd.Scheme(quantizer(weights), quantizer(activations)))
    first = next(iter(data.training(train_split, view="shift_flip", size=train_split.image_shape()[:2], batch_size=BATCH, seed=1, epochs=1)))[0]
    kerakd.calibrate(student, first.numpy())
    train(student, train_split, steps, 5e-4, seed=1)
    student = kerakd.tflite.settle(student)
    images, _ = data.arrays(test, proving)
    start = time.perf_counter()
    file = kerakd.to_tflite(student)
    proof = kerakd.verify(student, file, images)
    seconds = time.perf_counter() - start
    return {
        "float accuracy": scores.accuracy(net, test),
        "Keras accuracy": scores.accuracy(student, test),
        "file accuracy": scores.accuracy(file, test),
        "images proved": proof.images,
        "logits equal": proof.logits_equal,
        "top1 equal": proof.top1_equal,
        "max steps": proof.max_steps,
        "codes equal": proof.codes_equal,
        "float32 Keras top1 equal": proof.moved_top1,
        "conversion and proof s": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="trained float networks and rows that are done")
    parser.add_argument("--data_dir", help="where TFDS has cifar10")
    parser.add_argument("--row", default="", help="only rows whose name this pattern finds")
    parser.add_argument("--images", type=int, default=1000, help="test images of the proof")
    parser.add_argument("--json", help="write one flat object, a name for each figure")
    options = parser.parse_args()
    folder = pathlib.Path(options.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "rows.json"
    figures = json.loads(done.read_text()) if done.exists() else {}
    train_split, test_split = data.load("cifar10", options.data_dir)
    test = data.testing(test_split, size=train_split.image_shape()[:2], keep=True)
    for name, (width, epochs, steps, schemes) in NETS.items():
        for scheme, (weights, activations) in schemes.items():
            row = f"{name} {scheme}"
            if re.search(options.row, row) and f"{row} logits equal" not in figures:
                net = float_net(name, width, epochs, train_split, folder)
                figures.update({f"{row} {key}": value for key, value in prove(net, weights, activations, steps, train_split, test, options.images).items()})
                write_json(done, figures)
            if f"{row} logits equal" in figures:
                equal, top1, apart = (figures[f"{row} {key}"] for key in ("logits equal", "top1 equal", "max steps"))
                print(f"{row:32} logits equal {equal:8.4%}  top-1 equal {top1:8.4%}  at most {apart} steps apart", flush=True)
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()
