"""What the base class promises on TensorFlow: replicas, gradients, exports, shapes."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from family import (
    FAMILY,
    assert_close,
    assert_frequency,
    assert_independent,
    dropped,
    fit,
    network,
    regression,
)

import kdrop
from kdrop.masks import run

# Graphs of sizes that are unknown, and of plain operations, are other code only where
# the kernels differ.
KERNELS = {"InvertedDropout", "AlphaDropout", "DropBlock2D", "ExactDropout", "DropPath"}
every_kernel = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if name in KERNELS else [pytest.mark.slow], id=name)
        for name, case in FAMILY.items()
    ],
)

# Replicas


def test_replicas_hold_the_rows_of_the_global_batch(strategy):
    with strategy.scope():
        mirrored = kdrop.InvertedDropout(0.5, seed=1, name="drop")
    single = kdrop.InvertedDropout(0.5, seed=1, name="drop")

    @tf.function
    def step(inputs):
        return strategy.run(lambda x: mirrored(x, training=True), args=(inputs,))

    def masks(shares):
        inputs = strategy.experimental_distribute_values_from_function(
            lambda context: tf.ones((shares[context.replica_id_in_sync_group], 50))
        )
        outputs = strategy.experimental_local_results(step(inputs))
        return np.concatenate([o.numpy() for o in outputs]) == 0

    for rate, shares in [(0.5, (4, 4)), (0.25, (4, 4)), (0.5, (3, 2)), (0.5, (4, 1))]:
        mirrored.rate = single.rate = rate
        np.testing.assert_array_equal(masks(shares), dropped(single, (sum(shares), 50)))


@pytest.mark.slow
def test_two_devices_train_as_one(strategy):
    models = []
    for where in (tf.distribute.get_strategy(), strategy):
        with where.scope():
            models.append(network(kdrop.InvertedDropout))
            models[-1].compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
        fit(models[-1], callbacks=[kdrop.StepClock()])
    single, mirrored = (model.get_weights() for model in models)
    for a, b in zip(single, mirrored, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# Gradients of gradients


def test_gradients_of_both_orders_use_the_mask_of_the_forward_pass():
    layer = kdrop.InvertedDropout(0.25, seed=1, name="drop")
    inputs = tf.random.stateless_normal((16, 32), seed=(1, 2))
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            outputs = layer(inputs, training=True)
            loss = tf.reduce_sum(outputs**2) / 2
        gradient = inner.gradient(loss, inputs)
    second = outer.gradient(gradient, inputs)
    factor = (outputs / inputs).numpy()  # 0 or the scale, element by element
    np.testing.assert_allclose(gradient, factor**2 * inputs, rtol=1e-5)
    np.testing.assert_allclose(second, factor**2, rtol=1e-5)


# Exports


@pytest.mark.slow
def test_an_exported_model_has_no_random_operations_and_needs_no_keras(tmp_path):
    drops = kdrop.InvertedDropout(0.5), kdrop.VanillaDropout(0.5)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), *drops])
    model.export(tmp_path / "model", verbose=False)
    inputs, _ = regression()
    np.save(tmp_path / "inputs.npy", inputs)
    code = """
import sys
sys.modules["keras"] = sys.modules["kdrop"] = None  # an import of them raises
import numpy as np, tensorflow as tf
serve = tf.saved_model.load("model").signatures["serve"]
inputs = tf.constant(np.load("inputs.npy"))
np.save("outputs.npy", list(serve(inputs).values())[0])
graph = serve.graph.as_graph_def()
ops = {node.op for f in graph.library.function for node in f.node_def}
assert not any("Random" in op or "Assign" in op for op in ops), ops
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=600)
    expected = model.predict(inputs, verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), expected, atol=1e-6)


# Shapes


def test_unknown_shapes_in_a_graph():
    layer = kdrop.InvertedDropout(0.5, noise_shape=(None, 1, None), seed=1, name="drop")
    spec = tf.TensorSpec((None, None, 8))
    call = tf.function(lambda x: layer(x, training=True), input_signature=[spec])
    eager = kdrop.InvertedDropout(0.5, noise_shape=(None, 1, None), seed=1, name="drop")
    for shape in [(4, 3, 8), (2, 7, 8)]:
        mask = call(tf.ones(shape)).numpy() == 0
        np.testing.assert_array_equal(mask, dropped(eager, shape))


def test_in_time_distributed_vectorized_map_and_a_data_pipeline():
    layer = kdrop.InvertedDropout(0.5, seed=1, name="drop")
    inputs = tf.ones((6, 5, 100))
    wrapped = keras.layers.TimeDistributed(layer)(inputs, training=True)
    mapped = tf.vectorized_map(lambda x: layer(x, training=True), inputs)
    pipeline = tf.data.Dataset.from_tensor_slices(inputs)
    piped = tf.stack(list(pipeline.map(lambda x: layer(x, training=True))))
    mapped = mapped.numpy() == 0
    assert (mapped == mapped[0]).all()  # a vectorised map gives its elements one mask
    for mask in (wrapped.numpy() == 0, mapped[0], piped.numpy() == 0):
        assert_frequency(mask, 0.5)


@every_kernel
def test_unknown_sizes_draw_the_same(case):
    layer = case.make()
    sizes = [None] * len(case.shape)
    if case.exact:
        sizes[-1] = case.shape[-1]
    spec = tf.TensorSpec(sizes)
    call = tf.function(lambda x: layer(x, training=True), input_signature=[spec])
    expected = case.draw(case.make())
    assert_close(case.seen(call(case.ones())), expected)


@pytest.mark.parametrize(
    ("count", "padded"),
    [(0, 1), (1, 1), (5, 16), (4**15, 4**15), (4**15 + 1, 4**15 + 1)],
)
def test_unknown_sizes_are_padded_to_what_a_tensor_can_have(count, padded):
    assert run._next_power_of_four(tf.constant(count)) == padded


def test_an_unknown_rank_draws_the_same():
    layer = kdrop.InvertedDropout(0.5, seed=1, name="drop")
    call = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec(None)]
    )
    expected = dropped(kdrop.InvertedDropout(0.5, seed=1, name="drop"), (4, 5, 6))
    np.testing.assert_array_equal(call(tf.ones((4, 5, 6))) == 0, expected)


@every_kernel
def test_plain_operations_draw_the_same(case):
    layer = case.make()

    @tf.function
    def call(inputs):
        token = run.exporting.set(True)
        try:
            return layer(inputs, training=True)
        finally:
            run.exporting.reset(token)

    expected = case.draw(case.make())
    assert_close(case.seen(call(case.ones())), expected)
    graph = call.get_concrete_function(case.ones()).graph.as_graph_def()
    compiled = [f for f in graph.library.function if f.attr["_XlaMustCompile"].b]
    assert not compiled


def test_a_noise_shape_that_turns_out_not_to_fit_is_refused():
    layer = kdrop.InvertedDropout(0.5, noise_shape=(None, 8))
    spec = tf.TensorSpec((None, None))
    call = tf.function(lambda x: layer(x, training=True), input_signature=[spec])
    call(tf.ones((4, 8)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="must broadcast"):
        call(tf.ones((4, 9)))


def test_an_empty_noise_shape_is_one_decision():
    layer = kdrop.InvertedDropout(0.5, noise_shape=(), seed=1, name="drop")
    call = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec((None, 8))]
    )
    values = [np.unique(call(tf.ones((64, 8)))).tolist() for _ in range(20)]
    assert [0] in values and [2] in values and len(sum(values, [])) == 20


def test_in_a_recurrent_cell():
    class Cell(keras.layers.SimpleRNNCell):
        def __init__(self):
            super().__init__(64)
            self.drop = kdrop.InvertedDropout(0.5, seed=1, name="drop")

        def call(self, inputs, states, training=False):
            outputs = self.drop(inputs, training=training)
            return outputs, [outputs]

    rnn = keras.layers.RNN(Cell(), return_sequences=True)
    outputs = tf.function(lambda x: rnn(x, training=True))(tf.ones((16, 5, 64)))
    masks = outputs.numpy() == 0
    assert_frequency(masks, 0.5)
    for step in range(4):
        assert_independent(masks[:, step], masks[:, step + 1])


def test_inputs_may_have_size_zero():
    layer = kdrop.InvertedDropout(0.5)
    for size in (8, 9, 0):  # after the first call, the size is unknown in the graph
        assert layer(tf.ones((4, size)), training=True).shape == (4, size)
