"""Batches: functions of the seed, the epoch and the example alone."""

import math

import numpy as np
import pytest
import tensorflow as tf

from kdrop.errors import UserError
from kdrop.training.data import Part, load
from kdrop.training.pipeline import batches


def read(part, batch_size, **settings):
    pairs = batches(part, batch_size, **settings).as_numpy_iterator()
    return [(inputs.copy(), targets.copy()) for inputs, targets in pairs]


@pytest.fixture(scope="module")
def part():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 13, 11, 3), dtype="uint8")
    return Part(images, np.arange(50, dtype="int32"))


def assert_same(pairs, expected):
    for pair, other in zip(pairs, expected, strict=True):
        np.testing.assert_array_equal(pair[0], other[0])
        np.testing.assert_array_equal(pair[1], other[1])


BOTH = {"mirror": True, "shift": 4}


@pytest.mark.parametrize(
    "augment", [{}, {"mirror": True}, {"shift": 2}, {"cutout": 3}, BOTH], ids=str
)
def test_a_pipeline_starts_at_any_step(part, augment):
    settings = {"shuffle_seed": 5, **augment}
    whole = read(part, 16, epochs=5, **settings)
    # Of 4 batches an epoch. What is augmented does not depend on the step.
    for first in (9,) if augment else (8, 9, 11):
        rest = read(part, 16, epochs=5, first_step=first, **settings)
        assert_same(rest, whole[first:])
    endless = batches(part, 16, first_step=first, **settings).take(9)
    expected = whole[first : first + 9]
    assert_same(list(endless.as_numpy_iterator()), expected)


def test_every_epoch_gives_each_example_once_in_a_new_order(part):
    pairs = read(part, 16, epochs=3, shuffle_seed=0)
    assert [len(targets) for _, targets in pairs] == [16, 16, 16, 2] * 3
    orders = [np.concatenate([t for _, t in pairs[k : k + 4]]) for k in (0, 4, 8)]
    for order in orders:
        assert sorted(order) == list(range(50))
    assert len({tuple(order) for order in orders}) == 3
    inputs = np.concatenate([inputs for inputs, _ in pairs[:4]])
    np.testing.assert_array_equal(inputs, part.inputs[orders[0]].astype("float32"))
    other = read(part, 50, epochs=1, shuffle_seed=1)[0][1]
    assert tuple(other) not in {tuple(order) for order in orders}


def test_without_a_seed_the_order_is_that_of_the_part(part):
    (inputs, targets), *_ = read(part, 64, epochs=1)
    np.testing.assert_array_equal(targets, part.targets)
    np.testing.assert_array_equal(inputs, part.inputs)
    assert inputs.dtype == "float32" and targets.dtype == "int32"


def test_cardinality_is_known(part):
    assert batches(part, 16, epochs=3, shuffle_seed=1).cardinality() == 12
    assert batches(part, 16, epochs=3, first_step=5).cardinality() == 7
    assert batches(part, 16).cardinality() == tf.data.INFINITE_CARDINALITY


def test_points_are_unchanged():
    points = load("spiral", 30, validation=0).train
    (inputs, targets), *_ = read(points, 30, epochs=1)
    np.testing.assert_array_equal(inputs, points.inputs)


def candidates(image):
    """Every image that a shift by up to 4 pixels gives, by NumPy's own padding."""
    height, width, _ = image.shape
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    return {
        padded[down : down + height, right : right + width].tobytes(): (down, right)
        for down in range(9)
        for right in range(9)
    }


def test_augmentation_is_a_shift_and_half_the_time_a_mirror(part):
    epochs = 20
    mirrored, shifts = 0, []
    for inputs, targets in read(part, 16, epochs=epochs, shuffle_seed=2, **BOTH):
        for moved, target in zip(inputs.astype("uint8"), targets, strict=True):
            image = part.inputs[target]
            plain = candidates(image).get(moved.tobytes())
            mirror = candidates(image[:, ::-1]).get(moved.tobytes())
            assert (plain is None) != (mirror is None)
            mirrored += mirror is not None
            shifts.append(plain or mirror)
    draws = 50 * epochs
    # five standard deviations of a binomial count
    assert abs(mirrored - draws / 2) < 5 * math.sqrt(draws / 4)
    for axis in np.transpose(shifts):
        spread = 5 * math.sqrt(draws * (1 / 9) * (8 / 9))
        assert (abs(np.bincount(axis, minlength=9) - draws / 9) < spread).all()


def test_a_shift_alone_mirrors_nothing_and_a_mirror_alone_shifts_nothing(part):
    ((inputs, targets),) = read(part, 50, epochs=1, shuffle_seed=2, shift=4)
    shifts = {
        candidates(part.inputs[target])[moved.tobytes()]
        for moved, target in zip(inputs.astype("uint8"), targets, strict=True)
    }
    assert len(shifts) > 20
    ((inputs, targets),) = read(part, 50, epochs=1, shuffle_seed=2, mirror=True)
    images = part.inputs[targets]
    plain = (inputs == images).all(axis=(1, 2, 3))
    mirrored = (inputs == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (plain ^ mirrored).all() and 10 < mirrored.sum() < 40


@pytest.mark.parametrize("side", [4, 5])
def test_cutout_hides_a_square_around_a_random_pixel(part, side):
    settings = {"epochs": 40, "shuffle_seed": 2, **BOTH}
    pairs = read(part, 50, cutout=side, **settings)
    colour = part.inputs.mean(axis=(0, 1, 2)).astype("float32")
    counts = np.zeros((13, 11))
    for (inputs, _), (whole, _) in zip(pairs, read(part, 50, **settings), strict=True):
        hidden = (inputs == colour).all(axis=-1)
        np.testing.assert_array_equal(inputs[~hidden], whole[~hidden])
        for square in hidden:
            # The first and last row and column of the square, clipped at the border.
            ends = [np.flatnonzero(square.any(axis))[[0, -1]] for axis in (1, 0)]
            (top, bottom), (left, right) = ends
            assert square[top : bottom + 1, left : right + 1].all()
            assert square.sum() == (bottom - top + 1) * (right - left + 1)
            row = bottom - (side - 1) // 2 if top == 0 else top + side // 2
            column = right - (side - 1) // 2 if left == 0 else left + side // 2
            counts[row, column] += 1
    assert counts.sum() == 50 * 40
    for axis, size in ((1, 13), (0, 11)):  # five standard deviations
        spread = 5 * math.sqrt(2000 / size * (1 - 1 / size))
        assert (abs(counts.sum(axis) - 2000 / size) < spread).all()


def test_augmentation_does_not_depend_on_the_batch_size(part):
    settings = {"epochs": 1, "shuffle_seed": 3, "cutout": 3, **BOTH}
    small, large = read(part, 7, **settings), read(part, 50, **settings)
    inputs = np.concatenate([inputs for inputs, _ in small])
    np.testing.assert_array_equal(inputs, large[0][0])


def test_wrong_arguments_are_rejected(part):
    with pytest.raises(UserError, match="`batch_size` is 0"):
        batches(part, 0)
    with pytest.raises(ValueError, match="shuffle_seed"):
        batches(part, 16, mirror=True)
    with pytest.raises(UserError, match="images"):
        batches(load("spiral", 30, 0).train, 16, mirror=True, shuffle_seed=1)
    for shift in (-1, 11):
        with pytest.raises(UserError, match=f"`shift` is {shift}"):
            batches(part, 16, shift=shift, shuffle_seed=1)
    for side in (-1, 12):
        with pytest.raises(UserError, match=f"`cutout` is {side}"):
            batches(part, 16, cutout=side, shuffle_seed=1)
    with pytest.raises(ValueError, match="without examples"):
        batches(Part(part.inputs[:0], part.targets[:0]), 16)
