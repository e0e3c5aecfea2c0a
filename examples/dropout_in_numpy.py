"""Dropout in NumPy, forward and backward: to read, and to test the layers against.

These are the algorithms of the five documents that this project grew from, in their
order. Each is completed where the document stops, and corrected where it errs.

Rows are examples, kernels are (inputs, units), and a mask is True where a unit is kept.
All randomness comes from the generator that the caller passes.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]
Targets = NDArray[np.integer]
Rng = np.random.Generator


# With a fixed mask dropping is linear in each unit: its gradient is the same operation.


def draw_mask(shape: tuple[int, ...], rate: float | Array, rng: Rng) -> Mask:
    """Keep each unit with probability `1 - rate`, independently."""
    return rng.random(shape) >= rate


def inverted(x: Array, mask: Mask, rate: float) -> Array:
    """Divide the kept units by their probability, so that inference needs no scaling.

    `np.where` selects instead of multiplying by 0: a dropped NaN is 0.
    """
    return np.where(mask, x / (1 - rate), 0)


def vanilla(x: Array, mask: Mask) -> Array:
    """Drop without scaling; `vanilla_inference` scales."""
    return np.where(mask, x, 0)


def vanilla_inference(x: Array, rate: float) -> Array:
    """Scale to the mean of vanilla dropout in training."""
    return x * (1 - rate)


inverted_backward = inverted
vanilla_backward = vanilla


# Dropout as one function.


def check_rate(rate: float) -> None:
    if not 0 <= rate < 1:  # in this form NaN fails too
        raise ValueError(f"The dropout rate must be in [0, 1), not {rate!r}.")


def dropout(x: Array, level: float, rng: Rng) -> Array:
    """Drop the fraction `level` of a copy of `x`; the document overwrites `x`."""
    check_rate(level)
    return inverted(x, draw_mask(x.shape, level, rng), level)


# Dropout as a layer, and the parts of a program that learns a spiral.


class Dropout:
    """A layer that saves the mask of `forward` for `backward`."""

    def __init__(self, rate: float, rng: Rng) -> None:
        check_rate(rate)
        self.rate, self.rng = rate, rng

    def forward(self, x: Array) -> Array:
        self.mask = draw_mask(x.shape, self.rate, self.rng)
        return inverted(x, self.mask, self.rate)

    def backward(self, dy: Array) -> Array:
        return inverted_backward(dy, self.mask, self.rate)


class Dense:
    """`x @ kernel + bias`, with `l2` times the squares of both as a penalty."""

    def __init__(self, inputs: int, units: int, rng: Rng, l2: float = 0.0) -> None:
        self.kernel = 0.01 * rng.standard_normal((inputs, units))
        self.bias = np.zeros(units)
        self.parameters, self.l2 = [self.kernel, self.bias], l2

    def forward(self, x: Array) -> Array:
        self.x = x
        return x @ self.kernel + self.bias

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the inputs, and save those of the parameters."""
        d_kernel = self.x.T @ dy + 2 * self.l2 * self.kernel
        d_bias = dy.sum(axis=0) + 2 * self.l2 * self.bias
        self.gradients = [d_kernel, d_bias]
        return dy @ self.kernel.T

    def penalty(self) -> float:
        return self.l2 * float(np.sum(self.kernel**2) + np.sum(self.bias**2))


def softmax_cross_entropy(scores: Array, targets: Targets) -> tuple[float, Array]:
    """Mean loss, and its gradient with respect to `scores` (batch, classes)."""
    rows = np.arange(len(targets))
    shifted = scores - scores.max(axis=1, keepdims=True)  # or exp would overflow
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    gradient = np.exp(log_softmax)
    gradient[rows, targets] -= 1
    return -float(log_softmax[rows, targets].mean()), gradient / len(targets)


class Adam:
    """Algorithm 1 of Kingma and Ba, 2014, with `rate / (1 + decay * steps made)`."""

    beta_1, beta_2, epsilon = 0.9, 0.999, 1e-7

    def __init__(self, parameters: list[Array], rate: float, decay: float) -> None:
        self.parameters, self.steps = parameters, 0
        self.learning_rate, self.decay = rate, decay
        self.moments = [(np.zeros_like(p), np.zeros_like(p)) for p in parameters]

    def update(self, gradients: Sequence[Array]) -> None:
        learning_rate = self.learning_rate / (1 + self.decay * self.steps)
        self.steps += 1
        # The moments start at 0. These factors correct the bias of that start.
        bias_1, bias_2 = 1 - self.beta_1**self.steps, 1 - self.beta_2**self.steps
        updates = zip(self.parameters, gradients, self.moments, strict=True)
        for parameter, gradient, (mean, square) in updates:
            mean += (1 - self.beta_1) * (gradient - mean)
            square += (1 - self.beta_2) * (gradient**2 - square)
            root = np.sqrt(square / bias_2) + self.epsilon
            parameter -= learning_rate * (mean / bias_1) / root


# The two ways to scale, and all hidden outputs side by side.


class Network:
    """ReLU layers with dropout on their outputs, then a linear layer that gives scores.

    It also has the backward pass and the update, which introductions leave out.
    `scaled` chooses inverted or vanilla dropout. With `concatenated` the last layer
    reads all hidden outputs.
    """

    def __init__(
        self, layers: Sequence[Dense], rate: float, scaled=True, concatenated=False
    ) -> None:
        check_rate(rate)
        *self.hidden, self.last = self.layers = layers
        self.rate, self.scaled, self.concatenated = rate, scaled, concatenated

    def draw_masks(self, examples: int, rng: Rng) -> list[Mask]:
        """A mask (examples, units) for each hidden layer."""
        shapes = [(examples, len(layer.bias)) for layer in self.hidden]
        return [draw_mask(shape, self.rate, rng) for shape in shapes]

    def drop(self, h: Array, mask: Mask) -> Array:
        return inverted(h, mask, self.rate) if self.scaled else vanilla(h, mask)

    def predict(self, x: Array, masks: Sequence[Mask] | None = None) -> Array:
        """Scores at inference, or those of the sub-network that `masks` keep."""
        self.outputs: list[Array] = []
        for i, layer in enumerate(self.hidden):
            x = np.maximum(0, layer.forward(x))
            if masks is not None:
                x = self.drop(x, masks[i])
            elif not self.scaled:
                x = vanilla_inference(x, self.rate)
            self.outputs.append(x)
        joined = np.concatenate(self.outputs, axis=1) if self.concatenated else x
        self.scores = self.last.forward(joined)
        return self.scores

    def backward(self, x: Array, y: Targets, masks: Sequence[Mask]) -> float:
        """Loss of one sub-network; each layer saves its gradients."""
        loss, d_scores = softmax_cross_entropy(self.predict(x, masks), y)
        d_last = self.last.backward(d_scores)
        d_hidden = [np.zeros_like(h) for h in self.outputs[:-1]] + [d_last]
        if self.concatenated:
            ends = np.cumsum([h.shape[1] for h in self.outputs])
            d_hidden = np.split(d_last, ends[:-1], axis=1)
        dx = np.zeros(())  # of the layer above
        for i in reversed(range(len(self.hidden))):
            # A kept output is 0 only where the ReLU is.
            dz = self.drop(d_hidden[i] + dx, masks[i]) * (self.outputs[i] > 0)
            dx = self.hidden[i].backward(dz)
        return loss

    def train_step(self, x: Array, y: Targets, learning_rate: float, rng: Rng) -> float:
        """Draw a mask for each example, descend the gradient, return the loss."""
        loss = self.backward(x, y, self.draw_masks(len(x), rng))
        for layer in self.layers:
            layer.kernel -= learning_rate * layer.gradients[0]
            layer.bias -= learning_rate * layer.gradients[1]
        return loss


class SpiralProgram(Network):
    """2-512-3 on the spiral, Adam, and all points in each step.

    The second dense layer reads the output of dropout, not the activation: otherwise
    dropout would change the gradient alone. `l2` penalises the first
    layer; `rng` draws the initial weights and every mask.
    """

    def __init__(self, rng: Rng, hidden=512, rate=0.1, l2=5e-4, decay=5e-5) -> None:
        super().__init__([Dense(2, hidden, rng, l2), Dense(hidden, 3, rng)], rate)
        self.rng = rng
        parameters = [p for layer in self.layers for p in layer.parameters]
        self.optimizer = Adam(parameters, 0.05, decay)

    def step(self, x: Array, y: Targets) -> tuple[float, float, float]:
        """Train on all points: data loss, penalty and accuracy before the update."""
        penalty = sum(layer.penalty() for layer in self.layers)
        data_loss = self.backward(x, y, self.draw_masks(len(x), self.rng))
        self.optimizer.update([g for layer in self.layers for g in layer.gradients])
        return data_loss, penalty, float(np.mean(self.scores.argmax(axis=1) == y))


# Masks with an exact count, and norms of all parameters as a penalty.


def sigmoid(z: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * z))  # 1 / (1 + exp(-z)) would overflow


def exact_count(units: int, rate: float) -> int:
    """Number of units to drop: `rate * units` rounded, and never all of them."""
    check_rate(rate)
    return min(units - 1, math.floor(rate * units + 0.5))


def exact_mask(units: int, rate: float, rng: Rng) -> Mask:
    """Drop exactly `exact_count(units, rate)` units, of which the scaling also depends.

    The document drops `int(keep * units)`, which exchanges keep and drop.
    """
    return rng.permutation(units) >= exact_count(units, rate)


def sigmoid_layer(x: Array, kernel: Array, bias: Array, mask: Mask) -> Array:
    """`sigmoid(x @ kernel + bias)` without the kernel's columns of dropped units.

    The document overwrites its kernel, which drops those units for ever.
    """
    return sigmoid(x @ vanilla(kernel, mask) + bias)


def sigmoid_layer_backward(dy: Array, y: Array, x: Array, kernel: Array, mask: Mask):
    """Gradients of inputs, kernel and bias; `y` is the result of `sigmoid_layer`."""
    dz = dy * y * (1 - y)
    d_kernel = vanilla_backward(x.T @ dz, mask)
    return dz @ vanilla(kernel, mask).T, d_kernel, dz.sum(axis=0)


def norm_penalty(parameters: Iterable[Array], l1: float = 1.0, l2: float = 1.0):
    """Sum the L1 norms and the unsquared L2 norms of parameters, with the gradients."""
    penalty, gradients = 0.0, []
    for parameter in parameters:
        norm = float(np.linalg.norm(parameter))
        penalty += l1 * float(np.abs(parameter).sum()) + l2 * norm
        # At an all-zero parameter the L2 norm has a corner: the gradient is set to 0.
        gradients.append(l1 * np.sign(parameter) + l2 * parameter / (norm or 1.0))
    return penalty, gradients


# Standout: a mask that depends on the inputs.


def standout_keep_prob(x: Array, kernel: Array, alpha: float, beta: float) -> Array:
    """Probability (batch, units) to keep each unit, computed from the layer's inputs.

    The document multiplies the unit by this sigmoid, which is the layer at inference.
    In training the mask is `draw_mask(keep_prob.shape, 1 - keep_prob, rng)`.
    Reference: Ba and Frey, 2013, Adaptive dropout for training deep neural networks
    """
    return sigmoid(alpha * (x @ kernel) + beta)


def standout_keep_prob_backward(dp: Array, p: Array, x: Array, kernel: Array, alpha):
    """Gradients of inputs and kernel; `p` is the result of `standout_keep_prob`."""
    dz = alpha * dp * p * (1 - p)
    return dz @ kernel.T, x.T @ dz
