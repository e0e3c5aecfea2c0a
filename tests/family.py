"""The drop layers and the helpers that their common tests share, on both backends."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest

import kdrop

BACKEND = keras.backend.backend()
DEVIATIONS = 5  # a binomial count is further off in one case of 1.7 million


class Case(NamedTuple):
    """One layer, and how to read the decisions from its outputs."""

    layer: type
    settings: dict[str, Any] = {}  # besides rate, seed and name
    shape: tuple[int, ...] = (64, 256)  # of the inputs
    # From the outputs to a part that is decided independently, `(examples, ...)`.
    decisions: Callable[[np.ndarray], np.ndarray] = lambda outputs: outputs
    dropped: bool = True  # whether the layer sets a fraction `rate` of units to a value
    dropped_value: Callable[[float], float] = lambda rate: 0.0
    scales_at_inference: bool = False
    exact: bool = False  # whether it drops an exact count, of known sizes
    repeat: int = 1  # calls that give enough decisions for statistics

    def make(self, rate=0.5, seed=1, name="drop", **settings):
        return self.layer(rate, seed=seed, name=name, **self.settings, **settings)

    def ones(self, dtype="float32"):
        return keras.ops.ones(self.shape, dtype)

    def draw(self, layer, dtype="float32"):
        """The decisions of the layer's next call on ones, in NumPy."""
        return self.seen(layer(self.ones(dtype), training=True))

    def draws(self, layer, dtype="float32"):
        """Decisions of as many calls as statistics need."""
        call = last_traced(layer) if self.repeat > 1 else partial(layer, training=True)
        ones = self.ones(dtype)
        return np.concatenate([self.seen(call(ones)) for _ in range(self.repeat)])

    def seen(self, outputs):
        return self.decisions(numpy(outputs))


def first_of(*axes):
    """Decisions that all positions along these axes share."""

    def decisions(outputs):
        for axis in axes:
            first = outputs.take([0], axis)
            assert (outputs == first).all()
            outputs = first
        return outputs

    return decisions


def every(*axes, step=3):
    """Every `step`th position along these axes: no block covers two of them."""

    def decisions(outputs):
        for axis in axes:
            outputs = outputs.take(range(0, outputs.shape[axis], step), axis)
        return outputs

    return decisions


def numpy(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


def alpha_value(rate):
    """Klambauer et al., 2017, section 2, written out."""
    limit, keep = -1.7580993408473766, 1 - rate
    a = (keep + limit**2 * keep * rate) ** -0.5
    return a * limit - a * rate * limit


FAMILY = {
    case.layer.__name__: case
    for case in (
        Case(kdrop.InvertedDropout),
        Case(kdrop.VanillaDropout, scales_at_inference=True),
        Case(kdrop.GaussianDropout, dropped=False),
        Case(kdrop.UniformDropout, dropped=False),
        Case(kdrop.AlphaDropout, dropped_value=alpha_value),
        Case(kdrop.ExactDropout, exact=True),
        Case(kdrop.SpatialDropout1D, {}, (64, 3, 256), first_of(1)),
        Case(kdrop.LockedDropout, {}, (64, 3, 256), first_of(1)),
        Case(kdrop.SpatialDropout2D, {}, (64, 3, 2, 256), first_of(1, 2)),
        Case(kdrop.SpatialDropout3D, {}, (64, 2, 3, 2, 256), first_of(1, 2, 3)),
        # At positions that share no seed of a block.
        Case(kdrop.DropBlock1D, {"block_size": 3}, (64, 7, 128), every(1)),
        Case(kdrop.DropBlock2D, {"block_size": 2}, (64, 3, 5, 64), every(1, 2)),
        Case(kdrop.DropBlock3D, {"block_size": 2}, (64, 3, 2, 4, 64), every(1, 2, 3)),
        Case(kdrop.DropPath, {}, (4096, 3), first_of(1)),
        Case(
            kdrop.StochasticDepth,
            {},
            (2, 3),
            first_of(0, 1),
            scales_at_inference=True,
            repeat=300,
        ),
    )
}
every_layer = pytest.mark.parametrize("case", FAMILY.values(), ids=FAMILY)
# One layer for each way in which a mask is made, drawn and applied
KINDS = (
    "InvertedDropout",
    "GaussianDropout",
    "AlphaDropout",
    "ExactDropout",
    "SpatialDropout2D",
    "DropBlock2D",
    "DropPath",
    "StochasticDepth",
)
every_kind = pytest.mark.parametrize("case", [FAMILY[n] for n in KINDS], ids=KINDS)
DROPPING = {name: case for name, case in FAMILY.items() if case.dropped}
every_dropping_layer = pytest.mark.parametrize("case", DROPPING.values(), ids=DROPPING)


def dropped(layer, shape=(64, 256), dtype="float32"):
    """Which elements the layer's next draw drops, as a NumPy mask."""
    return numpy(layer(keras.ops.ones(shape, dtype), training=True)) == 0


def assert_independent(one, other):
    """Two masks correlate no more than independent ones do."""
    one, other = (np.ravel(x).astype("float64") for x in (one, other))
    correlation = np.corrcoef(one, other)[0, 1]
    assert abs(correlation) < DEVIATIONS / np.sqrt(one.size)


def assert_frequency(mask, rate):
    """The mask has as many true elements as a binomial law of this rate allows."""
    bound = DEVIATIONS * np.sqrt(rate * (1 - rate) * mask.size)
    assert abs(mask.sum() - rate * mask.size) <= bound


def assert_close(one, other):
    """Equal to 1e-6: compilers fuse floats differently."""
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def traced(layer, **settings):
    """A function of the inputs that calls the layer in training, compiled."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda x: layer(x, training=True), **settings)
    import jax

    compiled = jax.jit(lambda state, x: layer.stateless_call([], state, x, True))

    def call(inputs):
        variables = layer.non_trainable_variables
        outputs, state = compiled([v.value for v in variables], inputs)
        for variable, value in zip(variables, state, strict=True):
            variable.assign(value)
        return outputs

    return call


last_traced = lru_cache(maxsize=1)(traced)


def gradient(layer, inputs, upstream):
    """Outputs in training, and the gradient of their product with `upstream`."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
        return outputs, tape.gradient(outputs, inputs, upstream)
    import jax

    state = [v.value for v in layer.non_trainable_variables]
    outputs, pull = jax.vjp(
        lambda x: layer.stateless_call([], state, x, training=True)[0], inputs
    )
    return outputs, pull(upstream)[0]


def network(layer_class, seed=3, same=True):
    if same:
        keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(32, activation="relu"),
            layer_class(0.5, seed=seed, name="drop_1"),
            keras.layers.Dense(32, activation="relu"),
            layer_class(0.5, seed=seed, name="drop_2"),
            keras.layers.Dense(1),
        ]
    )


def regression(count=32):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(count, 8)).astype("float32")
    return inputs, inputs[:, :1]


def fit(model, epochs=2, **settings):
    settings = {"batch_size": 8, "shuffle": False, "verbose": 0, **settings}
    return model.fit(*regression(), epochs=epochs, **settings)


def assert_same_weights(one, other):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
