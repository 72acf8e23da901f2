"""Teachers: what a flag says of them, what each takes its images in, what those say that always see the same."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kerakd import augment
from kerakd.errors import BadInput
from kerakd.teachers import VALUES, Teacher, fixed_logits

L = keras.layers
BYTES = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3) * 5
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # of ImageNet's red, green and blue in 0..1
TAKEN = {"-1..1": BYTES / 127.5 - 1, "0..1": BYTES / 255, "0..255": BYTES, "imagenet": (BYTES / 255 - MEAN) / STD}


@pytest.mark.parametrize(
    "text, teacher",
    [
        ("resnet8", Teacher("resnet8")),
        ("a/b c.keras,size=224", Teacher("a/b c.keras", size=224)),
        ("t.h5,weight=0.5,size=160", Teacher("t.h5", size=160, weight=0.5)),
        ("t.keras,values=imagenet,weight=2", Teacher("t.keras", weight=2.0, values="imagenet")),
        ("t.keras,size=0", Teacher("t.keras")),
    ],
)
def test_a_text_says_network_size_weight_and_values(text, teacher):
    assert Teacher.parse(text) == teacher


@pytest.mark.parametrize("values", VALUES)
def test_every_range_of_values_has_a_name(values):
    assert Teacher.parse(f"t.keras,values={values}").values == values


@pytest.mark.parametrize(
    "text, telling",
    [
        ("t.keras,224", "expected NETWORK.*received 't.keras,224'"),
        ("t.keras,size=big", "expected NETWORK.*received 't.keras,size=big'"),
        ("t.keras,size=1.5", "expected NETWORK"),
        ("t.keras,size=", "expected NETWORK"),
        ("t.keras,weight=heavy", "expected NETWORK"),
        ("t.keras,height=3", "expected NETWORK"),
        ("t.keras,", "expected NETWORK"),
        ("t.keras,values=0..2", "expected values among -1..1, 0..1, 0..255, imagenet, received '0..2'"),
        ("t.keras,values", "expected values among"),
        ("t.keras,size=-1", "expected a size of 0 or more and a weight above 0"),
        ("t.keras,weight=0", "a weight above 0, received 't.keras,weight=0'"),
        ("t.keras,weight=-1", "a weight above 0"),
        ("t.keras,weight=nan", "a weight above 0"),
    ],
)
def test_another_text_is_refused(text, telling):
    with pytest.raises(BadInput, match=f"--teacher: .*{telling}"):
        Teacher.parse(text)


@pytest.mark.parametrize("values", VALUES)
def test_a_teacher_gets_its_images_in_its_own_values(values):
    inputs = keras.Input((4, 4, 3))
    network = keras.Model(inputs, L.Activation("linear")(inputs))
    model = Teacher("t.keras", values=values).prepared(network)
    np.testing.assert_allclose(model(augment.to_minus_one_one(BYTES)), TAKEN[values], rtol=1e-5, atol=1e-4 if values == "0..255" else 1e-6)
    assert (model is network) == (values == "-1..1") and model.input_shape == (None, 4, 4, 3)


def nets():
    """Two networks whose answer in training mode is another."""
    made = []
    for seed in (1, 2):
        init = keras.initializers.RandomNormal(stddev=2.0, seed=seed)
        made.append(keras.Sequential([keras.Input((6,)), L.BatchNormalization(), L.Dropout(0.5), L.Dense(3, kernel_initializer=init)]))
        made[-1].layers[0].moving_mean.assign(np.linspace(-1, 1, 6))
    return made


@pytest.mark.parametrize("per_image, batch_size", [(1, 2), (4, 8), (4, 3)])
def test_fixed_logits_are_numpys_mean_of_probabilities(per_image, batch_size):
    x = np.random.default_rng(0).normal(size=(5, per_image, 6)).astype(np.float32)
    batches = tf.data.Dataset.from_tensor_slices(x.reshape(-1, 6)).batch(batch_size)  # the last one is smaller
    teachers = nets()
    said = fixed_logits(teachers, batches, per_image, 5)
    assert said.shape == (5, 2, 3) and said.dtype == np.float32
    z = np.stack([np.float64(teacher(x.reshape(-1, 6))).reshape(5, per_image, 3) for teacher in teachers], 2)
    mean = (np.exp(z) / np.exp(z).sum(-1, keepdims=True)).mean(1)
    np.testing.assert_allclose(np.exp(said) / np.exp(said).sum(-1, keepdims=True), mean, rtol=1e-4)
    np.testing.assert_allclose(said, z[:, 0] if per_image == 1 else np.log(mean), rtol=1e-4, atol=1e-5)


def test_fixed_logits_move_nothing():
    teachers = nets()
    before = [value.tobytes() for teacher in teachers for value in teacher.get_weights()]
    fixed_logits(teachers, tf.data.Dataset.from_tensor_slices(np.ones((4, 6), np.float32)).batch(4), 2, 2)
    assert before == [value.tobytes() for teacher in teachers for value in teacher.get_weights()]
