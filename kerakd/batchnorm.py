"""Re-estimation of BatchNorm's statistics: the averages that training leaves behind lag behind quantized weights."""

import tf_keras as keras


def reestimate(model, batches):
    """Sets the moving mean and variance of every BatchNorm to the average over `batches` (Nagel et al. 2022, section 4.1).

    Kernels whose codes oscillate give every batch other statistics than the last steps' running averages. Nothing else
    moves. Networks without BatchNorm stay as they are.

    Args:
        model: a functional tf_keras model; its BatchNorm statistics are changed.
        batches: an iterable of images [n, ...], training images with their augmentation; some 50 batches will do.
    """
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    if not norms:
        return
    before = [layer.momentum for layer in norms]
    try:
        for count, images in enumerate(batches):
            for layer in norms:
                layer.momentum = count / (count + 1)  # the mean of all so far; the first batch forgets what was there
            model(images, training=True)
    finally:
        for layer, momentum in zip(norms, before, strict=True):
            layer.momentum = momentum
