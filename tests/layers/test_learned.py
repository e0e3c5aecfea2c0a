"""The laws of the layers that learn their noise."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import kdrop
from examples import dropout_in_numpy as reference
from kdrop import ConcreteDropout, InvertedDropout, StandoutDropout, VariationalDropout
from kdrop.layers import learned
from kdrop.masks import kernels

DEVIATIONS = 5
# Midpoints of (0, 1): a mean over them is the expectation over a uniform number.
UNIFORM = (np.arange(10**6) + 0.5) / 10**6


def logit(p):
    return np.log(p / (1 - p))


def concrete_factor(rate, u, temperature):
    """What multiplies an input: section 3 of the paper."""
    z = reference.sigmoid((logit(rate) + logit(u)) / temperature)
    return (1 - z) / (1 - rate)


def concrete(units, rate=0.1, **settings):
    """A concrete layer around the identity, at a rate."""
    dense = keras.layers.Dense(units, use_bias=False, kernel_initializer="identity")
    settings = {"weight_decay": 0.0, "entropy_weight": 0.0, "seed": 1, **settings}
    layer = ConcreteDropout(dense, name="drop", **settings)
    layer.build((None, units))
    layer.logit.assign(logit(rate))
    return layer


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.8])
@pytest.mark.parametrize("temperature", [0.1, 2 / 3])
def test_the_relaxed_mask_has_the_distribution_of_the_paper(rate, temperature):
    layer = concrete(64, rate, temperature=temperature)
    factors = layer(tf.ones((2048, 64)), training=True).numpy().ravel()
    expected = concrete_factor(rate, UNIFORM, temperature)
    for power in (1, 2):
        moment, fourth = (np.mean(expected ** (power * n)) for n in (1, 2))
        bound = DEVIATIONS * np.sqrt((fourth - moment**2) / factors.size)
        assert abs(np.mean(factors**power) - moment) < bound
    # The greatest distance between the two distribution functions (Kolmogorov).
    grid = np.linspace(0, 1 / (1 - rate), 200)[1:-1]
    found = np.searchsorted(np.sort(factors), grid) / factors.size
    truth = np.searchsorted(np.sort(expected), grid) / expected.size
    assert np.abs(found - truth).max() < 2.6 / np.sqrt(factors.size)


def test_concrete_losses_are_those_of_the_paper():
    rate = 0.3
    dense = ConcreteDropout(keras.layers.Dense(4), 0.01, 0.02)
    dense.build((None, 5))
    dense.logit.assign(logit(rate))
    conv = ConcreteDropout(keras.layers.Conv2D(4, 3, groups=2), 0.01, 0.02)
    conv.build((None, 8, 9, 6))
    conv.logit.assign(logit(rate))
    for layer, inputs in ((dense, 5), (conv, 6)):
        squares = np.sum(layer.layer.kernel.numpy().astype("float64") ** 2)
        entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
        expected = 0.01 * squares / (1 - rate) - 0.02 * inputs * entropy
        np.testing.assert_allclose(layer.losses, [expected], rtol=1e-5)
        assert layer.rate == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_concrete_convolutions_drop_whole_channels(data_format):
    conv = keras.layers.Conv2D(
        3, 1, use_bias=False, data_format=data_format, kernel_initializer="ones"
    )
    layer = ConcreteDropout(conv, 0.0, 0.0, seed=1)
    last = data_format == "channels_last"
    shape = (64, 4, 5, 1) if last else (64, 1, 4, 5)
    layer.build(shape)
    layer.logit.assign(0.0)
    if not last:  # a processor without such convolutions: what the convolution gets
        layer.layer.call = lambda inputs: inputs
        layer.layer.compute_output_shape = lambda shape: shape
    factors = layer(tf.ones(shape), training=True).numpy()
    per_example = factors.reshape(64, -1)
    np.testing.assert_allclose(
        per_example, per_example[:, :1].repeat(per_example.shape[1], axis=1), rtol=1e-6
    )
    assert len(np.unique(per_example[:, 0])) > 32


def test_the_gradient_of_the_rate_is_that_of_the_noise_that_was_drawn():
    inputs = np.random.default_rng(0).normal(size=(16, 8))

    def loss(value):
        layer = concrete(8, temperature=0.5, dtype="float64")
        layer.logit.assign(value)
        with tf.GradientTape() as tape:
            outputs = layer(tf.constant(inputs), training=True)
            total = tf.reduce_sum(outputs**2)
        return float(total), float(tape.gradient(total, layer.logit.value))

    _, gradient = loss(-1.0)
    numeric = (loss(-0.99)[0] - loss(-1.01)[0]) / 0.02
    assert gradient == pytest.approx(numeric, rel=1e-3)


def test_concrete_learns_the_rate_of_least_loss():
    """With the kernel held, the expected loss is known for each rate."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(512, 8)).astype("float32")
    kernel = rng.normal(size=(8, 1)).astype("float32")
    decay, entropy_weight = 0.01, 1.0

    def expected(rate):
        factor = concrete_factor(rate, UNIFORM[::100], 0.1)
        mean, variance = factor.mean(), factor.var()
        squares = np.mean((inputs**2) @ (kernel**2))
        data = (1 - mean) ** 2 * np.mean((inputs @ kernel) ** 2) + variance * squares
        entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
        weights = decay * np.sum(kernel**2) / (1 - rate)
        return data + weights - entropy_weight * 8 * entropy

    rates = np.linspace(0.01, 0.9, 500)
    best = rates[np.argmin([expected(rate) for rate in rates])]
    layer = ConcreteDropout(
        keras.layers.Dense(1, use_bias=False), decay, entropy_weight, seed=1, name="c"
    )
    model = keras.Sequential([keras.Input((8,)), layer])
    layer.layer.kernel.assign(kernel)
    layer.layer.trainable = False
    steps = keras.optimizers.schedules.CosineDecay(0.1, 400)
    model.compile(keras.optimizers.Adam(steps), "mse")
    inputs = np.tile(inputs, (400, 1))  # one epoch, which costs less than many
    model.fit(inputs, inputs @ kernel, batch_size=512, shuffle=False, verbose=0)
    assert 0.1 < best < 0.8
    assert layer.rate == pytest.approx(best, abs=0.02)


def test_concrete_recovers_a_known_noise_level():
    """The synthetic data of the paper's section 4.1: y = 2 x + 8 + N(0, 1)."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    count = 2000
    x = rng.normal(size=(count, 1)).astype("float32")
    y = (2 * x + 8 + rng.normal(size=(count, 1))).astype("float32")
    scales = {"weight_decay": 1e-4 / (2 * count), "entropy_weight": 1 / count}
    inputs = keras.Input((1,))
    hidden = keras.layers.Dense(64, activation="relu")(inputs)
    mean = ConcreteDropout(keras.layers.Dense(1), seed=1, name="mean", **scales)(hidden)
    log_variance = keras.layers.Dense(1)(inputs)
    model = keras.Model(inputs, keras.layers.Concatenate()([mean, log_variance]))

    def negative_log_likelihood(y, outputs):
        mean, log_variance = outputs[:, :1], outputs[:, 1:]
        error = keras.ops.exp(-log_variance) * (y - mean) ** 2
        return keras.ops.mean(error + log_variance, axis=-1) / 2

    steps = keras.optimizers.schedules.CosineDecay(0.03, 1200)
    model.compile(keras.optimizers.Adam(steps), negative_log_likelihood)
    passes = [np.tile(data, (300, 1)) for data in (x, y)]
    model.fit(*passes, batch_size=500, shuffle=False, verbose=0)
    outputs = model.predict(x, verbose=0)
    noise = np.exp(outputs[:, 1] / 2).mean()
    # The data's own estimate of the noise is known to 1 / sqrt(2 N) = .016.
    assert noise == pytest.approx(1.0, abs=DEVIATIONS * 0.016)
    assert 0 < model.get_layer("mean").rate < 0.05  # little is left to doubt


@pytest.mark.parametrize("beta", [-1.0, 0.0, 2.0])
def test_standout_at_alpha_zero_is_inverted_dropout(beta):
    rate = 1 - float(reference.sigmoid(np.float64(beta)))
    inputs = tf.constant(np.random.default_rng(0).normal(size=(64, 256)), "float32")
    inverted = InvertedDropout(rate, seed=3, name="drop")
    standout = StandoutDropout(alpha=0.0, beta=beta, seed=3, name="drop")
    for _ in range(2):
        expected = inverted(inputs, training=True).numpy()
        found = standout(inputs, training=True).numpy()
        np.testing.assert_array_equal(found == 0, expected == 0)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(standout(inputs), inputs)


def test_standout_keeps_by_the_sigmoid_of_its_inputs():
    row = np.random.default_rng(0).normal(size=(1, 6))
    inputs = tf.constant(row.repeat(20000, axis=0), "float32")
    layer = StandoutDropout(alpha=1.5, beta=0.5, seed=3)
    found = layer(inputs, training=True).numpy()
    keep = reference.standout_keep_prob(row, layer.kernel.numpy(), 1.5, 0.5)[0]
    assert np.ptp(keep) > 0.2
    kept = found != 0
    bound = DEVIATIONS * np.sqrt(keep * (1 - keep) * len(found))
    assert (abs(kept.sum(0) - keep * len(found)) < bound).all()
    expected = np.where(kept, inputs / keep, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("logit", [-1e30, -120.0, -88.0, 88.0, 1e30])
def test_standout_is_finite_where_it_is_sure(logit):
    layer = StandoutDropout(seed=3)
    layer.build((None, 1))
    layer.kernel.assign([[1.0]])
    inputs = tf.fill((1000, 1), np.float32(logit))
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
    d_inputs, d_kernel = tape.gradient(outputs, [inputs, layer.kernel.value])
    np.testing.assert_array_equal(outputs, inputs if logit > 0 else tf.zeros((1000, 1)))
    assert np.isfinite(d_inputs).all() and np.isfinite(d_kernel).all()


def test_standout_learns_through_the_expectation_of_its_mask():
    rng = np.random.default_rng(0)
    inputs = tf.constant(rng.normal(size=(16, 6)), "float64")
    upstream = rng.normal(size=(16, 6))
    layer = StandoutDropout(alpha=1.5, beta=0.5, seed=3, dtype="float64")
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
    d_inputs, d_kernel = tape.gradient(
        outputs, [inputs, layer.kernel.value], tf.constant(upstream)
    )
    x, kernel = inputs.numpy(), layer.kernel.numpy()
    keep = reference.standout_keep_prob(x, kernel, 1.5, 0.5)
    mask = outputs.numpy() != 0
    # outputs = x * mask / keep, with the derivative of `keep` as that of `mask`
    d_keep = upstream * x * (1 / keep - mask / keep**2)
    through_keep, expected = reference.standout_keep_prob_backward(
        d_keep, keep, x, kernel, 1.5
    )
    np.testing.assert_allclose(d_kernel, expected, rtol=1e-9, atol=1e-12)
    direct = reference.inverted(upstream, mask, 1 - keep)
    np.testing.assert_allclose(d_inputs, direct + through_keep, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("per", ["layer", "unit", "weight"])
def test_variational_outputs_have_the_mean_and_variance_of_the_weights_noise(per):
    rng = np.random.default_rng(0)
    layer = VariationalDropout(3, per=per, seed=1)
    layer.build((None, 4))
    alpha = rng.uniform(0.1, 1, size=layer.log_alpha.shape)
    layer.log_alpha.assign(np.log(alpha))
    layer.bias.assign(rng.normal(size=3))
    row, kernel = rng.normal(size=(1, 4)), layer.kernel.numpy()
    inputs = tf.constant(row.repeat(40000, axis=0), "float32")
    found = layer(inputs, training=True).numpy().astype("float64")
    mean = row @ kernel + layer.bias.numpy()
    variance = (row**2 @ (alpha * kernel**2))[0]
    bound = DEVIATIONS * np.sqrt(variance / len(found))
    assert (abs(found.mean(0) - mean) < bound).all()
    bound = DEVIATIONS * np.sqrt(2 / len(found))  # of a normal sample's variance
    assert (abs(found.var(0) / variance - 1) < bound).all()
    expected = inputs[:1] @ kernel + layer.bias
    np.testing.assert_allclose(layer(inputs[:1]), expected, rtol=1e-6)


def divergence(alpha):
    """Of N(w, alpha w^2) from p(log |w|) = const, up to a constant, by quadrature.

    It is -log(alpha) / 2 + E log |e| with e of N(1, alpha): the paper's appendix C.
    """
    total = -np.log(alpha) / 2
    for sign in (-1, 1):
        span = 1 + 12 * np.sqrt(alpha)
        e = span * UNIFORM**3  # which takes the pole at 0 away
        density = np.exp(-((sign * e - 1) ** 2) / (2 * alpha))
        density /= np.sqrt(2 * np.pi * alpha)
        total += np.mean(density * np.log(e) * 3 * span * UNIFORM**2)
    return total


@pytest.mark.parametrize("per", ["layer", "unit", "weight"])
def test_variational_divergence_is_the_integral(per):
    layer = VariationalDropout(3, divergence_weight=0.5, per=per)
    layer.build((None, 4))

    def found(alpha):
        layer.log_alpha.assign(np.full(layer.log_alpha.shape, np.log(alpha)))
        return float(layer.losses[0]) / (0.5 * 12)

    # How good the polynomial is, for each weight: within 0.006 from .1 on.
    for alpha, bound in [(0.001, 0.04), (0.1, 0.006), (0.3, 0.006), (0.6, 0.006)]:
        expected = divergence(alpha) - divergence(1.0)
        assert found(alpha) - found(1.0) == pytest.approx(expected, abs=bound)


def test_variational_noise_grows_no_further_than_the_weights_themselves():
    layer = VariationalDropout(1, divergence_weight=1.0, seed=1)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.fit(np.zeros((32, 4)), np.zeros((32, 1)), epochs=10, verbose=0)
    np.testing.assert_array_equal(layer.log_alpha, np.zeros((4, 1)))
    # Inputs of 0 have no noise, and no NaN for a gradient.
    assert np.isfinite(layer.kernel.numpy()).all()
    assert (model(tf.zeros((2, 4)), training=True).numpy() == 0).all()


def test_the_noise_has_no_gradient():
    inputs, draw = tf.ones((3, 4), "float16"), tf.constant([1, 2, 3, 0, 0], "int64")
    for kernel in (learned._UNIT, learned._LOGISTIC, learned._NORMAL):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            noise = kernels.apply(kernel, inputs, draw, np.zeros((), "uint32"))
        d_inputs = tape.gradient(noise, inputs)
        assert noise.dtype == "float32" and d_inputs.dtype == "float16"
        np.testing.assert_array_equal(d_inputs, np.zeros((3, 4)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.layers.Dense(3),
        lambda: keras.layers.Conv1D(3, 3, strides=2),
        lambda: keras.layers.Conv1D(3, 3, padding="same"),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_concrete_passes_a_mask_as_its_layer_does(make, training):
    inputs = tf.constant(np.random.default_rng(0).normal(size=(2, 7, 4)), "float32")
    masks, warnings_of = [], []
    for layer in (make(), ConcreteDropout(make(), 0, 0)):
        for each in (inputs, keras.Input((7, 4))):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                outputs = layer(keras.layers.Masking()(each), training=training)
            masks.append(getattr(outputs, "_keras_mask", None) is not None)
            warnings_of.append([str(w.message).split("(of")[0] for w in caught])
    assert masks[:2] == masks[2:]
    assert [len(w) for w in warnings_of[:2]] == [len(w) for w in warnings_of[2:]]
    assert all("'concrete_dropout" in w for each in warnings_of[2:] for w in each)


def test_behind_a_convolution_the_mask_of_its_inputs_has_no_say():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, 9, 4)).astype("float32")
    inputs[:, 5:] = 0
    concrete = ConcreteDropout(keras.layers.Conv1D(3, 3, strides=2), 0, 0)
    layers = [keras.Input((9, 4)), keras.layers.Masking(), concrete]
    with pytest.warns(UserWarning, match="does not support masking"):
        model = keras.Sequential([*layers, keras.layers.GlobalAveragePooling1D()])
        found = model(inputs)
    expected = keras.ops.mean(concrete.layer(inputs), axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


LORA = {
    "variational": lambda: VariationalDropout(4, 1e-3, seed=1, name="drop"),
    "variational, no bias": lambda: VariationalDropout(
        4, 1e-3, seed=1, name="drop", use_bias=False
    ),
    "concrete": lambda: ConcreteDropout(
        keras.layers.Dense(4), 1e-3, 1e-3, seed=1, name="drop"
    ),
    "dense": lambda: keras.layers.Dense(4, name="drop"),
}


@pytest.mark.parametrize("make", LORA.values(), ids=LORA)
def test_weights_of_lora_are_trained_and_saved(make, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    model = keras.Sequential([keras.Input((6,)), make()])
    layer = getattr(model.layers[0], "layer", model.layers[0])
    layer.enable_lora(2, lora_alpha=3)
    model.compile("adam", "mse")
    kernel = layer._kernel.numpy()
    model.fit(inputs, inputs[:, :4], epochs=2, verbose=0)
    np.testing.assert_array_equal(layer._kernel, kernel)
    assert np.abs(layer.kernel - kernel).max() > 0
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    plain = keras.Sequential([keras.Input((6,)), make()])
    plain.load_weights(tmp_path / "model.weights.h5")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    resumed = getattr(loaded.layers[0], "layer", loaded.layers[0])
    assert resumed.lora_enabled and resumed.lora_rank == 2
    model.load_weights(tmp_path / "model.weights.h5")
    for other in (plain, loaded):
        np.testing.assert_array_equal(other(inputs), model(inputs))
        np.testing.assert_array_equal(other.losses, model.losses)
    if hasattr(layer, "log_alpha"):
        np.testing.assert_array_equal(plain.layers[0].log_alpha, layer.log_alpha)
    loaded.fit(inputs, inputs[:, :4], verbose=0)


QUANTIZED = {
    # Half a step of the greatest weight, for each weight.
    "int8": ("int8", 1 / 254),
    "int4": ("int4", 1 / 14),
    "int4 per channel": (
        keras.quantizers.Int4QuantizationConfig(block_size=-1),
        1 / 14,
    ),
    "float8": ("float8", 0),
}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("mode", "step"), QUANTIZED.values(), ids=QUANTIZED)
@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
def test_concrete_sums_the_weights_that_quantized_ones_stand_for(
    mode, step, lora, tmp_path
):
    if lora and mode == "float8":
        pytest.skip("Keras has no LoRA in float8")
    keras.utils.set_random_seed(0)
    layer = ConcreteDropout(keras.layers.Dense(5), 1.0, 0.0, name="drop")
    model = keras.Sequential([keras.Input((7,)), layer])
    kernel = layer.layer.kernel.numpy()
    error = step * np.abs(kernel).max()
    if lora:
        layer.layer.enable_lora(2, lora_alpha=3)
    model.quantize(**{"mode" if isinstance(mode, str) else "config": mode})
    if lora:
        layer.layer.lora_kernel_b.assign(tf.ones((2, 5)))
        kernel = kernel + 1.5 * layer.layer.lora_kernel_a.numpy() @ np.ones((2, 5))
    expected = np.sum(kernel**2) / 0.9
    # |sum (w + e)^2 - sum w^2| with |e| up to `error`
    bound = (2 * error * np.abs(kernel).sum() + kernel.size * error**2) / 0.9
    (found,) = model.losses
    assert abs(float(found) - expected) <= bound + 1e-5 * expected
    if not lora:
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(loaded.losses, model.losses)
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 7)), np.ones((4, 5)), verbose=0)


def test_quantize_names_the_layers_that_stay_in_float():
    model = network()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.quantize("int8")
    sentences = [str(warning.message) for warning in caught]
    names = [s.split()[1] for s in sentences if s.startswith("Layer")]
    assert names == ["InputLayer", "'two'", "'three'"]
    assert model.layers[0].layer.quantization_mode == "int8"


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8,)),
            ConcreteDropout(keras.layers.Dense(16), 1e-3, 1e-3, seed=1, name="one"),
            StandoutDropout(seed=1, name="two"),
            VariationalDropout(4, 1e-3, activation="tanh", seed=1, name="three"),
        ]
    )


def test_the_same_noise_in_eager_and_xla():
    inputs = tf.constant(np.random.default_rng(0).normal(size=(32, 8)), "float32")
    eager, xla = network(), network()
    compiled = tf.function(lambda x: xla(x, training=True), jit_compile=True)
    for _ in range(2):
        expected = eager(inputs, training=True)
        np.testing.assert_allclose(compiled(inputs), expected, rtol=1e-4, atol=1e-4)


def test_a_run_is_resumed_and_sampled(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 8)), rng.normal(size=(32, 4))
    settings = {"epochs": 2, "shuffle": False, "verbose": 0}
    whole, half = network(), network()
    for model in (whole, half):
        model.compile("adam", "mse", jit_compile=False)
        model.fit(x, y, callbacks=[kdrop.StepClock()], **settings)
    half.save(tmp_path / "half.keras")
    resumed = keras.models.load_model(tmp_path / "half.keras")
    for model in (whole, resumed):
        model.fit(x, y, callbacks=[kdrop.StepClock()], **settings)
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(half.layers, resumed.layers, strict=True):
        one, other = one.get_config(), other.get_config()
        for config in (one, other):
            config.pop("layer", None)  # serialised with or without the shape it has
        assert one == other
    inputs = tf.constant(x, "float32")
    at_inference = resumed.layers[0].layer(inputs)
    at_inference = keras.layers.Dense.call(resumed.layers[2], at_inference)
    np.testing.assert_allclose(resumed(inputs), at_inference, rtol=1e-6)
    sampler = kdrop.Sampler(resumed)
    assert np.abs(sampler(inputs) - sampler(inputs)).max() > 0.1


def test_bad_arguments_are_refused_in_a_sentence():
    dense = keras.layers.Dense(2)
    with pytest.raises(ValueError, match="wraps a Dense, Conv1D.*Flatten"):
        ConcreteDropout(keras.layers.Flatten(), 0.1, 0.1)
    for arguments in [(-1, 0.1), (0.1, float("nan")), ("1", 0.1), (0.1, 0.1, 0)]:
        with pytest.raises(ValueError, match="must be a finite number"):
            ConcreteDropout(dense, *arguments)
    for settings in [{"alpha": float("inf")}, {"beta": None}, {"alpha": True}]:
        with pytest.raises(ValueError, match="must be a finite number"):
            StandoutDropout(**settings)
    with pytest.raises(ValueError, match="known number of units"):
        StandoutDropout()(keras.Input((None,)))
    with pytest.raises(ValueError, match="`divergence_weight` must be .* at least 0"):
        VariationalDropout(2, -1)
    with pytest.raises(ValueError, match='`per` must be .*Received: "example"|example'):
        VariationalDropout(2, per="example")
    for layer in (
        ConcreteDropout(dense, 0, 0),
        StandoutDropout(),
        VariationalDropout(2),
    ):
        with pytest.raises(ValueError, match="floating-point inputs only.*int32"):
            layer(np.ones((2, 2), "int32"))
