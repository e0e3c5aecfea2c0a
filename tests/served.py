"""Models of every structure of inputs and outputs, to be exported."""

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


class Served(NamedTuple):
    """A model, what `predict` takes, and the served names of it and of the outputs."""

    model: keras.Model
    inputs: object
    named: dict[str, np.ndarray]
    outputs: tuple[str, ...]


def head(inputs, name="head"):
    hidden = kdrop.InvertedDropout(**DROP)(keras.layers.Dense(8)(inputs))
    return keras.layers.Dense(3, activation="softmax", name=name)(hidden)


def string():
    text = keras.layers.TextVectorization(output_mode="multi_hot")
    text.adapt(["red blue", "fish"])
    inputs = keras.Input((1,), dtype="string")
    model = keras.Model(inputs, head(text(inputs)))
    return Served(model, TEXTS, {"inputs": TEXTS}, ("probabilities",))


def two(structure):
    """A model of two inputs, in the structure of `structure("a", "b")`."""
    a, b = keras.Input((2,), name="a"), keras.Input((1,), name="b")
    joined = keras.layers.Concatenate()([a, b])
    arrays = points(2), points(1)
    return structure(a, b), joined, structure(*arrays), arrays


def list_inputs():
    inputs, joined, values, (a, b) = two(lambda a, b: [a, b])
    model = keras.Model(inputs, head(joined))
    return Served(model, values, {"a": a, "b": b}, ("probabilities",))


def dict_inputs():
    inputs, joined, values, (a, b) = two(lambda a, b: {"b": b, "a": a})
    model = keras.Model(inputs, head(joined))
    return Served(model, values, {"a": a, "b": b}, ("probabilities",))


def nested():
    inputs, joined, values, (a, b) = two(lambda a, b: {"x": {"a": a}, "y": (b,)})
    outputs = {"u": [head(joined, "p"), keras.layers.Dense(3, name="q")(joined)]}
    named = {"x_a": a, "y_0": b}
    return Served(keras.Model(inputs, outputs), values, named, ("u_0", "u_1"))


def dict_outputs():
    inputs = keras.Input((2,))
    first = head(inputs)
    outputs = {"first": first, "second": keras.layers.Dense(1)(first)}
    x = points()
    return Served(keras.Model(inputs, outputs), x, {"inputs": x}, ("first", "second"))


def list_outputs():
    inputs = keras.Input((2,))
    first = head(inputs, "one-by-one")
    outputs = [first, keras.layers.Dense(1, name="last")(first)]
    x, names = points(), ("one_by_one", "last")
    return Served(keras.Model(inputs, outputs), x, {"inputs": x}, names)


def twice():
    """One layer, whose name two outputs would have."""
    inputs, layer = keras.Input((2,)), keras.layers.Dense(2, activation="softmax")
    outputs = [layer(kdrop.InvertedDropout(**DROP)(inputs)), layer(inputs)]
    x, names = points(), ("output_0", "output_1")
    return Served(keras.Model(inputs, outputs), x, {"inputs": x}, names)


class Subclassed(keras.Model):
    """Without a `training` argument, and not registered."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = kdrop.InvertedDropout(**DROP)
        self.dense = keras.layers.Dense(3, activation="softmax")

    def call(self, inputs):
        return self.dense(self.drop(inputs))


class OfDictionary(Subclassed):
    def call(self, inputs):
        dropped = self.drop(ops.concatenate([inputs["a"], inputs["b"]], axis=-1))
        return self.dense(dropped), inputs["a"]


class OfArguments(Subclassed):
    def build(self, b_shape, a_shape):
        self.dense.build((None, a_shape[-1] + b_shape[-1]))

    def call(self, a, b, training=False):
        dropped = self.drop(ops.concatenate([a, b], axis=-1), training=training)
        return {"p": self.dense(dropped), "rest": dropped}


def subclassed():
    model, x = Subclassed(), points()
    model(x)
    return Served(model, x, {"inputs": x}, ("probabilities",))


def subclassed_dictionary():
    model, values = OfDictionary(), {"b": points(1), "a": points(2)}
    model(values)
    return Served(model, values, values, ("output_0", "output_1"))


def subclassed_arguments():
    model, values = OfArguments(), {"a": points(2), "b": points(1)}
    model(**values)
    return Served(model, values, values, ("p", "rest"))


def fixed_batch():
    inputs = keras.Input((2,), batch_size=ROWS)
    # Another number of rows is an error, that of stacked passes too.
    model = keras.Model(inputs, ops.reshape(head(inputs), (ROWS, 3)))
    x = points()
    return Served(model, x, {"inputs": x}, ("probabilities",))


def masked():
    ids = np.array([[1, 2, 0], [3, 0, 0], [2, 2, 2], [0, 0, 0]], "int32")
    inputs = keras.Input((None,), dtype="int32")
    hidden = keras.layers.Embedding(5, 4, mask_zero=True)(inputs)
    hidden = keras.layers.LSTM(4)(kdrop.InvertedDropout(**DROP)(hidden))
    outputs = keras.layers.Dense(3, activation="softmax")(hidden)
    model = keras.Model(inputs, outputs)
    return Served(model, ids, {"inputs": ids}, ("probabilities",))


def sequence():
    inputs, x = keras.Input((None, 2)), RANDOM.normal(size=(ROWS, 5, 2))
    x = x.astype("float32")
    return Served(
        keras.Model(inputs, head(inputs)), x, {"inputs": x}, ("probabilities",)
    )


def sequential():
    model, x = keras.Sequential([keras.layers.Dense(3, "softmax")]), points()
    model(x)
    return Served(model, x, {"inputs": x}, ("probabilities",))


KINDS = {
    function.__name__: function
    for function in (
        string,
        list_inputs,
        dict_inputs,
        nested,
        dict_outputs,
        list_outputs,
        twice,
        subclassed,
        subclassed_dictionary,
        subclassed_arguments,
        fixed_batch,
        masked,
        sequence,
        sequential,
    )
}
TASKS = {  # of those with outputs that are no probabilities
    "nested": {"u_0": "classification", "u_1": "regression"},
    "dict_outputs": {"first": "classification", "second": "regression"},
    "list_outputs": {"one_by_one": "classification", "last": "regression"},
    "subclassed_dictionary": {"output_0": "classification", "output_1": "regression"},
    "subclassed_arguments": "regression",
}
