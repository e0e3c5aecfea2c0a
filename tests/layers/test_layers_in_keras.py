"""The contract: drop layers behave like the layers of Keras, and have a rate."""

import itertools
import re

import keras
import numpy as np
import pytest
from family import (
    BACKEND,
    FAMILY,
    assert_close,
    assert_frequency,
    dropped,
    every_kind,
    every_layer,
    fit,
    numpy,
    traced,
)
from keras import ops
from keras.src import layers as keras_layers
from keras.src.layers.regularization import (
    alpha_dropout_test,
    dropout_test,
    gaussian_dropout_test,
    spatial_dropout_test,
)

from kdrop import InvertedDropout

# Promise 6: the rate can be set at any time


@every_kind
def test_rate_changes_a_traced_function(case):
    layer = case.make(0.0)
    call = traced(layer)
    for rate in (0.0, 0.9, 0.1):
        layer.rate = rate
        assert layer.rate == layer.get_config()["rate"] == rate
        same = case.make(rate)
        for _ in range(layer.draw_count):
            case.draw(same)
        outputs = case.seen(call(case.ones()))
        assert_close(outputs, case.draw(same))


def test_rate_changes_in_a_running_fit():
    class Change(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if BACKEND == "jax":
                model.jax_state_sync()
            drop.rate = 0.0 if epoch < 2 else 0.999

    drop = InvertedDropout(0.5, seed=1, name="drop")
    scale = keras.layers.Dense(100, kernel_initializer="identity", use_bias=False)
    model = keras.Sequential([keras.Input((100,)), drop, scale])
    optimizer = keras.optimizers.SGD(0.0)
    model.compile(optimizer, lambda y, x: 0 * x + ops.cast(x == 0, "float32"))
    inputs = np.ones((10, 100), "float32")
    history = model.fit(inputs, inputs, epochs=4, verbose=0, callbacks=[Change()])
    losses = history.history["loss"]
    assert losses[:2] == [0.0, 0.0]
    assert losses[2:] == pytest.approx([0.999] * 2, abs=0.01)


def test_a_rate_cannot_be_set_inside_a_traced_step():
    class Setting(keras.Sequential):
        def call(self, inputs, training=False):
            if training:
                self.layers[0].rate = 0.2
            return super().call(inputs, training=training)

    drop = InvertedDropout(0.5)
    model = Setting([keras.Input((8,)), drop, keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=False)
    with pytest.raises(RuntimeError, match="cannot be set inside.*RateSchedule"):
        fit(model)
    assert drop.rate == 0.5
    if BACKEND == "tensorflow":  # on JAX `fit` leaves the model without its state
        drop.rate = 0.3
        assert drop.rate == 0.3


@pytest.mark.parametrize(
    "rate", [-0.1, 1.0, 1.5, float("nan"), float("inf"), True, "0.5", None, [0.5]]
)
def test_invalid_rates_are_rejected(rate):
    with pytest.raises(ValueError, match="rate") as error:
        InvertedDropout(rate)
    assert repr(rate) in str(error.value)
    layer = InvertedDropout(0.5)
    with pytest.raises(ValueError, match="rate"):
        layer.rate = rate
    assert layer.rate == 0.5


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "1", True])
def test_invalid_seeds_are_rejected(seed):
    with pytest.raises(ValueError, match="seed") as error:
        InvertedDropout(0.5, seed=seed)
    assert repr(seed) in str(error.value)


# Promise 10: a good Keras citizen


@every_kind
def test_variables_have_different_paths(case):
    drops = [case.make(name="drop_1"), case.make(name="drop_2")]
    model = keras.Sequential([keras.Input(case.shape[1:]), *drops])
    assert len({v.path for v in model.non_trainable_variables}) == 2


KERAS_CASES = (
    [
        (layer, "Dropout", dropout_test.DropoutTest)
        for layer in ("InvertedDropout", "VanillaDropout")
    ]
    + [
        ("GaussianDropout",) * 2 + (gaussian_dropout_test.GaussianDropoutTest,),
        ("AlphaDropout",) * 2 + (alpha_dropout_test.AlphaDropoutTest,),
    ]
    + [
        (layer, f"SpatialDropout{size}D", spatial_dropout_test.SpatialDropoutTest)
        for layer, size in (
            ("SpatialDropout1D", 1),
            ("LockedDropout", 1),
            ("SpatialDropout2D", 2),
            ("SpatialDropout3D", 3),
        )
    ]
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kdrop_name", "keras_name", "tests", "name"),
    [
        (kdrop_name, keras_name, tests, name)
        for kdrop_name, keras_name, tests in KERAS_CASES
        for name in dir(tests)
        if re.match("test_(dropout|validate|gauss|alpha)", name)
        or re.match(f"test_spatial_dropout_{keras_name[-2:]}", name, re.IGNORECASE)
    ],
)
@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_keras_own_tests_pass(kdrop_name, keras_name, tests, name, monkeypatch):
    if (kdrop_name, name) == ("VanillaDropout", "test_dropout_rescaling"):
        pytest.skip("holds for inverted dropout only")
    monkeypatch.setattr(keras_layers, keras_name, FAMILY[kdrop_name].layer)
    result = tests(name).run()
    assert result.wasSuccessful(), (result.failures + result.errors)[0][1]


@every_layer
def test_config_round_trip_and_clone(case):
    layer = case.make(0.3, seed=4, dtype="float16", trainable=False)
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert type(copy) is case.layer
    assert copy.get_config() == layer.get_config()
    assert copy.get_config()["trainable"] is False
    assert layer.get_config()["rate"] == 0.3
    model = keras.Sequential([keras.Input(case.shape[1:]), case.make()])
    clone = keras.models.clone_model(model)
    np.testing.assert_array_equal(
        case.draw(model.layers[0]), case.draw(clone.layers[0])
    )


@every_kind
def test_no_weights(case):
    assert case.make().weights == []


@every_layer
def test_masks_of_keras_pass_through(case):
    if len(case.shape) != 3:
        pytest.skip("Masking makes masks of (batch, steps, features)")
    masked = keras.layers.Masking()(keras.Input(case.shape[1:]))
    assert case.make()(masked)._keras_mask is masked._keras_mask


@every_kind
def test_mixed_precision_computes_in_half(case):
    layer = case.make(dtype="mixed_bfloat16")
    outputs = layer(case.ones(), training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    assert layer(keras.Input(case.shape[1:])).dtype == "bfloat16"


@every_kind
@pytest.mark.parametrize("dtype", ["bool", "complex64", "uint8", "int32"])
def test_inputs_of_no_float_dtype_are_rejected(case, dtype):
    inputs = [np.ones(case.shape, dtype), keras.Input(case.shape[1:], dtype=dtype)]
    for each, training in itertools.product(inputs, (False, True)):
        with pytest.raises(ValueError, match=f"floating-point inputs only.*{dtype}"):
            case.make()(each, training=training)


@every_kind
@pytest.mark.parametrize("training", [False, True])
def test_inputs_that_are_not_one_tensor_are_rejected(case, training):
    ones, symbolic = case.ones(), keras.Input(case.shape[1:])
    for inputs, received in [
        (None, "None"),
        ([ones, ones], "a list"),
        ((symbolic, symbolic), "a tuple"),
        ({"inputs": ones}, "a dict"),
    ]:
        with pytest.raises(ValueError, match=f"'drop' takes one tensor.*{received}"):
            case.make()(inputs, training=training)


def as_sparse(inputs):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.sparse.from_dense(inputs)
    from jax.experimental import sparse

    return sparse.BCOO.fromdense(inputs)


@every_kind
def test_sparse_inputs_become_dense_in_training_alone(case):
    inputs = keras.random.normal(case.shape, seed=1)
    inputs = ops.where(inputs > 1, inputs, 0)
    layer, sparse = case.make(), as_sparse(inputs)
    outputs = layer(sparse)
    if case.scales_at_inference:
        dense = ops.convert_to_tensor(outputs, sparse=False)
        assert_close(numpy(dense), 0.5 * numpy(inputs))
    else:
        assert outputs is sparse
    outputs, expected = layer(sparse, training=True), case.make()(inputs, training=True)
    np.testing.assert_array_equal(numpy(outputs), numpy(expected))


@every_kind
@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
def test_quantize_does_not_warn_of_layers_without_weights(case):
    keras.Sequential([keras.Input(case.shape[1:]), case.make()]).quantize("int8")


@pytest.mark.parametrize("noise_shape", [(4, 1, 1), (4, 4)])
def test_noise_shapes_that_do_not_broadcast_are_rejected(noise_shape):
    layer = InvertedDropout(0.5, noise_shape=noise_shape)
    for inputs in (np.ones((4, 8), "float32"), keras.Input(batch_shape=(4, 8))):
        with pytest.raises(ValueError, match="must broadcast") as error:
            layer(inputs)
        assert str(noise_shape) in str(error.value)


@pytest.mark.parametrize(
    ("noise_shape", "shared"),
    [((None, 1, None), 1), ((1, None, 1), (0, 2)), ((8,), (0, 1))],
)
def test_a_noise_shape_shares_decisions(noise_shape, shared):
    layer = InvertedDropout(0.5, noise_shape=noise_shape, seed=1)
    mask = dropped(layer, (64, 32, 8))
    assert (mask.all(axis=shared) == mask.any(axis=shared)).all()
    assert_frequency(mask.all(axis=shared), 0.5)


def test_inputs_of_rank_one_and_none():
    layer = InvertedDropout(0.5, seed=1)
    assert_frequency(dropped(layer, (1000,)), 0.5)
    assert dropped(layer, ()).shape == ()
