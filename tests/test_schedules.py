"""Schedules against their closed forms."""

import math

import numpy as np
import pytest

from kdrop import RateSchedule, schedules

# The rates at progress 0, 1/8, 1/4, 1/2 and 1, from the closed forms.
SCHEDULES = {
    "constant": (schedules.constant(0.3), [0.3] * 5),
    "linear": (schedules.linear(0.1, 0.9), [0.1, 0.2, 0.3, 0.5, 0.9]),
    "cosine": (
        schedules.cosine(0.2, 0.6),
        [0.2, 0.4 - 0.2 * math.cos(math.pi / 8), 0.4 - 0.2 * 0.5**0.5, 0.4, 0.6],
    ),
    "early": (schedules.early(0.4), [0.4, 0.1, 0.0, 0.0, 0.0]),
    "early, half": (schedules.early(0.4, cutoff=0.5), [0.4, 0.3, 0.2, 0.0, 0.0]),
    "early, constant": (
        schedules.early(0.4, cutoff=0.25, decay="constant"),
        [0.4, 0.4, 0.0, 0.0, 0.0],
    ),
    "late": (schedules.late(0.4), [0.0, 0.0, 0.4, 0.4, 0.4]),
    "late, half": (schedules.late(0.4, cutoff=0.5), [0.0, 0.0, 0.0, 0.4, 0.4]),
    "curriculum": (
        schedules.curriculum(0.5),
        # The paper states the probability of keeping a unit.
        [1 - (0.5 * math.exp(-10 * t) + 0.5) for t in (0, 1 / 8, 1 / 4, 1 / 2, 1)],
    ),
    "curriculum, slow": (
        schedules.curriculum(0.5, gamma=math.log(2)),
        [0.0, 0.5 - 0.5**1.125, 0.5 - 0.5**1.25, 0.5 - 0.5**1.5, 0.25],
    ),
    "annealed": (schedules.annealed(0.8), [0.8, 0.7, 0.6, 0.4, 0.0]),
    "annealed, half": (schedules.annealed(0.8, end=0.5), [0.8, 0.6, 0.4, 0.0, 0.0]),
    "drop path": (schedules.scheduled_drop_path(0.4), [0.0, 0.05, 0.1, 0.2, 0.4]),
}
every_schedule = pytest.mark.parametrize(
    "schedule, expected", SCHEDULES.values(), ids=SCHEDULES
)


@every_schedule
def test_closed_form(schedule, expected):
    rates = [schedule(t) for t in (0.0, 0.125, 0.25, 0.5, 1.0)]
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-15)
    # Exactly 0: the layers reject -1e-17, and a rate of 1e-17 still draws masks.
    np.testing.assert_array_equal(np.equal(rates, 0), np.abs(expected) < 1e-15)


@every_schedule
def test_monotone_and_between_its_ends(schedule, expected):
    rates = np.array([schedule(t) for t in np.linspace(0, 1, 1001)])
    steps = np.diff(rates) * (1 if expected[-1] >= expected[0] else -1)
    assert steps.min() > -1e-15
    assert rates.min() >= min(expected) and rates.max() <= max(expected)


NAN = float("nan")


@pytest.mark.parametrize(
    "make, received",
    [
        *[
            (lambda make=make, rate=rate: make(rate), f"rate={rate!r}")
            for make in (
                schedules.constant,
                schedules.early,
                schedules.late,
                schedules.curriculum,
                schedules.annealed,
                schedules.scheduled_drop_path,
                lambda rate: schedules.over_depth(rate, 3),
            )
            for rate in (1, -0.1, NAN, True, "0.5")
        ],
        (lambda: schedules.linear(1.5, 0.1), "start=1.5"),
        (lambda: schedules.linear(0.1, NAN), "end=nan"),
        (lambda: schedules.cosine(0.1, 1.0), "end=1.0"),
        (lambda: schedules.early(0.1, cutoff=0), "cutoff=0"),
        (lambda: schedules.early(0.1, cutoff=NAN), "cutoff=nan"),
        (lambda: schedules.late(0.1, cutoff=50), "cutoff=50"),
        (lambda: schedules.early(0.1, decay="cubic"), "'cubic'"),
        (lambda: schedules.annealed(0.1, end=-1), "end=-1"),
        (lambda: schedules.curriculum(0.1, gamma=0), "gamma=0"),
        (lambda: schedules.curriculum(0.1, gamma=math.inf), "gamma=inf"),
        (lambda: schedules.over_depth(0.1, 0), "0"),
        (lambda: schedules.over_depth(0.1, 2.0), "2.0"),
        (lambda: RateSchedule(0.5), "schedule=0.5"),
        (lambda: RateSchedule(schedules.constant(0.5), by="batch"), "by='batch'"),
    ],
)
def test_invalid_arguments_are_rejected(make, received):
    with pytest.raises(ValueError, match=f"must be .*{received}$"):
        make()


def test_rates_over_depth():
    assert schedules.over_depth(0.5, 4) == [0.125, 0.25, 0.375, 0.5]
    # By the paper, the expected depth of L blocks whose last survives with probability
    # 0.5 is (3 L - 1) / 4.
    survival = [1 - rate for rate in schedules.over_depth(0.5, 54)]
    assert sum(survival) == pytest.approx((3 * 54 - 1) / 4)
    assert schedules.over_depth(0.3, 1) == [0.3]
    for layers in range(1, 100):  # no rounding lifts the last rate above `rate`
        assert schedules.over_depth(0.4, layers)[-1] == 0.4
