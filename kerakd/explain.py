"""What TensorFlow says when a step of a Distiller fails, in the words of who called it."""

import contextlib
import re

import tensorflow as tf

from kerakd.errors import BadInput, Diverged
from kerakd.soft import ROWS

LOSS = "loss of a training step"  # the label of its check_numerics, by which that error is known again

_DIVERGED = (
    "{}, received {}; the training diverged: take a smaller learning rate, above all for intervals "
    "(activation_interval_optimizer), or Interval(gradient_scale=True)"
)


@contextlib.contextmanager
def explained(classes):
    """Runs steps of networks with that many classes.

    Raises: Diverged for a loss, a weight or an interval that is not finite, BadInput for labels outside the classes, rows of labels or more or fewer
        labels than images where shapes are not known before, and for what the step itself refused; what is neither, as it came.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        if "input_min nan" in error.message:
            raise Diverged(_DIVERGED.format("student: expected finite weights and intervals", f"NaN in {_layer(error.message)}")) from error
        found = re.search(rf"{LOSS} : Tensor had (.*) values", error.message)
        if found:
            averages = "the averages of BatchNorms may have it all the same: go back to a checkpoint, or call kerakd.batchnorm.reestimate"
            told = _DIVERGED.format("loss: expected a finite one", f"{found[1]} (no trained weight was changed by this step)")
            raise Diverged(f"{told}; {averages}") from error
        if ROWS in error.message:
            raise BadInput("soft_loss: expected class numbers in the batches for a loss that uses them, received rows; take kl, or give numbers") from error
        found = re.search(r"got logits shape \[(\d+),\d+\] and labels shape \[(\d+)\]", error.message)  # of a generator they are known only as they come
        if found:
            images, labels = map(int, found.groups())
            if labels > images and labels % images == 0:
                told = "class numbers [n], received rows of several numbers; give compile(loss=CategoricalCrossentropy(from_logits=True))"
            else:
                told = f"as many as images in each batch, received {labels} for {images}"
            raise BadInput(f"labels: expected {told}") from error
        if "outside the valid range" not in error.message:  # labels of a dataset are seen only as they come
            raise
        raise BadInput(f"labels: expected 0 to {classes - 1}, as the networks have {classes} classes, received others in the dataset") from error
    except Exception as error:
        refused = error  # a refusal inside the traced step comes wrapped by AutoGraph
        while refused is not None and not isinstance(refused, BadInput):
            refused = refused.__cause__ or refused.__context__
        if refused is None or refused is error:
            raise
        raise refused from None


def _layer(message):
    """The layer in an error message of TensorFlow, "{{node model/layer/op}}"."""
    found = re.search(r"{{node (\S*?)/?[^/]*}}", message)
    return repr(found.group(1).rpartition("/")[2]) if found else "a quantizer"
