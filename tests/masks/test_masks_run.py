"""Noise shapes, and what running a kernel does with them."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from kdrop import backend
from kdrop.masks import kernels, run

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@st.composite
def shapes_and_noise_shapes(draw, fitting=False):
    """A shape and a noise shape of any rank, in which sizes are often equal."""
    shape = draw(SHAPES)
    rank = draw(st.integers(1, len(shape) if fitting else len(shape) + 1))
    tail = (1, *shape)[-rank:] if rank > len(shape) else shape[-rank:]
    others = [] if fitting else [2, 3]
    sizes = [draw(st.sampled_from([None, 1, size, *others])) for size in tail]
    return shape, tuple(sizes)


@given(shapes_and_noise_shapes())
@settings(derandomize=True, deadline=None, max_examples=200)
def test_noise_shapes_that_numpy_broadcasts_are_accepted(shapes):
    shape, noise_shape = shapes
    try:
        fits = len(noise_shape) <= len(shape)
        tail = shape[-len(noise_shape) :]
        sizes = [s if n is None else n for n, s in zip(noise_shape, tail, strict=False)]
        fits = fits and np.broadcast_shapes(shape, sizes) == shape
    except ValueError:
        fits = False
    if fits:
        run.check_broadcast(noise_shape, shape)
        run.check_broadcast(noise_shape, (None,) * len(shape))
    else:
        with pytest.raises(ValueError, match="must broadcast"):
            run.check_broadcast(noise_shape, shape)


def slow_on_jax(test):
    """JAX compiles each operation for each shape."""
    return pytest.mark.slow(test) if keras.backend.backend() == "jax" else test


@slow_on_jax
@given(shapes_and_noise_shapes(fitting=True))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_noise_is_shared_along_dimensions_of_one_and_differs_along_others(shapes):
    shape, noise_shape = shapes
    sizes = run.broadcast_sizes(noise_shape, shape)
    rows = np.zeros((1, 2) if sizes[0] == 1 else (), "uint32")
    draw = ops.convert_to_tensor(np.array([1, 2, 3, 2**31, 0], "uint32"))
    inputs = ops.ones(shape)
    noise = run._fused(kernels.GAUSSIAN, noise_shape, inputs, draw, rows)  # eagerly
    noise = ops.convert_to_numpy(noise)
    assert noise.shape == shape
    for axis, size in enumerate(sizes):
        assert (np.ptp(noise, axis=axis) == 0).all() == (size == 1)
    assert len(np.unique(noise)) == np.prod(sizes)


def test_limits_are_found_once_and_reach_the_gradient():
    searches = []

    def limits(words, draw):
        searches.append(words)
        return ops.min(words, axis=1, keepdims=True)

    kernel = kernels.VANILLA._replace(
        noise=lambda words, draw, lowest: words == lowest,
        # Another function than `forward`, so that the gradient is another kernel.
        backward=lambda inputs, dropped, draw: kernels.select(inputs, dropped, draw),
        limits=limits,
    )
    rows = ops.convert_to_tensor(np.zeros((), "uint32"))
    draw = ops.convert_to_tensor(np.array([1, 2, 3, 0, 0], "uint32"))
    outputs, (gradient,) = backend.output_and_gradients(
        lambda x: run.apply(kernel, x, draw, rows),
        (ops.ones((4, 9)),),
        ops.ones((4, 9)),
    )
    assert len(searches) == 1
    np.testing.assert_array_equal(outputs, gradient)
    np.testing.assert_array_equal(np.sum(ops.convert_to_numpy(outputs), 1), 8)
