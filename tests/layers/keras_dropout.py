"""Models with Keras's dropout layers in many places."""

import keras
import numpy as np

import kdrop
from kdrop import keras_internals

INPUTS = np.random.default_rng(0).normal(size=(4, 6, 8)).astype("float32")
KERAS_LAYERS = (
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.AlphaDropout,
)
registered = keras.saving.register_keras_serializable("test_replace")


def leaves(structure):
    """The layers in a structure, which TensorFlow may have wrapped."""
    if isinstance(structure, list | tuple | dict):
        parts = structure.values() if isinstance(structure, dict) else structure
        return [layer for part in parts for layer in leaves(part)]
    return [structure]


def drop(rate=0.5, **kwargs):
    return keras.layers.Dropout(rate, **kwargs)


def sequential():
    return keras.Sequential([keras.Input((6, 8)), keras.layers.Dense(8), drop()])


def functional():
    inputs = keras.Input((6, 8))
    return keras.Model(inputs, drop()(keras.layers.Dense(8)(inputs)))


CONTENTS = {
    "attribute": drop,
    "list": lambda: [drop(), keras.layers.Dense(8), drop(0.2)],
    "nested list": lambda: [[drop()], [keras.layers.Dense(8)]],
    "tuple": lambda: (drop(), keras.layers.Dense(8)),
    "dictionary": lambda: {"b": drop(), "a": keras.layers.Dense(8)},
    "dictionary of lists": lambda: {"a": [drop()], "b": [keras.layers.Dense(8)]},
    "Sequential": sequential,
    "inner Functional": functional,
    "list of Sequentials": lambda: [sequential(), sequential()],
    "Bidirectional": lambda: keras.layers.Bidirectional(
        keras.layers.RNN(Cell(4), return_sequences=True, unroll=True)
    ),
}


@registered
class Holder(keras.Layer):
    """Creates layers, stores them in some structure, and calls them in turn."""

    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self.kind, self.contents = kind, CONTENTS[kind]()

    def build(self, input_shape):
        for layer in leaves(self.contents):
            layer.build(input_shape)

    def call(self, inputs, training=False):
        for layer in leaves(self.contents):
            inputs = layer(inputs, training=training)
        return inputs

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


@registered
class Cell(keras.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units
        self.dense, self.drop = keras.layers.Dense(units), drop()

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs, states, training=False):
        outputs = self.drop(self.dense(inputs), training=training)
        return outputs + states[0], [outputs]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@registered
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.drops = keras.layers.Dense(8), [drop(), drop(0.1)]

    def call(self, inputs, training=False):
        for layer in self.drops:
            inputs = layer(inputs, training=training)
        return self.dense(inputs)


@registered
class OutOfOrder(keras.Model):
    """A Functional model that tracks its layers in another order than its graph."""

    def __init__(self, **kwargs):
        inputs = keras.Input((6, 8))
        first, second, dropout = keras.layers.Dense(8), keras.layers.Dense(8), drop()
        self.second, self.dropout, self.first = second, dropout, first
        super().__init__(inputs, second(dropout(first(inputs))), **kwargs)

    def get_config(self):
        return {"name": self.name}


@registered
class Twice(keras.layers.Dropout):
    """A subclass, which no layer of kdrop can replace."""

    def call(self, inputs, training=False):
        return super().call(super().call(inputs, training), training)


def chain(*layers, steps=6):
    inputs = x = keras.Input((steps, 8))
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


def attention(layer, **kwargs):
    inputs = keras.Input((6, 8))
    return keras.Model(inputs, drop()(layer([inputs, inputs], **kwargs)))


def shared():
    dropout, inputs = drop(), keras.Input((6, 8))
    x = dropout(keras.layers.Dense(8)(dropout(inputs)))
    return keras.Model(inputs, keras.layers.TimeDistributed(dropout)(x))


def nested_twice():
    inner, inputs = functional(), keras.Input((6, 8))
    return keras.Model(inputs, inner(inner(inputs)))


def multi_head():
    inputs = keras.Input((6, 8))
    x = keras.layers.MultiHeadAttention(2, 4, dropout=0.5)(inputs, inputs)
    return keras.Model(inputs, keras.layers.Dense(8)(x))


PLACES = {
    **{kind: lambda kind=kind: chain(Holder(kind)) for kind in CONTENTS},
    "Functional": lambda: chain(drop(), keras.layers.Dense(8)),
    "last operation": lambda: chain(keras.layers.Dense(8), drop()),
    "Sequential in Sequential": lambda: keras.Sequential(
        [keras.Input((6, 8)), sequential(), keras.layers.Dense(2)]
    ),
    "Functional in Functional": lambda: chain(functional(), keras.layers.Dense(2)),
    "nested model called twice": nested_twice,
    "shared": shared,
    "TimeDistributed": lambda: chain(keras.layers.TimeDistributed(drop())),
    "TimeDistributed Sequential": lambda: chain(
        keras.layers.TimeDistributed(keras.Sequential([keras.layers.Dense(8), drop()]))
    ),
    "Pipeline": lambda: chain(keras.layers.Pipeline([drop(), drop(0.1)])),
    "subclassed model": Subclassed,
    "Functional subclass": OutOfOrder,
    "MultiHeadAttention": multi_head,
    "noise": lambda: chain(
        keras.layers.GaussianDropout(0.3),
        keras.layers.AlphaDropout(0.3),
        keras.layers.SpatialDropout1D(0.3),
    ),
}


def value(tensor):
    return np.asarray(tensor)


def layers_of(model, *types):
    layers = keras_internals.layers_of(model)
    return [layer for layer in layers if isinstance(layer, types or object)]


def assert_replaced(model):
    """No dropout layer of Keras, nor the state of one, is in a model."""
    assert not layers_of(model, *KERAS_LAYERS)
    assert layers_of(model, kdrop.InvertedDropout, kdrop.GaussianDropout)
    assert not [v.path for v in model.variables if v.name == "seed_generator_state"]


def assert_drops(model):
    """The model drops when it is sampled and in training."""
    at_inference = value(model(INPUTS, training=False))
    assert np.any(value(kdrop.Sampler(model)(INPUTS)) != at_inference)
    assert np.any(value(model(INPUTS, training=True)) != at_inference)
