"""The contract: what every drop layer of the family promises."""

import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src import layers as keras_layers
from keras.src.layers.regularization import dropout_test

import kdrop
from kdrop import InvertedDropout, VanillaDropout, bits

FAMILY = [InvertedDropout, VanillaDropout]
every_layer = pytest.mark.parametrize("layer_class", FAMILY)
DEVIATIONS = 5  # a binomial count is further off in one case of 1.7 million


def dropped(layer, shape=(64, 256), dtype="float32"):
    """Which elements the layer's next draw drops, as a NumPy mask."""
    ones = tf.ones(shape, dtype)
    return tf.cast(layer(ones, training=True), "float32").numpy() == 0


def assert_independent(one, other, rate=0.5):
    """Two masks agree as often as independent ones do."""
    agree = rate**2 + (1 - rate) ** 2
    bound = DEVIATIONS * np.sqrt(agree * (1 - agree) * one.size)
    assert abs((one == other).sum() - agree * one.size) < bound


# Promise 1: the exact rate


@every_layer
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.5, 0.999])
def test_dropped_fraction_is_the_rate_in_every_dtype(layer_class, dtype, rate):
    layer = layer_class(rate, seed=1, name="drop", dtype=dtype)
    mask = dropped(layer, (1024, 1024), dtype)
    deviation = np.sqrt(rate * (1 - rate) * mask.size)
    assert abs(mask.sum() - rate * mask.size) < DEVIATIONS * deviation


@every_layer
def test_rate_zero_drops_nothing(layer_class):
    layer = layer_class(0.0, seed=1, name="drop")
    inputs = tf.random.stateless_normal((64, 64), seed=(1, 2))
    np.testing.assert_array_equal(layer(inputs, training=True), inputs)


# Promise 2: one key, one mask


@every_layer
def test_same_mask_in_eager_graph_and_xla(layer_class):
    def layer():
        return layer_class(0.3, seed=7, name="drop")

    shape = (33, 7, 5)
    eager, graph, xla = layer(), layer(), layer()
    in_graph = tf.function(lambda x: graph(x, training=True))
    in_xla = tf.function(lambda x: xla(x, training=True), jit_compile=True)
    for _ in range(2):
        mask = dropped(eager, shape)
        np.testing.assert_array_equal(mask, in_graph(tf.ones(shape)).numpy() == 0)
        np.testing.assert_array_equal(mask, in_xla(tf.ones(shape)).numpy() == 0)


@every_layer
def test_the_mask_compares_words_with_the_threshold(layer_class):
    layer = layer_class(0.3, seed=7, name="drop")
    rows = np.stack([np.arange(64), np.zeros(64)], axis=1).astype("uint32")
    salt = zlib.crc32(b"drop")
    for draw in (1, 2, 3):
        numbers = (np.uint32(n) for n in (7, salt, draw))
        words = bits.words(
            bits.fold(*map(tf.constant, numbers)), tf.constant(rows), 256
        )
        expected = words.numpy() < round(0.3 * 2**32)
        np.testing.assert_array_equal(dropped(layer), expected)


@every_layer
@pytest.mark.parametrize("jit_compile", [False, True])
def test_same_mask_in_fit(layer_class, jit_compile):
    class Spy(keras.layers.Layer):
        """Adds what it sees to a weight."""

        def build(self, shape):
            self.seen = self.add_weight(
                shape=(8, 16), initializer="zeros", trainable=False
            )

        def call(self, inputs):
            self.seen.assign(inputs)
            return inputs

    keras.utils.set_random_seed(0)
    drop, spy = layer_class(0.5, seed=7, name="drop"), Spy()
    model = keras.Sequential([keras.Input((16,), 8), drop, spy, keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=jit_compile)
    model.fit(np.ones((16, 16), "float32"), np.zeros((16, 1)), 8, verbose=0)
    alone = layer_class(0.5, seed=7, name="drop")
    dropped(alone, (8, 16))
    expected = dropped(alone, (8, 16))
    np.testing.assert_array_equal(spy.seen.numpy() == 0, expected)


@every_layer
def test_no_seed_draws_a_seed(layer_class):
    keras.utils.set_random_seed(5)
    one, other = (layer_class(0.5, name="drop") for _ in range(2))
    assert one.seed is None
    assert_independent(dropped(one), dropped(other))


# Promise 3: independent where it must be


@every_layer
def test_masks_differ_between_calls_names_seeds_and_rows(layer_class):
    layer = layer_class(0.5, seed=1, name="one")
    first, second = dropped(layer), dropped(layer)
    assert_independent(first, second)
    assert_independent(first, dropped(layer_class(0.5, seed=1, name="two")))
    assert_independent(first, dropped(layer_class(0.5, seed=2, name="one")))
    assert_independent(first[:-1], first[1:])


@every_layer
def test_a_row_is_the_same_in_a_batch_of_any_size(layer_class):
    large = dropped(layer_class(0.5, seed=1, name="drop"), (64, 100))
    small = dropped(layer_class(0.5, seed=1, name="drop"), (5, 100))
    np.testing.assert_array_equal(large[:5], small)


@every_layer
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


@every_layer
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


# Promise 4: resumes


def network(layer_class):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(32, activation="relu"),
            layer_class(0.5, seed=3, name="drop_1"),
            keras.layers.Dense(32, activation="relu"),
            layer_class(0.5, seed=3, name="drop_2"),
            keras.layers.Dense(1),
        ]
    )


def regression(count=32):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(count, 8)).astype("float32")
    return inputs, inputs[:, :1]


def fit(model, epochs=2, **settings):
    settings = {"batch_size": 8, "shuffle": False, "verbose": 0, **settings}
    return model.fit(*regression(), epochs=epochs, **settings)


def assert_same_weights(one, other):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@every_layer
def test_a_resumed_run_equals_the_whole_one(layer_class, tmp_path):
    whole, half = network(layer_class), network(layer_class)
    for model in (whole, half):
        model.compile("adam", "mse")
    fit(whole, 4)
    fit(half, 2)
    half.save(tmp_path / "half.keras")
    resumed = keras.models.load_model(tmp_path / "half.keras")
    fit(resumed, 2)
    assert_same_weights(whole, resumed)


@every_layer
@pytest.mark.parametrize("form", ["keras", "weights", "checkpoint"])
def test_draws_are_saved_and_the_rate_is_not(layer_class, form, tmp_path):
    model = network(layer_class)
    drop = model.get_layer("drop_1")
    for _ in range(3):
        dropped(drop)
    fresh = network(layer_class)
    fresh.get_layer("drop_1").rate = 0.25
    if form == "keras":
        model.save(tmp_path / "model.keras")
        fresh = keras.models.load_model(tmp_path / "model.keras")
        fresh.get_layer("drop_1").rate = 0.25
    elif form == "weights":
        model.save_weights(tmp_path / "model.weights.h5")
        fresh.load_weights(tmp_path / "model.weights.h5")
    else:
        saved = tf.train.Checkpoint(model=model).save(tmp_path / "model")
        tf.train.Checkpoint(model=fresh).restore(saved).expect_partial()
    loaded = fresh.get_layer("drop_1")
    assert loaded.rate == 0.25
    drop.rate = 0.25
    np.testing.assert_array_equal(dropped(loaded), dropped(drop))


@keras.saving.register_keras_serializable("test")
class Nested(keras.layers.Layer):
    """A dense layer and a drop layer inside a layer."""

    def __init__(self, layer_class, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(4)
        self.dropout = layer_class(0.5)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs, training=False):
        return self.dropout(self.dense(inputs), training=training)


@every_layer
@pytest.mark.parametrize("nested", [False, True])
def test_weight_files_pass_to_and_from_keras_dropout(layer_class, nested, tmp_path):
    def build(drop):
        if nested:
            return keras.Sequential([keras.Input((8,)), Nested(drop), Nested(drop)])
        return network(drop)

    ours, theirs = build(layer_class), build(keras.layers.Dropout)
    path = tmp_path / "model.weights.h5"
    for source, target in [(ours, theirs), (theirs, ours)]:
        source.set_weights([w + 1 for w in source.get_weights()])
        source.save_weights(path)
        target.load_weights(path)
        assert_same_weights(source, target)


# Promise 5: safe to recompute


class Recomputed(keras.layers.Layer):
    """A dense layer and a drop layer, computed again in the backward pass or not."""

    def __init__(self, drop, recompute, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(64, use_bias=False)
        self.drop, self.recompute = drop, recompute

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs, training=False):
        def block(x):
            return self.drop(self.dense(x), training=training)

        return keras.remat(block)(inputs) if self.recompute else block(inputs)


@every_layer
@pytest.mark.parametrize(
    "settings",
    [{}, {"jit_compile": True}, {"steps_per_execution": 2}, {"accumulate": 2}],
    ids=lambda s: next(iter(s), "plain"),
)
def test_with_the_clock_remat_changes_nothing(layer_class, settings):
    settings = {"jit_compile": False, **settings}
    accumulate = settings.pop("accumulate", None)

    def trained(recompute):
        keras.utils.set_random_seed(0)
        drop = layer_class(0.5, seed=1, name="drop")
        block = Recomputed(drop, recompute)
        model = keras.Sequential([keras.Input((8,)), block, keras.layers.Dense(1)])
        for _ in range(2):  # the second compile must not replay the masks of the first
            optimizer = keras.optimizers.SGD(
                0.1, gradient_accumulation_steps=accumulate
            )
            model.compile(optimizer, "mse", **settings)
            fit(model, callbacks=[kdrop.StepClock()])
        assert drop.draws.count() == 16
        first, second = dropped(drop), dropped(drop)
        assert_independent(first, second)  # draws anew after fit
        return model

    assert_same_weights(trained(False), trained(True))


@every_layer
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
    with pytest.raises(KeyboardInterrupt):
        fit(model, callbacks=[kdrop.StepClock(), Interrupted()])
    assert np.any(passes[0] != passes[1])
    assert_independent(dropped(drop), dropped(drop))


@every_layer
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
        with pytest.warns(UserWarning, match="trainable weights"):
            told = model.fit(data, shuffle=False, verbose=0, callbacks=callbacks)
        losses.append(told.history["loss"][0])
    bound = DEVIATIONS * np.sqrt(0.25 / 100**2)
    assert losses[1] == 0
    assert abs(losses[0] - 0.5) < bound and abs(losses[2] - 0.5) < bound


@every_layer
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


@every_layer
def test_the_clock_reads_the_steps_behind_loss_scaling(layer_class):
    drop = layer_class(0.5, seed=1, name="drop")
    model = keras.Sequential([keras.Input((8,)), drop, keras.layers.Dense(1)])
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    model.compile(optimizer, "mse")
    fit(model, callbacks=[kdrop.StepClock()])
    assert drop.draws.count() == 8


@every_layer
def test_clock_in_a_custom_loop(layer_class):
    drop = layer_class(0.5, seed=1, name="drop")
    model = keras.Sequential([keras.Input((64,)), drop])
    optimizer = keras.optimizers.SGD()
    kdrop.StepClock().start(model, optimizer)
    scale = tf.Variable(tf.ones((8, 64)))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            # The gradient of x * mask * x is 2 * x * mask only if both masks are one.
            outputs = tf.recompute_grad(lambda x: model(x, training=True) * x)(scale)
        return outputs, tape.gradient(outputs, scale)

    masks = []
    for _ in range(2):
        outputs, gradient = step()
        np.testing.assert_allclose(gradient, 2 * outputs)
        masks.append(outputs.numpy() == 0)
        optimizer.apply_gradients([(tf.zeros((8, 64)), scale)])
    assert_independent(*masks)


@every_layer
def test_without_the_clock_calls_in_one_step_differ(layer_class):
    layer = layer_class(0.5, seed=1, name="drop")
    twice = tf.function(lambda x: (layer(x, training=True), layer(x, training=True)))
    first, second = twice(tf.ones((64, 256)))
    assert_independent(first.numpy() == 0, second.numpy() == 0)


# Promise 6: the rate is alive


@every_layer
def test_rate_changes_a_traced_function(layer_class):
    layer = layer_class(0.0, seed=1, name="drop")
    call = tf.function(lambda x: layer(x, training=True))
    for rate in (0.0, 0.9, 0.1):
        layer.rate = rate
        assert layer.rate == layer.get_config()["rate"] == rate
        mask = call(tf.ones((256, 256))).numpy() == 0
        bound = DEVIATIONS * np.sqrt(rate * (1 - rate) * mask.size)
        assert abs(mask.sum() - rate * mask.size) <= bound


@every_layer
def test_rate_changes_in_a_running_fit(layer_class):
    class Seen(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            drop.rate = 0.0 if batch < 2 else 0.999

        def on_train_batch_end(self, batch, logs=None):
            losses.append(logs["loss"])

    losses = []
    drop = layer_class(0.5, seed=1, name="drop")
    scale = keras.layers.Rescaling(1.0)
    model = keras.Sequential([keras.Input((100,)), drop, scale])
    model.compile(loss=lambda y, x: keras.ops.cast(x == 0, "float32"))
    data = tf.data.Dataset.from_tensors((tf.ones((10, 100)), tf.zeros((10, 100))))
    with pytest.warns(UserWarning, match="trainable weights"):
        model.fit(data.repeat(4), shuffle=False, verbose=0, callbacks=[Seen()])
    # Each is the mean of the losses up to there, as Keras reports them.
    assert losses[:2] == [0.0, 0.0]
    assert losses[3] == pytest.approx(0.999 / 2, abs=0.01)


@every_layer
@pytest.mark.parametrize(
    "rate", [-0.1, 1.0, 1.5, float("nan"), float("inf"), True, "0.5", None, [0.5]]
)
def test_bad_rates_are_refused_by_name(layer_class, rate):
    with pytest.raises(ValueError, match="rate") as refusal:
        layer_class(rate)
    assert repr(rate) in str(refusal.value)
    layer = layer_class(0.5)
    with pytest.raises(ValueError, match="rate"):
        layer.rate = rate
    assert layer.rate == 0.5


@every_layer
@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "1", True])
def test_bad_seeds_are_refused_by_name(layer_class, seed):
    with pytest.raises(ValueError, match="seed") as refusal:
        layer_class(0.5, seed=seed)
    assert repr(seed) in str(refusal.value)


# Promise 7: select, not multiply


@every_layer
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_dropped_nan_or_inf_is_zero(layer_class, value):
    layer = layer_class(0.5, seed=1, name="drop")
    mask = dropped(layer_class(0.5, seed=1, name="drop"))
    inputs = tf.fill((64, 256), np.float32(value))
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
    gradient = tape.gradient(outputs, inputs, output_gradients=inputs).numpy()
    for result in (outputs.numpy(), gradient):
        np.testing.assert_array_equal(result[mask], 0)
        np.testing.assert_array_equal(result[~mask], value)


# Gradients


@every_layer
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


# Promises 8 and 9: quiet at inference, sampling on request


@every_layer
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
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    expected = model.predict(inputs, verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), expected, atol=1e-6)


@every_layer
def test_a_sampler_samples_the_drop_layers_alone(layer_class):
    keras.utils.set_random_seed(0)
    normalise = keras.layers.BatchNormalization()
    drop = layer_class(0.5, seed=1, name="drop")
    model = keras.Sequential([keras.Input((256,)), normalise, drop])
    inputs = np.random.default_rng(0).normal(5, 1, (64, 256)).astype("float32")
    before = [w.copy() for w in model.get_weights()]
    sampler = kdrop.Sampler(model)
    at_rest = model.predict(inputs, verbose=0)
    first, second = (sampler.predict(inputs, verbose=0) for _ in range(2))
    assert_independent(first == 0, second == 0)
    kept = first != 0
    ratio = first[kept] / at_rest[kept]  # inverted: 1 / keep over 1; vanilla: 1 / keep
    np.testing.assert_allclose(ratio, 2.0, rtol=1e-5)
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), at_rest)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_sampler_is_saved_as_a_model(tmp_path):
    sampler = kdrop.Sampler(network(InvertedDropout))
    inputs, _ = regression()
    sampler(inputs)
    sampler.save(tmp_path / "sampler.keras")
    loaded = keras.models.load_model(tmp_path / "sampler.keras")
    np.testing.assert_allclose(loaded(inputs), sampler(inputs), rtol=1e-6)


def test_a_sampler_of_nothing_is_refused():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="no drop layer"):
        kdrop.Sampler(model)(np.ones((1, 8)))


# Promise 10: a good Keras citizen


@every_layer
def test_variables_have_paths_of_their_own(layer_class):
    model = network(layer_class)
    model.compile("sgd", "mse")
    assert model.get_state_tree()["non_trainable_variables"]


@pytest.mark.parametrize(
    "name",
    [n for n in dir(dropout_test.DropoutTest) if n.startswith("test_dropout")]
    + [n for n in dir(dropout_test.DropoutTest) if n.startswith("test_validate")],
)
@every_layer
@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_keras_own_tests_pass(layer_class, name, monkeypatch):
    if layer_class is VanillaDropout and name == "test_dropout_rescaling":
        pytest.skip("the law of inverted dropout")
    monkeypatch.setattr(keras_layers, "Dropout", layer_class)
    case = dropout_test.DropoutTest(name)
    result = case.run()
    assert result.wasSuccessful(), (result.failures + result.errors)[0][1]


@every_layer
def test_config_round_trip_and_clone(layer_class):
    layer = layer_class(
        0.3, noise_shape=(None, 1), seed=4, name="drop", dtype="float16"
    )
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert type(copy) is layer_class
    assert copy.get_config() == layer.get_config()
    assert copy.noise_shape == (None, 1)
    model = network(layer_class)
    clone = keras.models.clone_model(model)
    for name in ("drop_1", "drop_2"):
        mask = dropped(model.get_layer(name))
        np.testing.assert_array_equal(dropped(clone.get_layer(name)), mask)


@every_layer
def test_masks_of_keras_pass_through(layer_class):
    inputs = keras.Input((5, 3))
    masked = keras.layers.Masking()(inputs)
    assert layer_class(0.5)(masked)._keras_mask is masked._keras_mask


@every_layer
def test_trainable_is_taken_and_kept(layer_class):
    layer = layer_class(0.5, trainable=False)
    assert layer.get_config()["trainable"] is False
    assert layer.weights == []


@every_layer
def test_mixed_precision_computes_in_half(layer_class):
    layer = layer_class(0.3, seed=1, dtype="mixed_bfloat16")
    outputs = layer(tf.ones((8, 8)), training=True)
    assert outputs.dtype == tf.bfloat16
    assert layer(keras.Input((8,))).dtype == "bfloat16"


@every_layer
def test_integer_inputs_are_refused(layer_class):
    for inputs in (np.ones((2, 2), "int32"), keras.Input((2,), dtype="int32")):
        with pytest.raises(ValueError, match="floating-point inputs only.*int32"):
            layer_class(0.5)(inputs)


@every_layer
@pytest.mark.parametrize("noise_shape", [(4, 1, 1), (3, 8), (4, 4)])
def test_noise_shapes_that_do_not_broadcast_are_refused(layer_class, noise_shape):
    layer = layer_class(0.5, noise_shape=noise_shape)
    for inputs in (np.ones((4, 8), "float32"), keras.Input(batch_shape=(4, 8))):
        with pytest.raises(ValueError, match="must broadcast") as refusal:
            layer(inputs)
        assert str(noise_shape) in str(refusal.value)


@every_layer
@pytest.mark.parametrize(
    ("noise_shape", "shared"),
    [((None, 1, None), 1), ((1, None, 1), (0, 2)), ((8,), (0, 1))],
)
def test_a_noise_shape_shares_decisions(layer_class, noise_shape, shared):
    layer = layer_class(0.5, noise_shape=noise_shape, seed=1)
    mask = dropped(layer, (64, 32, 8))
    assert (mask.all(axis=shared) == mask.any(axis=shared)).all()
    decisions = mask.all(axis=shared)
    bound = DEVIATIONS * np.sqrt(decisions.size / 4)
    assert abs(decisions.sum() - decisions.size / 2) < bound


@every_layer
def test_unknown_shapes_in_a_graph(layer_class):
    layer = layer_class(0.5, noise_shape=(None, 1, None), seed=1, name="drop")
    spec = tf.TensorSpec((None, None, 8))
    call = tf.function(lambda x: layer(x, training=True), input_signature=[spec])
    eager = layer_class(0.5, noise_shape=(None, 1, None), seed=1, name="drop")
    for shape in [(4, 3, 8), (2, 7, 8)]:
        mask = call(tf.ones(shape)).numpy() == 0
        np.testing.assert_array_equal(mask, dropped(eager, shape))


@every_layer
def test_inputs_of_rank_one_and_none(layer_class):
    layer = layer_class(0.5, seed=1)
    assert dropped(layer, (1000,)).mean() == pytest.approx(0.5, abs=0.1)
    assert dropped(layer, ()).shape == ()


@every_layer
def test_in_time_distributed_vectorized_map_and_a_data_pipeline(layer_class):
    layer = layer_class(0.5, seed=1)
    inputs = tf.ones((6, 5, 100))
    wrapped = keras.layers.TimeDistributed(layer)(inputs, training=True)
    mapped = tf.vectorized_map(lambda x: layer(x, training=True), inputs)
    pipeline = tf.data.Dataset.from_tensor_slices(inputs)
    piped = tf.stack(list(pipeline.map(lambda x: layer(x, training=True))))
    for outputs in (wrapped, mapped, piped):
        count = np.sum(outputs.numpy() == 0)
        assert abs(count - 1500) < DEVIATIONS * np.sqrt(3000 / 4)
