"""The benchmark's arithmetic; its figures are for people, not for assertions."""

import json

import pytest
from rich.console import Console

from kdrop import benchmark
from kdrop.benchmark import CLAIMS, Claim, compare, measure, show


def test_variants_take_turns_and_the_first_round_is_not_counted():
    turns = []

    def variant(name, seconds):
        def timed():
            turns.append(name)
            return seconds[turns.count(name) - 1]

        return timed

    variants = {
        "one": variant("one", [100, 1, 2, 9]),
        "two": variant("two", [100, 4, 5, 6]),
    }
    found = measure(Claim("work", "one", lambda: variants, rounds=3))
    assert found == {"one": 2, "two": 5}
    assert turns == ["two", "one", "one", "two", "two", "one", "one", "two"]


def test_ratios_are_taken_within_a_process(monkeypatch, capsys):
    # A machine twice as slow in the second process changes no ratio.
    seconds = [{"slow": 8e-3, "fast": 2e-3}, {"slow": 16e-3, "fast": 4e-3}]
    seconds += [{"slow": 8e-3, "fast": 1e-3}]
    processes = iter(seconds)

    class Told:
        def __init__(self):
            self.stdout = "noise\n" + json.dumps(next(processes)) + "\n"

    monkeypatch.setattr(benchmark.subprocess, "run", lambda *_, **__: Told())
    monkeypatch.setitem(CLAIMS, "fake", Claim("work", "slow", dict))
    slow, fast = compare("fake", processes=3)
    assert slow["ratio"] == 1
    assert (fast["ratio_min"], fast["ratio"], fast["ratio_max"]) == (0.125, 0.25, 0.25)
    assert fast["milliseconds"] == 2
    show([slow, fast], Console(width=120))
    assert "0.25 (0.125 to 0.25)" in capsys.readouterr().out


def test_an_unknown_claim_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", "speed"])
    with pytest.raises(SystemExit) as end:
        benchmark.main()
    assert end.value.code == 2
    assert "no claim speed; there are" in capsys.readouterr().err
