"""The laws of WeightDropout and DropKey."""

import zlib

import keras
import numpy as np
import pytest
from family import BACKEND, assert_frequency, assert_independent, numpy
from keras import ops

import kdrop
from kdrop import DropKey, WeightDropout

X = np.random.default_rng(0).normal(size=(4, 6, 5)).astype("float32")
on_tensorflow = pytest.mark.skipif(BACKEND == "jax", reason="of TensorFlow")


@keras.saving.register_keras_serializable("tests")
class Weights(keras.layers.Layer):
    """Returns its weights, which are 1."""

    def build(self, shape):
        settings = {"shape": (64, 256), "initializer": "ones"}
        self.kernel = self.add_weight(name="kernel", **settings)
        self.other = self.add_weight(name="other", **settings)

    def call(self, inputs):
        return self.kernel + 0, self.other + 0

    def compute_output_shape(self, input_shape):
        return (64, 256), (64, 256)


def seen(*arguments, **settings):
    """What the layer `Weights` sees of its two weights in the next call."""
    settings = {"seed": 7, "name": "drop", **settings}
    layer = WeightDropout(Weights(), *arguments, **settings)
    return [numpy(x) for x in layer(X, training=True)]


def test_a_fraction_of_the_entries_is_dropped_and_the_others_are_scaled():
    kernel, other = seen(0.3)
    assert_frequency(kernel == 0, 0.3)
    np.testing.assert_allclose(kernel[kernel != 0], 1 / 0.7, rtol=1e-6)
    np.testing.assert_array_equal(other, 1)
    # The same mask on each backend
    assert zlib.crc32(np.packbits(kernel == 0)) == 177514353


def test_weights_and_calls_have_independent_masks():
    layer = WeightDropout(Weights(), 0.3, ["kernel", "other"], seed=7, name="drop")
    masks = [numpy(x) == 0 for _ in range(2) for x in layer(X, training=True)]
    for i, mask in enumerate(masks):
        assert_frequency(mask, 0.3)
        for other in masks[:i]:
            assert_independent(mask, other)
    np.testing.assert_array_equal(seen(0.3)[0] == 0, masks[0])


@pytest.mark.parametrize("make", [keras.layers.LSTM, keras.layers.GRU])
def test_a_recurrent_layer_has_one_mask_for_all_steps(make):
    """Outputs and gradients are those of a layer with the masked kernel."""
    plain = make(8, return_sequences=True, name="rnn")
    layer = WeightDropout(make(8, return_sequences=True, name="rnn"), 0.3, seed=7)
    plain.build(X.shape), layer.build(X.shape)
    kernel = layer.layer.cell.recurrent_kernel

    class Mask(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(kernel.shape, "ones", name="kernel")

        def call(self, inputs):
            return self.kernel + 0

    mask = WeightDropout(Mask(), 0.3, seed=7, name=layer.name)(X, training=True)
    weights = layer.get_weights()
    assert [w.path for w in layer.weights] == [
        f"{layer.name}/{w.path}" for w in plain.weights
    ]
    weights[1] = weights[1] * numpy(mask)
    plain.set_weights(weights)
    outputs, expected = layer(X, training=True), plain(X)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    layer.draw_count = 0  # the same mask again
    steps = []
    for each in (layer, plain):
        model = keras.Sequential([keras.Input(X.shape[1:], 4), each])
        model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=BACKEND == "jax")
        before = model.get_weights()
        model.fit(X, np.zeros((4, 6, 8)), 4, verbose=0)
        after = model.get_weights()
        steps.append([b - a for a, b in zip(before, after, strict=True)])
    steps[1][1] *= numpy(mask)
    for one, other in zip(*steps, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_the_fused_kernel_gets_the_thinned_weights(monkeypatch):
    import keras.src.backend

    kernels = []

    def fused(*args, recurrent_kernel, **kwargs):
        kernels.append(numpy(recurrent_kernel))
        raise NotImplementedError

    monkeypatch.setattr(keras.src.backend, "lstm", fused)
    layer = WeightDropout(keras.layers.LSTM(32), 0.3)
    layer(X), layer(X, training=True)
    whole, thinned = kernels
    assert (whole != 0).all()
    assert_frequency(thinned == 0, 0.3)


def test_the_variables_of_wrapped_layers_are_updated_and_losses_added():
    inner = keras.Sequential(
        [
            keras.Input((6, 5)),
            keras.layers.Dense(8, kernel_regularizer=keras.regularizers.L2(1.0)),
            keras.layers.BatchNormalization(),
            kdrop.InvertedDropout(0.5, name="inner"),
            keras.layers.ActivityRegularization(l2=1.0),
        ]
    )
    layer = WeightDropout(inner, 0.5, ["dense*/kernel"])
    norm, drop = inner.layers[1:3]
    outputs = layer(X, training=True)
    activity, penalty = layer.losses
    np.testing.assert_allclose(
        penalty, numpy(ops.sum(inner.layers[0].kernel ** 2)), 1e-5
    )
    np.testing.assert_allclose(activity, numpy(ops.sum(outputs**2)) / 4, rtol=1e-4)
    assert drop.draw_count == 1 and layer.draw_count == 1
    assert numpy(norm.moving_mean).any()
    model = keras.Sequential([keras.Input((6, 5)), layer])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    before = numpy(norm.moving_mean)
    model.fit(X, np.zeros((4, 6, 8)), verbose=0)
    assert drop.draw_count == 2 and layer.draw_count == 2
    assert (numpy(norm.moving_mean) != before).all()


def names(layer, weights=None):
    wrapped = WeightDropout(layer, 0.5, weights)
    wrapped.build(X.shape)
    return ["/".join(w.path.split("/")[-3:]) for w in wrapped._variables()]


def test_weights_are_chosen_by_name_or_path():
    def stack():
        return keras.layers.RNN([keras.layers.GRUCell(3) for _ in range(2)])

    def both():
        return keras.layers.Bidirectional(keras.layers.LSTM(3, name="lstm"))

    assert len(names(stack())) == 2
    assert names(keras.layers.Dense(3))[0].endswith("/kernel")
    assert names(both()) == [
        f"{direction}_lstm/lstm_cell/recurrent_kernel"
        for direction in ("forward", "backward")
    ]
    chosen = ["kernel", "backward*/recurrent_kernel"]
    assert names(both(), chosen) == [
        "forward_lstm/lstm_cell/kernel",
        "backward_lstm/lstm_cell/kernel",
        "backward_lstm/lstm_cell/recurrent_kernel",
    ]
    embedding = keras.layers.Embedding(9, 4)
    outputs = WeightDropout(embedding, 0.5, ["embeddings"])(
        np.ones((3, 2), "int32"), training=True
    )
    assert outputs.shape == (3, 2, 4)


def test_the_dtype_is_that_of_the_layer():
    layer = WeightDropout(keras.layers.Dense(3, dtype="mixed_bfloat16"), 0.5)
    assert layer(X, training=True).dtype == layer(X).dtype == "bfloat16"
    assert layer.compute_dtype == "bfloat16"


def test_what_cannot_be_thinned_is_rejected():
    for weights in ("kernel", [], [1], 3):
        with pytest.raises(ValueError, match="`weights` must be a list of names"):
            WeightDropout(keras.layers.Dense(3), 0.5, weights)
    with pytest.raises(ValueError, match="wraps a layer. Received: layer=None"):
        WeightDropout(None, 0.5)
    layer = WeightDropout(keras.layers.Dense(3), 0.5, ["kernel", "nothing"])
    for inputs in (X, keras.Input((5,))):
        with pytest.raises(ValueError, match="'nothing' for a layer with.*dense.*bias"):
            layer(inputs)

    class Writes(Weights):
        def call(self, inputs):
            self.kernel.assign(2 * self.kernel)
            return super().call(inputs)

    with pytest.raises(ValueError, match="kernel' cannot be thinned: its layer writes"):
        WeightDropout(Writes(), 0.5)(X, training=True)


@on_tensorflow
def test_recomputed_layers_and_functions_in_a_layer():
    import tensorflow as tf

    with keras.RematScope("full"):
        layer = WeightDropout(keras.layers.Dense(3), 0.5, name="drop")
    with pytest.raises(ValueError, match="'drop' wraps one made in a `keras.RematSc"):
        layer(X, training=True)

    class Decorated(Weights):
        @tf.function
        def call(self, inputs):
            return super().call(inputs)

    layer = WeightDropout(Decorated(), 0.5)
    assert (numpy(layer(X)[0]) == 1).all()
    one, other = (numpy(layer(X, training=True)[0]) == 0 for _ in range(2))
    assert_frequency(one, 0.5)
    assert_independent(one, other)
    assert (numpy(layer(X)[0]) == 1).all()


# DropKey


def self_attention(layer, x=None, **settings):
    layer = DropKey(layer, 0.3, seed=7, name="drop")
    x = np.random.default_rng(0).normal(size=(16, 32, 5)) if x is None else x
    return layer(x, x, training=True, return_attention_scores=True, **settings)


def test_each_query_ignores_a_fraction_of_the_keys():
    _, scores = self_attention(keras.layers.MultiHeadAttention(2, 4))
    scores = numpy(scores)  # (batch, heads, queries, keys)
    np.testing.assert_allclose(scores.sum(axis=-1), 1, rtol=1e-5)
    mask = scores[:, 0] == 0
    np.testing.assert_array_equal(scores[:, 1] == 0, mask)
    assert_frequency(mask, 0.3)
    for axis in range(3):
        size = mask.shape[axis] - 1
        one, other = (mask.take(range(i, i + size), axis) for i in (0, 1))
        assert_independent(one, other)
    # The same mask on each backend
    assert zlib.crc32(np.packbits(mask)) == 615070815


def test_no_query_sees_what_other_masks_hide():
    """Not even a query that would lose all the keys it may see."""
    x = np.random.default_rng(0).normal(size=(64, 8, 5)).astype("float32")
    x[:, 6:] = 0
    masked = keras.layers.Masking()(x)
    for settings in ({}, {"use_causal_mask": True}):
        attention = keras.layers.MultiHeadAttention(1, 4)
        _, scores = self_attention(attention, masked, **settings)
        scores = numpy(scores)[:, 0, :6]
        np.testing.assert_allclose(scores.sum(axis=-1), 1, rtol=1e-5)
        assert not scores[..., 6:].any()
        if settings:
            np.testing.assert_array_equal(np.triu(scores, 1), 0)
            np.testing.assert_allclose(scores[:, 0, 0], 1)  # its only key
        else:
            assert_frequency(scores[..., :6] == 0, 0.3)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.layers.MultiHeadAttention(2, 4),
        lambda: keras.layers.GroupQueryAttention(4, 4, 2),
    ],
)
def test_attention_stays_fused(make, given, monkeypatch):
    attention, calls = ops.dot_product_attention, []

    def fused(*args, mask=None, is_causal=False, **kwargs):
        calls.append(mask is not None)
        return attention(*args, mask=mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(keras.src.ops, "dot_product_attention", fused)
    layer, plain = DropKey(make(), 0.3), make()
    settings = {"attention_mask": np.tri(6, dtype=bool)[None]} if given else {}
    layer(X, X, **settings), plain(X, X, **settings)
    plain.set_weights(layer.get_weights())
    calls.clear()
    one, other = layer(X, X, **settings), plain(X, X, **settings)
    np.testing.assert_array_equal(one, other)
    layer(X, X, training=True, **settings)
    assert calls == [given, given, True]


def test_what_is_no_attention_is_rejected():
    for layer in (None, keras.layers.Attention()):
        with pytest.raises(ValueError, match="DropKey wraps a MultiHeadAttention"):
            DropKey(layer, 0.5)
    images = np.ones((2, 3, 4, 5), "float32")
    layer = DropKey(keras.layers.MultiHeadAttention(1, 2), 0.5)
    assert layer(images, images).shape == images.shape
    with pytest.raises(ValueError, match="takes .batch, steps, features.. Received"):
        layer(images, images, training=True)
