"""The spiral: its rule, its parts and its seed."""

import math

import numpy as np

from kdrop.training.data import load


def test_spiral_follows_its_rule():
    points = 2000
    parts = load("spiral", seed=1)
    inputs = np.concatenate([parts.train.inputs, parts.validation.inputs])
    inputs = np.concatenate([inputs, parts.test.inputs]).astype("float64")
    targets = np.concatenate([parts.train.targets, parts.validation.targets])
    targets = np.concatenate([targets, parts.test.targets])
    radius = np.hypot(*inputs.T)
    for arm in range(3):
        evenly = np.arange(points) / (points - 1)
        np.testing.assert_allclose(np.sort(radius[targets == arm]), evenly, atol=1e-6)
    turned = np.arctan2(inputs[:, 0], inputs[:, 1]) / 2.5 - 4 * (targets + radius)
    turn = 2 * np.pi / 2.5
    noise = ((turned + turn / 2) % turn - turn / 2)[radius > 0]
    # five standard errors of a mean and of a standard deviation
    assert abs(noise.mean()) < 5 * 0.2 / math.sqrt(noise.size)
    assert abs(noise.std() - 0.2) < 5 * 0.2 / math.sqrt(2 * noise.size)


def test_spiral_parts_are_disjoint_and_seeded():
    parts = load("spiral", validation=0.2, seed=3)
    sizes = [len(part.targets) for part in (parts.train, parts.validation, parts.test)]
    assert sizes == [2400, 600, 3000]
    everything = np.concatenate(
        [parts.train.inputs, parts.validation.inputs, parts.test.inputs]
    )
    # radius 0 is one point for the three arms
    assert len(np.unique(everything, axis=0)) == 5998
    again = load("spiral", validation=0.2, seed=3)
    other = load("spiral", validation=0.2, seed=4)
    np.testing.assert_array_equal(parts.train.inputs, again.train.inputs)
    assert not np.array_equal(parts.train.inputs, other.train.inputs)


def test_spiral_test_part_does_not_move_with_the_train_size():
    small = load("spiral", 300, validation=0, seed=5)
    np.testing.assert_array_equal(small.test.inputs, load("spiral", seed=5).test.inputs)
    assert small.validation.inputs.shape == (0, 2)
    whole = load("spiral", validation=0, seed=5).train
    quota = 300 * np.bincount(whole.targets) / 3000
    assert (abs(np.bincount(small.train.targets) - quota) < 1).all()
