"""What each kind of noise is, as pure functions; the package explains `draw`."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops


class Kernel(NamedTuple):
    """One kind of noise, as pure functions."""

    noise: Callable[..., Any]  # (words, draw, *limits) -> noise, element by element
    forward: Callable[..., Any]  # (inputs, noise of their shape, draw) -> outputs
    backward: Callable[..., Any]  # the linear part of `forward`, for gradients
    # The size, in each dimension after the batch, of the block of units that one
    # element of the noise decides for; empty for a single unit.
    block: tuple[int, ...] = ()
    distinct: bool = False  # whether the noise needs words that differ within a row
    # (words, draw) -> limits: what the noise needs to know of all words of a row. They
    # take long to find and little memory, so they are stored for the gradient. In
    # exports, and where sizes are unknown, `noise` gets none and finds them itself.
    limits: Callable[..., Any] | None = None


def threshold(rate):
    """The integer below which a 32-bit word drops its element, at most 2^32 - 1."""
    return min(round(rate * 2**32), 2**32 - 1)


def block_threshold(rate, cells):
    """The threshold of seeds whose blocks of `cells` units drop a fraction `rate`.

    The fraction is within `cells * 2^-33` of it, or 2^-32 at the upper end.
    """
    return threshold(-math.expm1(math.log1p(-rate) / cells))


def rate(draw, dtype):
    """The fraction that a draw drops, as a scalar of a float dtype."""
    return ops.cast(ops.cast(draw[3], "uint32"), dtype) * 2.0**-32


def keep_fraction(draw, dtype):
    """The fraction that a draw does not drop, as a scalar of a float dtype."""
    # The complement first: in float32, 1 - threshold / 2^32 loses a high rate's digits.
    complement = ops.bitwise_not(ops.cast(draw[3], "uint32"))
    return (ops.cast(complement, dtype) + 1) * 2.0**-32


def wide(dtype):
    """The dtype for scaling: float32, or float64 for float64 inputs."""
    return keras.backend.result_type(dtype, "float32")


def scale(inputs, factor):
    """`inputs * factor`, computed in the wide dtype and rounded once."""
    dtype = wide(inputs.dtype)
    product = ops.cast(inputs, dtype) * ops.cast(factor, dtype)
    return ops.cast(product, inputs.dtype)


def dropped(words, draw):
    """True where an element is dropped."""
    return words < ops.cast(draw[3], "uint32")


def uniform(words):
    """Words as float32 numbers spread evenly over (-1, 1), symmetric about 0."""
    return (ops.cast(ops.cast(words, "int32"), "float32") + 0.5) * 2.0**-31


def _positive_uniform(words):
    """Words as float32 numbers in [2^-33, 1]; the lowest word gives the greatest."""
    return (ops.cast(ops.bitwise_not(words), "float32") + 0.5) * 2.0**-32


def _logistic(words):
    """Words as float32 numbers of the logistic distribution: `logit(u)`, u uniform."""
    x = uniform(words)
    return ops.log((1 + x) / (1 - x))


def normal(words):
    """Words as float32 numbers of the standard normal distribution.

    The inverse of the distribution function, as `x N(w) / D(w)` with x uniform in
    (-1, 1) and w = -log(1 - x^2). (Giles, 2010, "Approximating the erfinv function",
    has two polynomials in place of this quotient.) The relative error is below 1e-6,
    out to the 6.3 deviations that a word can represent.
    """
    signed = ops.cast(words, "int32")
    sign = ops.right_shift(signed, 31)  # 0 or -1
    magnitude = ops.bitwise_xor(signed, sign)  # |x| = (magnitude + 0.5) / 2^31
    x = (ops.cast(magnitude, "float32") + 0.5) * 2.0**-31
    # 1 - |x| from the integer: in float32 the tails would lose their digits.
    complement = (ops.cast(2**31 - 1 - magnitude, "float32") + 0.5) * 2.0**-31
    w = -ops.log(complement * (1 + x))
    numerator, denominator = _QUOTIENT[0]
    for n, d in _QUOTIENT[1:]:
        numerator, denominator = numerator * w + n, denominator * w + d
    return ops.where(sign < 0, -x, x) * (numerator / denominator)


# The coefficients of N and D, from the highest power on
_QUOTIENT = (
    (2.92884038e-05, 1.00846562e-06),
    (0.000999239838, 0.000169773925),
    (0.0118737451, 0.00227929531),
    (0.0898234262, 0.0326695694),
    (0.45237452, 0.0991460133),
    (1.25331428, 1),
)


def _gaussian_factor(words, draw):
    deviation = ops.sqrt(rate(draw, "float32") / keep_fraction(draw, "float32"))
    return 1 + deviation * normal(words)


def _uniform_factor(words, draw):
    return 1 + rate(draw, "float32") * uniform(words)


def select(inputs, dropped, draw):
    return ops.where(dropped, ops.zeros_like(inputs), inputs)


def select_and_scale(inputs, dropped, draw):
    scaled = scale(inputs, 1 / keep_fraction(draw, wide(inputs.dtype)))
    return select(scaled, dropped, draw)


def _multiply(inputs, noise, draw):
    return scale(inputs, noise)


# The value to which alpha dropout sets a SELU unit: Klambauer et al., 2017, section 2
_SELU_LIMIT = -1.6732632423543772 * 1.0507009873554805


def _alpha_factor(draw, dtype):
    """The factor `a` of section 2 of the paper."""
    share = rate(draw, dtype) * _SELU_LIMIT**2
    return ops.rsqrt(keep_fraction(draw, dtype) * (1 + share))


def _alpha(inputs, dropped, draw):
    dtype = wide(inputs.dtype)
    a = _alpha_factor(draw, dtype)
    b = -a * rate(draw, dtype) * _SELU_LIMIT
    outputs = ops.where(dropped, _SELU_LIMIT, ops.cast(inputs, dtype)) * a + b
    return ops.cast(outputs, inputs.dtype)


def _alpha_gradient(inputs, dropped, draw):
    factor = _alpha_factor(draw, wide(inputs.dtype))
    return select(scale(inputs, factor), dropped, draw)


def _noise_alone(noise):
    """A kernel that returns float32 noise of its inputs' shape, with gradient 0."""
    return Kernel(
        lambda words, draw: noise(words),
        lambda inputs, noise, draw: noise,
        lambda inputs, noise, draw: ops.zeros_like(inputs),
    )


INVERTED = Kernel(dropped, select_and_scale, select_and_scale)
VANILLA = Kernel(dropped, select, select)
GAUSSIAN = Kernel(_gaussian_factor, _multiply, _multiply)
UNIFORM = Kernel(_uniform_factor, _multiply, _multiply)
ALPHA = Kernel(dropped, _alpha, _alpha_gradient)
UNIFORM_NOISE = _noise_alone(_positive_uniform)
LOGISTIC_NOISE = _noise_alone(_logistic)
NORMAL_NOISE = _noise_alone(normal)


@functools.cache
def blocks(block):
    """The kernel of DropBlock: each seed drops the block of units that starts at it.

    The draw's threshold is that of a seed: see `block_threshold`.
    """
    cells = math.prod(block)

    def forward(inputs, dropped, draw):
        dtype = wide(inputs.dtype)
        seeds, no_seed = rate(draw, dtype), keep_fraction(draw, dtype)
        # A unit is not dropped if none of `cells` positions holds a seed. Each form of
        # the logarithm is used where it is accurate.
        log_no_seed = ops.where(seeds < 0.5, ops.log1p(-seeds), ops.log(no_seed))
        return select(scale(inputs, ops.exp(-cells * log_no_seed)), dropped, draw)

    return Kernel(dropped, forward, forward, block)
