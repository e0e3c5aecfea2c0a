"""Checks of what the layers receive."""

import math
import numbers

from keras import ops


def is_integer(value) -> bool:
    """Whether the value is an integer and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_number(name, value, lowest=-math.inf, above=False):
    """The value as a float: finite and at least `lowest`, or more if `above`."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if number and math.isfinite(value):
        if value > lowest or (value == lowest and not above):
            return float(value)
    limit = f" {'above' if above else 'of at least'} {lowest}"
    refuse(name, value, f"a finite number{limit if math.isfinite(lowest) else ''}")


def check_integer(name, value, lowest=None):
    """The value as an int: any integer, or one of at least `lowest`."""
    if is_integer(value) and (lowest is None or value >= lowest):
        return int(value)
    limit = "" if lowest is None else f" of at least {lowest}"
    refuse(name, value, f"an integer{limit}")


def check_bool(name, value):
    """Return the value, or raise `ValueError` if it is not a bool."""
    if isinstance(value, bool):
        return value
    refuse(name, value, "True or False")


def refuse(name, value, allowed):
    """Raise `ValueError` for an argument, in one sentence."""
    raise ValueError(f"Argument `{name}` must be {allowed}. Received: {name}={value!r}")


def check_rate(rate):
    """Return the rate as a float, or raise `ValueError` if it is not in [0, 1)."""
    number = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
    if not number or not 0 <= rate < 1:
        raise ValueError(
            "Invalid value received for argument `rate`. "
            "Expected a float value between 0 and 1. "
            f"Received: rate={rate!r}. Allowed: 0 <= rate < 1."
        )
    return float(rate)


def check_seed(seed):
    """Return the seed, or raise `ValueError` if it is not `None` or in [0, 2^32)."""
    if seed is None:
        return None
    if is_integer(seed) and 0 <= seed < 2**32:
        return int(seed)
    refuse("seed", seed, "an integer in [0, 2^32), or None")


def check_noise_shape(noise_shape):
    """Return the noise shape as a tuple of positive integers and `None`, or `None`."""
    if noise_shape is None:
        return None
    if isinstance(noise_shape, str) or not hasattr(noise_shape, "__iter__"):
        expected = "a tuple or list of integers"
    else:
        noise_shape = tuple(noise_shape)
        sizes = [size for size in noise_shape if size is not None]
        if all(is_integer(size) and size > 0 for size in sizes):
            return tuple(None if size is None else int(size) for size in noise_shape)
        expected = "all dimensions to be positive integers or None"
        if not all(map(is_integer, sizes)):
            expected = "all elements to be integers or None"
    raise ValueError(
        "Invalid value received for argument `noise_shape`. "
        f"Expected {expected}. Received: noise_shape={noise_shape!r}"
    )


def dense_unless_matrix(inputs):
    """Make sparse inputs dense, except matrices, which Keras multiplies as they are."""
    sparse = None if len(inputs.shape) == 2 else False
    return ops.convert_to_tensor(inputs, sparse=sparse)


def refuse_quantization(layer, *args, **kwargs):
    """Replacement of `quantize` in a layer whose weights are not quantized."""
    raise NotImplementedError(
        f"Layer {layer.name!r} of type {type(layer).__name__} has no quantized form: "
        "it stays in float."
    )
