"""With `StepClock`, a step that recomputes its calls trains like one that does not."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from family import (
    DEVIATIONS,
    assert_independent,
    assert_same_weights,
    dropped,
    fit,
    network,
)

import kdrop
from kdrop import InvertedDropout


def drop_layer():
    return InvertedDropout(0.5, seed=1, name="drop")


class Recomputed(keras.layers.Layer):
    """A dense layer and a drop layer, recomputed in the backward pass or not."""

    def __init__(self, recompute, twice=False, decorate=False):
        super().__init__()
        self.dense = keras.layers.Dense(64, use_bias=False)
        self.drop, self.recompute, self.twice = drop_layer(), recompute, twice
        self.inner = tf.function(self.drop) if decorate else self.drop

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs, training=False):
        def block(x):
            x = self.inner(self.dense(x), training=training)
            return self.inner(tf.nn.relu(x), training=training) if self.twice else x

        return keras.remat(block)(inputs) if self.recompute else block(inputs)


class CustomStep(keras.Model):
    """A model that has its own optimizer, as a GAN does, and adds up two gradients."""

    def __init__(self, network):
        super().__init__()
        self.network, self.sgd = network, keras.optimizers.SGD(0.1)

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
        self.sgd.apply(total, weights)
        return {"loss": loss}


@pytest.mark.usefixtures("ordered_updates")
@pytest.mark.parametrize(
    "settings",
    [
        {"compiles": 2},
        pytest.param({"custom": True}, marks=pytest.mark.slow),
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        pytest.param({"steps_per_execution": 3}, marks=pytest.mark.slow),
        pytest.param({"run_eagerly": True}, marks=pytest.mark.slow),
        pytest.param({"accumulate": 2}, marks=pytest.mark.slow),
        pytest.param({"twice": True}, marks=pytest.mark.slow),
        pytest.param({"decorate": True}, marks=pytest.mark.slow),
        pytest.param({"blocks": 3}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_with_the_clock_remat_changes_nothing(settings):
    settings = {"jit_compile": False, **settings}
    if "run_eagerly" in settings:
        del settings["jit_compile"]
    blocks, compiles = settings.pop("blocks", 1), settings.pop("compiles", 1)
    accumulate, custom = settings.pop("accumulate", None), settings.pop("custom", False)
    block_settings = {k: settings.pop(k, False) for k in ("twice", "decorate")}

    def trained(recompute):
        keras.utils.set_random_seed(0)
        stack = [Recomputed(recompute, **block_settings) for _ in range(blocks)]
        model = keras.Sequential([keras.Input((8,)), *stack, keras.layers.Dense(1)])
        model = CustomStep(model) if custom else model
        model(tf.ones((1, 8)))  # a function inside it is traced before the clock
        for _ in range(compiles):  # the second must not repeat the masks of the first
            optimizer = keras.optimizers.SGD(
                0.02, gradient_accumulation_steps=accumulate
            )
            model.compile(optimizer, "mse", **settings)
            fit(model, callbacks=[kdrop.StepClock()])
        drop = stack[0].drop
        assert drop.draw_count == 8 * compiles
        assert_independent(dropped(drop), dropped(drop))  # new draws after fit
        return model.get_weights()

    # Two programs may round differently: 16 updates of 0.1 times a gradient, which is
    # a sum of 64 terms.
    bound = 16 * 0.1 * 64 * np.finfo("float32").eps
    for one, other in zip(trained(False), trained(True), strict=True):
        np.testing.assert_allclose(one, other, rtol=bound, atol=bound)


def test_the_clock_counts_the_training_step_alone():
    drop = drop_layer()
    model = keras.Sequential([keras.Input((8,)), drop, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    sampler = kdrop.Sampler(model)
    samples = []

    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                samples.extend(sampler(tf.ones((64, 8))).numpy() for _ in range(2))
                raise KeyboardInterrupt

    fit(model)
    before = model.train_function
    with pytest.raises(KeyboardInterrupt):
        fit(model, callbacks=[kdrop.StepClock(), Interrupt()])
    assert model.train_function is before
    assert np.any(samples[0] != samples[1])
    assert_independent(dropped(drop), dropped(drop))


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_a_fit_after_the_clock_draws_for_each_call_again():
    class Twice(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.drop = drop_layer()

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


@pytest.mark.slow
@pytest.mark.parametrize("clock_first", [True, False])
def test_the_clock_resumes_after_a_backup(clock_first, tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def callbacks():
        both = [kdrop.StepClock(), keras.callbacks.BackupAndRestore(tmp_path)]
        return both if clock_first else both[::-1]

    models = []
    for _ in range(3):
        models.append(network(InvertedDropout))
        models[-1].compile("adam", "mse")
    uninterrupted, interrupted, resumed = models
    for model in (uninterrupted, interrupted):  # masks drawn before training
        dropped(model.get_layer("drop_1"))
    fit(uninterrupted, 4, callbacks=[kdrop.StepClock()])
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, 4, callbacks=[*callbacks(), Interrupt()])
    fit(resumed, 4, callbacks=callbacks())
    assert_same_weights(uninterrupted, resumed)


def test_the_clock_counts_steps_with_loss_scaling():
    drop = drop_layer()
    model = keras.Sequential([keras.Input((8,)), drop, keras.layers.Dense(1)])
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    model.compile(optimizer, "mse")
    fit(model, callbacks=[kdrop.StepClock()])
    assert drop.draw_count == 8


def test_clock_in_a_custom_loop():
    drop = drop_layer()
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


def test_clocks_of_two_models_do_not_share_a_trace():
    one, other = (keras.Sequential([InvertedDropout(0.5)]) for _ in range(2))
    clock, ones = kdrop.StepClock(), tf.ones((8, 64))
    function = tf.function(lambda x: other(x, training=True))
    with clock.start(one):
        assert_independent(function(ones), function(ones))
    with clock.start(other):
        np.testing.assert_array_equal(function(ones), function(ones))


def test_the_clock_keeps_a_custom_step_and_follows_compile():
    class Freeze(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.layers[0].trainable = False
                self.model.compile("sgd", "mse")
                self.model.make_train_function(force=True)
                self.weights = self.model.layers[0].get_weights()

    layers = [keras.layers.Dense(4), InvertedDropout(0.5), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    model.compile("sgd", "mse")
    calls, step = [], model.train_step
    model.train_step = counted = lambda data: calls.append(1) or step(data)
    freeze = Freeze()
    fit(model, callbacks=[freeze, kdrop.StepClock()])
    assert model.train_step is counted and calls
    np.testing.assert_array_equal(model.layers[0].get_weights()[0], freeze.weights[0])
    assert layers[1].draw_count == 8
