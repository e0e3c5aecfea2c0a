"""Monte Carlo samples: which sub-networks they are, and what is refused."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from family import assert_frequency, assert_independent
from keras import ops
from networks import INPUTS, JAX, dense, mlp, sample

import kdrop
from kdrop import InvertedDropout, VanillaDropout

# Which sub-networks


def masks_of_ones(size=256, **settings):
    """Which units are dropped in samples `(6, 64, size)` at rate .3."""
    drop_settings = {k: settings.pop(k) for k in ("noise_shape",) if k in settings}
    drop = InvertedDropout(0.3, **drop_settings)
    model = keras.Sequential([keras.Input((size,)), drop])
    return sample(model, np.ones((64, size), "float32"), **settings) == 0


def test_samples_and_examples_have_independent_masks_at_the_rate():
    masks = masks_of_ones()
    assert_frequency(masks, 0.3)
    for one, other in itertools.combinations(range(6), 2):
        assert_independent(masks[one], masks[other])
        assert_independent(masks[:, one], masks[:, other])
    assert_independent(masks[:-1, 1:], masks[1:, :-1])  # words are not swapped or added
    assert_independent(masks, masks_of_ones(seed=2))
    assert_independent(masks_of_ones(seed=None), masks_of_ones(seed=None))


def test_a_consistent_sample_has_one_mask_for_all_examples():
    masks = masks_of_ones(consistent=True, batch_size=10)
    np.testing.assert_array_equal(masks, np.broadcast_to(masks[:, :1], masks.shape))
    for one, other in itertools.combinations(range(6), 2):
        assert_independent(masks[one, 0], masks[other, 0])


def test_a_mask_that_the_batch_shares_is_one_for_each_sample():
    masks = masks_of_ones(noise_shape=(1, None), batch_size=10)
    np.testing.assert_array_equal(masks, np.broadcast_to(masks[:, :1], masks.shape))
    assert_independent(masks[0, 0], masks[1, 0])


def test_sub_networks_come_as_often_as_their_probability():
    """Chi-squared over the 8 sub-networks of three units with two rates."""
    inputs = keras.Input((3,))
    one = InvertedDropout(0.2, name="one")(inputs[:, :2])
    model = keras.Model(
        inputs, ops.concatenate([one, VanillaDropout(0.6)(inputs[:, 2:])], axis=1)
    )
    masks = sample(model, np.ones((500, 3), "float32"), passes=100) == 0
    counts = np.bincount((masks @ [1, 2, 4]).ravel(), minlength=8)
    rates = np.array([0.2, 0.2, 0.6])
    dropped = np.array(list(itertools.product([0, 1], repeat=3)))[:, ::-1]
    expected = np.where(dropped, rates, 1 - rates).prod(axis=1) * masks[..., 0].size
    # 42.9 is exceeded in one case of 3.5 million with 7 degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < 42.9


# Models and inputs


def test_batch_normalisation_is_at_inference_and_unchanged():
    normalise = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((8,)), InvertedDropout(0.5), normalise])
    inputs = 5 + 3 * INPUTS
    before = model.get_weights()
    samples = sample(model, inputs)
    ratio = samples / (inputs / np.sqrt(1 + normalise.epsilon))
    np.testing.assert_allclose(np.where(ratio == 0, 2, ratio), 2, rtol=1e-5)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_inputs_and_outputs_by_name_and_constant_outputs():
    a, b = keras.Input((8,), name="a"), keras.Input((3,), name="b")
    hidden = dense(4)(a)
    outputs = {
        "random": InvertedDropout(0.5)(ops.concatenate([hidden, b], axis=1)),
        "constant": hidden,
    }
    model = keras.Model({"a": a, "b": b}, outputs)
    inputs = {"a": INPUTS, "b": INPUTS[:, :3]}
    samples = sample(model, inputs, batch_size=20)
    at_inference = model.predict(inputs, verbose=0)
    assert set(samples) == {"random", "constant"}
    for one in samples["constant"]:
        np.testing.assert_allclose(one, at_inference["constant"], atol=1e-6)
    nonzero = samples["random"] != 0
    doubled = np.broadcast_to(2 * at_inference["random"], nonzero.shape)
    np.testing.assert_allclose(samples["random"][nonzero], doubled[nonzero], rtol=1e-5)
    pairs = tf.data.Dataset.from_tensor_slices((inputs, INPUTS)).batch(17)
    again = sample(model, pairs)
    np.testing.assert_allclose(again["random"], samples["random"], atol=1e-6)


def test_a_data_set_of_unknown_length(capsys):
    model = mlp()
    batches = tf.data.Dataset.from_tensor_slices(INPUTS).batch(20)
    samples = sample(model, batches.filter(lambda x: True), verbose=1)
    np.testing.assert_allclose(samples, sample(model), atol=1e-6)
    assert "3/Unknown" in capsys.readouterr().out


def test_a_model_without_shapes_is_built():
    layers = [dense(4), InvertedDropout(0.5)]
    assert sample(keras.Sequential(layers)).shape == (6, 50, 4)


# Sampler


def test_a_seeded_sampler_returns_sample_0():
    model = mlp()
    sampler = kdrop.Sampler(model, seed=5)
    samples = sample(model, seed=5)
    predicted = sampler.predict(INPUTS, batch_size=5, verbose=0)
    traced = sampler if JAX else tf.function(sampler)
    for outputs in (sampler(INPUTS), predicted, traced(INPUTS)):
        np.testing.assert_allclose(outputs, samples[0], atol=1e-6)
    with pytest.raises(ValueError, match="neither `steps` nor `callbacks`"):
        sampler.predict(INPUTS, steps=1)
    assert kdrop.Sampler.from_config(sampler.get_config()).seed == 5
    np.testing.assert_allclose(sample(sampler, seed=5), samples, atol=1e-5)


def test_a_sampler_checks_its_arguments():
    with pytest.raises(ValueError, match="must be a keras.Model. Received: model='m'"):
        kdrop.Sampler("m")
    with pytest.raises(ValueError, match="seed=-1"):
        kdrop.Sampler(mlp(), seed=-1)


# What is refused, and what is warned of


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": "m"}, "`model` must be a keras.Model. Received: model='m'"),
        (
            {"passes": 0},
            "`passes` must be an integer of at least 1. Received: passes=0",
        ),
        ({"batch_size": 2.0}, "`batch_size` must be .* Received: batch_size=2.0"),
        ({"memory": True}, "`memory` must be .* Received: memory=True"),
        ({"seed": -1}, "`seed` must be an integer in"),
        ({"inputs": [[1.0, 2.0]]}, "`inputs` must be an array .* 'float'"),
        ({"inputs": [INPUTS, INPUTS[:3]]}, r"'ndarray\(50, 8\)', 'ndarray\(3, 8\)'"),
        ({"inputs": INPUTS[:0]}, "`inputs` must hold one example at least"),
        ({"inputs": keras.ops.ones(())}, "`inputs` must be an array .*"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(**{"model": mlp(), **arguments})


def test_a_model_with_nothing_to_sample_is_named():
    with pytest.raises(ValueError, match="'plain' has no drop layer of kdrop"):
        sample(keras.Sequential([keras.Input((8,)), dense(3)], name="plain"))
    with pytest.raises(ValueError, match=r"kdrop\.replace\(model\)"):
        sample(mlp(keras.layers.Dropout))
    with pytest.raises(ValueError, match="All drop layers .* have rate 0"):
        sample(mlp(rate=0.0))


def test_a_stateful_model_is_refused():
    lstm = keras.layers.LSTM(2, stateful=True, name="state")
    inputs = keras.Input((4, 3), batch_size=2)
    model = keras.Sequential([inputs, InvertedDropout(0.5), lstm])
    ones = np.ones((2, 4, 3), "float32")
    for call in (lambda: sample(model, ones), lambda: kdrop.Sampler(model, 1)(ones)):
        with pytest.raises(ValueError, match=r"stateful layers .*state"):
            call()


def test_one_warning_names_what_is_not_sampled():
    keras_layers = keras.layers.Dropout(0.5, name="a"), keras.layers.Dropout(0.1)
    model = keras.Sequential([keras.Input((8,)), InvertedDropout(0.5), *keras_layers])
    sampler = kdrop.Sampler(model)
    for call in (
        lambda: sample(model),
        lambda: sampler(INPUTS),
        lambda: kdrop.Sampler(model).predict(INPUTS, verbose=0),
        lambda: kdrop.subnetworks(model, INPUTS),
    ):
        with pytest.warns(UserWarning, match="sampled: 'a', 'dropout") as warnings:
            call()
        assert len(warnings) == 1
    sampler(INPUTS)  # warned once for each sampler
