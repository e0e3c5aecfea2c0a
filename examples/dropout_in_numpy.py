"""Dropout in NumPy, forward and backward: a lesson, and the oracle of the tests.

The algorithms of the five documents that this project grew from, in their order, each
completed where the document stops and put right where it errs. Throughout, rows are
examples, kernels are (inputs, units), a mask is True where a unit stays, and whatever
is random comes from the `numpy.random.Generator` that the caller hands in.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]
Targets = NDArray[np.integer]


# What dropping does to a tensor. For a given mask it is linear, and no unit touches
# another, so the gradient goes back through the very same operation.


def draw_mask(shape: tuple[int, ...], rate: float, rng: np.random.Generator) -> Mask:
    """Decide for each unit by itself: it stays with probability `1 - rate`."""
    return rng.random(shape) >= rate


def inverted(x: Array, mask: Mask, rate: float) -> Array:
    """Divide what stays by its probability, so that nothing is left to do at rest.

    What is dropped is selected away, not multiplied by 0: a dropped NaN is 0.
    `mask` broadcasts against `x`.
    """
    return np.where(mask, x / (1 - rate), 0)


def vanilla(x: Array, mask: Mask) -> Array:
    """Drop, and leave the scaling to `vanilla_rest`."""
    return np.where(mask, x, 0)


def vanilla_rest(x: Array, rate: float) -> Array:
    """What vanilla dropout does at rest: its expectation in training."""
    return x * (1 - rate)


inverted_backward = inverted
vanilla_backward = vanilla


# Document 000: dropout in one function.


def check_level(level: float) -> None:
    if not 0 <= level < 1:  # written so that NaN fails too
        raise ValueError(f"The dropout level must be in [0, 1), not {level!r}.")


def dropout(x: Array, level: float, rng: np.random.Generator) -> Array:
    """Drop the fraction `level` of `x` and scale the rest to keep the expectation.

    The document overwrites its argument; this leaves it as it was.

    Raises:
        ValueError: `level` is not in [0, 1).
    """
    check_level(level)
    return inverted(x, draw_mask(x.shape, level, rng), level)


# Document 001: dropout as a layer, in a program that learns a spiral.


class Dropout:
    """The layer: `forward` draws a mask and keeps it for `backward`."""

    def __init__(self, rate: float, rng: np.random.Generator) -> None:
        check_level(rate)
        self.rate = rate
        self.rng = rng

    def forward(self, x: Array) -> Array:
        self.mask = draw_mask(x.shape, self.rate, self.rng)
        return inverted(x, self.mask, self.rate)

    def backward(self, dy: Array) -> Array:
        return inverted_backward(dy, self.mask, self.rate)


class Dense:
    """`x @ kernel + bias`, with `l2` times the squares of both as a penalty.

    `backward` returns the gradient of the inputs, and keeps those of the parameters,
    penalty included.
    """

    def __init__(
        self, inputs: int, units: int, rng: np.random.Generator, l2: float = 0.0
    ) -> None:
        self.kernel = 0.01 * rng.standard_normal((inputs, units))
        self.bias = np.zeros(units)
        self.parameters = [self.kernel, self.bias]
        self.l2 = l2

    def forward(self, x: Array) -> Array:
        self.x = x
        return x @ self.kernel + self.bias

    def backward(self, dy: Array) -> Array:
        d_kernel = self.x.T @ dy + 2 * self.l2 * self.kernel
        d_bias = dy.sum(axis=0) + 2 * self.l2 * self.bias
        self.gradients = [d_kernel, d_bias]
        return dy @ self.kernel.T

    def penalty(self) -> float:
        return self.l2 * float(np.sum(self.kernel**2) + np.sum(self.bias**2))


def softmax_cross_entropy(scores: Array, targets: Targets) -> tuple[float, Array]:
    """Mean loss over the examples, and its gradient with respect to `scores`.

    Args:
        scores: (batch, classes).
        targets: (batch,), the number of each example's class.
    """
    rows = np.arange(len(targets))
    shifted = scores - scores.max(axis=1, keepdims=True)  # or exp would overflow
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    gradient = np.exp(log_softmax)
    gradient[rows, targets] -= 1
    return -float(log_softmax[rows, targets].mean()), gradient / len(targets)


class Adam:
    """Adam with the learning rate `learning_rate / (1 + decay * steps made so far)`.

    Updates `parameters` in place. Reference: Kingma and Ba, 2014, algorithm 1
    """

    beta_1, beta_2, epsilon = 0.9, 0.999, 1e-7

    def __init__(
        self, parameters: Sequence[Array], learning_rate: float, decay: float = 0.0
    ) -> None:
        self.parameters = parameters
        self.learning_rate, self.decay = learning_rate, decay
        self.moments = [(np.zeros_like(p), np.zeros_like(p)) for p in parameters]
        self.steps = 0

    def update(self, gradients: Sequence[Array]) -> None:
        rate = self.learning_rate / (1 + self.decay * self.steps)
        self.steps += 1
        # The moments started at 0; this is how much of their weight is real by now.
        seen_1, seen_2 = 1 - self.beta_1**self.steps, 1 - self.beta_2**self.steps
        updates = zip(self.parameters, gradients, self.moments, strict=True)
        for parameter, gradient, (mean, square) in updates:
            mean += (1 - self.beta_1) * (gradient - mean)
            square += (1 - self.beta_2) * (gradient**2 - square)
            root = np.sqrt(square / seen_2) + self.epsilon
            parameter -= rate * (mean / seen_1) / root


class SpiralProgram:
    """Document 001's whole program: 2-512-3 with dropout, all points in each step.

    There the second dense layer reads the activation, so that dropout touches the
    gradient alone; here it reads the dropout's output.

    Args:
        rng: Draws the first weights and every mask.
        l2: Penalty on the first layer's kernel and bias.
        decay: Of the learning rate, as in `Adam`.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        hidden: int = 512,
        rate: float = 0.1,
        l2: float = 5e-4,
        learning_rate: float = 0.05,
        decay: float = 5e-5,
    ) -> None:
        self.first = Dense(2, hidden, rng, l2)
        self.dropout = Dropout(rate, rng)
        self.second = Dense(hidden, 3, rng)
        parameters = self.first.parameters + self.second.parameters
        self.optimizer = Adam(parameters, learning_rate, decay)

    def forward(self, x: Array) -> Array:
        """Scores (points, 3) in training, by a newly drawn mask."""
        self.hidden = np.maximum(0, self.first.forward(x))
        return self.second.forward(self.dropout.forward(self.hidden))

    def backward(self, d_scores: Array) -> list[Array]:
        """Gradients of both layers' parameters, in the order of the optimizer."""
        d_hidden = self.dropout.backward(self.second.backward(d_scores))
        self.first.backward(d_hidden * (self.hidden > 0))
        return self.first.gradients + self.second.gradients

    def step(self, x: Array, y: Targets) -> tuple[float, float, float]:
        """Train once on all of `x` (points, 2) and `y` (points,).

        Returns:
            Data loss, regularisation loss and accuracy, from before the update.
        """
        scores = self.forward(x)
        data_loss, d_scores = softmax_cross_entropy(scores, y)
        regularisation_loss = self.first.penalty() + self.second.penalty()
        accuracy = float(np.mean(scores.argmax(axis=1) == y))
        self.optimizer.update(self.backward(d_scores))
        return data_loss, regularisation_loss, accuracy

    def predict(self, x: Array) -> Array:
        """Scores (points, 3) at rest, where nothing is dropped."""
        return self.second.forward(np.maximum(0, self.first.forward(x)))


# Document 002: the two ways to keep training and rest alike.


class VanillaNetwork:
    """ReLU layers that drop their outputs, then a linear layer that gives scores.

    The document leaves out the backward pass and the update: here they are, for
    softmax cross-entropy and plain gradient descent.

    Args:
        layers: The hidden layers, two in the document, and the last one, which drops
            nothing.
        keep_prob: Probability in (0, 1] with which a hidden unit stays.
    """

    def __init__(self, layers: Sequence[Dense], keep_prob: float) -> None:
        if not 0 < keep_prob <= 1:
            raise ValueError(f"keep_prob must be in (0, 1], not {keep_prob!r}.")
        *self.hidden, self.last = layers
        self.rate = 1 - keep_prob

    def drop(self, h: Array, mask: Mask) -> Array:
        return vanilla(h, mask)

    def infer(self, h: Array) -> Array:
        return vanilla_rest(h, self.rate)

    def read(self) -> Array:
        """What the last layer reads of the hidden layers' outputs."""
        return self.outputs[-1]

    def read_backward(self, dy: Array) -> list[Array]:
        return [*(np.zeros_like(h) for h in self.outputs[:-1]), dy]

    def predict(self, x: Array, masks: Sequence[Mask] | None = None) -> Array:
        """Scores at rest, or those of the sub-network that `masks` leave."""
        self.outputs: list[Array] = []
        for i, layer in enumerate(self.hidden):
            h = np.maximum(0, layer.forward(x))
            x = self.infer(h) if masks is None else self.drop(h, masks[i])
            self.outputs.append(x)
        return self.last.forward(self.read())

    def backward(self, x: Array, targets: Targets, masks: Sequence[Mask]) -> float:
        """Return the loss of one sub-network; its gradients stay with the layers."""
        loss, d_scores = softmax_cross_entropy(self.predict(x, masks), targets)
        dh = self.read_backward(self.last.backward(d_scores))
        for i in reversed(range(len(dh))):
            # An output that stayed is 0 only where the ReLU was.
            dz = self.drop(dh[i], masks[i]) * (self.outputs[i] > 0)
            dx = self.hidden[i].backward(dz)
            if i > 0:
                dh[i - 1] = dh[i - 1] + dx
        return loss

    def train_step(
        self, x: Array, targets: Targets, learning_rate: float, rng: np.random.Generator
    ) -> float:
        """Draw a mask for each example, move down the gradient, return the loss."""
        shapes = [(len(x), len(layer.bias)) for layer in self.hidden]
        masks = [draw_mask(shape, self.rate, rng) for shape in shapes]
        loss = self.backward(x, targets, masks)
        for layer in (*self.hidden, self.last):
            layer.kernel -= learning_rate * layer.gradients[0]
            layer.bias -= learning_rate * layer.gradients[1]
        return loss


class InvertedNetwork(VanillaNetwork):
    """The same network, scaled in training and not at rest."""

    def drop(self, h: Array, mask: Mask) -> Array:
        return inverted(h, mask, self.rate)

    def infer(self, h: Array) -> Array:
        return h


# Document 003: a mask of an exact count, and the norms of all parameters as a penalty.


def sigmoid(z: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * z))  # 1 / (1 + exp(-z)) would overflow


def exact_count(units: int, rate: float) -> int:
    """How many of `units` are dropped: the rounded share, and never all of them."""
    check_level(rate)
    return min(units - 1, math.floor(rate * units + 0.5))


def exact_mask(units: int, rate: float, rng: np.random.Generator) -> Mask:
    """A mask (units,) that drops exactly `exact_count(units, rate)` of the units.

    The document drops `int(keep * units)`, which exchanges keep and drop unless both
    are a half. To scale what stays, `inverted(x, mask, exact_count / units)`.
    """
    return rng.permutation(units) >= exact_count(units, rate)


def sigmoid_layer(x: Array, kernel: Array, bias: Array, mask: Mask) -> Array:
    """`sigmoid(x @ kernel + bias)` without the kernel's columns of dropped units.

    The document overwrites its kernel, which drops those units for good; this does
    not. As there, nothing is scaled, and a dropped unit says `sigmoid(bias)`, not 0.
    """
    return sigmoid(x @ vanilla(kernel, mask) + bias)


def sigmoid_layer_backward(
    dy: Array, y: Array, x: Array, kernel: Array, mask: Mask
) -> tuple[Array, Array, Array]:
    """Gradients of inputs, kernel and bias; `y` is what `sigmoid_layer` returned."""
    dz = dy * y * (1 - y)
    d_kernel = vanilla_backward(x.T @ dz, mask)
    return dz @ vanilla(kernel, mask).T, d_kernel, dz.sum(axis=0)


def norm_penalty(
    parameters: Iterable[Array], l1: float = 1.0, l2: float = 1.0
) -> tuple[float, list[Array]]:
    """The L1 norm and the unsquared L2 norm of each parameter, biases too.

    Returns:
        `l1` times the sum of the ones plus `l2` times the sum of the others, and the
        gradient for each parameter (0 where the norm has a corner).
    """
    penalty, gradients = 0.0, []
    for parameter in parameters:
        norm = float(np.linalg.norm(parameter))
        penalty += l1 * float(np.abs(parameter).sum()) + l2 * norm
        direction = parameter / norm if norm else np.zeros_like(parameter)
        gradients.append(l1 * np.sign(parameter) + l2 * direction)
    return penalty, gradients


# Document 004: all hidden outputs together, and a mask that the inputs decide.


class ConcatenatedNetwork(InvertedNetwork):
    """Softmax regression on all hidden outputs, dropped and concatenated.

    The last layer has as many inputs as there are hidden units in all. The document's
    ReLU around the concatenation is left out: nothing in there is below 0.
    """

    def read(self) -> Array:
        return np.concatenate(self.outputs, axis=1)

    def read_backward(self, dy: Array) -> list[Array]:
        ends = np.cumsum([h.shape[1] for h in self.outputs])
        return np.split(dy, ends[:-1], axis=1)


def standout_keep_prob(x: Array, kernel: Array, alpha: float, beta: float) -> Array:
    """Probability (batch, units) that each unit stays, decided by the layer's inputs.

    The document multiplies by this sigmoid and leaves it there; in truth a mask is
    drawn from it in training (`standout_mask`), and the product is the layer at rest.
    Reference: Ba and Frey, 2013, Adaptive dropout for training deep neural networks
    """
    return sigmoid(alpha * (x @ kernel) + beta)


def standout_keep_prob_backward(
    dp: Array, keep_prob: Array, x: Array, kernel: Array, alpha: float
) -> tuple[Array, Array]:
    """Gradients of inputs and kernel."""
    dz = alpha * dp * keep_prob * (1 - keep_prob)
    return dz @ kernel.T, x.T @ dz


def standout_mask(keep_prob: Array, rng: np.random.Generator) -> Mask:
    return rng.random(keep_prob.shape) < keep_prob
