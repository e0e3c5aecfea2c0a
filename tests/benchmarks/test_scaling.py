"""The model of many devices."""

import numpy as np
import pytest

from benchmarks import scaling
from benchmarks.scaling import Cost, step_seconds


# Binary fractions, so that sums are exact: 1,024 bytes at 4,096 a second.
@pytest.mark.parametrize(
    ("batch", "devices", "seconds"),
    [
        (8, 1, 0.5 + 8 * 0.125),  # nothing is sent
        (8, 2, 0.5 + 4 * 0.125 + 2 * (0.125 + 0.0625)),  # two messages of a half
        (8, 4, 0.5 + 2 * 0.125 + 6 * (0.0625 + 0.0625)),  # six of a quarter
        (9, 4, 0.5 + 3 * 0.125 + 6 * (0.0625 + 0.0625)),  # one device has three
        (2, 8, 0.5 + 0.125 + 14 * (0.03125 + 0.0625)),  # at least one each
    ],
)
def test_a_step_is_computation_and_a_ring(batch, devices, seconds):
    cost = Cost(fixed=0.5, per_example=0.125, gradients=1024)
    assert step_seconds(cost, batch, devices, 4096, 0.0625) == seconds


@pytest.mark.parametrize(
    ("seconds", "fixed", "per_example"),
    [
        ((0.75, 1.0, 1.5), 0.5, 0.125),
        ((0.1, 0.5, 1.5), 0.0, (0.1 / 2 + 0.5 / 4 + 1.5 / 8) / 3),  # below 0 at 0
        ((1.0, 1.5, 2.0), None, None),
    ],
)
def test_the_cost_is_a_line_of_least_relative_errors(
    seconds, fixed, per_example, monkeypatch
):
    sizes = (2, 4, 8)
    if fixed is None:  # no line through all three
        relative = np.transpose([np.ones(3), sizes]) / np.transpose([seconds])
        fixed, per_example = np.linalg.lstsq(relative, np.ones(3))[0]
        assert fixed > 0

    def step_of(model, batch):
        return lambda: len(batch[1])

    def timed(step, calls=1):
        return lambda: seconds[sizes.index(step())]

    monkeypatch.setattr(scaling, "training_step", step_of)
    monkeypatch.setattr(scaling, "timed", timed)
    cost = scaling.measure("spiral_mlp", 8)
    assert cost[:2] == pytest.approx((fixed, per_example))
    layer_sizes = (2, 256), (256, 256), (256, 3)
    assert cost.gradients == 4 * sum((n + 1) * units for n, units in layer_sizes)
