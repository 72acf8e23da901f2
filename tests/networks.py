"""What tests do to networks: weights as a training leaves them."""

import numpy as np
import tf_keras as keras

L = keras.layers


def randomize(net, seed=0):
    """Random BatchNorm statistics, negative gammas among them, and random biases, as a training leaves them."""
    rng = np.random.default_rng(seed)
    for layer in net.layers:
        if isinstance(layer, L.BatchNormalization):
            c = layer.gamma.shape[0]
            gamma = rng.uniform(0.3, 2, c) * np.where(np.arange(c) % 3 == 1, -1, 1)
            layer.set_weights([gamma, rng.normal(0, 0.5, c), rng.normal(0, 0.5, c), rng.uniform(0.3, 2, c)])
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(rng.normal(0, 0.3, layer.bias.shape))
    return net
