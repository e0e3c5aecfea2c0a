"""Networks with drop layers in many places, and inputs for them."""

import keras
import numpy as np
from family import DEVIATIONS
from keras import ops

import kdrop
from kdrop import InvertedDropout, VanillaDropout

ONES = np.ones((16, 64), "float32")
JAX = keras.backend.backend() == "jax"
INPUTS = np.random.default_rng(0).normal(size=(50, 8)).astype("float32")


def sample(model, inputs=INPUTS, passes=6, **settings):
    settings = {"seed": 1, "verbose": 0, **settings}
    return kdrop.sample(model, inputs, passes=passes, **settings)


def drop(rate=0.5, name="drop", **settings):
    return InvertedDropout(rate, name=name, **settings)


class Opaque(keras.Model):
    """A model around another one, whose graph is not known."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, inputs, training=False):
        return self.model(inputs, training=training)


def dense(units, **settings):
    return keras.layers.Dense(units, **settings)


def mlp(drop=InvertedDropout, rate=0.5):
    return keras.Sequential(
        [
            keras.Input((8,)),
            dense(16, activation="relu"),
            drop(rate, name="one"),
            dense(16, activation="relu"),
            drop(rate, name="two"),
            dense(3, activation="softmax"),
        ]
    )


def branches():
    """Branches, a nested model that is called twice, and one drop layer used twice."""
    inputs = keras.Input((8,))
    hidden = dense(16, activation="relu")(inputs)
    dropped = InvertedDropout(0.5, name="dropped")(hidden)
    plain = dense(16)(hidden)
    nested = keras.Sequential(
        [
            keras.Input((16,)),
            dense(16, activation="relu"),
            VanillaDropout(0.3, name="nested"),
            dense(16),
        ]
    )
    first, second = nested(keras.layers.Add()([dropped, plain])), nested(plain)
    shared = InvertedDropout(0.2, name="shared")
    joined = keras.layers.Concatenate()([shared(first), shared(second), plain])
    return keras.Model(inputs, dense(3, activation="softmax")(joined))


def functional_in_functional():
    """A nested model of two inputs, of which one differs between sub-networks."""
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    mixed = keras.layers.Add()([dense(4)(a), InvertedDropout(0.4, name="in")(b)])
    nested = keras.Model({"a": a, "b": b}, [mixed, dense(4)(a)])
    inputs = keras.Input((8,))
    one, other = ops.split(inputs, 2, axis=-1)
    first, second = nested({"a": one, "b": InvertedDropout(0.5, name="out")(other)})
    return keras.Model(inputs, dense(3)(keras.layers.Concatenate()([first, second])))


def convolutions():
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Reshape((4, 2, 1)),
            keras.layers.Conv2D(4, 3, padding="same"),
            keras.layers.BatchNormalization(moving_mean_initializer="random_normal"),
            InvertedDropout(0.3, noise_shape=(None, 1, 1, None), name="maps"),
            keras.layers.Conv2D(4, 3, padding="same", activation="relu"),
            InvertedDropout(0.3, noise_shape=(1, None, None, None), name="batch"),
            keras.layers.Flatten(),
            dense(3, activation="softmax"),
        ]
    )


def masked():
    """Keras masks, which the suffix needs from the prefix."""
    inputs = keras.Input((8,))
    tokens = ops.cast(ops.abs(inputs) * 2, "int32")
    embedded = keras.layers.Embedding(9, 6, mask_zero=True)(tokens)
    dropped = InvertedDropout(0.5, name="drop")(embedded)
    attended = keras.layers.MultiHeadAttention(2, 3)(dropped, embedded)
    averaged = keras.layers.GlobalAveragePooling1D()(attended)
    nested = keras.Sequential(
        [
            keras.Input((8, 6)),
            dense(6),
            InvertedDropout(0.5, name="nested"),
            keras.layers.GlobalAveragePooling1D(),
        ]
    )
    nested.supports_masking = True
    both = keras.layers.Concatenate()([averaged, nested(embedded)])
    return keras.Model(inputs, both)


NETWORKS = [branches, functional_in_functional, convolutions, masked]


def is_zero(outputs):
    return ops.convert_to_numpy(outputs) == 0


def assert_variance(outputs, expected):
    """Of a sum of `expected` independent units that are 0 or 2: its kurtosis is < 3."""
    outputs = ops.convert_to_numpy(outputs)
    bound = DEVIATIONS * expected * np.sqrt(2 / outputs.size)
    assert abs(outputs.var() - expected) < bound


def assert_equal(one, other):
    np.testing.assert_array_equal(
        ops.convert_to_numpy(one), ops.convert_to_numpy(other)
    )
