"""A study: search on validation data, seeds, findings."""

from dataclasses import replace

import numpy as np
import pytest
from small_studies import ARMS, RATES, metrics, result

from studies.study import (
    ERRORS,
    Arm,
    Study,
    answer,
    beyond,
    choose,
    draw_errors,
    draw_pairs,
)


def test_validation_alone_chooses():
    one, other = RATES
    searched = {one: metrics(0.7, test=0.9), other: metrics(0.8, test=0.1)}
    assert choose(RATES, searched) is other
    assert choose(RATES, {one: metrics(0.8, 0.3), other: metrics(0.8, 0.4)}) is one


class LowRatesAreBest:
    """A runner that does not train."""

    def run(self, experiments):
        return {each: metrics(1 - each.rate[0]) for each in experiments}


def test_each_series_chooses_its_settings():
    more = tuple(replace(each, train_size=400) for each in RATES)
    two = [Arm("dropout", RATES, "300 points"), Arm("dropout", more, "400 points")]
    results = answer(Study("Which?", two, 2, ERRORS), LowRatesAreBest())
    for each, candidates in zip(results, (RATES, more), strict=True):
        assert each.chosen == candidates[1]
        assert set(each.searched) == set(candidates)
        assert set(each.by_seed) == {0, 1}


def test_the_finding_counts_differences_beyond_two_standard_errors(tmp_path):
    plain = result(12, 15, 11)
    assert plain.summary() == pytest.approx(
        (38 / 3, np.std([12, 15, 11], ddof=1) / 3**0.5)
    )
    # Means 12.67 and 15, standard errors 1.2 and .58: 2.33 is less than 2 * 1.33.
    near, far, best = (
        result(16, 15, 14),
        result(17, 16, 15),
        result(5, 5, 5, arm=ARMS[1]),
    )
    assert not beyond(near, plain) and beyond(far, plain) and not beyond(plain, far)
    finding = draw_errors(tmp_path / "f.png", [plain, near, far])
    assert finding.startswith("none errs least, in 12.67 ± 1.20 %\n0 of 2")
    finding = draw_errors(tmp_path / "f.png", [plain, near, far, far, best])
    assert finding == (
        "dropout errs least, in 5.00 ± 0.00 % (none 12.67 ± 1.20 %)\n"
        "1 of 4 err less than none by over two standard errors, 2 more"
    )


def test_the_interval_of_pairs_is_that_of_student(tmp_path):
    # Differences 2, 1 and 0: mean 1, standard error 1 / sqrt(3), quantile 4.303.
    pair = [result(10, 12, 11), result(12, 13, 11, arm=ARMS[1])]
    assert draw_pairs(tmp_path / "f.png", pair) == (
        "dropout errs in 12.00 %, none in 11.00 %: +1.00 points\n"
        "(95 % t interval of 3 pairs: -1.48 to +3.48)"
    )
