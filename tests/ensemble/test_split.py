"""A split model computes what the whole computes, and its prefix only once."""

import keras
import numpy as np
import pytest
from family import assert_frequency, assert_independent
from keras import ops
from networks import JAX, NETWORKS, Opaque, branches, dense, masked, mlp, sample

import kdrop
from kdrop import InvertedDropout, VanillaDropout
from kdrop.ensemble.split import SplitModel

FAST = {branches, masked}  # a graph with all kinds of calls, and one of Keras masks
counting = pytest.mark.skipif(JAX, reason="layers have no state in jax.jit")


@pytest.mark.parametrize(
    "network",
    [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in NETWORKS],
)
def test_a_split_model_has_the_samples_of_the_whole(network):
    model = network()
    samples = sample(model)
    assert samples.shape[:2] == (6, 50)
    assert (samples.std(axis=0) > 0).any(axis=1).all()
    whole = sample(Opaque(model), memory=30_000)
    np.testing.assert_allclose(samples, whole, atol=1e-5)
    fewer = sample(model, passes=3, batch_size=25, memory=3000)
    np.testing.assert_allclose(fewer, samples[:3], atol=1e-5)


@pytest.mark.slow
def test_a_split_model_in_half_precision_has_the_samples_of_the_whole():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = branches()
        whole = sample(Opaque(model))
    finally:
        keras.config.set_dtype_policy(before)
    samples = sample(model)
    assert samples.dtype == "bfloat16"
    np.testing.assert_allclose(
        samples.astype("float32"), whole.astype("float32"), atol=0.02
    )


def test_rates_and_weights_apply_at_once():
    model = mlp()
    first = sample(model)
    model.set_weights([2 * w for w in model.get_weights()])
    assert abs(sample(model) - first).max() > 1e-3
    for name, rate in ("one", 0.0), ("two", 0.9):
        model.get_layer(name).rate = rate
        np.testing.assert_allclose(sample(model), sample(Opaque(model)), atol=1e-5)


@keras.saving.register_keras_serializable("tests")
class Counter(keras.Layer):
    """Counts its rows and calls, also inside graphs."""

    def build(self, input_shape):
        zero = dict(shape=(), initializer="zeros", dtype="int32", trainable=False)
        self.rows, self.calls, self.largest = (
            self.add_weight(**zero) for _ in range(3)
        )

    def call(self, inputs):
        rows = ops.shape(inputs)[0]
        self.rows.assign(self.rows + rows)
        self.calls.assign(self.calls + 1)
        self.largest.assign(ops.maximum(self.largest, rows))
        return inputs + 0


@counting
@pytest.mark.parametrize("nest", [False, True])
def test_the_prefix_runs_once(nest):
    before, after = Counter(), Counter()
    inner = [dense(16), before, InvertedDropout(0.5), after]
    if nest:
        inner = [keras.Sequential([keras.Input((8,)), *inner])]
    model = keras.Sequential([keras.Input((8,)), *inner, dense(3)])
    settings = dict(passes=6, batch_size=20, memory=20_000)
    sample(model, **settings)  # the first time, it runs on small batches too
    counts = int(before.rows), int(before.calls), int(after.rows)
    sample(model, **settings)
    assert int(before.rows) - counts[0] == 50 and int(before.calls) - counts[1] == 3
    assert int(after.rows) - counts[2] == 6 * 50


@counting
def test_stacked_samples_stay_within_the_memory():
    counter = Counter()
    model = keras.Sequential([keras.Input((8,)), InvertedDropout(0.5), counter])
    model.add(dense(1000))
    memory = 400_000
    sample(model, memory=memory)
    assert 4 * 1000 * int(counter.largest) < memory  # the last layer's outputs alone
    assert int(counter.largest) > 20
    calls = int(counter.calls)
    sample(model, memory=2**28)
    assert int(counter.calls) == calls + 1  # all at once
    assert int(counter.largest) == 6 * 50


def test_a_split_model_shares_no_trace_with_training():
    layer, ones = VanillaDropout(0.5), np.ones((4, 8), "float32")
    split = SplitModel(keras.Sequential([keras.Input((8,)), layer]))
    rows = np.arange(12, dtype="uint32").reshape(4, 3)
    split.sample(split.prefix(ones), np.arange(4), rows)
    assert layer(ones, training=True).shape == (4, 8)


# The first axis of what is dropped is not that of the examples


class Folded(keras.layers.Layer):
    """Drops inputs (batch, time, features) with time and batch in another form."""

    def __init__(self, form):
        super().__init__()
        self.drop, self.form = InvertedDropout(0.5, name="drop"), form

    def call(self, inputs):
        batch, time, features = ops.shape(inputs)
        if self.form == "position":
            return inputs * 0 + self.drop(ops.ones((1, time, features)))
        if self.form == "folded":
            flat = self.drop(ops.reshape(inputs, (-1, features)))
            return ops.reshape(flat, (batch, time, features))
        first = ops.transpose(inputs, (1, 0, 2))
        if self.form == "time first":
            return ops.transpose(self.drop(first), (1, 0, 2))
        flat = self.drop(ops.reshape(first, (-1, features)))
        return ops.transpose(ops.reshape(flat, (time, batch, features)), (1, 0, 2))


def folded_in_the_graph():
    inputs = keras.Input((12, 32))
    scaled = keras.layers.Rescaling(1.0)(ops.reshape(inputs, (-1, 32)))
    dropped = InvertedDropout(0.5, name="drop")(scaled)
    return keras.Model(inputs, ops.reshape(dropped, (-1, 12, 32)))


def time_first_of_unknown_length():
    inputs = keras.Input((None, 32))
    dropped = InvertedDropout(0.5, name="drop")(ops.transpose(inputs, (1, 0, 2)))
    return keras.Model(inputs, ops.transpose(dropped, (1, 0, 2)))


FOLDED = {
    form: lambda form=form: keras.Sequential([keras.Input((12, 32)), Folded(form)])
    for form in ("folded", "time first", "time first, folded", "position")
}
FOLDED["graph"] = folded_in_the_graph
FOLDED["unknown length"] = time_first_of_unknown_length
MIXED = {"folded", "position", "unknown length"}
WINDOWS = np.ones((10, 12, 32), "float32")


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(network, marks=[pytest.mark.slow] * (form not in MIXED), id=form)
        for form, network in FOLDED.items()
    ],
)
def test_each_row_of_an_example_has_another_mask(network):
    model = network()
    samples = sample(model, WINDOWS, passes=12)
    assert_frequency(samples == 0, 0.5)
    for axis in (0, 1, 2):  # samples, examples, rows of an example
        one, other = samples.take([0], axis), samples.take([1], axis)
        assert_independent(one == 0, other == 0)
    fewer = sample(model, WINDOWS, passes=3, batch_size=4, memory=20_000)
    np.testing.assert_array_equal(fewer, samples[:3])
    # As many rows as time steps: their shapes are equal.
    one_example = sample(model, WINDOWS[:1], passes=12)
    np.testing.assert_array_equal(one_example, samples[:, :1])
    sampler = kdrop.Sampler(model, seed=1)
    np.testing.assert_array_equal(sampler(WINDOWS), samples[0])
    predicted = sampler.predict(WINDOWS, batch_size=4, verbose=0)
    np.testing.assert_array_equal(predicted, samples[0])
    if not JAX:
        import tensorflow as tf

        with pytest.raises(Exception, match="for several examples at once"):
            tf.function(sampler)(WINDOWS)
    outputs = ops.convert_to_numpy(kdrop.Sampler(model)(WINDOWS))
    assert_frequency(outputs == 0, 0.5)
