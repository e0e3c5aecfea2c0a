"""Every builder at a size that trains in a moment, and parts of its model."""

import keras

from kdrop import models

SMALL = {
    "spiral_mlp": dict(hidden=(16, 12)),
    "mnist_mlp": dict(hidden=(16, 12), input_shape=(5, 4, 1)),
    "concat_mlp": dict(hidden=(16, 12), input_shape=(5, 4, 1)),
    "alexnet": dict(hidden=(16, 12), input_shape=(224, 224, 3)),
    "alexnet32": dict(width=4, hidden=(16, 12)),
    "resnet32": dict(width=4, depth=1),
    "srivastava_cnn": dict(hidden=(16, 12)),
}
# The places of a network; two in all the others.
EVERY_RATE = {"alexnet32": 5, "resnet32": 3, "srivastava_cnn": 5}


def build(name, *args, **settings):
    return models.MODELS[name](*args, **{**SMALL[name], **settings})


def kinds(model):
    return [type(layer).__name__ for layer in model.layers]


def rates(model):
    return {x.name: x.rate for x in model.layers if isinstance(x, keras.layers.Dropout)}


def parameters(model, last=True):
    """The trainable values as arrays, with or without the output layer's."""
    layers = model.layers if last else model.layers[:-1]
    return [w.numpy() for x in layers for w in x.trainable_weights]
