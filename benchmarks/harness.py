"""Compare variants of one piece of work, as ratios to a baseline.

Fresh processes measure all variants in turn, several times. A ratio divides two medians
of one process; the result is the median of the ratios, with their range.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from kdrop import backend
from kdrop.errors import UserError

JAX = backend.name() == "jax"
if JAX:
    import jax

    # On a CPU, calls that do not depend on each other would overlap.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
# TensorFlow waits for its results on a CPU.
WAIT = jax.block_until_ready if JAX else lambda results: None

Measure = Callable[[], float]  # one measurement of one variant: seconds or bytes
Variants = Mapping[str, Measure]

SCALES = {"ms": 1e3, "MiB": 2**-20}  # of a second, and of a byte


@dataclass(frozen=True)
class Comparison:
    """One piece of work, done in several ways."""

    work: str  # what one measurement does, with its size
    baseline: str  # the variant that the others are divided by
    variants: Callable[[], Variants]
    limits: Mapping[str, float] = field(default_factory=dict)  # highest allowed ratios
    rounds: int = 5  # measurements of each variant in a process
    warm_up: int = 1  # rounds before those, which do not count
    unit: str = "ms"  # of the table: ms or MiB


def timed(work: Callable[[], object], calls: int = 1, wait=WAIT) -> Measure:
    """Measure the seconds of one call of `work`, as a mean over `calls` calls."""

    def measure():
        start = time.perf_counter()
        for _ in range(calls):
            results = work()
        wait(results)
        return (time.perf_counter() - start) / calls

    return measure


def measure(comparison: Comparison) -> dict[str, float]:
    """Measure the median of each variant in this process."""
    variants = comparison.variants()
    values: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(-comparison.warm_up, comparison.rounds):
        # In reverse every second round, so that no variant always follows the same one.
        for name in reversed(variants) if turn % 2 else variants:
            value = variants[name]()
            if turn >= 0:
                values[name].append(value)
    return {name: statistics.median(values[name]) for name in variants}


def compare(name: str, comparison: Comparison, processes: int) -> list[dict]:
    """Measure a comparison in fresh processes: one row for each variant."""
    medians = []
    for _ in range(processes):
        command = [sys.executable, "-m", "benchmarks", "--in-process", name]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if process.returncode:
            raise UserError(f"{name} cannot be measured; the reason is above.")
        medians.append(json.loads(process.stdout.splitlines()[-1]))
    rows = []
    for variant in medians[0]:
        ratios = [each[variant] / each[comparison.baseline] for each in medians]
        middle = statistics.median(each[variant] for each in medians)
        row = {"comparison": name, "work": comparison.work, "variant": variant}
        row |= {"value": middle * SCALES[comparison.unit], "unit": comparison.unit}
        row |= {"ratio": statistics.median(ratios)}
        row |= {"limit": comparison.limits.get(variant)}
        rows.append(row | {"ratio_min": min(ratios), "ratio_max": max(ratios)})
    return rows


def table(rows: Sequence[Mapping]) -> Table:
    """Show the variants' ratios to their baseline, and whether they exceed a limit."""
    result = Table("work", "variant", title="Median (range) of the processes")
    for column in "measured", "ratio", "limit":
        result.add_column(column, justify="right")
    previous = None
    for row in rows:
        limit = "" if row["limit"] is None else f"{row['limit']:.3g}"
        if row["limit"] is not None and row["ratio"] > row["limit"]:
            limit += " [bold red]exceeded[/]"
        ratio = "{ratio:.3g} ({ratio_min:.3g} to {ratio_max:.3g})".format(**row)
        work = row["work"] if row["comparison"] != previous else ""
        value = f"{row['value']:.3g} {row['unit']}"
        result.add_row(work, row["variant"], value, ratio, limit)
        previous = row["comparison"]
    return result
