"""The cost model of several devices, by hand; its figures are for people."""

import csv

import numpy as np
import pytest

from benchmarks import scaling
from benchmarks.scaling import Cost, Link, expected, step_seconds

# Binary fractions: the sums below hold to the bit. 1,024 bytes at 4,096 a second.
COST, LINK = Cost(fixed=0.5, each=0.125, size=1024), Link(4096, 0.0625)


@pytest.mark.parametrize(
    ("batch", "devices", "seconds"),
    [
        (8, 1, 0.5 + 8 * 0.125),  # nothing is sent
        (8, 2, 0.5 + 4 * 0.125 + 2 * (0.125 + 0.0625)),  # two messages of a half
        (8, 4, 0.5 + 2 * 0.125 + 6 * (0.0625 + 0.0625)),  # six of a quarter
        (9, 4, 0.5 + 3 * 0.125 + 6 * (0.0625 + 0.0625)),  # one device has three
        (2, 8, 0.5 + 0.125 + 14 * (0.03125 + 0.0625)),  # and none less than one
    ],
)
def test_a_step_is_computation_and_a_ring(batch, devices, seconds):
    assert step_seconds(COST, batch, devices, LINK) == seconds


def test_throughput_is_told_as_a_multiple_of_one_device(monkeypatch):
    monkeypatch.setattr(scaling, "LINKS", {"link": LINK})
    monkeypatch.setattr(scaling, "DEVICES", [1, 4])
    one, weak, alone, strong = expected({"net": COST}, {"net": 8})
    assert (one["times"], alone["times"]) == (1, 1)
    assert (weak["scaling"], weak["batch"], weak["seconds"]) == ("weak", 32, 2.25)
    assert weak["times"] == 4 * 1.5 / 2.25  # four times the batch of 1.5 s
    assert (strong["scaling"], strong["batch"], strong["seconds"]) == ("strong", 8, 1.5)
    assert strong["times"] == 1


@pytest.mark.parametrize(
    ("seconds", "fixed", "each"),
    [
        (lambda examples: 0.5 + 0.125 * examples, 0.5, 0.125),
        # Nothing takes less than no time: the mean of 1/16, 1/8 and 1/4.
        (lambda examples: examples**2 / 64, 0, 7 / 48),
    ],
    ids=["a line", "a curve"],
)
def test_a_measured_step_is_a_line(seconds, fixed, each, monkeypatch):
    # A clock that a step moves on, by the number of its examples.
    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    class Model:
        input_shape, output_shape = (None, 2), (None, 3)
        trainable_weights = [np.zeros((5, 3)), np.zeros(3)]

        def compile(self, *_):
            pass

        def make_train_function(self):
            pass

        def train_function(self, feed):
            inputs, targets = next(feed)
            assert inputs.shape[1:] == (2,) and max(targets) < 3
            clock.now += seconds(len(inputs))

    clock = Clock()
    monkeypatch.setattr(scaling, "time", clock)
    monkeypatch.setitem(scaling.MODELS, "net", lambda dropout: Model())
    cost = scaling.measure("net", 16)
    assert (cost.fixed, cost.each) == pytest.approx((fixed, each))
    assert cost.size == 4 * 18


def test_the_command_measures_prints_writes_and_draws(tmp_path, monkeypatch, capsys):
    table, picture = tmp_path / "rows.csv", tmp_path / "scaling.png"
    monkeypatch.setattr(scaling, "BATCHES", {"spiral_mlp": 8})
    monkeypatch.setattr(
        "sys.argv", ["scaling", "--csv", str(table), "--picture", str(picture)]
    )
    scaling.main()
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(scaling.LINKS) * 11
    assert rows[10]["devices"] == "1024" and rows[10]["batch"] == str(8 * 1024)
    told = capsys.readouterr().out
    assert "spiral_mlp: " in told and "0.269 MB of gradients" in told
    assert "weak scaling" in told and "strong scaling" in told
    assert picture.read_bytes().startswith(b"\x89PNG")
