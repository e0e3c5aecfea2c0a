"""What one may expect of more devices: `python -m benchmarks.scaling`.

A training step is modelled as its computation on a device's share of the batch, a line
in that share, measured here on one device from a quarter of the batch to all of it (for
smaller shares it is extrapolated), and after it a ring all-reduce of the
gradients. Assumed: devices and links that are all alike, links at their full rate both
ways, float32 gradients in one piece that wait for the whole backward pass. Not counted:
reading the data, batch statistics, and waiting for the slowest.
"""

import argparse
import csv
import math
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

try:
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from benchmarks import figures
    from kdrop.layers import InvertedDropout
    from kdrop.models import MODELS
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(f"benchmarks.scaling: {missing}: pip install '.[train]'", file=sys.stderr)
    sys.exit(2)

DEVICES = [2**n for n in range(11)]
# Of one device where each has its own (weak scaling), of all where they share it.
BATCHES = {
    "spiral_mlp": 300, "mnist_mlp": 128, "concat_mlp": 128,
    "alexnet32": 64, "srivastava_cnn": 64, "alexnet": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """A network's training step on one device."""

    fixed: float  # seconds, whatever the batch
    each: float  # seconds for each example
    size: int  # bytes of the gradients


@dataclass(frozen=True)
class Link:
    """What joins a device to the next of the ring."""

    bandwidth: float  # bytes a second
    latency: float  # seconds that a message takes besides


LINKS = {
    "1 Gbit/s": Link(0.125e9, 50e-6),
    "10 Gbit/s": Link(1.25e9, 20e-6),
    "100 Gbit/s": Link(12.5e9, 5e-6),
}


def step_seconds(cost: Cost, batch: int, devices: int, link: Link) -> float:
    """Seconds of a training step on `batch` examples that `devices` share.

    The ring takes 2 (devices - 1) messages, each with one of `devices` equal pieces of
    the gradients; nothing on one device. A batch that cannot be shared evenly takes as
    long as its largest share.
    Reference: [Patarasuk and Yuan, 2009](https://doi.org/10.1016/j.jpdc.2008.09.002)
    """
    computation = cost.fixed + cost.each * math.ceil(batch / devices)
    message = cost.size / devices / link.bandwidth + link.latency
    return computation + 2 * (devices - 1) * message


def expected(costs: Mapping[str, Cost], batches: Mapping[str, int]) -> list[dict]:
    """A row for each network, link and number of devices, by weak and strong scaling.

    `times` is the throughput, as a multiple of that of one device.
    """
    rows = []
    for scaling in "weak", "strong":
        for name, cost in costs.items():
            alone = cost.fixed + cost.each * batches[name]
            for link, joined in LINKS.items():
                for devices in DEVICES:
                    more = devices if scaling == "weak" else 1
                    batch = batches[name] * more
                    seconds = step_seconds(cost, batch, devices, joined)
                    rows.append(
                        {
                            "network": name,
                            "scaling": scaling,
                            "link": link,
                            "devices": devices,
                            "batch": batch,
                            "seconds": seconds,
                            "times": more * alone / seconds,
                        }
                    )
    return rows


def measure(name: str, batch: int, rounds: int = 5) -> Cost:
    """Time a network's steps on this device at up to `batch` examples."""
    import tensorflow as tf

    model = MODELS[name](InvertedDropout)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.make_train_function()
    random = np.random.default_rng(0)
    sizes, medians = [batch // 4, batch // 2, batch], []
    for size in sizes:
        inputs = random.normal(size=(size, *model.input_shape[1:])).astype("float32")
        targets = random.integers(model.output_shape[-1], size=size)
        feed = iter(tf.data.Dataset.from_tensors((inputs, targets)).repeat())
        model.train_function(feed)  # traces and compiles

        def timed(steps, feed=feed):
            start = time.perf_counter()
            for _ in range(steps):
                model.train_function(feed)
            return (time.perf_counter() - start) / steps

        steps = math.ceil(0.1 / timed(1))
        medians.append(statistics.median(timed(steps) for _ in range(rounds)))
    each, fixed = np.polyfit(sizes, medians, 1, w=1 / np.array(medians))
    if fixed < 0:  # the line from the origin that fits best
        each, fixed = statistics.fmean(np.divide(medians, sizes)), 0.0
    weights = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    return Cost(float(fixed), float(each), 4 * weights)


def show(rows: Iterable[dict], console: Console) -> None:
    rows = list(rows)
    batches = {"weak": "each device its own batch", "strong": "all share one batch"}
    for scaling, words in batches.items():
        table = Table(title=f"{scaling} scaling, {words}: throughput, times one device")
        for column in "network", "link":
            table.add_column(column, no_wrap=True)
        for devices in DEVICES[1:]:
            table.add_column(f"{devices:,}", justify="right")
        found: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            if row["scaling"] == scaling and row["devices"] > 1:
                times = f"{row['times']:{'.0f' if row['times'] >= 99.5 else '.2g'}}"
                found.setdefault((row["network"], row["link"]), []).append(times)
        last = None
        for (name, link), times in found.items():
            table.add_row("" if name == last else name, link, *times)
            last = name
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, help="write the rows to this file")
    parser.add_argument("--picture", type=Path, help="draw the rows in this PNG")
    options = parser.parse_args()
    for path in filter(None, (options.csv, options.picture)):
        if not path.parent.is_dir():
            parser.error(f"{path.parent} is not a folder: make it first")
    console = Console(width=None if sys.stdout.isatty() else 120)
    costs = {}
    for name, batch in BATCHES.items():
        cost = costs[name] = measure(name, batch)
        console.print(
            f"{name}: {1e3 * cost.fixed:.3g} ms a step and {1e3 * cost.each:.3g} ms an "
            f"example (to {batch}), {cost.size / 1e6:.3g} MB of gradients",
            highlight=False,
        )
    rows = expected(costs, BATCHES)
    show(rows, console)
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    if options.picture:
        figures.scaling(options.picture, rows)


if __name__ == "__main__":
    main()
