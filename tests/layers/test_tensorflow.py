"""What the base promises on TensorFlow: graphs, replicas, recomputation, exports."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from family import (
    DEVIATIONS,
    assert_close,
    assert_frequency,
    assert_independent,
    assert_same_weights,
    dropped,
    every_base,
    every_layer,
    fit,
    network,
    regression,
)

import kdrop
from kdrop.masks import kernels

# Replicas


@every_base
def test_replicas_hold_the_rows_of_the_global_batch(layer_class, strategy):
    with strategy.scope():
        mirrored = layer_class(0.5, seed=1, name="drop")
    single = layer_class(0.5, seed=1, name="drop")

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


@every_base
def test_two_devices_train_as_one(layer_class, strategy):
    models = []
    for where in (tf.distribute.get_strategy(), strategy):
        with where.scope():
            models.append(network(layer_class))
            models[-1].compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
        fit(models[-1], callbacks=[kdrop.StepClock()])
    single, mirrored = (model.get_weights() for model in models)
    for a, b in zip(single, mirrored, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# Checkpoints


@every_base
def test_a_checkpoint_holds_the_draws_and_not_the_rate(layer_class, tmp_path):
    model, fresh = network(layer_class), network(layer_class)
    drop, loaded = model.get_layer("drop_1"), fresh.get_layer("drop_1")
    for _ in range(3):
        dropped(drop)
    drop.rate = loaded.rate = 0.25
    drop.rate = 0.75
    saved = tf.train.Checkpoint(model=model).save(tmp_path / "model")
    tf.train.Checkpoint(model=fresh).restore(saved).expect_partial()
    drop.rate = 0.25
    assert loaded.rate == 0.25
    np.testing.assert_array_equal(dropped(loaded), dropped(drop))


class Built(keras.Model):
    """A model that makes its drop layer when it is first called."""

    def __init__(self, layer_class, seed):
        super().__init__()
        self.dense, self.make = (
            keras.layers.Dense(3),
            lambda: layer_class(0.5, seed=seed, name="drop"),
        )

    def build(self, shape):
        self.drop = self.make()
        self.dense.build(shape)

    def call(self, inputs, training=False):
        return self.dense(self.drop(inputs, training=training))


@every_base
@pytest.mark.parametrize("build", ["call", "graph", "fit"])
def test_a_checkpoint_is_restored_before_its_layers_exist(layer_class, build, tmp_path):
    inputs = tf.ones((4, 8))
    saved, loaded = Built(layer_class, 1), Built(layer_class, 2)
    saved(inputs)
    for _ in range(3):
        dropped(saved.drop)
    path = tf.train.Checkpoint(model=saved).save(tmp_path / "model")
    restoring = tf.train.Checkpoint(model=loaded).restore(path)
    steps = 0
    if build == "call":
        loaded(inputs)
    elif build == "graph":
        steps = 2
        call = tf.function(lambda x: loaded(x, training=True))
        for _ in range(steps):
            call(inputs)
    else:
        steps = 4
        loaded.compile(keras.optimizers.SGD(0.0), "mse")
        loaded.fit(tf.ones((16, 8)), tf.ones((16, 3)), 4, verbose=0)
    restoring.expect_partial()
    assert loaded.drop.draw_count == 3 + steps
    for _ in range(steps):
        dropped(saved.drop)
    np.testing.assert_array_equal(dropped(loaded.drop), dropped(saved.drop))
    np.testing.assert_allclose(loaded(inputs), saved(inputs), rtol=1e-6)


@every_base
def test_a_saved_model_holds_the_state(layer_class, tmp_path):
    class Trained(tf.Module):
        def __init__(self):
            self.drop = layer_class(0.5, seed=1, name="drop")

        @tf.function(input_signature=[tf.TensorSpec((None, 64))])
        def train(self, inputs):
            return self.drop(inputs, training=True)

    model, ones = Trained(), tf.ones((16, 64))
    model.train(ones)
    tf.saved_model.save(model, str(tmp_path / "module"))
    loaded = tf.saved_model.load(str(tmp_path / "module"))
    first, second = loaded.train(ones), loaded.train(ones)
    np.testing.assert_array_equal(first, model.train(ones))
    assert_independent(first == 0, second == 0)

    network_ = network(layer_class)
    tf.saved_model.save(network_, str(tmp_path / "model"))
    served = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    inputs, _ = regression()
    (outputs,) = served(tf.constant(inputs)).values()
    np.testing.assert_allclose(outputs, network_(inputs), rtol=1e-5, atol=1e-6)


# Recomputation


class Recomputed(keras.layers.Layer):
    """A dense layer and a drop layer, computed again in the backward pass or not."""

    def __init__(self, drop, recompute, twice=False, decorate=False):
        super().__init__()
        self.dense = keras.layers.Dense(64, use_bias=False)
        self.drop, self.recompute, self.twice = drop, recompute, twice
        self.inner = tf.function(self.drop) if decorate else self.drop

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs, training=False):
        def block(x):
            x = self.inner(self.dense(x), training=training)
            return self.inner(tf.nn.relu(x), training=training) if self.twice else x

        return keras.remat(block)(inputs) if self.recompute else block(inputs)


class Own(keras.Model):
    """A model whose training step has an optimizer of its own, as a GAN's has.

    It adds the gradients of two micro-batches by hand.
    """

    def __init__(self, network):
        super().__init__()
        self.network, self.own = network, keras.optimizers.SGD(0.1)

    def call(self, inputs, training=False):
        return self.network(inputs, training=training)

    def train_step(self, data):
        inputs, targets = data
        weights = self.network.trainable_variables
        total = [tf.zeros_like(weight) for weight in weights]
        for _ in range(2):
            with tf.GradientTape() as tape:
                error = self.network(inputs, training=True) - targets
                loss = tf.reduce_mean(error**2)
            gradients = tape.gradient(loss, weights)
            total = [t + g for t, g in zip(total, gradients, strict=True)]
        self.own.apply(total, weights)
        return {"loss": loss}


@every_base
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"jit_compile": True},
        {"steps_per_execution": 3},
        {"run_eagerly": True},
        {"accumulate": 2},
        {"own": True},
        {"twice": True},
        {"decorate": True},
        {"blocks": 3},
    ],
    ids=lambda s: next(iter(s), "plain"),
)
def test_with_the_clock_remat_changes_nothing(layer_class, settings):
    settings = {"jit_compile": False, **settings}
    if "run_eagerly" in settings:
        del settings["jit_compile"]
    blocks = settings.pop("blocks", 1)
    accumulate, own = settings.pop("accumulate", None), settings.pop("own", False)
    of_block = {k: settings.pop(k, False) for k in ("twice", "decorate")}

    def trained(recompute):
        keras.utils.set_random_seed(0)
        drop = layer_class(0.5, seed=1, name="drop")
        drops = [
            drop,
            *(layer_class(0.5, seed=1, name="drop") for _ in range(1, blocks)),
        ]
        stack = [Recomputed(each, recompute, **of_block) for each in drops]
        model = keras.Sequential([keras.Input((8,)), *stack, keras.layers.Dense(1)])
        model = Own(model) if own else model
        model(tf.ones((1, 8)))  # a function inside it is traced before the clock
        for _ in range(2):  # the second compile must not replay the masks of the first
            optimizer = keras.optimizers.SGD(
                0.02, gradient_accumulation_steps=accumulate
            )
            model.compile(optimizer, "mse", **settings)
            fit(model, callbacks=[kdrop.StepClock()])
        assert drop.draw_count == 16
        first, second = dropped(drop), dropped(drop)
        assert_independent(first, second)  # draws anew after fit
        return model

    # Two programs may round differently: 16 updates of 0.1 times a gradient, which is
    # a sum of 64 terms.
    bound = 16 * 0.1 * 64 * np.finfo("float32").eps
    for one, other in zip(
        trained(False).get_weights(), trained(True).get_weights(), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=bound, atol=bound)


@every_base
def test_the_clock_counts_the_training_step_alone(layer_class):
    drop = layer_class(0.5, seed=1, name="drop")
    model = keras.Sequential([keras.Input((8,)), drop, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    sampler = kdrop.Sampler(model)
    inputs = tf.ones((64, 8))

    class Interrupted(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                passes.extend(sampler(inputs).numpy() for _ in range(2))
                raise KeyboardInterrupt

    passes = []
    fit(model)
    before = model.train_function
    with pytest.raises(KeyboardInterrupt):
        fit(model, callbacks=[kdrop.StepClock(), Interrupted()])
    assert model.train_function is before
    assert np.any(passes[0] != passes[1])
    assert_independent(dropped(drop), dropped(drop))


@every_base
@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_a_fit_after_the_clock_draws_for_each_call_again(layer_class):
    class Twice(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.drop = layer_class(0.5, seed=1, name="drop")

        def call(self, inputs, training=False):
            one, other = (self.drop(inputs, training=training) for _ in range(2))
            return keras.ops.cast((one == 0) != (other == 0), "float32")

    model = keras.Sequential([keras.Input((100,)), Twice()])
    model.compile(loss=lambda y, differs: differs)
    data = tf.data.Dataset.from_tensors((tf.ones((100, 100)), tf.zeros((100, 100))))
    losses = []
    for callbacks in ([], [kdrop.StepClock()], []):
        run = model.fit(data, shuffle=False, verbose=0, callbacks=callbacks)
        losses.append(run.history["loss"][0])
    bound = DEVIATIONS * np.sqrt(0.25 / 100**2)
    assert losses[1] == 0
    assert abs(losses[0] - 0.5) < bound and abs(losses[2] - 0.5) < bound


@every_base
@pytest.mark.parametrize("clock_first", [True, False])
def test_the_clock_resumes_after_a_backup(layer_class, clock_first, tmp_path):
    class Killed(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def callbacks():
        both = [kdrop.StepClock(), keras.callbacks.BackupAndRestore(tmp_path)]
        return both if clock_first else both[::-1]

    models = []
    for _ in range(3):
        models.append(network(layer_class))
        models[-1].compile("adam", "mse")
    whole, killed, resumed = models
    for model in (whole, killed):  # draws before the clock give it an offset
        dropped(model.get_layer("drop_1"))
    fit(whole, 4, callbacks=[kdrop.StepClock()])
    with pytest.raises(KeyboardInterrupt):
        fit(killed, 4, callbacks=[*callbacks(), Killed()])
    fit(resumed, 4, callbacks=callbacks())
    assert_same_weights(whole, resumed)


@every_base
def test_the_clock_reads_the_steps_behind_loss_scaling(layer_class):
    drop = layer_class(0.5, seed=1, name="drop")
    model = keras.Sequential([keras.Input((8,)), drop, keras.layers.Dense(1)])
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    model.compile(optimizer, "mse")
    fit(model, callbacks=[kdrop.StepClock()])
    assert drop.draw_count == 8


@every_base
def test_clock_in_a_custom_loop(layer_class):
    drop = layer_class(0.5, seed=1, name="drop")
    model = keras.Sequential([keras.Input((64,)), drop])
    scale = tf.Variable(tf.ones((8, 64)))

    def step():
        with kdrop.StepClock().start(model), tf.GradientTape() as tape:
            # The gradient of x * mask * x is 2 * x * mask only if both masks are one.
            outputs = tf.recompute_grad(lambda x: model(x, training=True) * x)(scale)
            return outputs, tape.gradient(outputs, scale)

    for each in (step, tf.function(step)):
        masks = []
        for _ in range(2):
            outputs, gradient = each()
            np.testing.assert_allclose(gradient, 2 * outputs)
            masks.append(outputs.numpy() == 0)
        assert_independent(*masks)
    assert drop.draw_count == 4
    assert_independent(dropped(drop), dropped(drop))


@every_base
def test_clocks_of_two_models_do_not_share_a_trace(layer_class):
    one, other = (keras.Sequential([layer_class(0.5)]) for _ in range(2))
    clock, ones = kdrop.StepClock(), tf.ones((8, 64))
    function = tf.function(lambda x: other(x, training=True))
    with clock.start(one):
        assert_independent(function(ones), function(ones))
    with clock.start(other):
        np.testing.assert_array_equal(function(ones), function(ones))


def test_the_clock_leaves_the_model_s_own_step_and_follows_compile():
    class Freeze(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.layers[0].trainable = False
                self.model.compile("sgd", "mse")
                self.model.make_train_function(force=True)
                self.weights = self.model.layers[0].get_weights()

    layers = [keras.layers.Dense(4), kdrop.InvertedDropout(0.5), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    model.compile("sgd", "mse")
    calls, step = [], model.train_step
    model.train_step = counted = lambda data: calls.append(1) or step(data)
    freeze = Freeze()
    fit(model, callbacks=[freeze, kdrop.StepClock()])
    assert model.train_step is counted and calls
    np.testing.assert_array_equal(model.layers[0].get_weights()[0], freeze.weights[0])
    assert layers[1].draw_count == 8


@every_base
def test_without_the_clock_calls_in_one_step_differ(layer_class):
    layer = layer_class(0.5, seed=1, name="drop")
    twice = tf.function(lambda x: (layer(x, training=True), layer(x, training=True)))
    first, second = twice(tf.ones((64, 256)))
    assert_independent(first, second)


# Gradients of gradients


@every_base
def test_gradients_of_both_orders_use_the_mask_of_the_forward_pass(layer_class):
    layer = layer_class(0.25, seed=1, name="drop")
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


@every_base
def test_an_exported_model_is_quiet_and_needs_nothing(layer_class, tmp_path):
    model = network(layer_class)
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


@every_base
def test_unknown_shapes_in_a_graph(layer_class):
    layer = layer_class(0.5, noise_shape=(None, 1, None), seed=1, name="drop")
    spec = tf.TensorSpec((None, None, 8))
    call = tf.function(lambda x: layer(x, training=True), input_signature=[spec])
    eager = layer_class(0.5, noise_shape=(None, 1, None), seed=1, name="drop")
    for shape in [(4, 3, 8), (2, 7, 8)]:
        mask = call(tf.ones(shape)).numpy() == 0
        np.testing.assert_array_equal(mask, dropped(eager, shape))


@every_base
def test_in_time_distributed_vectorized_map_and_a_data_pipeline(layer_class):
    layer = layer_class(0.5, seed=1, name="drop")
    inputs = tf.ones((6, 5, 100))
    wrapped = keras.layers.TimeDistributed(layer)(inputs, training=True)
    mapped = tf.vectorized_map(lambda x: layer(x, training=True), inputs)
    pipeline = tf.data.Dataset.from_tensor_slices(inputs)
    piped = tf.stack(list(pipeline.map(lambda x: layer(x, training=True))))
    mapped = mapped.numpy() == 0
    assert (mapped == mapped[0]).all()  # a vectorised map gives its elements one mask
    for mask in (wrapped.numpy() == 0, mapped[0], piped.numpy() == 0):
        assert_frequency(mask, 0.5)


@every_layer
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
    assert kernels._next_power(tf.constant(count)) == padded


@every_base
def test_an_unknown_rank_draws_the_same(layer_class):
    layer = layer_class(0.5, seed=1, name="drop")
    call = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec(None)]
    )
    expected = dropped(layer_class(0.5, seed=1, name="drop"), (4, 5, 6))
    np.testing.assert_array_equal(call(tf.ones((4, 5, 6))) == 0, expected)


@every_layer
def test_plain_operations_draw_the_same(case):
    layer = case.make()

    @tf.function
    def call(inputs):
        token = kernels.plain.set(True)
        try:
            return layer(inputs, training=True)
        finally:
            kernels.plain.reset(token)

    expected = case.draw(case.make())
    assert_close(case.seen(call(case.ones())), expected)
    graph = call.get_concrete_function(case.ones()).graph.as_graph_def()
    compiled = [f for f in graph.library.function if f.attr["_XlaMustCompile"].b]
    assert not compiled


@every_base
def test_a_noise_shape_that_turns_out_not_to_fit_is_refused(layer_class):
    layer = layer_class(0.5, noise_shape=(None, 8))
    spec = tf.TensorSpec((None, None))
    call = tf.function(lambda x: layer(x, training=True), input_signature=[spec])
    call(tf.ones((4, 8)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="must broadcast"):
        call(tf.ones((4, 9)))


@every_base
def test_eight_threads_call_one_layer(layer_class):
    layer = layer_class(0.5, seed=1, name="drop")
    with ThreadPoolExecutor(8) as pool:
        masks = list(pool.map(lambda _: dropped(layer, (8, 64)), range(1600)))
    for mask in masks:
        assert_frequency(mask, 0.5)
    assert len({mask.tobytes() for mask in masks}) == layer.draw_count == 1600


@every_base
def test_in_a_recurrent_cell(layer_class):
    class Cell(keras.layers.SimpleRNNCell):
        def __init__(self):
            super().__init__(64)
            self.drop = layer_class(0.5, seed=1, name="drop")

        def call(self, inputs, states, training=False):
            outputs = self.drop(inputs, training=training)
            return outputs, [outputs]

    rnn = keras.layers.RNN(Cell(), return_sequences=True)
    outputs = tf.function(lambda x: rnn(x, training=True))(tf.ones((16, 5, 64)))
    masks = outputs.numpy() == 0
    assert_frequency(masks, 0.5)
    for step in range(4):
        assert_independent(masks[:, step], masks[:, step + 1])


def test_a_size_of_zero_is_one_of_many():
    layer = kdrop.InvertedDropout(0.5)
    for size in (8, 9, 0):  # the sizes of the later calls are unknown to the graph
        assert layer(tf.ones((4, size)), training=True).shape == (4, size)
