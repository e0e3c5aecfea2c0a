"""The contract: what every drop layer of the family promises."""

import itertools
import random
import zlib

import keras
import numpy as np
import pytest
from family import (
    BACKEND,
    DROPPING,
    FAMILY,
    assert_close,
    assert_frequency,
    assert_independent,
    assert_same_weights,
    dropped,
    every_base,
    every_dropping_layer,
    every_layer,
    fit,
    gradient,
    network,
    numpy,
    regression,
    traced,
)
from keras import ops
from keras.src import layers as keras_layers
from keras.src.layers.regularization import (
    alpha_dropout_test,
    dropout_test,
    gaussian_dropout_test,
)

import kdrop
from kdrop.masks import bits

# Promise 1: the exact rate


# Those whose thresholds or constants are made in ways of their own.
WAYS = ("InvertedDropout", "AlphaDropout", "DropBlock2D", "StochasticDepth")


@pytest.mark.parametrize(
    ("name", "dtype", "rate"),
    [
        (name, dtype, rate)
        for name in DROPPING
        for dtype in ("float64", "float32", "bfloat16", "float16")
        for rate in (1e-3, 0.1, 0.5, 0.999)
        if name in WAYS or (dtype, rate) == ("bfloat16", 0.1)
    ],
)
def test_dropped_fraction_is_the_rate_in_every_dtype(name, dtype, rate):
    case = DROPPING[name]
    if BACKEND == "jax" and dtype == "float64":
        pytest.skip("JAX has no float64 unless it is asked for")
    if case.exact:
        pytest.skip("drops a count, by a law of its own")
    layer = case.make(rate, dtype=dtype)
    lowest = numpy(ops.cast(case.lowest(rate), dtype))
    for _ in range(4):
        outputs = case.draws(layer, dtype)
        mask = np.isclose(outputs, lowest, rtol=1e-2, atol=1e-6)
        assert_frequency(mask, rate)
        assert len(np.unique(outputs)) <= 2


@every_layer
def test_rate_zero_changes_nothing(case):
    inputs = keras.random.normal(case.shape, seed=1)
    outputs = case.make(0.0)(inputs, training=True)
    assert_close(numpy(outputs), numpy(inputs))


@every_layer
def test_an_empty_batch_is_one(case):
    layer = case.make(0.5)
    empty = ops.zeros((0, *case.shape[1:]))
    assert layer(case.ones(), training=True).shape == case.shape
    outputs, d_inputs = gradient(layer, empty, empty)
    assert outputs.shape == d_inputs.shape == empty.shape


@every_layer
def test_inputs_without_elements_stay_so(case):
    for axis in range(len(case.shape)):
        shape = (*case.shape[:axis], 0, *case.shape[axis + 1 :])
        layer, empty = case.make(), ops.zeros(shape)
        if hasattr(layer, "block_size") and 0 < axis < len(shape) - 1:
            with pytest.raises(ValueError, match="must not exceed the map's sizes"):
                layer(empty)
            continue
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
    # A gradient keeps the numbers of the draw, and no mask.
    _, pull = jax.vjp(drop, inputs)
    assert all(np.size(value) <= 5 for value in jax.tree_util.tree_leaves(pull))


# Promise 2: one key, one mask

# Of the first and the second draw, so that all backends and platforms draw the same.
PINNED = {
    "InvertedDropout": (371035148, 1425010759),
    "VanillaDropout": (371035148, 1425010759),
    "GaussianDropout": (1341112606, 4119148472),
    "UniformDropout": (1341112606, 4119148472),
    "AlphaDropout": (371035148, 1425010759),
    "ExactDropout": (2570060950, 865793907),
    "SpatialDropout1D": (371035148, 1425010759),
    "SpatialDropout2D": (371035148, 1425010759),
    "SpatialDropout3D": (371035148, 1425010759),
    "DropBlock1D": (2325519537, 894143809),
    "DropBlock2D": (1936390611, 3713477203),
    "DropBlock3D": (3125274604, 2762171539),
    "DropPath": (950084952, 3775384471),
    "StochasticDepth": (1069182125, 3523407757),
}


@every_layer
def test_the_draws_are_those_of_every_backend(case):
    layer = case.make(0.3, seed=7)
    draws = [np.packbits(case.draw(layer) < 1) for _ in range(2)]
    assert tuple(zlib.crc32(d) for d in draws) == PINNED[case.layer.__name__]


@every_layer
@pytest.mark.parametrize("jit_compile", [False, True])
def test_same_draws_in_eager_mode_and_compiled(case, jit_compile):
    settings = {"jit_compile": jit_compile} if BACKEND == "tensorflow" else {}
    eager, compiled = case.make(0.3), case.make(0.3)
    call = traced(compiled, **settings)
    for _ in range(2):
        expected = case.draw(eager)
        outputs = case.seen(call(case.ones()))
        assert_close(outputs, expected)
        np.testing.assert_array_equal(outputs == 0, expected == 0)


def test_the_mask_compares_words_with_the_threshold():
    layer = kdrop.InvertedDropout(0.3, seed=7, name="drop")
    rows = np.stack([np.arange(64), np.zeros(64)], axis=1).astype("uint32")
    for draw in (1, 2, 3):
        numbers = (ops.cast(n, "uint32") for n in (7, zlib.crc32(b"drop"), draw))
        words = bits.words(bits.fold(*numbers), ops.convert_to_tensor(rows), 256)
        expected = ops.convert_to_numpy(words) < round(0.3 * 2**32)
        np.testing.assert_array_equal(dropped(layer), expected)


class Spy(keras.layers.Layer):
    """Adds what it sees to a weight."""

    def build(self, shape):
        self.seen = self.add_weight(shape=shape, initializer="zeros", trainable=False)

    def call(self, inputs):
        self.seen.assign(inputs)
        return inputs


@every_layer
def test_same_draws_in_fit(case):
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
    assert_close(case.seen(spy.seen), case.draw(alone))


@every_layer
def test_no_seed_draws_a_seed(case):
    keras.utils.set_random_seed(5)
    one, other = (case.make(seed=None) for _ in range(2))
    assert one.seed is None
    assert_independent(case.draws(one), case.draws(other))


# Promise 3: independent where it must be


@every_layer
def test_draws_differ_between_calls_names_seeds_and_rows(case):
    layer = case.make(name="one")
    first, second = case.draws(layer), case.draws(layer)
    assert_independent(first, second)
    assert_independent(first, case.draws(case.make(name="two")))
    assert_independent(first, case.draws(case.make(name="one", seed=2)))
    if len(first) > 1:
        assert_independent(first[:-1], first[1:])


@every_layer
def test_a_row_is_the_same_in_a_batch_of_any_size(case):
    large = numpy(case.make()(case.ones(), training=True))
    small = numpy(case.make()(case.ones()[:5], training=True))
    assert_close(large[:5], small)


# Promise 4: resumes


@every_base
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
@pytest.mark.parametrize("form", ["keras", "weights"])
def test_draws_are_saved_and_the_rate_is_not(case, form, tmp_path):
    def model():
        return keras.Sequential([keras.Input(case.shape[1:]), case.make()])

    saved, fresh = model(), model()
    for _ in range(3):
        case.draw(saved.layers[0])
    if form == "keras":
        saved.save(tmp_path / "model.keras")
        fresh = keras.models.load_model(tmp_path / "model.keras")
        fresh.layers[0].rate = 0.25
    else:
        fresh.layers[0].rate = 0.25
        saved.save_weights(tmp_path / "model.weights.h5")
        fresh.load_weights(tmp_path / "model.weights.h5")
    assert fresh.layers[0].rate == 0.25
    saved.layers[0].rate = 0.25
    np.testing.assert_array_equal(
        case.draw(fresh.layers[0]), case.draw(saved.layers[0])
    )


def train(model, epochs, folder=None):
    """`epochs` of `fit`, backed up in a folder; a backup that is there goes on."""
    model.compile("adam", "mse")
    callbacks = [keras.callbacks.BackupAndRestore(folder)] if folder else []
    fit(model, epochs, callbacks=[*callbacks, Killed(at=epochs)])
    return model


class Killed(keras.callbacks.Callback):
    def __init__(self, at):
        super().__init__()
        self.at = at

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.at < 4:
            raise KeyboardInterrupt


@every_base
@pytest.mark.parametrize("seed", [3, None])
def test_a_backup_goes_on_bit_by_bit(layer_class, seed, tmp_path):
    def built():
        return network(layer_class, seed)  # after `set_random_seed`

    whole = train(built(), 4)
    with pytest.raises(KeyboardInterrupt):
        train(built(), 2, tmp_path)
    assert_same_weights(train(built(), 4, tmp_path), whole)


@every_base
def test_a_seed_is_in_the_files_that_restore_a_model(layer_class, tmp_path):
    """With a seed of None, which was drawn: `.keras` goes on, weights alone do not."""
    model = network(layer_class, None)
    drop = model.get_layer("drop_1")
    dropped(drop)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.models.load_model(tmp_path / "model.keras").get_layer("drop_1")
    others = []
    for seed in (1, 2, 3, None, None, None):
        random.seed(None)  # no state that a test has set
        other = network(layer_class, seed, same=False)
        other.load_weights(tmp_path / "model.weights.h5")
        others.append(other.get_layer("drop_1"))
        assert others[-1].draw_count == 1
        assert others[-1].get_config()["seed"] == seed
    expected = dropped(drop)
    np.testing.assert_array_equal(dropped(loaded), expected)
    masks = [expected, *map(dropped, others)]
    for one, other in itertools.combinations(masks, 2):
        assert_independent(one, other)
    again = layer_class(0.5, seed=2, name="drop_1")
    dropped(again)
    np.testing.assert_array_equal(masks[2], dropped(again))


@every_base
def test_the_draw_count_can_be_set(layer_class):
    layer, other = (layer_class(0.5, seed=1, name="drop") for _ in range(2))
    masks = [dropped(layer) for _ in range(3)]
    other.draw_count = 2
    np.testing.assert_array_equal(dropped(other), masks[2])
    assert other.draw_count == 3
    for count in (-1, 2**32, 1.0, "1", True, None):
        with pytest.raises(ValueError, match="draw_count") as refusal:
            layer.draw_count = count
        assert repr(count) in str(refusal.value)


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


@every_base
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


# Promise 6: the rate is alive


@every_layer
def test_rate_changes_a_traced_function(case):
    layer = case.make(0.0)
    call = traced(layer)
    for rate in (0.0, 0.9, 0.1):
        layer.rate = rate
        assert layer.rate == layer.get_config()["rate"] == rate
        same = case.make(rate)
        for _ in range(layer.draw_count):
            case.draw(same)
        outputs = case.seen(call(case.ones()))
        assert_close(outputs, case.draw(same))


@every_base
def test_rate_changes_in_a_running_fit(layer_class):
    class Change(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if BACKEND == "jax":
                model.jax_state_sync()
            drop.rate = 0.0 if epoch < 2 else 0.999

    drop = layer_class(0.5, seed=1, name="drop")
    scale = keras.layers.Dense(100, kernel_initializer="identity", use_bias=False)
    model = keras.Sequential([keras.Input((100,)), drop, scale])
    optimizer = keras.optimizers.SGD(0.0)
    model.compile(optimizer, lambda y, x: 0 * x + ops.cast(x == 0, "float32"))
    inputs = np.ones((10, 100), "float32")
    told = model.fit(inputs, inputs, epochs=4, verbose=0, callbacks=[Change()])
    losses = told.history["loss"]
    assert losses[:2] == [0.0, 0.0]
    assert losses[2:] == pytest.approx([0.999] * 2, abs=0.01)


@every_base
def test_a_rate_is_not_set_inside_a_traced_step(layer_class):
    class Setting(keras.Sequential):
        def call(self, inputs, training=False):
            if training:
                self.layers[0].rate = 0.2
            return super().call(inputs, training=training)

    drop = layer_class(0.5)
    model = Setting([keras.Input((8,)), drop, keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=False)
    with pytest.raises(RuntimeError, match="cannot be set inside.*RateSchedule"):
        fit(model)
    assert drop.rate == 0.5
    if BACKEND == "tensorflow":  # on JAX, `fit` takes the state out of the model
        drop.rate = 0.3
        assert drop.rate == 0.3


@every_layer
@pytest.mark.parametrize(
    "rate", [-0.1, 1.0, 1.5, float("nan"), float("inf"), True, "0.5", None, [0.5]]
)
def test_bad_rates_are_refused_by_name(case, rate):
    with pytest.raises(ValueError, match="rate") as refusal:
        case.make(rate)
    assert repr(rate) in str(refusal.value)
    layer = case.make(0.5)
    with pytest.raises(ValueError, match="rate"):
        layer.rate = rate
    assert layer.rate == 0.5


@every_layer
@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "1", True])
def test_bad_seeds_are_refused_by_name(case, seed):
    with pytest.raises(ValueError, match="seed") as refusal:
        case.make(seed=seed)
    assert repr(seed) in str(refusal.value)


# Promise 7: select, not multiply


@every_dropping_layer
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_dropped_nan_or_inf_is_its_constant(case, value):
    lowest = case.lowest(0.5)
    mask = np.isclose(numpy(case.make()(case.ones(), training=True)), lowest)
    inputs = ops.full(case.shape, np.float32(value))
    outputs, pulled = gradient(case.make(), inputs, inputs)
    for result, constant in ((outputs, lowest), (pulled, 0)):
        result = numpy(result)
        assert_close(result[mask], constant)
        np.testing.assert_array_equal(result[~mask], value)


# Gradients


@every_layer
def test_the_gradient_is_that_of_the_forward_pass(case):
    """By differences along a direction: the layers are affine in their inputs."""
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


# Promises 8 and 9: quiet at inference, sampling on request


@every_layer
def test_at_rest_nothing_is_drawn(case):
    layer = case.make(0.25)
    inputs = case.ones()
    if case.scales_at_rest:
        np.testing.assert_allclose(numpy(layer(inputs)), 0.75)
    else:
        assert layer(inputs) is inputs
    assert layer.draw_count == 0


@every_layer
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


def test_a_sampler_of_nothing_is_refused():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="no drop layer"):
        kdrop.Sampler(model)(np.ones((1, 8)))


# Promise 10: a good Keras citizen


@every_layer
def test_variables_have_paths_of_their_own(case):
    drops = [case.make(name="drop_1"), case.make(name="drop_2")]
    model = keras.Sequential([keras.Input(case.shape[1:]), *drops])
    assert len({v.path for v in model.non_trainable_variables}) == 2


KERAS_CASES = [
    (layer, "Dropout", dropout_test.DropoutTest)
    for layer in ("InvertedDropout", "VanillaDropout")
] + [
    ("GaussianDropout",) * 2 + (gaussian_dropout_test.GaussianDropoutTest,),
    ("AlphaDropout",) * 2 + (alpha_dropout_test.AlphaDropoutTest,),
]


@pytest.mark.parametrize(
    ("ours", "theirs", "tests", "name"),
    [
        (ours, theirs, tests, name)
        for ours, theirs, tests in KERAS_CASES
        for name in dir(tests)
        if name.startswith(
            (
                "test_dropout",
                "test_validate",
                "test_gauss",
                "test_alpha",
                "test_spatial",
            )
        )
    ],
)
@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_keras_own_tests_pass(ours, theirs, tests, name, monkeypatch):
    if (ours, name) == ("VanillaDropout", "test_dropout_rescaling"):
        pytest.skip("the law of inverted dropout")
    monkeypatch.setattr(keras_layers, theirs, FAMILY[ours].layer)
    result = tests(name).run()
    assert result.wasSuccessful(), (result.failures + result.errors)[0][1]


@every_layer
def test_config_round_trip_and_clone(case):
    layer = case.make(0.3, seed=4, dtype="float16", trainable=False)
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert type(copy) is case.layer
    assert copy.get_config() == layer.get_config()
    assert copy.get_config()["trainable"] is False
    assert layer.get_config()["rate"] == 0.3
    model = keras.Sequential([keras.Input(case.shape[1:]), case.make()])
    clone = keras.models.clone_model(model)
    np.testing.assert_array_equal(
        case.draw(model.layers[0]), case.draw(clone.layers[0])
    )


@every_layer
def test_no_weights(case):
    assert case.make().weights == []


@every_layer
def test_masks_of_keras_pass_through(case):
    if len(case.shape) != 3:
        pytest.skip("Masking makes masks of (batch, steps, features)")
    masked = keras.layers.Masking()(keras.Input(case.shape[1:]))
    assert case.make()(masked)._keras_mask is masked._keras_mask


@every_layer
def test_mixed_precision_computes_in_half(case):
    layer = case.make(dtype="mixed_bfloat16")
    outputs = layer(case.ones(), training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    assert layer(keras.Input(case.shape[1:])).dtype == "bfloat16"


@every_layer
def test_integer_inputs_are_refused(case):
    ints = keras.Input(case.shape[1:], dtype="int32")
    for inputs in (ops.ones(case.shape, "int32"), ints):
        with pytest.raises(ValueError, match="floating-point inputs only.*int32"):
            case.make()(inputs)


@every_layer
@pytest.mark.parametrize("dtype", ["bool", "complex64", "uint8"])
def test_inputs_of_no_float_dtype_are_refused(case, dtype):
    for training in (False, True):
        with pytest.raises(ValueError, match=f"floating-point inputs only.*{dtype}"):
            case.make()(np.ones(case.shape, dtype), training=training)


@every_layer
@pytest.mark.parametrize("training", [False, True])
def test_inputs_that_are_not_one_tensor_are_refused(case, training):
    ones, symbolic = case.ones(), keras.Input(case.shape[1:])
    for inputs, received in [
        (None, "None"),
        ([ones, ones], "a list"),
        ((symbolic, symbolic), "a tuple"),
        ({"inputs": ones}, "a dict"),
    ]:
        with pytest.raises(ValueError, match=f"'drop' takes one tensor.*{received}"):
            case.make()(inputs, training=training)


def as_sparse(inputs):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.sparse.from_dense(inputs)
    from jax.experimental import sparse

    return sparse.BCOO.fromdense(inputs)


@every_layer
def test_sparse_inputs_become_dense_in_training_alone(case):
    inputs = keras.random.normal(case.shape, seed=1)
    inputs = ops.where(inputs > 1, inputs, 0)
    layer, sparse = case.make(), as_sparse(inputs)
    outputs = layer(sparse)
    if case.scales_at_rest:
        dense = ops.convert_to_tensor(outputs, sparse=False)
        assert_close(numpy(dense), 0.5 * numpy(inputs))
    else:
        assert outputs is sparse
    outputs, expected = layer(sparse, training=True), case.make()(inputs, training=True)
    np.testing.assert_array_equal(numpy(outputs), numpy(expected))


@every_layer
@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
def test_quantize_warns_of_no_layer_without_weights(case):
    keras.Sequential([keras.Input(case.shape[1:]), case.make()]).quantize("int8")


@every_base
@pytest.mark.parametrize("noise_shape", [(4, 1, 1), (3, 8), (4, 4)])
def test_noise_shapes_that_do_not_broadcast_are_refused(layer_class, noise_shape):
    layer = layer_class(0.5, noise_shape=noise_shape)
    for inputs in (np.ones((4, 8), "float32"), keras.Input(batch_shape=(4, 8))):
        with pytest.raises(ValueError, match="must broadcast") as refusal:
            layer(inputs)
        assert str(noise_shape) in str(refusal.value)


@every_base
@pytest.mark.parametrize(
    ("noise_shape", "shared"),
    [((None, 1, None), 1), ((1, None, 1), (0, 2)), ((8,), (0, 1))],
)
def test_a_noise_shape_shares_decisions(layer_class, noise_shape, shared):
    layer = layer_class(0.5, noise_shape=noise_shape, seed=1)
    mask = dropped(layer, (64, 32, 8))
    assert (mask.all(axis=shared) == mask.any(axis=shared)).all()
    assert_frequency(mask.all(axis=shared), 0.5)


@every_base
def test_inputs_of_rank_one_and_none(layer_class):
    layer = layer_class(0.5, seed=1)
    assert_frequency(dropped(layer, (1000,)), 0.5)
    assert dropped(layer, ()).shape == ()
