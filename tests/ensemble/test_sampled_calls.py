"""Sampling drop layers in functions, loops and blocks that users wrote."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from family import DEVIATIONS, assert_frequency, assert_independent
from keras import ops
from networks import JAX, ONES, assert_equal, assert_variance, drop, is_zero, sample

import kdrop
from kdrop.serving import export

on_tensorflow = pytest.mark.skipif(JAX, reason="tf.function is TensorFlow's")


# A function inside the model


class Decorated(keras.Model):
    """A model whose call is a function that TensorFlow traces once."""

    def __init__(self):
        super().__init__()
        self.drop = drop()

    @tf.function
    def call(self, inputs, training=False):
        return self.drop(inputs, training=training)


class Helped(keras.layers.Layer):
    """A layer that calls a function with a drop layer in it, twice."""

    def __init__(self, decorate):
        super().__init__()
        self.drop = drop()
        self.helper = decorate(lambda x: self.drop(x))

    def call(self, inputs):
        return ops.concatenate([self.helper(inputs), self.helper(inputs)], axis=-1)


SPEC = tf.TensorSpec((None, 64))


def functional(layer):
    inputs = keras.Input((64,))
    return keras.Model(inputs, layer(inputs))


FUNCTIONS = {
    "decorated": Decorated,
    "helper": lambda: functional(Helped(tf.function)),
    "signature": lambda: functional(
        Helped(lambda f: tf.function(f, input_signature=[SPEC]))
    ),
    "relaxed": lambda: functional(
        Helped(lambda f: tf.function(f, reduce_retracing=True))
    ),
    "nested": lambda: functional(Helped(lambda f: tf.function(tf.function(f)))),
}


FIRST_CALLS = {
    "inference": lambda model: model(ONES),
    "sampler": lambda model: kdrop.Sampler(model)(ONES),
    "sample": lambda model: sample(model, ONES),
}
ORDERS = [("decorated", "sampler"), ("helper", "sample"), ("signature", "inference")]
ORDERS += [
    pytest.param(name, "inference", marks=pytest.mark.slow)
    for name in FUNCTIONS
    if name != "signature"
]


@on_tensorflow
@pytest.mark.parametrize(("function", "first"), ORDERS)
def test_a_function_inside_the_model_is_sampled(function, first):
    model = FUNCTIONS[function]()
    FIRST_CALLS[first](model)
    for _ in range(2):
        assert not is_zero(model(ONES)).any()
        assert not is_zero(model.predict(ONES, verbose=0)).any()
        assert_frequency(is_zero(kdrop.Sampler(model)(ONES)), 0.5)
        predicted = kdrop.Sampler(model).predict(ONES, verbose=0)
        assert_frequency(is_zero(predicted), 0.5)
        masks = is_zero(sample(model, ONES))
        assert_frequency(masks, 0.5)
        assert_independent(masks[0], masks[1])
        if masks.shape[-1] == 128:  # called twice, traced once
            assert_independent(masks[..., :64], masks[..., 64:])
        if hasattr(model, "drop"):
            assert_frequency(is_zero(model(ONES, training=True)), 0.5)
    assert_equal(kdrop.Sampler(model, seed=1)(ONES), sample(model, ONES)[0])


@keras.saving.register_keras_serializable("tests")
class Wrapped(keras.layers.Layer):
    """Calls another layer in a `tf.function`."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.helper = tf.function(lambda x: self.layer(x))

    def call(self, inputs):
        return self.helper(inputs)

    def get_config(self):
        return {"layer": keras.saving.serialize_keras_object(self.layer)}


@on_tensorflow
def test_a_function_inside_the_model_is_exported_as_it_is(tmp_path):
    layer = kdrop.VanillaDropout(0.25, name="scaled")
    model = keras.Sequential([keras.Input((64,)), Wrapped(layer)])
    model(ONES)
    path = export(model, tmp_path, task="regression")
    signatures = tf.saved_model.load(str(path)).signatures
    served = signatures["serve"](inputs=tf.constant(ONES))["probabilities"]
    np.testing.assert_allclose(served, 0.75)
    sampled = signatures["sample"](inputs=tf.constant(ONES))
    assert np.all(sampled["std"] > 0)
    layer.rate = 0.5  # the trace for the export is not reused
    np.testing.assert_allclose(model(ONES), 0.5)


@on_tensorflow
def test_what_xla_compiles_cannot_count_calls_and_is_refused():
    model = functional(Helped(lambda f: tf.function(f, jit_compile=True)))
    with pytest.raises(ValueError, match="^A drop layer was called inside a loop or a"):
        sample(model, ONES)
    # Without a seed, the layer counts its draws itself.
    assert_frequency(is_zero(kdrop.Sampler(model)(ONES)), 0.5)


@on_tensorflow
def test_a_concrete_function_cannot_be_sampled():
    def concrete(function):
        return tf.function(function).get_concrete_function(SPEC)

    model = functional(Helped(concrete))
    for refused in (
        lambda: sample(model, ONES),
        lambda: kdrop.Sampler(model)(ONES),
        lambda: kdrop.Sampler(model).predict(ONES, verbose=0),
    ):
        with pytest.raises(ValueError, match=r"\['drop'\] were not called.*concrete"):
            refused()
    partly = functional(Helped(concrete))
    partly = keras.Sequential([keras.Input((64,)), drop(name="called"), partly])
    with pytest.warns(UserWarning, match=r"\['drop'\] were not called"):
        sample(partly, ONES)


@on_tensorflow
def test_functions_are_sampled_on_replicas(strategy):
    with strategy.scope():
        sampler = kdrop.Sampler(Decorated())
    outputs = strategy.run(tf.function(sampler), (tf.constant(ONES),))
    one, other = (x.numpy() for x in strategy.experimental_local_results(outputs))
    assert_frequency(one == 0, 0.5)
    assert_independent(one == 0, other == 0)


# A drop layer in a loop


class Cell(keras.layers.Layer):
    """Adds dropped inputs to its state."""

    state_size = output_size = 64

    def __init__(self):
        super().__init__()
        self.drop = drop()

    def call(self, inputs, states, training=False):
        total = states[0] + self.drop(inputs, training=training)
        return total, [total]


class Loop(keras.layers.Layer):
    """Sums sixteen calls of a drop layer, most of them in a loop."""

    def __init__(self, loop):
        super().__init__()
        self.drop, self.loop = drop(), loop

    def call(self, inputs):
        total = self.drop(inputs)
        if self.loop == "fori":
            total = ops.fori_loop(0, 14, lambda _, x: x + self.drop(inputs), total)
        else:
            steps = ops.zeros((14, 1))
            step = lambda x, _: (x + self.drop(inputs), None)  # noqa: E731
            total, _ = ops.scan(step, total, steps)
        return total + self.drop(inputs)


def recurrent(unroll, steps=16):
    rnn = keras.layers.RNN(Cell(), unroll=unroll)
    return keras.Sequential([keras.Input((steps, 64)), rnn])


SEQUENCES = np.ones((16, 16, 64), "float32")
LOOPS = {
    "rnn": (lambda: recurrent(False), SEQUENCES),
    "fori": (lambda: functional(Loop("fori")), ONES),
    "scan": (lambda: functional(Loop("scan")), ONES),
}


@pytest.mark.parametrize(("network", "inputs"), LOOPS.values(), ids=LOOPS)
def test_each_call_in_a_loop_has_another_mask(network, inputs):
    model = network()
    if JAX:
        for refused in (
            lambda: sample(model, inputs),
            lambda: kdrop.Sampler(model)(inputs),
            lambda: kdrop.Sampler(model).predict(inputs, verbose=0),
        ):
            with pytest.raises(ValueError, match="on JAX all its calls may have one"):
                refused()
        # Its state holds no tracer, and counts only the call before the loop.
        assert kdrop.drop_layers(model)[0].draw_count in (0, 1)
        return
    samples = sample(model, inputs, passes=50)
    assert_variance(samples, 16)
    assert_equal(sample(model, inputs, passes=50), samples)  # each run counts from 0
    assert_equal(kdrop.Sampler(model, seed=1).predict(inputs, verbose=0), samples[0])
    assert_variance(kdrop.Sampler(model)(np.repeat(inputs, 20, axis=0)), 16)


def test_an_unrolled_loop_is_sampled_everywhere():
    assert_variance(sample(recurrent(True, 8), SEQUENCES[:, :8], passes=50), 8)


@pytest.mark.slow
@on_tensorflow
def test_a_served_loop_counts_its_own_calls(tmp_path):
    model = recurrent(False)
    path = export(model, tmp_path, passes=50, task="regression")
    answer = tf.saved_model.load(str(path)).signatures["sample_seeded"]
    seeds = tf.range(16, dtype=tf.int64)
    answers = answer(inputs=tf.constant(SEQUENCES), seeds=seeds)
    variances = answers["std"].numpy() ** 2  # of 50 samples, for 16 x 64 units
    bound = DEVIATIONS * 16 * np.sqrt(2 / (50 * variances.size))
    assert abs(variances.mean() * 50 / 49 - 16) < bound
    again = answer(inputs=tf.constant(SEQUENCES), seeds=seeds)
    assert_equal(again["mean"], answers["mean"])


class Mixed(keras.layers.Layer):
    """Calls a drop layer itself, in a function, itself and in the function again."""

    def __init__(self):
        super().__init__()
        self.drop = drop()
        self.helper = self.drop if JAX else tf.function(lambda x: self.drop(x))

    def call(self, inputs):
        calls = (self.drop, self.helper, self.drop, self.helper)
        return ops.concatenate([call(inputs) for call in calls], axis=-1)


def test_calls_inside_and_outside_of_a_function_differ():
    model = functional(Mixed())
    for outputs in (sample(model, ONES), kdrop.Sampler(model, seed=1)(ONES)[None]):
        parts = np.split(ops.convert_to_numpy(outputs), 4, axis=-1)
        for one in range(4):
            for other in range(one):
                assert_independent(is_zero(parts[one]), is_zero(parts[other]))


def test_a_drop_layer_in_a_closure_is_not_shared():
    layer = drop()
    inputs = keras.Input((64,))
    hidden = keras.layers.Lambda(lambda x: layer(x))(inputs)
    samples = sample(keras.Model(inputs, layer(hidden)), ONES, passes=50)
    assert_frequency(is_zero(samples), 0.75)
