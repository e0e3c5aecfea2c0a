"""Layers that drop connections, compared with products of masked weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from dropconnect import connected, dense, in_mode, masks, normal

from kdrop import DropConnectConv2D
from kdrop.masks import connections


@pytest.fixture(autouse=True)
def short_steps(monkeypatch):
    """The long loop steps take a second each to compile."""
    monkeypatch.setattr(connections, "_UNROLLED", 3)


def slow(*cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    ("mode", "shape"),
    [
        ("graph", (5, 19)),
        *slow(("eager", (5, 2, 3, 19)), ("xla", (5, 19)), ("export", (5, 19))),
        *slow(("xla", (5, 3, 19)), ("export", (5, 3, 19))),
    ],
)
def test_outputs_and_gradients_are_those_of_masked_weights(mode, shape):
    layer, inputs = dense(33), normal(*shape)
    layer.build(shape)
    weights = [v.value for v in layer.trainable_variables]
    kernel_mask, bias_mask = masks(layer, 5), masks(layer, 5, bias=True)

    def compute(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
            loss = tf.reduce_sum(outputs**3)
        return outputs, *tape.gradient(loss, [inputs, *weights])

    kernel, bias = (w.numpy() for w in weights)
    flat = inputs.numpy().reshape(5, -1, 19)
    expected = np.einsum("bpi,bio->bpo", flat, kernel_mask * kernel)
    expected += (bias_mask * bias)[:, None]
    slope = 3 * expected**2
    results = (
        expected.reshape(*shape[:-1], 33),
        np.einsum("bpo,bio->bpi", slope, kernel_mask * kernel).reshape(shape),
        np.einsum("bpi,bpo,bio->io", flat, slope, kernel_mask),
        np.einsum("bpo,bo->o", slope, bias_mask),
    )
    for outputs, result in zip(in_mode(mode, compute)(inputs), results, strict=True):
        np.testing.assert_allclose(outputs, result, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(5, 6), (5, 2, 6)], ids=len)
def test_second_derivatives_are_those_of_masked_weights(shape):
    layer, inputs = dense(), normal(*shape)
    layer.build(shape)
    kernel = layer._kernel.value
    mask, bias = masks(layer, 5), masks(layer, 5, bias=True) * layer.bias.numpy()

    def derivatives(call):
        def compute(inputs):
            with tf.GradientTape() as outer:
                outer.watch(inputs)
                with tf.GradientTape() as inner:
                    inner.watch(inputs)
                    loss = tf.reduce_sum(call(inputs) ** 3)
                first = inner.gradient(loss, [inputs, kernel])
                total = sum(tf.reduce_sum(tf.sin(g)) for g in first)
            return outer.gradient(total, [inputs, kernel])

        return compute

    def by_hand(inputs):
        flat = tf.reshape(inputs, (5, -1, 6))
        outputs = tf.einsum("bpi,bio->bpo", flat, mask * kernel) + bias[:, None]
        return tf.reshape(outputs, (*shape[:-1], 4))

    results = in_mode("graph", derivatives(lambda x: layer(x, training=True)))(inputs)
    expected = derivatives(by_hand)(inputs)
    for one, other in zip(results, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("graph", {"padding": "same", "use_bias": False}),
        *slow(
            ("eager", {"strides": (2, 1)}),
            ("export", {"dilation_rate": 2}),
            ("graph", {"data_format": "channels_first"}),
            ("graph", {"groups": 2}),
            ("xla", {"strides": (2, 1), "padding": "same"}),
        ),
    ],
    ids=str,
)
def test_a_convolution_is_that_of_masked_filters(mode, settings):
    first = settings.get("data_format") == "channels_first"
    inputs = normal(3, 4, 9, 7) if first else normal(3, 9, 7, 4)
    layer = DropConnectConv2D(
        6, (3, 2), 0.25, seed=7, name="conv", dtype="float64",
        bias_initializer="normal", **settings
    )  # fmt: skip
    layer.build(inputs.shape)
    last = {k: v for k, v in settings.items() if k != "data_format"}
    plain_layer = keras.layers.Conv2D(6, (3, 2), dtype="float64", **last)
    weights = [v.value for v in layer.trainable_variables]
    factors = [masks(layer, 3, bias=i == 1) for i in range(len(weights))]

    def by_hand(inputs):
        if first:
            inputs = tf.transpose(inputs, (0, 2, 3, 1))
        outputs = []
        for i in range(3):
            kernel, *bias = (w * f[i] for w, f in zip(weights, factors, strict=True))
            outputs.append(plain_layer.convolution_op(inputs[i : i + 1], kernel))
            outputs[-1] += bias[0] if bias else 0
        outputs = tf.concat(outputs, 0)
        return tf.transpose(outputs, (0, 3, 1, 2)) if first else outputs

    def gradients(call):
        def compute(inputs):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = call(inputs)
                loss = tf.reduce_sum(outputs**3)
            return outputs, *tape.gradient(loss, [inputs, *weights])

        return compute

    results = in_mode(mode, gradients(lambda x: layer(x, training=True)))(inputs)
    for one, other in zip(results, gradients(by_hand)(inputs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("inner", [(), (1,)], ids=len)
def test_a_batch_of_unknown_size_may_be_empty(inner):
    layer, inputs = dense(), normal(7, *inner, 6)
    layer.build(inputs.shape)

    @tf.function(input_signature=[tf.TensorSpec((None, *inner, 6), "float64")])
    def call(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
        return outputs, *tape.gradient(outputs, [inputs, layer.kernel.value])

    for draw, count in enumerate((7, 0), start=1):
        mask, part = masks(layer, count, draw), inputs[:count].numpy()
        thinned_kernel = mask * layer.kernel.numpy()
        bias = masks(layer, count, draw, bias=True) * layer.bias.numpy()
        expected = (
            np.einsum("b...i,bio->b...o", part, thinned_kernel)
            + bias.reshape(count, *inner, 4),
            np.broadcast_to(thinned_kernel.sum(2).reshape(part.shape), part.shape),
            np.einsum("bi,bio->io", part.reshape(count, 6), mask),
        )
        for one, other in zip(call(inputs[:count]), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_an_export_needs_no_compiler_and_little_memory():
    layer = connected()
    layer.build((None, 512))
    spec = tf.TensorSpec((128, 512))
    call = in_mode("export", lambda x: layer(x, training=True))
    graph = call.get_concrete_function(spec).graph
    functions = graph.as_graph_def().library.function
    assert not any("_XlaMustCompile" in f.attr for f in functions)

    def sizes(graph):
        for operation in graph.get_operations():
            for output in operation.outputs:
                yield output.shape.num_elements() or 0
        for inner in graph._functions.values():
            if hasattr(inner, "graph"):
                yield from sizes(inner.graph)

    assert max(sizes(graph)) <= 512 * 256


def test_mixed_precision_computes_in_half_and_sums_in_single():
    layer = dense(dtype="mixed_bfloat16", kernel_initializer="ones", use_bias=False)
    outputs = layer(tf.ones((8, 1000)), training=True)
    assert outputs.dtype == tf.bfloat16
    # A sum in bfloat16 would stop growing at 256.
    expected = masks(layer, 8).sum(1).astype("float32")
    np.testing.assert_allclose(tf.cast(outputs, "float32"), expected, rtol=2**-8)


@pytest.mark.parametrize("per_example", [True, False])
@pytest.mark.parametrize("shape", [(5, 0), (5, 2, 0)], ids=len)
def test_inputs_without_features_give_the_thinned_bias(shape, per_example):
    layer = dense(per_example=per_example)
    layer.build(shape)
    bias = masks(layer, 5 if per_example else 1, bias=True) * layer.bias.numpy()
    call = tf.function(lambda x: layer(x, training=True))
    outputs = call(tf.zeros(shape, "float64")).numpy()
    expected = np.broadcast_to(
        bias.reshape(-1, *(1,) * (len(shape) - 2), 4), outputs.shape
    )
    np.testing.assert_allclose(outputs, expected, rtol=1e-12)


@pytest.mark.parametrize("inner", [(), (2,)], ids=len)
def test_an_empty_batch_stays_empty(inner):
    outputs = dense()(tf.zeros((0, *inner, 8)), training=True)
    assert outputs.shape == (0, *inner, 4)
