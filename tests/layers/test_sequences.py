"""The contract of the layers for sequences, which have weights or take no features."""

import keras
import numpy as np
import pytest
from family import BACKEND, assert_close, numpy

import kdrop

RNG = np.random.default_rng(0)
WORDS = RNG.integers(1, 50, size=(16, 6))
SEQUENCES = RNG.normal(size=(16, 6, 5)).astype("float32")
on_tensorflow = pytest.mark.skipif(BACKEND == "jax", reason="of TensorFlow")


def embedding(rate, **settings):
    if rate is None:
        return keras.layers.Embedding(50, 8)
    return kdrop.EmbeddingDropout(50, 8, rate, seed=1, name="drop", **settings)


def lstm(rate):
    layer = keras.layers.LSTM(8)
    return (
        layer if rate is None else kdrop.WeightDropout(layer, rate, seed=1, name="drop")
    )


def zoned(rate):
    cell = keras.layers.LSTMCell(8)
    cell = cell if rate is None else kdrop.Zoneout(cell, rate, seed=1, name="drop")
    return keras.layers.RNN(cell, unroll=True)  # as JAX needs it


def attention(rate):
    layer = keras.layers.MultiHeadAttention(2, 4)
    return layer if rate is None else kdrop.DropKey(layer, rate, seed=1, name="drop")


def network(make, rate=0.5, **settings):
    """A model with such a layer, of the same weights for each rate."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), dtype="int32") if of_words(make) else keras.Input((6, 5))
    layer = make(rate, **settings)
    outputs = layer(inputs, inputs) if make is attention else layer(inputs)
    outputs = keras.layers.Dense(1)(keras.layers.Flatten()(outputs))
    model = keras.Model(inputs, outputs)
    for i, weight in enumerate(model.trainable_weights):
        weight.assign(keras.random.normal(weight.shape, seed=i))
    model.compile(keras.optimizers.SGD(1e-4), "mse")
    return model


def of_words(make):
    return make is embedding


def inputs_of(make):
    return WORDS if of_words(make) else SEQUENCES


def set_rate(model, rate):
    for layer in kdrop.drop_layers(model):
        layer.rate = rate


def fit(model, make, epochs=1, **settings):
    targets = np.zeros((16, 1))
    model.fit(inputs_of(make), targets, 4, epochs, verbose=0, shuffle=False, **settings)


def compiled(model):
    """A function that calls a model in training, and advances its draws."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda x: model(x, training=True), jit_compile=True)
    import jax

    pure = jax.jit(lambda *state, x: model.stateless_call(*state, x, training=True))

    def call(inputs):
        state = model.trainable_variables, model.non_trainable_variables
        outputs, values = pure(*([v.value for v in x] for x in state), x=inputs)
        for variable, value in zip(state[1], values, strict=True):
            variable.assign(value)
        return outputs

    return call


CASES = [embedding, lstm, zoned, attention]
every_case = pytest.mark.parametrize("make", CASES)
# The unrolled network takes long to compile.
SLOW = pytest.param(zoned, marks=pytest.mark.slow)
compiled_case = pytest.mark.parametrize("make", [embedding, lstm, attention, SLOW])


@every_case
def test_at_inference_it_is_the_plain_layer(make):
    model, plain = network(make), network(make, None)
    if make is zoned:  # else the expectation over one step
        set_rate(model, 0.0)
    inputs = inputs_of(make)
    np.testing.assert_array_equal(model(inputs), plain(inputs))
    assert [w.shape for w in model.weights] == [w.shape for w in plain.weights]
    assert all(layer.draw_count == 0 for layer in kdrop.drop_layers(model))
    set_rate(model, 0.0)
    assert_close(numpy(model(inputs, training=True)), numpy(plain(inputs)))


@compiled_case
def test_eager_and_compiled_calls_draw_the_same(make):
    eager, other = network(make), network(make)
    call, inputs, outputs = compiled(other), inputs_of(make), []
    for _ in range(2):
        outputs.append(numpy(eager(inputs, training=True)))
        np.testing.assert_allclose(
            numpy(call(inputs)), outputs[-1], rtol=1e-4, atol=1e-4
        )
    assert np.abs(outputs[0] - outputs[1]).max() > 0.01


@compiled_case
def test_the_rate_changes_a_compiled_function(make):
    model, inputs = network(make, 0.0), inputs_of(make)
    call, plain = compiled(model), numpy(network(make, None)(inputs))
    assert_close_to(numpy(call(inputs)), plain)
    set_rate(model, 0.5)
    assert np.abs(numpy(call(inputs)) - plain).max() > 0.01
    set_rate(model, 0.0)
    assert_close_to(numpy(call(inputs)), plain)


def assert_close_to(outputs, expected):
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


@compiled_case
def test_a_resumed_run_equals_an_uninterrupted_one(make, tmp_path):
    whole, half = network(make), network(make)
    fit(half, make)
    half.save(tmp_path / "half.keras")
    resumed = keras.models.load_model(tmp_path / "half.keras")
    fit(resumed, make)
    fit(whole, make, 2)
    assert np.abs(resumed.get_weights()[0] - half.get_weights()[0]).max() > 0
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    counts = [layer.draw_count for layer in kdrop.drop_layers(whole)]
    assert counts == [layer.draw_count for layer in kdrop.drop_layers(resumed)]


@compiled_case
def test_samples_do_not_depend_on_the_batch(make):
    model, inputs = network(make), inputs_of(make)
    settings = {"seed": 3, "verbose": 0}
    samples = kdrop.sample(model, inputs, 4, **settings)
    assert samples.std(axis=0).min() > 0
    parts = kdrop.sample(model, inputs, 4, batch_size=3, **settings)
    np.testing.assert_allclose(samples, parts, rtol=1e-4, atol=1e-4)
    predicted = kdrop.Sampler(model, seed=3).predict(inputs, verbose=0)
    np.testing.assert_allclose(predicted, samples[0], rtol=1e-4, atol=1e-4)
    unseeded = kdrop.Sampler(model)
    assert np.abs(numpy(unseeded(inputs)) - numpy(unseeded(inputs))).max() > 0.01


@every_case
def test_config_round_trip_and_clone(make):
    layer = make(0.25)
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(layer) and copy.get_config() == layer.get_config()
    model = network(make)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    inputs = inputs_of(make)
    one, other = (numpy(each(inputs, training=True)) for each in (model, clone))
    np.testing.assert_array_equal(one, other)


@every_case
def test_mixed_precision_computes_in_half(make):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network(make)
    finally:
        keras.config.set_dtype_policy(before)
    assert model.layers[-3].compute_dtype == "bfloat16"
    outputs = model(inputs_of(make), training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    assert np.isfinite(numpy(outputs)).all()


@every_case
@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan"), True, "0.5"])
def test_invalid_rates_are_rejected(make, rate):
    with pytest.raises(ValueError, match="rate") as error:
        make(rate)
    assert repr(rate) in str(error.value)


@on_tensorflow
@pytest.mark.slow
@pytest.mark.usefixtures("ordered_updates")
@pytest.mark.parametrize("make", [embedding, lstm, attention])
def test_with_the_clock_remat_changes_nothing(make):
    class Recomputed(keras.layers.Layer):
        def __init__(self, recompute):
            super().__init__()
            self.inner, self.recompute = make(0.5), recompute

        def build(self, shape):
            self.inner.build(*[shape] * (1 + (make is attention)))

        def call(self, x, training=False):
            def block(x):
                x = (x, x) if make is attention else (x,)
                return self.inner(*x, training=training) ** 2

            return keras.remat(block)(x) if self.recompute else block(x)

    weights = []
    for recompute in (False, True):
        keras.utils.set_random_seed(0)
        first = [keras.layers.Dense(5)] * (not of_words(make))
        shape = (
            {"shape": (6,), "dtype": "int32"} if of_words(make) else {"shape": (6, 5)}
        )
        last = [keras.layers.Flatten(), keras.layers.Dense(1)]
        parts = [keras.Input(**shape), *first, Recomputed(recompute), *last]
        model = keras.Sequential(parts)
        model.compile(keras.optimizers.SGD(1e-4), "mse", jit_compile=False)
        fit(model, make, 2, callbacks=[kdrop.StepClock()])
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@on_tensorflow
@pytest.mark.parametrize("make", [embedding, lstm, attention])
def test_replicas_hold_the_rows_of_the_global_batch(make, strategy):
    import tensorflow as tf

    inputs = inputs_of(make)
    expected = numpy(network(make)(inputs, training=True))
    with strategy.scope():
        model = network(make)
    parts = strategy.experimental_distribute_values_from_function(
        lambda context: inputs[8 * context.replica_id_in_sync_group :][:8]
    )
    call = tf.function(lambda x: model(x, training=True))
    outputs = strategy.run(call, (parts,))
    outputs = np.concatenate(strategy.experimental_local_results(outputs))
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
