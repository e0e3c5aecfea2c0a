"""Layers that drop connections as Keras layers: files, training, quantization."""

import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from dropconnect import dense, normal

import kdrop
from kdrop import DropConnectConv2D, DropConnectDense


def network(dense_class=DropConnectDense, conv_class=DropConnectConv2D):
    keras.utils.set_random_seed(0)
    rate = {"rate": 0.5, "seed": 3} if dense_class is DropConnectDense else {}
    return keras.Sequential(
        [
            keras.Input((4, 5, 2)),
            conv_class(3, 2, activation="relu", name="drop_1", **rate),
            keras.layers.Flatten(),
            dense_class(8, activation="relu", name="drop_2", **rate),
            keras.layers.Dense(1),
        ]
    )


def fit(model, epochs, **settings):
    inputs = normal(32, 4, 5, 2, dtype="float32")
    settings = {"batch_size": 8, "shuffle": False, "verbose": 0, **settings}
    model.fit(inputs, inputs[:, 0, 0, :1], epochs=epochs, **settings)


def assert_same_weights(one, other):
    assert_close_weights(one, other, 0)


def assert_close_weights(one, other, bound):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=bound, atol=bound)


class Holder(keras.Model):
    """Two layers as attributes: files name the layers of a list by their class."""

    def __init__(self, dense_class, conv_class):
        super().__init__()
        layers = network(dense_class, conv_class).layers
        self.conv, self.flat, self.dense, _ = layers

    def call(self, inputs):
        return self.dense(self.flat(self.conv(inputs)))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["weights", "checkpoint"])
def test_weight_files_pass_to_and_from_the_plain_layers(form, tmp_path):
    kdrop_model = Holder(DropConnectDense, DropConnectConv2D)
    keras_model = Holder(keras.layers.Dense, keras.layers.Conv2D)
    inputs = normal(3, 4, 5, 2, dtype="float32")
    for source, target in [(kdrop_model, keras_model), (keras_model, kdrop_model)]:
        source(inputs), target(inputs)
        source.set_weights([w + 1 for w in source.get_weights()])
        if form == "weights":
            source.save_weights(tmp_path / "model.weights.h5")
            target.load_weights(tmp_path / "model.weights.h5")
        else:
            path = tf.train.Checkpoint(model=source).save(tmp_path / "model")
            tf.train.Checkpoint(model=target).restore(path).expect_partial()
        assert_same_weights(source, target)
        np.testing.assert_array_equal(kdrop_model(inputs), keras_model(inputs))


@pytest.mark.slow
@pytest.mark.parametrize(("per_example", "jit_compile"), [(True, True), (False, False)])
def test_fit_and_eager_calls_have_the_same_masks(per_example, jit_compile):
    inputs, targets = normal(32, 6, dtype="float32"), normal(32, 4, dtype="float32")
    settings = {"dtype": "float32", "per_example": per_example}
    model = keras.Sequential([keras.Input((6,), 16), dense(**settings)])
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
    alone = dense(**settings)
    alone.build((16, 6))
    alone.set_weights(model.get_weights())
    model.fit(inputs, targets, 16, shuffle=False, verbose=0)
    for part in (slice(0, 16), slice(16, 32)):
        with tf.GradientTape() as tape:
            outputs = alone(inputs[part], training=True)
            loss = tf.reduce_mean((outputs - targets[part]) ** 2)
        variables = [v.value for v in alone.trainable_variables]
        for variable, slope in zip(
            variables, tape.gradient(loss, variables), strict=True
        ):
            variable.assign_sub(0.1 * slope)
    for one, other in zip(model.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("ordered_updates")
def test_with_the_clock_remat_changes_nothing():
    class Recomputed(keras.layers.Layer):
        def __init__(self, recompute):
            super().__init__()
            self.layer, self.recompute = dense(8, 0.5, dtype="float32"), recompute

        def build(self, shape):
            self.layer.build(shape)

        def call(self, inputs, training=False):
            def block(x):
                return self.layer(x, training=training) ** 2

            return keras.remat(block)(inputs) if self.recompute else block(inputs)

    def trained(recompute):
        keras.utils.set_random_seed(0)
        parts = [keras.layers.Flatten(), Recomputed(recompute), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((4, 5, 2)), *parts])
        model.compile(keras.optimizers.SGD(0.001), "mse", jit_compile=False)
        fit(model, 2, callbacks=[kdrop.StepClock()])
        return model

    # The two programs may round differently.
    assert_close_weights(trained(False), trained(True), 1e-6)


@pytest.mark.parametrize("kind", ["dense", "channels_last", "channels_first"])
def test_at_inference_it_is_the_plain_layer(kind):
    if kind == "dense":
        shape = (5, 6)
        layer, plain = dense(activation="relu"), keras.layers.Dense(4, "relu")
    else:
        shape = (5, 6, 7, 2) if kind == "channels_last" else (5, 2, 6, 7)
        settings = {"activation": "relu", "data_format": kind}
        layer = DropConnectConv2D(4, 3, 0.5, name="conv", **settings)
        plain = keras.layers.Conv2D(4, 3, **settings)
    for one in (layer, plain):
        one.build(shape)
    plain.set_weights(layer.get_weights())
    assert layer.compute_output_shape(shape) == plain.compute_output_shape(shape)
    names = [f"{layer.name}/kernel", f"{layer.name}/bias"]
    assert [w.path for w in layer.weights] == names
    inputs = normal(*shape, dtype="float32")
    try:
        expected = plain(inputs)
    except tf.errors.UnimplementedError as error:  # without AVX-512
        pytest.skip(f"Keras's own layer has no kernel on this processor: {error}")
    np.testing.assert_allclose(layer(inputs), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        DropConnectDense(3, 0.3, "relu", per_example=False, seed=4, dtype="float16"),
        DropConnectConv2D(3, (2, 1), 0.3, 2, padding="same", seed=4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_config_round_trip(layer):
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert type(copy) is type(layer)
    assert copy.get_config() == layer.get_config()
    assert copy.rate == 0.3 and copy.per_example == layer.per_example


def test_invalid_arguments_are_rejected():
    for arguments, named in (
        ({"rate": "0.5"}, "rate='0.5'"),
        ({"rate": 0.5, "seed": -1}, "seed=-1"),
        ({"rate": 0.5, "per_example": 1}, "per_example=1"),
    ):
        with pytest.raises(ValueError, match=named):
            DropConnectDense(3, **arguments)
        with pytest.raises(ValueError, match=named):
            DropConnectConv2D(3, 2, **arguments)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
def test_sparse_inputs_give_what_dense_ones_give(training, rank):
    layer, same = dense(dtype="float32"), dense(dtype="float32")
    inputs = np.eye(6, dtype="float32").reshape(6, *(1,) * (rank - 2), 6)
    for one in (layer, same):
        one.build(inputs.shape)
    same.set_weights(layer.get_weights())
    outputs = layer(tf.sparse.from_dense(inputs), training=training)
    expected = same(inputs, training=training)
    np.testing.assert_allclose(outputs, expected, rtol=1e-6, atol=1e-6)


def test_sparse_maps_give_what_dense_ones_give():
    layer = DropConnectConv2D(3, 2, 0.5, seed=1)
    inputs = normal(2, 4, 5, 2, dtype="float32")
    sparse = tf.sparse.from_dense(inputs)
    np.testing.assert_allclose(layer(sparse), layer(inputs), rtol=1e-6, atol=1e-6)
    assert layer(sparse, training=True).shape == (2, 3, 4, 3)


@pytest.mark.slow
def test_a_model_is_trained_on_sparse_inputs():
    inputs = keras.Input((6,), batch_size=3, sparse=True)
    model = keras.Model(inputs, DropConnectDense(1, 0.5)(inputs))
    model.compile("sgd", "mse")
    sparse = tf.sparse.from_dense(np.eye(3, 6, dtype="float32"))
    model.fit(sparse, np.ones((3, 1)), batch_size=3, verbose=0)
    assert model.predict(sparse, verbose=0).shape == (3, 1)


def test_inputs_that_are_not_one_dense_or_sparse_tensor_are_rejected():
    ones = tf.ones((2, 4))
    for make in (
        lambda: DropConnectDense(3, 0.5, name="drop"),
        lambda: kdrop.InvertedDropout(0.5, name="drop"),
        lambda: kdrop.VariationalDropout(3, name="drop"),
        lambda: kdrop.StandoutDropout(name="drop"),
        lambda: kdrop.ConcreteDropout(keras.layers.Dense(3), 0, 0, name="drop"),
    ):
        for inputs in (None, [ones, ones], {"x": ones}):
            with pytest.raises(ValueError, match="'drop' takes one tensor"):
                make()(inputs)
        for ragged in (
            tf.RaggedTensor.from_tensor(ones),
            keras.Input((4,), ragged=True),
        ):
            for training in (False, True):
                with pytest.raises(ValueError, match=r"ragged.*\.to_tensor\(\)"):
                    make()(ragged, training=training)
        with pytest.raises(ValueError, match="floating-point inputs only.*string"):
            make()(np.array([["a", "b"]]))


@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_quantize_names_the_layers_that_stay_in_float(mode):
    model = network()
    before = model.get_weights()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.quantize(mode)
    of_keras = re.compile("__array__|Layer (InputLayer|Flatten) does not")
    sentences = [str(warning.message) for warning in caught]
    assert [each for each in sentences if not of_keras.match(each)] == [
        f"Layer {name!r} of type {kind} has no quantized form: it stays in float."
        for name, kind in [
            ("drop_1", "DropConnectConv2D"),
            ("drop_2", "DropConnectDense"),
        ]
    ]
    assert model.layers[-1].quantization_mode == mode
    for name in ("drop_1", "drop_2"):
        assert model.get_layer(name).quantization_mode is None
    for one, other in zip(before[:4], model.get_weights()[:4], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_layer_outside_a_model_cannot_be_quantized():
    layer = DropConnectDense(3, 0.5, name="drop")
    layer.build((None, 2))
    with pytest.raises(NotImplementedError, match="'drop' of type.*stays in float"):
        layer.quantize("int8")
    with pytest.raises(NotImplementedError, match="'drop' of type.*stays in float"):
        DropConnectDense(3, 0.5, name="drop", dtype="int8_from_float32")(
            tf.ones((2, 2))
        )


@pytest.mark.slow
def test_weights_of_lora_are_trained_and_saved(tmp_path):
    model = network()
    for name in ("drop_1", "drop_2"):
        model.get_layer(name).enable_lora(2)
    model.compile("adam", "mse")
    before = [layer._kernel.numpy() for layer in (model.layers[0], model.layers[2])]
    fit(model, 2)
    for kernel, layer in zip(before, (model.layers[0], model.layers[2]), strict=True):
        np.testing.assert_array_equal(layer._kernel, kernel)
        assert np.abs(layer.kernel - kernel).max() > 0
    inputs = normal(3, 4, 5, 2, dtype="float32")
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    plain = network()
    plain.load_weights(tmp_path / "model.weights.h5")
    for loaded in (plain, keras.models.load_model(tmp_path / "model.keras")):
        # Loading merges the weights of LoRA into the kernel, which rounds.
        np.testing.assert_allclose(loaded(inputs), model(inputs), rtol=1e-5, atol=1e-6)
