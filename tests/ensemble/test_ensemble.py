"""Sampling the sub-networks, and the exact vote of all of them."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import kdrop
from kdrop import InvertedDropout, VanillaDropout
from kdrop.ensemble.split import Stages

DEVIATIONS = 5  # a normal variable is further off in one case of 1.7 million


def rng(seed=0):
    return np.random.default_rng(seed)


def sample(model, inputs, passes=6, **settings):
    settings = {"seed": 1, "verbose": 0, **settings}
    return kdrop.sample(model, inputs, passes=passes, **settings)


class Whole(keras.Model):
    """A model around another, whose graph cannot be seen."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, inputs, training=False):
        return self.model(inputs, training=training)


@keras.saving.register_keras_serializable("tests")
class Counted(keras.Layer):
    """Counts its rows and calls, also inside of graphs."""

    def build(self, input_shape):
        zero = dict(shape=(), initializer="zeros", dtype="int32", trainable=False)
        self.rows, self.calls, self.most = (self.add_weight(**zero) for _ in range(3))

    def call(self, inputs):
        rows = ops.shape(inputs)[0]
        self.rows.assign(self.rows + rows)
        self.calls.assign(self.calls + 1)
        self.most.assign(ops.maximum(self.most, rows))
        return inputs + 0


def dense(units, **settings):
    return keras.layers.Dense(units, **settings)


def mlp(drop=InvertedDropout, rate=0.5):
    return keras.Sequential(
        [
            keras.Input((8,)),
            dense(16, activation="relu"),
            drop(rate, name="one"),
            dense(16, activation="relu"),
            drop(rate, name="two"),
            dense(3, activation="softmax"),
        ]
    )


def branches():
    """Branches, a nested model that is called twice, and one drop layer used twice."""
    inputs = keras.Input((8,))
    hidden = dense(16, activation="relu")(inputs)
    dropped = InvertedDropout(0.5, name="dropped")(hidden)
    plain = dense(16)(hidden)
    nested = keras.Sequential(
        [
            keras.Input((16,)),
            dense(16, activation="relu"),
            VanillaDropout(0.3, name="nested"),
            dense(16),
        ]
    )
    first, second = nested(keras.layers.Add()([dropped, plain])), nested(plain)
    shared = InvertedDropout(0.2, name="shared")
    joined = keras.layers.Concatenate()([shared(first), shared(second), plain])
    return keras.Model(inputs, dense(3, activation="softmax")(joined))


def functional_in_functional():
    """A nested model of two inputs, of which one differs between sub-networks."""
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    mixed = keras.layers.Add()([dense(4)(a), InvertedDropout(0.4, name="in")(b)])
    nested = keras.Model({"a": a, "b": b}, [mixed, dense(4)(a)])
    inputs = keras.Input((8,))
    one, other = ops.split(inputs, 2, axis=-1)
    first, second = nested({"a": one, "b": InvertedDropout(0.5, name="out")(other)})
    return keras.Model(inputs, dense(3)(keras.layers.Concatenate()([first, second])))


def convolutions():
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Reshape((4, 2, 1)),
            keras.layers.Conv2D(4, 3, padding="same"),
            keras.layers.BatchNormalization(moving_mean_initializer="random_normal"),
            InvertedDropout(0.3, noise_shape=(None, 1, 1, None), name="maps"),
            keras.layers.Conv2D(4, 3, padding="same", activation="relu"),
            InvertedDropout(0.3, noise_shape=(1, None, None, None), name="batch"),
            keras.layers.Flatten(),
            dense(3, activation="softmax"),
        ]
    )


def masked():
    inputs = keras.Input((8,))
    tokens = ops.cast(ops.abs(inputs) * 2, "int32")
    embedded = keras.layers.Embedding(9, 6, mask_zero=True)(tokens)
    dropped = InvertedDropout(0.5, name="drop")(embedded)
    attended = keras.layers.MultiHeadAttention(2, 3)(dropped, embedded)
    averaged = keras.layers.GlobalAveragePooling1D()(attended)
    nested = keras.Sequential(
        [
            keras.Input((8, 6)),
            dense(6),
            InvertedDropout(0.5, name="nested"),
            keras.layers.GlobalAveragePooling1D(),
        ]
    )
    nested.supports_masking = True
    both = keras.layers.Concatenate()([averaged, nested(embedded)])
    return keras.Model(inputs, both)


NETWORKS = [mlp, branches, functional_in_functional, convolutions, masked]
INPUTS = rng().normal(size=(50, 8)).astype("float32")
JAX = keras.backend.backend() == "jax"
counting = pytest.mark.skipif(JAX, reason="layers have no state in jax.jit")
in_float64 = pytest.mark.skipif(JAX, reason="JAX has no float64 unless it is told")
every_network = pytest.mark.parametrize("network", NETWORKS)


@pytest.fixture(autouse=True)
def same_weights():
    keras.utils.set_random_seed(0)


# Sampling: which sub-networks


@every_network
def test_samples_depend_on_the_seed_and_on_nothing_else(network):
    model = network()
    samples = sample(model, INPUTS)
    assert samples.shape[:2] == (6, 50)
    assert (samples.std(axis=0) > 0).any(axis=1).all()
    fewer = sample(model, INPUTS, passes=3, batch_size=25, memory=3000)
    np.testing.assert_allclose(fewer, samples[:3], atol=1e-5)
    assert abs(sample(model, INPUTS, seed=2) - samples).max() > 1e-3


@every_network
def test_a_cut_model_has_the_samples_of_the_whole(network):
    model = network()
    whole = sample(Whole(model), INPUTS, memory=30_000)
    np.testing.assert_allclose(sample(model, INPUTS), whole, atol=1e-5)


def test_half_precision_is_cut_like_the_whole():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = branches()
        whole = sample(Whole(model), INPUTS)
    finally:
        keras.config.set_dtype_policy(before)
    samples = sample(model, INPUTS)
    np.testing.assert_allclose(
        samples.astype("float32"), whole.astype("float32"), atol=0.02
    )
    assert samples.dtype == "bfloat16"


def dropped(samples):
    """Which units of a drop layer on ones are dropped."""
    return samples == 0


def on_ones(size=256, rate=0.3, **settings):
    model = keras.Sequential([keras.Input((size,)), InvertedDropout(rate, **settings)])
    return model, np.ones((64, size), "float32")


def assert_independent(one, other, rate=0.3):
    agree = rate**2 + (1 - rate) ** 2
    bound = DEVIATIONS * np.sqrt(agree * (1 - agree) * one.size)
    assert abs((one == other).sum() - agree * one.size) < bound


def test_passes_and_examples_have_masks_of_their_own_at_the_rate():
    mask = dropped(sample(*on_ones()))
    bound = DEVIATIONS * np.sqrt(0.3 * 0.7 * mask.size)
    assert abs(mask.sum() - 0.3 * mask.size) < bound
    for one, other in itertools.combinations(range(6), 2):
        assert_independent(mask[one], mask[other])
        assert_independent(mask[:, one], mask[:, other])
    assert_independent(mask[:-1, 1:], mask[1:, :-1])  # words are not swapped or added


def test_consistent_passes_have_one_mask_for_the_whole_data_set():
    mask = dropped(sample(*on_ones(), consistent=True, batch_size=10))
    np.testing.assert_array_equal(mask, np.broadcast_to(mask[:, :1], mask.shape))
    for one, other in itertools.combinations(range(6), 2):
        assert_independent(mask[one, 0], mask[other, 0])


def test_a_mask_that_the_batch_shares_is_one_for_each_pass():
    mask = dropped(sample(*on_ones(noise_shape=(1, None)), batch_size=10))
    np.testing.assert_array_equal(mask, np.broadcast_to(mask[:, :1], mask.shape))
    assert_independent(mask[0, 0], mask[1, 0])


def test_calls_of_one_layer_draw_apart():
    inputs, drop = keras.Input((256,)), InvertedDropout(0.3)
    model = keras.Model(inputs, [drop(inputs), drop(inputs)])
    first, second = sample(model, np.ones((64, 256), "float32"))
    assert_independent(dropped(first), dropped(second))


def test_sampled_and_other_calls_in_eager_mode_share_no_graph():
    layer, ones = VanillaDropout(0.5), np.ones((4, 8), "float32")
    model = keras.Sequential([keras.Input((8,)), layer])
    stages = Stages(model)
    rows = np.arange(12, dtype="uint32").reshape(4, 3)
    stages.sample(stages.once(ones), np.arange(4), rows)
    assert layer(ones, training=True).shape == (4, 8)


def test_without_a_seed_each_call_is_another():
    model, ones = on_ones()
    first, second = (dropped(sample(model, ones, seed=None)) for _ in range(2))
    assert_independent(first, second)


def test_the_mean_of_a_linear_network_is_weight_scaling():
    model = keras.Sequential([keras.Input((8,)), InvertedDropout(0.4), dense(3)])
    samples = sample(model, INPUTS, passes=4000)
    error = samples.std(axis=0) / np.sqrt(len(samples))
    assert np.all(abs(samples.mean(axis=0) - model(INPUTS)) < DEVIATIONS * error)


def test_sub_networks_come_as_often_as_their_probability():
    """Chi-squared over the 8 sub-networks of three units with two rates."""
    inputs = keras.Input((3,))
    one = InvertedDropout(0.2, name="one")(inputs[:, :2])
    model = keras.Model(
        inputs, ops.concatenate([one, VanillaDropout(0.6)(inputs[:, 2:])], axis=1)
    )
    mask = dropped(sample(model, np.ones((500, 3), "float32"), passes=100))
    found = np.bincount((mask @ [1, 2, 4]).ravel(), minlength=8)
    rates = np.array([0.2, 0.2, 0.6])
    chosen = np.array(list(itertools.product([0, 1], repeat=3)))[:, ::-1]
    expected = np.where(chosen, rates, 1 - rates).prod(axis=1) * mask[..., 0].size
    # 42.9 is exceeded in one case of 3.5 million with 7 degrees of freedom.
    assert ((found - expected) ** 2 / expected).sum() < 42.9


# Sampling: what is computed


@counting
@pytest.mark.parametrize("nest", [False, True])
def test_what_precedes_the_first_drop_layer_runs_once(nest):
    before, after = Counted(), Counted()
    inner = [dense(16), before, InvertedDropout(0.5), after]
    if nest:
        inner = [keras.Sequential([keras.Input((8,)), *inner])]
    model = keras.Sequential([keras.Input((8,)), *inner, dense(3)])
    settings = dict(passes=6, batch_size=20, memory=20_000)
    sample(model, INPUTS, **settings)  # the first time, it looks at the shapes too
    counts = int(before.rows), int(before.calls), int(after.rows)
    sample(model, INPUTS, **settings)
    assert int(before.rows) - counts[0] == 50 and int(before.calls) - counts[1] == 3
    assert int(after.rows) - counts[2] == 6 * 50


@counting
def test_stacked_passes_stay_within_the_memory():
    counted = Counted()
    model = keras.Sequential([keras.Input((8,)), InvertedDropout(0.5), counted])
    model.add(dense(1000))
    memory = 400_000
    sample(model, INPUTS, memory=memory)
    assert 4 * 1000 * int(counted.most) < memory  # the last layer's outputs alone
    assert int(counted.most) > 20
    few = int(counted.calls)
    sample(model, INPUTS, memory=2**28)
    assert int(counted.calls) == few + 1  # all at once
    assert int(counted.most) == 6 * 50


def test_batch_normalisation_is_at_rest_and_stays():
    normalise = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((8,)), InvertedDropout(0.5), normalise])
    inputs = rng().normal(5, 3, size=(50, 8)).astype("float32")
    before = model.get_weights()
    samples = sample(model, inputs)
    shift = 1 / np.sqrt(1 + normalise.epsilon)
    ratio = samples / (inputs * shift)
    np.testing.assert_allclose(np.where(ratio == 0, 2, ratio), 2, rtol=1e-5)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_inputs_and_outputs_by_name_and_outputs_that_do_not_vary():
    a, b = keras.Input((8,), name="a"), keras.Input((3,), name="b")
    hidden = dense(4)(a)
    outputs = {
        "varies": InvertedDropout(0.5)(ops.concatenate([hidden, b], axis=1)),
        "stays": hidden,
    }
    model = keras.Model({"a": a, "b": b}, outputs)
    inputs = {"a": INPUTS, "b": INPUTS[:, :3]}
    samples = sample(model, inputs, batch_size=20)
    at_inference = model.predict(inputs, verbose=0)
    assert set(samples) == {"varies", "stays"}
    for one in samples["stays"]:
        np.testing.assert_allclose(one, at_inference["stays"], atol=1e-6)
    kept = samples["varies"] != 0
    doubled = np.broadcast_to(2 * at_inference["varies"], kept.shape)
    np.testing.assert_allclose(samples["varies"][kept], doubled[kept], rtol=1e-5)
    pairs = tf.data.Dataset.from_tensor_slices((inputs, INPUTS)).batch(17)
    again = sample(model, pairs)
    np.testing.assert_allclose(again["varies"], samples["varies"], atol=1e-6)


def test_a_data_set_of_unknown_length_is_taken(capsys):
    model = mlp()
    batches = tf.data.Dataset.from_tensor_slices(INPUTS).batch(20)
    unknown = batches.filter(lambda x: True)
    samples = sample(model, unknown, verbose=1)
    np.testing.assert_allclose(samples, sample(model, INPUTS), atol=1e-6)
    assert "3/Unknown" in capsys.readouterr().out


def test_new_weights_and_rates_count_at_once():
    model = mlp()
    first = sample(model, INPUTS)
    model.set_weights([2 * w for w in model.get_weights()])
    assert abs(sample(model, INPUTS) - first).max() > 1e-3
    model.get_layer("one").rate = 0.0
    np.testing.assert_allclose(
        sample(model, INPUTS), sample(Whole(model), INPUTS), atol=1e-5
    )
    model.get_layer("two").rate = 0.9
    np.testing.assert_allclose(
        sample(model, INPUTS), sample(Whole(model), INPUTS), atol=1e-5
    )
    model.pop()
    assert sample(model, INPUTS).shape == (6, 50, 16)


def test_a_model_without_shapes_is_built():
    layers = [dense(4), InvertedDropout(0.5)]
    assert sample(keras.Sequential(layers), INPUTS).shape == (6, 50, 4)


def test_a_sampler_around_the_model_changes_nothing():
    model = mlp()
    sampler = kdrop.Sampler(model)
    np.testing.assert_allclose(
        sample(sampler, INPUTS), sample(model, INPUTS), atol=1e-5
    )


# Sampling: what is refused


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": "m"}, "`model` must be a `keras.Model`. Received: 'm'"),
        ({"passes": 0}, "`passes` must be an integer of 1 or more. Received: 0"),
        ({"batch_size": 2.0}, "`batch_size` must be .* Received: 2.0"),
        ({"memory": True}, "`memory` must be .* Received: True"),
        ({"seed": -1}, "`seed` must be an integer in"),
        ({"inputs": [[1.0, 2.0]]}, "`inputs` must be an array .* float"),
        ({"inputs": [INPUTS, INPUTS[:3]]}, r"ndarray\(50, 8\), ndarray\(3, 8\)"),
        ({"inputs": INPUTS[:0]}, "`inputs` must hold one example at least"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    arguments = {"model": mlp(), "inputs": INPUTS, **arguments}
    with pytest.raises(ValueError, match=message):
        sample(**arguments)


def test_a_model_with_nothing_to_sample_is_named():
    with pytest.raises(ValueError, match="'plain' has no drop layer of kdrop"):
        sample(keras.Sequential([keras.Input((8,)), dense(3)], name="plain"), INPUTS)
    theirs = mlp(keras.layers.Dropout)
    with pytest.raises(ValueError, match=r"kdrop\.replace\(model\)"):
        sample(theirs, INPUTS)
    with pytest.raises(ValueError, match="All drop layers .* have rate 0"):
        sample(mlp(rate=0.0), INPUTS)


def test_a_sampler_takes_a_model_alone():
    with pytest.raises(ValueError, match="must be a `keras.Model`. Received: 'm'"):
        kdrop.Sampler("m")


# The exact vote


def two_neurons(drop, activation=None, rate=0.5):
    """Two inputs, two weights, one output: four sub-networks."""
    model = keras.Sequential(
        [
            keras.Input((2,), dtype="float64"),
            drop(rate, dtype="float64"),
            dense(1, activation=activation, use_bias=False, dtype="float64"),
        ]
    )
    model.set_weights([np.array([[3.0], [-1.0]])])
    return model


@in_float64
def test_two_neurons_are_four_networks_whose_mean_is_weight_scaling():
    vote = kdrop.subnetworks(two_neurons(VanillaDropout), np.array([[2.0, 5.0]]))
    networks = [3 * 2 - 5, 3 * 2, -5, 0]
    assert vote.count == 4
    assert vote.arithmetic == vote.weight_scaling == np.mean(networks) == 0.5
    assert vote.difference == 0
    assert vote.geometric is None  # no probabilities


@in_float64
@pytest.mark.parametrize("drop", [VanillaDropout, InvertedDropout])
def test_a_linear_network_votes_as_weight_scaling(drop):
    settings = dict(dtype="float64")
    model = keras.Sequential(
        [
            keras.Input((4,), **settings),
            drop(0.2, **settings),
            dense(5, **settings),
            drop(0.7, noise_shape=(1, None), **settings),
            dense(3, **settings),
        ]
    )
    vote = kdrop.subnetworks(model, rng().normal(size=(7, 4)))
    assert vote.count == 2**9
    np.testing.assert_allclose(vote.arithmetic, vote.weight_scaling, rtol=1e-12)
    assert vote.difference < 1e-12


@in_float64
@pytest.mark.parametrize("classes, activation", [(3, "softmax"), (1, "sigmoid")])
def test_softmax_regression_votes_geometrically_as_weight_scaling(classes, activation):
    model = keras.Sequential(
        [
            keras.Input((8,), dtype="float64"),
            VanillaDropout(0.3, dtype="float64"),
            dense(classes, activation=activation, dtype="float64"),
        ]
    )
    vote = kdrop.subnetworks(model, 3 * rng().normal(size=(7, 8)))
    np.testing.assert_allclose(vote.geometric, vote.weight_scaling, rtol=1e-9)
    assert vote.difference > 0.01


def test_a_deep_network_votes_as_each_sub_network_by_hand():
    """Oracle: every mask in NumPy. Weight scaling is off, and by how much is told."""
    model = keras.Sequential(
        [
            keras.Input((3,)),
            dense(4, activation="relu"),
            InvertedDropout(0.25),
            dense(4, activation="relu"),
            VanillaDropout(0.5),
            dense(3, activation="softmax"),
        ]
    )
    inputs = 3 * rng().normal(size=(5, 3)).astype("float32")
    weights = [w.astype("float64") for w in model.get_weights()]

    def forward(first, second):
        hidden = np.maximum(inputs @ weights[0] + weights[1], 0) * first
        hidden = np.maximum(hidden @ weights[2] + weights[3], 0) * second
        outputs = np.exp(hidden @ weights[4] + weights[5])
        return outputs / outputs.sum(axis=1, keepdims=True)

    arithmetic, logarithm = 0, 0
    for kept in itertools.product([0, 1], repeat=8):
        first, second = np.array(kept[:4]), np.array(kept[4:])
        probability = np.prod(np.where(first, 0.75, 0.25)) * 0.5**4
        outputs = forward(first / 0.75, second)
        arithmetic += probability * outputs
        logarithm += probability * np.log(outputs)
    geometric = np.exp(logarithm) / np.exp(logarithm).sum(axis=1, keepdims=True)
    vote = kdrop.subnetworks(model, inputs)
    assert vote.count == 2**8
    np.testing.assert_allclose(vote.arithmetic, arithmetic, atol=1e-6)
    np.testing.assert_allclose(vote.geometric, geometric, atol=1e-6)
    np.testing.assert_allclose(vote.weight_scaling, forward(1, 0.5), atol=1e-6)
    off = abs(forward(1, 0.5) - arithmetic).max()
    np.testing.assert_allclose(vote.difference, off, atol=1e-6)
    assert off > 0.01
    samples = sample(model, inputs, passes=4000)
    error = 1e-5 + DEVIATIONS * samples.std(axis=0) / np.sqrt(len(samples))
    assert (abs(samples.mean(axis=0) - arithmetic) < error).all()


def test_a_million_sub_networks_are_counted_by_batches():
    model = keras.Sequential([keras.Input((20,)), VanillaDropout(0.1)])
    vote = kdrop.subnetworks(model, np.ones((1, 20), "float32"))
    assert vote.count == 2**20
    np.testing.assert_allclose(vote.arithmetic, 0.9, rtol=1e-9)


def test_what_cannot_be_counted_is_named():
    model = keras.Sequential([keras.Input((21,)), InvertedDropout(0.5)])
    with pytest.raises(ValueError, match=r"2\^21 sub-networks .* at most 2\^20"):
        kdrop.subnetworks(model, np.ones((1, 21)))
    model = keras.Sequential([keras.Input((2,)), kdrop.GaussianDropout(0.5, name="g")])
    with pytest.raises(ValueError, match="drop or keep single units.*name=g"):
        kdrop.subnetworks(model, np.ones((1, 2)))
    with pytest.raises(ValueError, match="graph of a Sequential or Functional"):
        kdrop.subnetworks(Whole(mlp()), INPUTS)
    with pytest.raises(ValueError, match="have rate 0"):
        kdrop.subnetworks(mlp(rate=0.0), INPUTS)
