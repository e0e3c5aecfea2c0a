"""Models with inputs and outputs of every structure, for the tests of the export."""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops

import kdrop

DROP = {"rate": 0.5, "seed": 1, "name": "drop"}
ROWS = 4
RANDOM = np.random.default_rng(0)
TEXTS = np.array([["red fish"], ["blue"], [""], ["fish fish red"]], dtype=object)


def points(size=2):
    return RANDOM.normal(size=(ROWS, size)).astype("float32")


class Case(NamedTuple):
    """A model and its interface when it is exported."""

    model: keras.Model
    inputs: object  # for the Keras model
    named: dict[str, np.ndarray]  # the same for the signatures
    outputs: tuple[str, ...]  # their names


def single(model, x):
    return Case(model, x, {"inputs": x}, ("probabilities",))


def head(inputs, name="head"):
    hidden = kdrop.InvertedDropout(**DROP)(keras.layers.Dense(8)(inputs))
    return keras.layers.Dense(3, activation="softmax", name=name)(hidden)


def string():
    text = keras.layers.TextVectorization(output_mode="multi_hot")
    text.adapt(["red blue", "fish"])
    inputs = keras.Input((1,), dtype="string")
    return single(keras.Model(inputs, head(text(inputs))), TEXTS)


def two(structure):
    """A model's inputs `a` and `b` in `structure("a", "b")`, joined, and values."""
    a, b = keras.Input((2,), name="a"), keras.Input((1,), name="b")
    values = points(2), points(1)
    joined = keras.layers.Concatenate()([a, b])
    return structure(a, b), joined, structure(*values), values


def lists():
    inputs, joined, values, (a, b) = two(lambda a, b: [a, b])
    first = head(joined, "one-by-one")
    outputs = [first, keras.layers.Dense(1, name="last")(first)]
    named = {"a": a, "b": b}
    return Case(keras.Model(inputs, outputs), values, named, ("one_by_one", "last"))


def dictionaries():
    inputs, joined, values, (a, b) = two(lambda a, b: {"b": b, "a": a})
    first = head(joined)
    outputs = {"first": first, "second": keras.layers.Dense(1)(first)}
    named = {"a": a, "b": b}
    return Case(keras.Model(inputs, outputs), values, named, ("first", "second"))


def nested():
    inputs, joined, values, (a, b) = two(lambda a, b: {"x": {"a": a}, "y": (b,)})
    outputs = {"u": [head(joined, "p"), keras.layers.Dense(3, name="q")(joined)]}
    named = {"x_a": a, "y_0": b}
    return Case(keras.Model(inputs, outputs), values, named, ("u_0", "u_1"))


def twice():
    """One layer for two outputs, which therefore cannot have its name."""
    inputs, layer = keras.Input((2,)), keras.layers.Dense(2, activation="softmax")
    outputs = [layer(kdrop.InvertedDropout(**DROP)(inputs)), layer(inputs)]
    x, names = points(), ("output_0", "output_1")
    return Case(keras.Model(inputs, outputs), x, {"inputs": x}, names)


class Subclassed(keras.Model):
    """A model without a `training` argument that is not registered with Keras."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = kdrop.InvertedDropout(**DROP)
        self.dense = keras.layers.Dense(3, activation="softmax")

    def call(self, inputs):
        return self.dense(self.drop(inputs))


class TakesDictionary(Subclassed):
    def call(self, inputs):
        dropped = self.drop(ops.concatenate([inputs["a"], inputs["b"]], axis=-1))
        return self.dense(dropped), inputs["a"]


class TakesArguments(Subclassed):
    def build(self, b_shape, a_shape):
        self.dense.build((None, a_shape[-1] + b_shape[-1]))

    def call(self, a, b, training=False):
        dropped = self.drop(ops.concatenate([a, b], axis=-1), training=training)
        return {"p": self.dense(dropped), "q": dropped}


def subclassed():
    model, x = Subclassed(), points()
    model(x)
    return single(model, x)


def subclassed_dictionary():
    model, values = TakesDictionary(), {"b": points(1), "a": points(2)}
    model(values)
    return Case(model, values, values, ("output_0", "output_1"))


def subclassed_arguments():
    model, values = TakesArguments(), {"a": points(2), "b": points(1)}
    model(**values)
    return Case(model, values, values, ("p", "q"))


def fixed_batch():
    inputs, x = keras.Input((2,), batch_size=ROWS), points()
    # Fails for any other number of rows, such as that of stacked samples.
    model = keras.Model(inputs, ops.reshape(head(inputs), (ROWS, 3)))
    return single(model, x)


def masked():
    ids = np.array([[1, 2, 0], [3, 0, 0], [2, 2, 2], [0, 0, 0]], "int32")
    inputs = keras.Input((None,), dtype="int32")
    hidden = keras.layers.Embedding(5, 4, mask_zero=True)(inputs)
    hidden = keras.layers.SimpleRNN(4)(kdrop.InvertedDropout(**DROP)(hidden))
    outputs = keras.layers.Dense(3, activation="softmax")(hidden)
    return Case(keras.Model(inputs, outputs), ids, {"inputs": ids}, ("probabilities",))


def sequence():
    inputs, x = keras.Input((None, 2)), points(10).reshape(ROWS, 5, 2)
    return single(keras.Model(inputs, head(inputs)), x)


def without_drop_layers():
    model, x = keras.Sequential([keras.layers.Dense(3, "softmax")]), points()
    model(x)
    return single(model, x)


KINDS = {
    "string": string,
    "lists": lists,
    "dictionaries": dictionaries,
    "nested": nested,
    "twice": twice,
    "subclassed": subclassed,
    "subclassed_dictionary": subclassed_dictionary,
    "subclassed_arguments": subclassed_arguments,
    "fixed_batch": fixed_batch,
    "masked": masked,
    "sequence": sequence,
    "without_drop_layers": without_drop_layers,
}
TASKS = {  # for outputs that are not probabilities
    "lists": {"one_by_one": "classification", "last": "regression"},
    "dictionaries": {"first": "classification", "second": "regression"},
    "nested": {"u_0": "classification", "u_1": "regression"},
    "subclassed_dictionary": {"output_0": "classification", "output_1": "regression"},
    "subclassed_arguments": "regression",
}
