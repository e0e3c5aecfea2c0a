"""Layers that drop connections, against weights masked by hand."""

import re
import warnings
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import kdrop
from kdrop.layers.sampling_context import Sampling
from kdrop.layers.weights import DropConnectConv2D, DropConnectDense
from kdrop.masks import bits, connections, kernels

DEVIATIONS = 5  # a normal variable is further off in one case of 1.7 million


@pytest.fixture(autouse=True)
def short_steps(monkeypatch):
    """Compiling the long ones takes a second each."""
    monkeypatch.setattr(connections, "_UNROLLED", 3)


def masks(layer, count, draw=1, salt=0):
    """What each of `count` rows multiplies the layer's weights by."""
    numbers = (layer.seed, zlib.crc32(layer.name.encode()) + salt, draw)
    key = bits.fold(*(tf.constant(np.uint32(n)) for n in numbers))
    rows = np.stack([np.arange(count), np.zeros(count)], axis=1).astype("uint32")
    shape = layer.bias.shape if salt else layer.kernel.shape
    words = bits.words(key, tf.constant(rows), int(np.prod(shape))).numpy()
    kept = words >= round(layer.rate * 2**32)
    return kept.reshape(count, *shape) / (1 - layer.rate)


def dense(units=4, rate=0.25, **settings):
    settings = {"seed": 7, "name": "dense", "dtype": "float64", **settings}
    return DropConnectDense(units, rate, bias_initializer="normal", **settings)


def normal(*shape, dtype="float64"):
    return tf.constant(np.random.default_rng(0).normal(size=shape).astype(dtype))


def in_mode(mode, function):
    """The function run eagerly, in a graph, compiled, or in a graph for export."""
    if mode == "eager":
        return function
    if mode != "plain":
        return tf.function(function, jit_compile=mode == "xla")

    def plain(*args):
        token = kernels.plain.set(True)
        try:
            return function(*args)
        finally:
            kernels.plain.reset(token)

    return tf.function(plain)


# Against masked weights


@pytest.mark.parametrize("mode", ["eager", "graph", "xla", "plain"])
@pytest.mark.parametrize("shape", [(5, 19), (5, 3, 19), (5, 2, 3, 19)], ids=len)
def test_outputs_and_gradients_are_those_of_masked_weights(mode, shape):
    layer, inputs = dense(33), normal(*shape)
    layer.build(shape)
    weights = [v.value for v in layer.trainable_variables]
    kernel_mask, bias_mask = masks(layer, 5), masks(layer, 5, salt=1)

    def ours(inputs):
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
    for found, result in zip(in_mode(mode, ours)(inputs), results, strict=True):
        np.testing.assert_allclose(found, result, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(5, 6), (5, 2, 6)], ids=len)
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_second_derivatives_are_those_of_masked_weights(mode, shape):
    layer, inputs = dense(), normal(*shape)
    layer.build(shape)
    kernel = layer._kernel.value
    mask, bias = masks(layer, 5), masks(layer, 5, salt=1) * layer.bias.numpy()

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

    found = in_mode(mode, derivatives(lambda x: layer(x, training=True)))(inputs)
    expected = derivatives(by_hand)(inputs)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla", "plain"])
@pytest.mark.parametrize(
    "settings",
    [
        {"strides": (2, 1)},
        {"padding": "same", "use_bias": False},
        {"dilation_rate": 2},
        {"data_format": "channels_first"},
        {"groups": 2},
    ],
    ids=lambda s: next(iter(s)),
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
    factors = [masks(layer, 3, salt=i) for i in range(len(weights))]

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

    found = in_mode(mode, gradients(lambda x: layer(x, training=True)))(inputs)
    for one, other in zip(found, gradients(by_hand)(inputs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(5, 6), (5, 2, 6)], ids=len)
def test_one_mask_for_the_batch(shape):
    layer, inputs = dense(per_example=False), normal(*shape)
    outputs = layer(inputs, training=True)
    kernel = masks(layer, 1)[0] * layer.kernel.numpy()
    bias = masks(layer, 1, salt=1)[0] * layer.bias.numpy()
    np.testing.assert_allclose(outputs, inputs.numpy() @ kernel + bias, rtol=1e-12)


def test_one_mask_for_the_batch_of_a_convolution():
    layer = DropConnectConv2D(
        4, 3, 0.25, seed=7, name="conv", dtype="float64", per_example=False
    )
    inputs = normal(5, 6, 7, 2)
    outputs = layer(inputs, training=True)
    expected = layer.convolution_op(inputs, layer.kernel * masks(layer, 1)[0])
    np.testing.assert_allclose(outputs, expected, rtol=1e-12)


# The law


@pytest.mark.parametrize("shape", [(12,), (1, 12)], ids=["connect", "each"])
def test_mean_and_variance_over_masks_are_the_closed_forms(shape):
    rate, count = 0.3, 20000
    layer, example = dense(4, rate, activation="linear"), normal(*shape)
    outputs = layer(tf.repeat(example[None], count, 0), training=True)
    outputs = outputs.numpy().reshape(count, 4)
    kernel, bias = layer.get_weights()
    terms = np.concatenate([example.numpy().reshape(-1, 1) * kernel, bias[None]])
    # A kept share of mean 1 has variance r / q and fourth cumulant r (1 - 6 r q) / q^3.
    keep = 1 - rate
    variance = np.sum(terms**2, 0) * rate / keep
    fourth = np.sum(terms**4, 0) * rate * (1 - 6 * rate * keep) / keep**3
    mean = keras.layers.Dense.call(layer, example[None]).numpy().reshape(4)
    np.testing.assert_allclose(mean, terms.sum(0), rtol=1e-12)
    off = np.abs(outputs.mean(0) - mean)
    assert (off < DEVIATIONS * np.sqrt(variance / count)).all()
    off = np.abs(((outputs - mean) ** 2).mean(0) - variance)
    assert (off < DEVIATIONS * np.sqrt((fourth + 2 * variance**2) / count)).all()


def thinned(layer, shape=(64, 1)):
    """Which of a dense layer's connections the next draw drops: (batch, units)."""
    return layer(tf.ones(shape, layer.compute_dtype), training=True).numpy() == 0


def connected(rate=0.5, seed=1, name="one", **settings):
    settings = {"use_bias": False, "kernel_initializer": "ones", **settings}
    return DropConnectDense(256, rate, seed=seed, name=name, **settings)


def test_masks_differ_between_examples_calls_names_and_seeds():
    layer = connected()
    first, second = thinned(layer), thinned(layer)
    others = [
        second,
        thinned(connected(name="two")),
        thinned(connected(seed=2)),
        np.roll(first, 1, axis=0),
        np.roll(first, 1, axis=1),
    ]
    for other in others:
        bound = DEVIATIONS * np.sqrt(first.size / 4)
        assert abs((first == other).sum() - first.size / 2) < bound
    # Of the bias and the first inputs' weights, too.
    bias = thinned(
        connected(use_bias=True, kernel_initializer="zeros", bias_initializer="ones")
    )
    assert abs((first == bias).sum() - first.size / 2) < bound


def test_a_dropped_weight_that_is_no_number_is_nothing():
    for inputs in (tf.ones((64, 1)), tf.ones((64, 1, 1))):
        mask = thinned(connected())
        layer = connected(kernel_initializer=keras.initializers.Constant(np.nan))
        outputs = layer(inputs, training=True).numpy().reshape(64, 256)
        np.testing.assert_array_equal(np.isnan(outputs), ~mask)
        np.testing.assert_array_equal(outputs[mask], 0)
    outputs = connected()(tf.fill((64, 1), np.nan), training=True).numpy()
    np.testing.assert_array_equal(np.isnan(outputs), ~mask)


# The promises, as weights can keep them


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rate", [0.0, 1e-3, 0.5, 0.999])
def test_the_dropped_fraction_is_the_rate_in_every_dtype(rate, dtype):
    layer = connected(rate, dtype=dtype)
    dropped = np.asarray(thinned(layer, (1024, 1)))
    off = abs(dropped.sum() - rate * dropped.size)
    assert off <= DEVIATIONS * np.sqrt(rate * (1 - rate) * dropped.size)


@pytest.mark.parametrize("per_example", [True, False])
@pytest.mark.parametrize("jit_compile", [True, False])
def test_fit_draws_what_eager_calls_draw(per_example, jit_compile):
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


def test_a_resumed_run_equals_the_whole_one(tmp_path):
    whole, half = network(), network()
    for model in (whole, half):
        model.compile("adam", "mse")
    fit(whole, 4)
    fit(half, 2)
    half.save(tmp_path / "half.keras")
    resumed = keras.models.load_model(tmp_path / "half.keras")
    fit(resumed, 2)
    assert_same_weights(whole, resumed)


class Holder(keras.Model):
    """Two layers as attributes: a list of layers names them by their class."""

    def __init__(self, dense_class, conv_class):
        super().__init__()
        layers = network(dense_class, conv_class).layers
        self.conv, self.flat, self.dense, _ = layers

    def call(self, inputs):
        return self.dense(self.flat(self.conv(inputs)))


@pytest.mark.parametrize("form", ["weights", "checkpoint"])
def test_weight_files_pass_to_and_from_the_plain_layers(form, tmp_path):
    ours = Holder(DropConnectDense, DropConnectConv2D)
    theirs = Holder(keras.layers.Dense, keras.layers.Conv2D)
    inputs = normal(3, 4, 5, 2, dtype="float32")
    for source, target in [(ours, theirs), (theirs, ours)]:
        source(inputs), target(inputs)
        source.set_weights([w + 1 for w in source.get_weights()])
        if form == "weights":
            source.save_weights(tmp_path / "model.weights.h5")
            target.load_weights(tmp_path / "model.weights.h5")
        else:
            path = tf.train.Checkpoint(model=source).save(tmp_path / "model")
            tf.train.Checkpoint(model=target).restore(path).expect_partial()
        assert_same_weights(source, target)
        np.testing.assert_array_equal(ours(inputs), theirs(inputs))


@pytest.mark.parametrize("form", ["weights", "checkpoint"])
def test_draws_are_saved_and_the_rate_is_not(form, tmp_path):
    layers, models = [connected(), connected()], []
    for layer in layers:
        models.append(keras.Sequential([keras.Input((1,)), layer]))
    for _ in range(3):
        thinned(layers[0])
    layers[1].rate = 0.25
    if form == "weights":
        models[0].save_weights(tmp_path / "model.weights.h5")
        models[1].load_weights(tmp_path / "model.weights.h5")
    else:
        saved = tf.train.Checkpoint(model=models[0]).save(tmp_path / "model")
        tf.train.Checkpoint(model=models[1]).restore(saved).expect_partial()
    assert layers[1].rate == 0.25
    layers[0].rate = 0.25
    np.testing.assert_array_equal(thinned(layers[0]), thinned(layers[1]))


def test_the_rate_of_a_traced_layer_changes():
    layer = connected(0.0)
    call = tf.function(lambda x: layer(x, training=True))
    assert (call(tf.ones((64, 1))) != 0).numpy().all()
    layer.rate = 0.25
    outputs = call(tf.ones((64, 1))).numpy()
    dropped = (outputs == 0).sum()
    bound = DEVIATIONS * np.sqrt(outputs.size * 0.25 * 0.75)
    assert abs(dropped - outputs.size / 4) < bound
    np.testing.assert_allclose(outputs[outputs != 0], 4 / 3, rtol=1e-6)


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

    # Of two programs, which may round differently.
    assert_close_weights(trained(False), trained(True), 1e-6)


@pytest.mark.parametrize("shares", [(4, 4), (3, 2)])
def test_replicas_hold_the_rows_of_the_global_batch(shares, strategy):
    with strategy.scope():
        mirrored = connected()
        mirrored.build((None, 1))

    @tf.function
    def step(inputs):
        return strategy.run(lambda x: mirrored(x, training=True), args=(inputs,))

    inputs = strategy.experimental_distribute_values_from_function(
        lambda context: tf.ones((shares[context.replica_id_in_sync_group], 1))
    )
    outputs = strategy.experimental_local_results(step(inputs))
    found = np.concatenate([o.numpy() for o in outputs]) == 0
    np.testing.assert_array_equal(found, thinned(connected(), (sum(shares), 1)))


@pytest.mark.parametrize("rank", [2, 3])
def test_a_batch_of_unknown_size(rank):
    layer, eager = dense(), dense()
    inputs = normal(7, *(1,) * (rank - 2), 6)
    spec = tf.TensorSpec((None,) * (rank - 1) + (6,), "float64")
    for single in (layer, eager):
        single.build(inputs.shape)
    eager.set_weights(layer.get_weights())

    def gradients(layer, inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
        return outputs, *tape.gradient(outputs, [inputs, layer._kernel.value])

    call = tf.function(lambda x: gradients(layer, x), input_signature=[spec])
    for count in (7, 3):
        found, expected = call(inputs[:count]), gradients(eager, inputs[:count])
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_plain_operations_need_no_compiler_and_little_memory():
    layer = connected()
    layer.build((None, 512))
    spec = tf.TensorSpec((128, 512))
    call = in_mode("plain", lambda x: layer(x, training=True))
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


def test_a_sampler_samples_and_leaves_the_model():
    model = network()
    inputs = normal(3, 4, 5, 2, dtype="float32")
    at_inference, sampler = model.predict(inputs, verbose=0), kdrop.Sampler(model)
    first, second = (sampler.predict(inputs, verbose=0) for _ in range(2))
    assert (first != second).any()
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), at_inference)


@pytest.mark.parametrize("per_example", [True, False])
def test_passes_side_by_side_have_masks_of_their_own(per_example):
    rows = np.array([[0, 0, 5], [0, 1, 5], [1, 0, 5], [1, 1, 5]], "uint32")
    layer = connected(per_example=per_example)
    with Sampling([layer], tf.constant(rows)):
        outputs = layer(tf.ones((4, 1))).numpy()
    same = np.array([[(a == b).all() for a in outputs] for b in outputs])
    passes = rows[:, 0]
    expected = np.eye(4) if per_example else passes[:, None] == passes
    np.testing.assert_array_equal(same, expected)


@pytest.mark.parametrize("kind", ["dense", "channels_last", "channels_first"])
def test_at_rest_it_is_the_plain_layer(kind):
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


def test_mixed_precision_computes_in_half_and_sums_in_single():
    layer = dense(dtype="mixed_bfloat16", kernel_initializer="ones", use_bias=False)
    outputs = layer(tf.ones((8, 1000)), training=True)
    assert outputs.dtype == tf.bfloat16
    # A sum in bfloat16 would stand still at 256.
    expected = masks(layer, 8).sum(1).astype("float32")
    np.testing.assert_allclose(tf.cast(outputs, "float32"), expected, rtol=2**-8)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"rate": 1.0}, "rate=1.0"),
        ({"rate": "0.5"}, "rate='0.5'"),
        ({"seed": -1}, "seed=-1"),
        ({"per_example": 1}, "per_example=1"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, named):
    settings = {"rate": 0.5, **arguments}
    with pytest.raises(ValueError, match=named):
        DropConnectDense(3, **settings)
    with pytest.raises(ValueError, match=named):
        DropConnectConv2D(3, 2, **settings)


def test_integer_inputs_are_refused():
    with pytest.raises(ValueError, match="floating-point inputs only.*int32"):
        DropConnectDense(3, 0.5)(np.ones((2, 2), "int32"))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
def test_sparse_inputs_give_what_dense_ones_give(training, rank):
    layer, same = dense(dtype="float32"), dense(dtype="float32")
    inputs = np.eye(6, dtype="float32").reshape(6, *(1,) * (rank - 2), 6)
    for one in (layer, same):
        one.build(inputs.shape)
    same.set_weights(layer.get_weights())
    found = layer(tf.sparse.from_dense(inputs), training=training)
    expected = same(inputs, training=training)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_sparse_maps_give_what_dense_ones_give():
    layer = DropConnectConv2D(3, 2, 0.5, seed=1)
    inputs = normal(2, 4, 5, 2, dtype="float32")
    sparse = tf.sparse.from_dense(inputs)
    np.testing.assert_allclose(layer(sparse), layer(inputs), rtol=1e-6, atol=1e-6)
    assert layer(sparse, training=True).shape == (2, 3, 4, 3)


def test_a_model_is_trained_on_sparse_inputs():
    inputs = keras.Input((6,), batch_size=3, sparse=True)
    model = keras.Model(inputs, DropConnectDense(1, 0.5)(inputs))
    model.compile("sgd", "mse")
    sparse = tf.sparse.from_dense(np.eye(3, 6, dtype="float32"))
    model.fit(sparse, np.ones((3, 1)), batch_size=3, verbose=0)
    assert model.predict(sparse, verbose=0).shape == (3, 1)


def test_inputs_that_are_not_one_dense_or_sparse_tensor_are_refused():
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


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
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


def test_a_layer_alone_refuses_to_be_quantized():
    layer = DropConnectDense(3, 0.5, name="drop")
    layer.build((None, 2))
    with pytest.raises(NotImplementedError, match="'drop' of type.*stays in float"):
        layer.quantize("int8")
    with pytest.raises(NotImplementedError, match="'drop' of type.*stays in float"):
        DropConnectDense(3, 0.5, name="drop", dtype="int8_from_float32")(
            tf.ones((2, 2))
        )


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
        # Merged into the kernel, which rounds otherwise.
        np.testing.assert_allclose(loaded(inputs), model(inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("per_example", [True, False])
@pytest.mark.parametrize("shape", [(5, 0), (5, 2, 0)], ids=len)
def test_inputs_without_features_give_the_thinned_bias(shape, per_example):
    layer = dense(per_example=per_example)
    layer.build(shape)
    bias = masks(layer, 5 if per_example else 1, salt=1) * layer.bias.numpy()
    call = tf.function(lambda x: layer(x, training=True))
    outputs = call(tf.zeros(shape, "float64")).numpy()
    expected = np.broadcast_to(
        bias.reshape(-1, *(1,) * (len(shape) - 2), 4), outputs.shape
    )
    np.testing.assert_allclose(outputs, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (DropConnectDense(4, 0.5), (0, 8), (0, 4)),
        (DropConnectDense(4, 0.5), (0, 2, 8), (0, 2, 4)),
    ],
)
def test_an_empty_batch_stays_one(layer, shape, expected):
    assert layer(tf.zeros(shape), training=True).shape == expected


@pytest.mark.parametrize("inner", [(), (2,)])
def test_the_gradient_of_an_empty_batch_is_none_to_the_weights(inner):
    layer = dense(dtype="float32")
    layer.build((None, *inner, 8))

    @tf.function(input_signature=[tf.TensorSpec((None,) * (len(inner) + 1) + (8,))])
    def gradients(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
        return tape.gradient(outputs, [layer.kernel.value, inputs])

    d_kernel, d_inputs = gradients(tf.zeros((0, *inner, 8)))
    np.testing.assert_array_equal(d_kernel, np.zeros((8, 4)))
    assert d_inputs.shape == (0, *inner, 8)
    d_kernel, d_inputs = gradients(tf.ones((3, *inner, 8)))
    assert (d_kernel.numpy() != 0).any() and d_inputs.shape == (3, *inner, 8)
