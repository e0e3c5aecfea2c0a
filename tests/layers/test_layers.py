"""The contract: what every drop layer promises of its masks."""

import zlib

import keras
import numpy as np
import pytest
from family import (
    BACKEND,
    DROPPING,
    assert_close,
    assert_frequency,
    assert_independent,
    every_dropping_layer,
    every_kind,
    every_layer,
    gradient,
    network,
    numpy,
    regression,
    traced,
)
from keras import ops

import kdrop

# Promise 1: the exact rate


# Layers that compute their threshold or their constants differently
DIFFERENT = ("InvertedDropout", "AlphaDropout", "DropBlock2D", "StochasticDepth")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[pytest.mark.slow] * dtype.startswith("float"))
        for name in DROPPING
        for dtype in ("float64", "float32", "bfloat16", "float16")
        if name in DIFFERENT or dtype == "bfloat16"
    ],
)
def test_dropped_fraction_is_the_rate_in_every_dtype(name, dtype):
    case = DROPPING[name]
    if BACKEND == "jax" and dtype == "float64":
        pytest.skip("JAX has no float64 by default")
    if case.exact:
        pytest.skip("drops an exact count")
    layer = case.make(0.5, dtype=dtype)
    for rate in (1e-3, 0.1, 0.999):
        layer.rate = rate
        dropped_value = numpy(ops.cast(case.dropped_value(rate), dtype))
        outputs = case.draws(layer, dtype)
        mask = np.isclose(outputs, dropped_value, rtol=1e-2, atol=1e-6)
        assert_frequency(mask, rate)
        assert len(np.unique(outputs)) <= 2


@every_kind
def test_rate_zero_changes_nothing(case):
    inputs = keras.random.normal(case.shape, seed=1)
    outputs = case.make(0.0)(inputs, training=True)
    assert_close(numpy(outputs), numpy(inputs))


@every_kind
def test_an_empty_batch_stays_empty(case):
    layer = case.make(0.5)
    empty = ops.zeros((0, *case.shape[1:]))
    assert layer(case.ones(), training=True).shape == case.shape
    outputs, d_inputs = gradient(layer, empty, empty)
    assert outputs.shape == d_inputs.shape == empty.shape


@pytest.mark.slow
@every_kind
def test_inputs_without_features_stay_empty(case):
    layer, shape = case.make(), (*case.shape[:-1], 0)
    empty = ops.zeros(shape)
    outputs, d_inputs = gradient(layer, empty, empty)
    sampler = kdrop.Sampler(keras.Sequential([keras.Input(shape[1:]), layer]))
    for result in (outputs, d_inputs, traced(layer)(empty), sampler(empty)):
        assert result.shape == shape


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's own derivatives")
def test_forward_derivatives_on_jax():
    import jax

    layer = kdrop.InvertedDropout(0.5, seed=1)
    state = [variable.value for variable in layer.non_trainable_variables]

    def drop(x):
        return layer.stateless_call([], state, x, training=True)[0]

    inputs = ops.ones((3, 4))
    scales = numpy(drop(inputs))
    hessian = jax.hessian(lambda x: ops.sum(drop(x) ** 3))(inputs)
    # Of the sum of (scale x)^3, at 1
    expected = np.diag(6 * scales.ravel() ** 3).reshape(hessian.shape)
    np.testing.assert_allclose(hessian, expected, rtol=1e-6)
    # The gradient stores the draw, and no mask.
    _, pull = jax.vjp(drop, inputs)
    assert all(np.size(value) <= 5 for value in jax.tree_util.tree_leaves(pull))


# Promise 2: one key, one mask

# Checksums of the first two masks, which are the same on all backends and platforms
PINNED = {
    "InvertedDropout": (371035148, 1425010759),
    "VanillaDropout": (371035148, 1425010759),
    "GaussianDropout": (1341112606, 4119148472),
    "UniformDropout": (1341112606, 4119148472),
    "AlphaDropout": (371035148, 1425010759),
    "ExactDropout": (2570060950, 865793907),
    "SpatialDropout1D": (371035148, 1425010759),
    "LockedDropout": (371035148, 1425010759),
    "SpatialDropout2D": (371035148, 1425010759),
    "SpatialDropout3D": (371035148, 1425010759),
    "DropBlock1D": (2325519537, 894143809),
    "DropBlock2D": (1936390611, 3713477203),
    "DropBlock3D": (3125274604, 2762171539),
    "DropPath": (950084952, 3775384471),
    "StochasticDepth": (1069182125, 3523407757),
}


@every_layer
def test_the_masks_are_the_same_on_every_backend(case):
    layer = case.make(0.3, seed=7)
    masks = [np.packbits(case.draw(layer) < 1) for _ in range(2)]
    assert tuple(zlib.crc32(mask) for mask in masks) == PINNED[case.layer.__name__]


@every_kind
@pytest.mark.parametrize("jit_compile", [False, True])
def test_same_masks_in_eager_mode_and_compiled(case, jit_compile):
    options = {"jit_compile": jit_compile} if BACKEND == "tensorflow" else {}
    eager, compiled = case.make(0.3), case.make(0.3)
    call = traced(compiled, **options)
    for _ in range(2):
        expected = case.draw(eager)
        outputs = case.seen(call(case.ones()))
        assert_close(outputs, expected)
        np.testing.assert_array_equal(outputs == 0, expected == 0)


class Spy(keras.layers.Layer):
    """Stores its last inputs in a weight."""

    def build(self, shape):
        self.last = self.add_weight(shape=shape, initializer="zeros", trainable=False)

    def call(self, inputs):
        self.last.assign(inputs)
        return inputs


@pytest.mark.slow
@every_kind
def test_same_masks_in_fit(case):
    keras.utils.set_random_seed(0)
    batch, *sizes = case.shape
    spy = Spy()
    layers = [case.make(), spy, keras.layers.Flatten(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input(sizes, batch), *layers])
    model.compile("sgd", "mse", jit_compile=True)
    inputs = np.ones((2 * batch, *sizes), "float32")
    model.fit(inputs, np.zeros((2 * batch, 1)), batch, verbose=0)
    alone = case.make()
    case.draw(alone)
    assert_close(case.seen(spy.last), case.draw(alone))


@every_kind
def test_a_seed_of_none_draws_a_seed(case):
    keras.utils.set_random_seed(5)
    one, other = (case.make(seed=None) for _ in range(2))
    assert one.seed is None
    assert_independent(case.draws(one), case.draws(other))


# Promise 3: independent where it must be


@every_kind
def test_masks_differ_between_calls_names_seeds_and_rows(case):
    layer = case.make(name="one")
    first, second = case.draws(layer), case.draws(layer)
    assert_independent(first, second)
    assert_independent(first, case.draws(case.make(name="two")))
    assert_independent(first, case.draws(case.make(name="one", seed=2)))
    if len(first) > 1:
        assert_independent(first[:-1], first[1:])


@every_kind
def test_the_mask_of_a_row_does_not_depend_on_the_batch_size(case):
    large = numpy(case.make()(case.ones(), training=True))
    small = numpy(case.make()(case.ones()[:5], training=True))
    assert_close(large[:5], small)


# Promise 7: select, not multiply


@every_dropping_layer
def test_a_dropped_nan_or_inf_becomes_the_dropped_value(case):
    dropped_value = case.dropped_value(0.5)
    ones = numpy(case.make()(case.ones(), training=True))
    mask = np.isclose(ones, dropped_value)
    for value in (np.nan, np.inf, -np.inf):
        inputs = ops.full(case.shape, np.float32(value))
        outputs, pulled = gradient(case.make(), inputs, inputs)
        for result, constant in ((outputs, dropped_value), (pulled, 0)):
            result = numpy(result)
            assert_close(result[mask], constant)
            np.testing.assert_array_equal(result[~mask], value)


# Gradients


@every_kind
def test_the_gradient_is_that_of_the_forward_pass(case):
    """By differences in one direction, since the layers are affine."""
    inputs, step, upstream = (keras.random.normal(case.shape, seed=i) for i in range(3))
    outputs, pulled = gradient(case.make(), inputs, upstream)
    moved = numpy(case.make()(inputs + step, training=True))
    change = (moved - numpy(outputs)).astype("float64")
    np.testing.assert_allclose(
        np.sum(numpy(pulled).astype("float64") * numpy(step)),
        np.sum(change * numpy(upstream)),
        rtol=1e-4,
        atol=1e-4 * np.sqrt(change.size),
    )


# Promises 8 and 9: no noise at inference unless the model is sampled


@every_layer
def test_at_inference_nothing_is_random(case):
    layer = case.make(0.25)
    inputs = case.ones()
    if case.scales_at_inference:
        np.testing.assert_allclose(numpy(layer(inputs)), 0.75)
    else:
        assert layer(inputs) is inputs
    assert layer.draw_count == 0


@pytest.mark.slow
@every_kind
def test_a_sampler_samples_the_drop_layers_alone(case):
    normalise = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input(case.shape[1:]), normalise, case.make()])
    inputs = np.random.default_rng(0).normal(5, 1, case.shape).astype("float32")
    before = [w.copy() for w in model.get_weights()]
    sampler, alone = kdrop.Sampler(model), case.make()
    at_inference = model.predict(inputs, verbose=0)
    for _ in range(2):
        sampled = sampler.predict(inputs, batch_size=len(inputs), verbose=0)
        expected = numpy(alone(normalise(inputs), training=True))
        np.testing.assert_allclose(sampled, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), at_inference)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_sampler_is_saved_as_a_model(tmp_path):
    sampler = kdrop.Sampler(network(kdrop.InvertedDropout))
    inputs, _ = regression()
    sampler(inputs)
    sampler.save(tmp_path / "sampler.keras")
    loaded = keras.models.load_model(tmp_path / "sampler.keras")
    assert_close(loaded(inputs), sampler(inputs))
