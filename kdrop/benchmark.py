"""Each claim about speed, measured: `python -m kdrop.benchmark [CLAIM ...]`.

A claim compares variants of one piece of work. Every process is a fresh one and
measures all variants of a claim in turn, several times over; a ratio is that of the
medians in one process, and what is shown is the median of the ratios over the processes
and their range. So neither a machine that changes its pace nor the place of a tensor in
memory is taken for a difference.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

Measure = Callable[[], float]  # one measurement, in seconds for one unit of the work


@dataclass(frozen=True)
class Claim:
    """What is measured, and against what."""

    work: str  # one unit of it
    rival: str  # the variant that the others are compared with
    variants: Callable[[], dict[str, Measure]]
    rounds: int = 5  # measurements of each variant in a process


def _spiral_program() -> dict[str, Measure]:
    import numpy as np

    from kdrop import reference
    from kdrop.experiment import Experiment, load_data, train
    from kdrop.progress import Recorder, Unfinished

    size = {"hidden": 512, "rate": 0.1, "l2": 5e-4}
    settings = Experiment(
        hidden=(size["hidden"],), rate=(size["rate"],), l2=size["l2"], batch_size=3000,
        learning_rate=0.05, decay=5e-5, validation=0.0, epochs=600,
    )  # fmt: skip
    data = load_data(settings)
    program = reference.SpiralProgram(np.random.default_rng(0), **size)

    def in_numpy(epochs=10):
        start = time.perf_counter()
        for _ in range(epochs):
            program.step(*data.train)
        return (time.perf_counter() - start) / epochs

    def in_kdrop():
        with tempfile.TemporaryDirectory() as folder:
            unfinished = Unfinished(Path(folder))
            recorder = Recorder(Console(quiet=True), "")
            history = train(settings, data, unfinished, recorder).history
        # From report to report, without the compilation before the first.
        seconds, epochs = history["seconds"], history["epoch"]
        return (seconds[-1] - seconds[0]) / (epochs[-1] - epochs[0])

    return {"reference.py": in_numpy, "train.py": in_kdrop}


def _pipeline() -> dict[str, Measure]:
    import keras

    from kdrop.experiment import Experiment, build, load_data
    from kdrop.pipeline import batches

    # 15 whole batches: the remainder of a pass would be a cheaper step.
    settings = Experiment(data="cifar10", train_size=2000, validation=0.04).resolved()
    data = load_data(settings)
    model = build(settings, data)
    feed = batches(
        data.train, settings.batch_size, shuffle_seed=0, mirror=True, shift=4
    )
    constant = feed.take(1).cache().repeat()

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds = time.perf_counter() - self.start

    steps = len(data.train.targets) // settings.batch_size

    def fit(dataset):
        clock = Clock()
        model.fit(
            dataset, steps_per_epoch=steps, callbacks=[clock], shuffle=False, verbose=0
        )
        return clock.seconds / steps

    return {"a constant batch": lambda: fit(constant), "batches()": lambda: fit(feed)}


CLAIMS = {
    "spiral": Claim(
        "an epoch of 2-512-3 on 3,000 points, dropout .1",
        "reference.py",
        _spiral_program,
    ),
    "pipeline": Claim(
        "a training step of alexnet32 on CIFAR-10",
        "a constant batch",
        _pipeline,
        rounds=9,
    ),
}


def measure(claim: Claim) -> dict[str, float]:
    """Median seconds of each variant in this process, after one round to warm up."""
    variants = claim.variants()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(claim.rounds + 1):
        # Every second round backwards, so that none always follows the same other.
        names = list(variants) if turn % 2 else list(reversed(variants))
        for name in names:
            found = variants[name]()
            if turn:
                seconds[name].append(found)
    return {name: statistics.median(found) for name, found in seconds.items()}


def compare(name: str, processes: int) -> list[dict[str, object]]:
    """Measure a claim in fresh processes: one row for each variant."""
    found = []
    for _ in range(processes):
        command = [sys.executable, "-m", "kdrop.benchmark", "--here", name]
        told = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(told.stdout.splitlines()[-1]))
    claim = CLAIMS[name]
    rows = []
    for variant in found[0]:
        ratios = [seconds[variant] / seconds[claim.rival] for seconds in found]
        rows.append(
            {
                "claim": name,
                "work": claim.work,
                "variant": variant,
                "milliseconds": 1e3 * statistics.median(s[variant] for s in found),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "processes": processes,
            }
        )
    return rows


def show(rows: Iterable[dict], console: Console) -> None:
    table = Table(title="ratio to the first of each: median (range) of the processes")
    for column in ("work", "variant", "ms", "ratio"):
        table.add_column(
            column, justify="right" if column in ("ms", "ratio") else "left"
        )
    last = None
    for row in rows:
        spread = f"{row['ratio_min']:.3g} to {row['ratio_max']:.3g}"
        table.add_row(
            row["work"] if row["claim"] != last else "",
            row["variant"],
            f"{row['milliseconds']:.3g}",
            f"{row['ratio']:.3g} ({spread})",
        )
        last = row["claim"]
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("claims", nargs="*", help=f"of {', '.join(CLAIMS)}; else all")
    parser.add_argument("--processes", type=int, default=5, help="for each claim")
    parser.add_argument("--csv", type=Path, help="write the rows to this file")
    parser.add_argument("--here", choices=CLAIMS, help="measure once, print JSON")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(CLAIMS[options.here])))
        return
    unknown = set(options.claims) - set(CLAIMS)
    if unknown:
        parser.error(f"no claim {', '.join(unknown)}; there are {', '.join(CLAIMS)}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    rows = []
    for name in options.claims or CLAIMS:
        rows += compare(name, options.processes)
    show(rows, console)
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
