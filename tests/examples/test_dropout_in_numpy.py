import itertools
import math
from collections.abc import Callable, Iterator

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from examples.dropout_in_numpy import (
    Adam,
    Array,
    Dense,
    Dropout,
    Mask,
    Network,
    SpiralProgram,
    draw_mask,
    dropout,
    exact_count,
    exact_mask,
    inverted,
    inverted_backward,
    norm_penalty,
    sigmoid,
    sigmoid_layer,
    sigmoid_layer_backward,
    softmax_cross_entropy,
    standout_keep_prob,
    standout_keep_prob_backward,
    vanilla,
    vanilla_backward,
    vanilla_inference,
)

NETWORKS = {
    "vanilla": {"scaled": False},
    "inverted": {},
    "concatenated": {"concatenated": True},
}
each_network = pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
SIGMAS = 6.0  # a correct law fails by chance about twice in 10^9


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def numeric_gradient(loss: Callable[[], float], parameter: Array) -> Array:
    """Central differences of `loss`, which reads `parameter`, in every element."""
    gradient = np.zeros_like(parameter)
    for index in np.ndindex(parameter.shape):
        value, width = parameter[index], 1e-5
        parameter[index] = value + width
        above = loss()
        parameter[index] = value - width
        below = loss()
        parameter[index] = value
        gradient[index] = (above - below) / (2 * width)
    return gradient


def assert_gradient(analytic: Array, loss: Callable[[], float], x: Array) -> None:
    numeric = numeric_gradient(loss, x)
    assert np.abs(numeric).max() > 1e-4  # a zero gradient would prove nothing
    assert_allclose(analytic, numeric, rtol=1e-6, atol=1e-9)


def all_masks(units: int, rate: float) -> Iterator[tuple[float, Mask]]:
    """Every mask over `units`, with its probability."""
    for bits in itertools.product([False, True], repeat=units):
        count = sum(bits)
        yield (1 - rate) ** count * rate ** (units - count), np.array(bits)


def network(rate: float, positive: bool = False, **options) -> Network:
    """Inputs of 3, hidden layers of 4 and 3, 2 classes, weights of order 1.

    With `positive` the network is linear on positive inputs: no ReLU ever cuts.
    """
    last = 7 if options.get("concatenated") else 3
    layers = [Dense(*s, rng(1)) for s in [(3, 4), (4, 3), (last, 2)]]
    for seed, layer in enumerate(layers):
        layer.kernel[:] = rng(10 + seed).standard_normal(layer.kernel.shape)
        layer.bias[:] = rng(20 + seed).standard_normal(layer.bias.shape)
        if positive:
            np.abs(layer.kernel, out=layer.kernel)
            np.abs(layer.bias, out=layer.bias)
    return Network(layers, rate, **options)


# Dropping, and its gradient


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.9])
def test_the_mean_in_training_is_the_value_at_inference(rate: float) -> None:
    x = rng().standard_normal((2, 5))
    masks = list(all_masks(5, rate))
    assert math.isclose(sum(p for p, _ in masks), 1)
    assert_allclose(sum(p * inverted(x, m, rate) for p, m in masks), x)
    assert_allclose(
        sum(p * vanilla(x, m) for p, m in masks), vanilla_inference(x, rate)
    )
    second_moment = sum(p * inverted(x, m, rate) ** 2 for p, m in masks)
    assert_allclose(second_moment, x**2 / (1 - rate))


def test_gradients_of_dropping() -> None:
    x, dy = rng().standard_normal((2, 3, 5))
    mask = draw_mask(x.shape, 0.4, rng(1))
    assert_gradient(
        inverted_backward(dy, mask, 0.4), lambda: np.sum(dy * inverted(x, mask, 0.4)), x
    )
    assert_gradient(
        vanilla_backward(dy, mask), lambda: np.sum(dy * vanilla(x, mask)), x
    )


def test_a_dropped_nan_is_zero_and_a_mask_broadcasts() -> None:
    x = np.array([[[np.nan, 1.0], [np.inf, 2.0], [3.0, -np.inf]]])  # (1, 3, 2)
    mask = np.array([[[False], [False], [True]]])
    assert_array_equal(vanilla(x, mask), [[[0, 0], [0, 0], [3, -np.inf]]])
    assert_array_equal(inverted(x, mask, 0.5), [[[0, 0], [0, 0], [6, -np.inf]]])


def test_float32_stays_float32() -> None:
    x = np.ones((2, 3), np.float32)
    assert dropout(x, 0.25, rng()).dtype == np.float32
    assert vanilla(x, np.array([True, False, True])).dtype == np.float32


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.97])
def test_the_dropped_fraction_is_the_rate(rate: float) -> None:
    count = 1_000_000
    dropped = np.sum(~draw_mask((1000, 1000), rate, rng(2)))
    bound = SIGMAS * math.sqrt(count * rate * (1 - rate))
    assert abs(dropped - count * rate) < bound


# Document 000


def test_dropout_drops_or_scales_a_copy() -> None:
    x = np.arange(1.0, 11.0)
    y = dropout(x, 0.4, rng(3))
    mask = draw_mask((10,), 0.4, rng(3))
    assert 0 < mask.sum() < 10
    assert_array_equal(y[~mask], 0)
    assert_allclose(y[mask], x[mask] * 5 / 3)
    assert_array_equal(x, np.arange(1.0, 11.0))
    assert_array_equal(dropout(x, 0.0, rng()), x)


@pytest.mark.parametrize("level", [-0.1, 1.0, 1.5, math.inf, math.nan])
def test_an_error_names_a_rate_outside_its_interval(level: float) -> None:
    for call in (
        lambda: dropout(np.ones(3), level, rng()),
        lambda: Dropout(level, rng()),
        lambda: Network([], level),
        lambda: exact_count(4, level),
    ):
        with pytest.raises(ValueError, match=rf"in \[0, 1\), not {level}"):
            call()


# Document 001


def test_the_layer_uses_one_mask_forward_and_backward() -> None:
    x, dy = rng().standard_normal((2, 3, 5))
    layer = Dropout(0.4, rng(4))

    def loss() -> float:
        layer.rng = rng(4)
        return np.sum(dy * layer.forward(x))

    loss()
    assert_gradient(layer.backward(dy), loss, x)
    first = layer.mask
    layer.forward(x)
    assert (layer.mask != first).any()


def test_gradients_of_a_dense_layer_and_its_penalty() -> None:
    x, dy = rng().standard_normal((4, 3)), rng(1).standard_normal((4, 2))
    layer = Dense(3, 2, rng(2), l2=0.3)
    layer.bias[:] = [0.5, -2.0]

    def loss() -> float:
        return np.sum(dy * layer.forward(x)) + layer.penalty()

    loss()
    dx = layer.backward(dy)
    assert_gradient(dx, loss, x)
    for gradient, parameter in zip(layer.gradients, layer.parameters, strict=True):
        assert_gradient(gradient, loss, parameter)


def test_softmax_cross_entropy() -> None:
    scores, targets = rng().standard_normal((4, 3)), np.array([0, 2, 1, 2])
    loss, gradient = softmax_cross_entropy(scores, targets)
    odds = np.exp(scores)
    chosen = odds[np.arange(4), targets] / odds.sum(axis=1)
    assert math.isclose(loss, -np.log(chosen).mean())
    assert_gradient(gradient, lambda: softmax_cross_entropy(scores, targets)[0], scores)
    far, _ = softmax_cross_entropy(np.array([[1000.0, 0.0, -1000.0]]), np.array([1]))
    assert far == 1000


def test_adam_matches_its_closed_form() -> None:
    gradients = rng().standard_normal((6, 3))
    parameter = np.zeros(3)
    adam = Adam([parameter], 0.05, decay=0.2)
    expected = np.zeros(3)
    for t in range(6):
        adam.update([gradients[t]])
        past = gradients[: t + 1]
        ages = np.arange(t, -1, -1)[:, None]
        mean = (0.9**ages * past).sum(0) / (0.9**ages).sum()
        square = (0.999**ages * past**2).sum(0) / (0.999**ages).sum()
        expected -= 0.05 / (1 + 0.2 * t) * mean / (np.sqrt(square) + 1e-7)
        assert_allclose(parameter, expected)


def points(count: int) -> tuple[Array, np.ndarray]:
    return rng(5).uniform(-1, 1, (count, 2)), rng(6).integers(0, 3, count)


def test_the_gradients_of_the_spiral_program() -> None:
    x, y = points(7)
    program = SpiralProgram(rng(7), hidden=5, rate=0.3, l2=0.05)
    for parameter in program.optimizer.parameters:
        parameter[:] = rng(parameter.size).standard_normal(parameter.shape)
    masks = program.draw_masks(7, rng(8))
    assert not masks[0].all()

    def loss() -> float:
        data_loss, _ = softmax_cross_entropy(program.predict(x, masks), y)
        return data_loss + program.hidden[0].penalty()

    program.backward(x, y, masks)
    for layer in program.layers:
        for gradient, parameter in zip(layer.gradients, layer.parameters, strict=True):
            assert_gradient(gradient, loss, parameter)


def test_the_spiral_program_reports_the_state_before_its_update() -> None:
    x, y = points(200)
    program = SpiralProgram(rng(7), hidden=16, rate=0.0, l2=0.05)
    scores = program.predict(x)
    expected_penalty = 0.05 * np.sum(program.hidden[0].kernel ** 2)
    data_loss, penalty, accuracy = program.step(x, y)
    assert math.isclose(data_loss, softmax_cross_entropy(scores, y)[0])
    assert math.isclose(penalty, expected_penalty)
    assert accuracy == np.mean(scores.argmax(axis=1) == y)
    assert program.step(x, y)[0] < data_loss


@pytest.fixture
def float64() -> Iterator[None]:
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")  # does not follow floatx once it is set
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


@pytest.mark.usefixtures("float64")
def test_without_dropout_the_spiral_program_matches_keras() -> None:
    x, y = points(60)
    program = SpiralProgram(rng(7), hidden=16, rate=0.0, l2=5e-4, decay=0.01)
    # Keras adds its epsilon before the correction and rounds its betas to float32.
    adam = {"beta_1": 1 - 2**-3, "beta_2": 1 - 2**-10, "epsilon": 1e-30}
    vars(program.optimizer).update(adam)
    l2 = keras.regularizers.L2(5e-4)
    first = keras.layers.Dense(16, "relu", kernel_regularizer=l2, bias_regularizer=l2)
    model = keras.Sequential([keras.Input((2,)), first, keras.layers.Dense(3)])
    model.set_weights(program.optimizer.parameters)
    decayed = keras.optimizers.schedules.InverseTimeDecay(0.05, 1, 0.01)
    model.compile(
        keras.optimizers.Adam(decayed, **adam),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    for _ in range(10):
        model.reset_metrics()
        loss = model.train_on_batch(x, y)
        data_loss, penalty, _ = program.step(x, y)
        assert_allclose(data_loss + penalty, loss, rtol=1e-6)
    for ours, theirs in zip(
        program.optimizer.parameters, model.get_weights(), strict=True
    ):
        # Its learning rate, too, is a float32: ten steps of .05, each rounded.
        assert_allclose(ours, theirs, rtol=0, atol=10 * 0.05 * 2**-24)


# Documents 002 and 004


@each_network
def test_gradients_of_a_network_with_fixed_masks(options: dict) -> None:
    net = network(0.3, **options)
    x, y = rng().standard_normal((6, 3)), np.array([0, 1, 1, 0, 1, 0])
    masks = net.draw_masks(6, rng(1))

    def loss() -> float:
        return softmax_cross_entropy(net.predict(x, masks), y)[0]

    assert math.isclose(net.backward(x, y, masks), loss())
    for layer in net.layers:
        for gradient, parameter in zip(layer.gradients, layer.parameters, strict=True):
            assert_gradient(gradient, loss, parameter)


@each_network
def test_a_train_step_descends_the_gradient(options: dict) -> None:
    net, twin = network(0.3, **options), network(0.3, **options)
    x, y = rng().standard_normal((6, 3)), np.array([0, 1, 1, 0, 1, 0])
    loss = net.train_step(x, y, 0.1, rng(9))
    assert loss == twin.backward(x, y, twin.draw_masks(6, rng(9)))
    for moved, fixed in zip(net.layers, twin.layers, strict=True):
        assert_allclose(moved.kernel, fixed.kernel - 0.1 * fixed.gradients[0])
        assert_allclose(moved.bias, fixed.bias - 0.1 * fixed.gradients[1])
        assert moved.parameters[0] is moved.kernel


@each_network
def test_a_linear_network_at_inference_is_the_mean_of_its_sub_networks(
    options: dict,
) -> None:
    net, x = network(0.2, positive=True, **options), rng().uniform(0, 1, (5, 3))
    mean = np.zeros((5, 2))
    for p, mask in all_masks(4 + 3, 0.2):
        mean += p * net.predict(x, [mask[:4], mask[4:]])
    assert_allclose(mean, net.predict(x), rtol=1e-12)


def test_with_a_relu_that_cuts_the_mean_differs() -> None:
    # relu(h1 - h2), h1 = h2 = 1: one of four sub-networks gives 1, the others 0.
    layers = [Dense(1, 2, rng()), Dense(2, 1, rng()), Dense(1, 1, rng())]
    layers[0].kernel[:] = 1
    layers[1].kernel[:] = [[1], [-1]]
    layers[2].kernel[:] = 1
    net = Network(layers, 0.5, scaled=False)
    x, second = np.ones((1, 1)), np.array([True])
    mean = sum(p * net.predict(x, [mask, second]) for p, mask in all_masks(2, 0.5))
    assert_allclose(mean, 0.25)
    assert_allclose(net.predict(x), 0)


def test_inverted_is_vanilla_with_its_next_kernels_divided() -> None:
    inverted_net, vanilla_net = network(0.3), network(0.3, scaled=False)
    vanilla_net.hidden[1].kernel /= 0.7
    vanilla_net.last.kernel /= 0.7
    x, masks = rng().standard_normal((5, 3)), inverted_net.draw_masks(5, rng(1))
    assert_allclose(inverted_net.predict(x, masks), vanilla_net.predict(x, masks))
    assert_allclose(inverted_net.predict(x), vanilla_net.predict(x))


def test_the_last_layer_reads_every_hidden_output_once() -> None:
    net = network(0.3, concatenated=True)
    x = rng().standard_normal((5, 3))
    first = np.maximum(0, x @ net.hidden[0].kernel + net.hidden[0].bias)
    second = np.maximum(0, first @ net.hidden[1].kernel + net.hidden[1].bias)
    kernel, bias = net.last.parameters
    expected = first @ kernel[:4] + second @ kernel[4:] + bias
    assert_allclose(net.predict(x), expected)


# Document 003


@pytest.mark.parametrize(
    ("units", "rate", "count"),
    [
        (10, 0.5, 5),
        (5, 0.5, 3),  # a half is rounded up
        (5, 0.3, 2),
        (5, 0.2, 1),
        (10, 0.04, 0),
        (3, 0.99, 2),  # never all of them
        (1, 0.9, 0),
        (7, 0.0, 0),
    ],
)
def test_exact_count_and_its_mask(units: int, rate: float, count: int) -> None:
    assert exact_count(units, rate) == count
    for seed in range(20):
        assert np.sum(~exact_mask(units, rate, rng(seed))) == count


def test_all_masks_of_a_count_are_equally_likely() -> None:
    draws, generator = 10_000, rng(3)
    masks = np.array([exact_mask(5, 0.4, generator) for _ in range(draws)])
    sets, counts = np.unique(masks, axis=0, return_counts=True)
    assert len(sets) == math.comb(5, 2)
    bound = SIGMAS * math.sqrt(draws * 0.1 * 0.9)
    assert np.abs(counts - draws / 10).max() < bound


def test_sigmoid() -> None:
    z = np.array([-1000.0, -math.log(3), 0.0, math.log(3), 1000.0])
    assert_allclose(sigmoid(z), [0, 0.25, 0.5, 0.75, 1], atol=1e-300)


def test_the_masked_sigmoid_layer() -> None:
    x, kernel = rng().standard_normal((4, 3)), rng(1).standard_normal((3, 5))
    bias, dy = rng(2).standard_normal(5), rng(3).standard_normal((4, 5))
    mask = np.array([True, False, True, True, False])
    before = kernel.copy()
    y = sigmoid_layer(x, kernel, bias, mask)
    assert_array_equal(kernel, before)
    assert_allclose(y[:, mask], 1 / (1 + np.exp(-(x @ kernel + bias)[:, mask])))
    assert_allclose(y[:, ~mask], np.tile(1 / (1 + np.exp(-bias[~mask])), (4, 1)))

    def loss() -> float:
        return np.sum(dy * sigmoid_layer(x, kernel, bias, mask))

    gradients = sigmoid_layer_backward(dy, y, x, kernel, mask)
    for gradient, parameter in zip(gradients, (x, kernel, bias), strict=True):
        assert_gradient(gradient, loss, parameter)


def test_norm_penalty() -> None:
    parameters = [np.array([[3.0, 0.0], [0.0, -4.0]]), np.zeros(2), np.array([-2.0])]
    penalty, gradients = norm_penalty(parameters)
    assert penalty == (7 + 5) + 0 + (2 + 2)
    assert_allclose(gradients[0], [[1.6, 0], [0, -1.8]])
    assert_array_equal(gradients[1], 0)
    assert_array_equal(gradients[2], -2)


@pytest.mark.parametrize(("l1", "l2"), [(1.0, 0.0), (0.0, 1.0), (0.3, 0.7)])
def test_gradient_of_the_norm_penalty(l1: float, l2: float) -> None:
    parameters = [rng().standard_normal((3, 2)), rng(1).standard_normal(2)]
    _, gradients = norm_penalty(parameters, l1, l2)
    for gradient, parameter in zip(gradients, parameters, strict=True):
        assert_gradient(
            gradient, lambda: norm_penalty(parameters, l1, l2)[0], parameter
        )


# Document 004's mask


def test_standout_keep_prob_and_its_gradient() -> None:
    x, kernel = rng().standard_normal((4, 3)), rng(1).standard_normal((3, 2))
    dp = rng(2).standard_normal((4, 2))
    keep_prob = standout_keep_prob(x, kernel, 0.7, -0.4)
    assert_allclose(np.log(keep_prob / (1 - keep_prob)), 0.7 * x @ kernel - 0.4)

    def loss() -> float:
        return np.sum(dp * standout_keep_prob(x, kernel, 0.7, -0.4))

    gradients = standout_keep_prob_backward(dp, keep_prob, x, kernel, 0.7)
    for gradient, parameter in zip(gradients, (x, kernel), strict=True):
        assert_gradient(gradient, loss, parameter)


def test_draw_mask_takes_a_rate_for_each_unit() -> None:
    keep_prob, draws = np.array([[0.05, 0.5], [0.9, 0.3]]), 100_000
    counts = draw_mask((draws, 2, 2), 1 - keep_prob, rng(3)).sum(axis=0)
    bound = SIGMAS * np.sqrt(draws * keep_prob * (1 - keep_prob))
    assert (np.abs(counts - draws * keep_prob) < bound).all()


def test_nothing_draws_from_the_global_generator() -> None:
    before = np.random.get_state(legacy=False)
    x, y = points(10)
    SpiralProgram(rng(), hidden=4).step(x, y)
    exact_mask(5, 0.5, rng())
    network(0.5).train_step(np.ones((2, 3)), y[:2] % 2, 0.1, rng())
    after = np.random.get_state(legacy=False)
    assert_array_equal(after["state"]["key"], before["state"]["key"])
    assert after["state"]["pos"] == before["state"]["pos"]
