"""The state of a drop layer in checkpoints and saved models, and in many threads."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from family import assert_frequency, assert_independent, dropped, network, regression

from kdrop import InvertedDropout


def test_a_checkpoint_holds_the_draws_and_not_the_rate(tmp_path):
    model, fresh = network(InvertedDropout), network(InvertedDropout)
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
    """A model that creates its drop layer when it is first called."""

    def __init__(self, seed):
        super().__init__()
        self.dense, self.drop_seed = keras.layers.Dense(3), seed

    def build(self, shape):
        self.drop = InvertedDropout(0.5, seed=self.drop_seed, name="drop")
        self.dense.build(shape)

    def call(self, inputs, training=False):
        return self.dense(self.drop(inputs, training=training))


@pytest.mark.parametrize("build", ["call", "graph", "fit"])
def test_a_checkpoint_is_restored_before_its_layers_exist(build, tmp_path):
    inputs = tf.ones((4, 8))
    saved, loaded = Built(1), Built(2)
    saved(inputs)
    for _ in range(3):
        dropped(saved.drop)
    path = tf.train.Checkpoint(model=saved).save(tmp_path / "model")
    restoring = tf.train.Checkpoint(model=loaded).restore(path)
    steps = {"call": 0, "graph": 2, "fit": 4}[build]
    if build == "call":
        loaded(inputs)
    elif build == "graph":
        call = tf.function(lambda x: loaded(x, training=True))
        for _ in range(steps):
            call(inputs)
    else:
        loaded.compile(keras.optimizers.SGD(0.0), "mse")
        loaded.fit(tf.ones((16, 8)), tf.ones((16, 3)), 4, verbose=0)
    restoring.expect_partial()
    assert loaded.drop.draw_count == 3 + steps
    for _ in range(steps):
        dropped(saved.drop)
    np.testing.assert_array_equal(dropped(loaded.drop), dropped(saved.drop))
    np.testing.assert_allclose(loaded(inputs), saved(inputs), rtol=1e-6)


def test_a_saved_model_holds_the_state(tmp_path):
    class Trained(tf.Module):
        def __init__(self):
            self.drop = InvertedDropout(0.5, seed=1, name="drop")

        @tf.function(input_signature=[tf.TensorSpec((None, 64))])
        def train(self, inputs):
            return self.drop(inputs, training=True)

    module, ones = Trained(), tf.ones((16, 64))
    module.train(ones)
    tf.saved_model.save(module, str(tmp_path / "module"))
    loaded = tf.saved_model.load(str(tmp_path / "module"))
    first, second = loaded.train(ones), loaded.train(ones)
    np.testing.assert_array_equal(first, module.train(ones))
    assert_independent(first == 0, second == 0)

    model = network(InvertedDropout)
    tf.saved_model.save(model, str(tmp_path / "model"))
    served = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    inputs, _ = regression()
    (outputs,) = served(tf.constant(inputs)).values()
    np.testing.assert_allclose(outputs, model(inputs), rtol=1e-5, atol=1e-6)


def test_threads_that_call_one_layer_have_other_masks():
    layer = InvertedDropout(0.5, seed=1, name="drop")
    with ThreadPoolExecutor(8) as pool:
        masks = list(pool.map(lambda _: dropped(layer, (8, 64)), range(800)))
    for mask in masks:
        assert_frequency(mask, 0.5)
    assert len({mask.tobytes() for mask in masks}) == layer.draw_count == 800
