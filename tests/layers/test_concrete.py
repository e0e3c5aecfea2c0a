"""The laws of ConcreteDropout."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from family import DEVIATIONS

from examples import dropout_in_numpy as reference
from kdrop import ConcreteDropout

# Midpoints of (0, 1): a mean over them is the expectation over a uniform number.
UNIFORM = (np.arange(10**6) + 0.5) / 10**6


def logit(p):
    return np.log(p / (1 - p))


def concrete_factor(rate, u, temperature):
    """The factor of an input by section 3 of the paper."""
    z = reference.sigmoid((logit(rate) + logit(u)) / temperature)
    return (1 - z) / (1 - rate)


def concrete(units, rate=0.1, **settings):
    """A concrete layer of some rate around the identity."""
    dense = keras.layers.Dense(units, use_bias=False, kernel_initializer="identity")
    settings = {"weight_decay": 0.0, "entropy_weight": 0.0, "seed": 1, **settings}
    layer = ConcreteDropout(dense, name="drop", **settings)
    layer.build((None, units))
    layer.logit.assign(logit(rate))
    return layer


@pytest.mark.parametrize(("rate", "temperature"), [(0.05, 0.1), (0.8, 2 / 3)])
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
    sampled = np.searchsorted(np.sort(factors), grid) / factors.size
    exact = np.searchsorted(np.sort(expected), grid) / expected.size
    assert np.abs(sampled - exact).max() < 2.6 / np.sqrt(factors.size)


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
    if not last:  # not all processors have such convolutions: compare their inputs
        layer.layer.call = lambda inputs: inputs
        layer.layer.compute_output_shape = lambda shape: shape
    factors = layer(tf.ones(shape), training=True).numpy()
    per_example = factors.reshape(64, -1)
    np.testing.assert_allclose(
        per_example, per_example[:, :1].repeat(per_example.shape[1], axis=1), rtol=1e-6
    )
    assert len(np.unique(per_example[:, 0])) > 32


def test_the_gradient_of_the_rate_is_that_of_the_sampled_noise():
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


@pytest.mark.slow
def test_concrete_learns_the_rate_of_least_loss():
    """For a fixed kernel the expected loss is known for each rate."""
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


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.layers.Dense(3),
        lambda: keras.layers.Conv1D(3, 3, strides=2),
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


def test_a_mask_of_inputs_does_not_pass_a_convolution():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, 9, 4)).astype("float32")
    inputs[:, 5:] = 0
    concrete = ConcreteDropout(keras.layers.Conv1D(3, 3, strides=2), 0, 0)
    layers = [keras.Input((9, 4)), keras.layers.Masking(), concrete]
    with pytest.warns(UserWarning, match="does not support masking"):
        model = keras.Sequential([*layers, keras.layers.GlobalAveragePooling1D()])
        outputs = model(inputs)
    expected = keras.ops.mean(concrete.layer(inputs), axis=1)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


QUANTIZED = {
    # The mode, and half a quantization step as a fraction of the greatest weight
    "int8": ("int8", 1 / 254),
    "int4": ("int4", 1 / 14),
    "int4 per channel": (
        keras.quantizers.Int4QuantizationConfig(block_size=-1),
        1 / 14,
    ),
    "float8": ("float8", 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("mode", "step"), QUANTIZED.values(), ids=QUANTIZED)
@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
def test_the_concrete_loss_of_quantized_weights_is_that_of_float_ones(
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
    (loss,) = model.losses
    assert abs(float(loss) - expected) <= bound + 1e-5 * expected
    if not lora:
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(loaded.losses, model.losses)
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 7)), np.ones((4, 5)), verbose=0)
