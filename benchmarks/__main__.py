"""Each claim about speed, measured: `python -m benchmarks [CLAIM ...]`.

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
from collections.abc import Iterable
from pathlib import Path

try:
    from rich.console import Console
    from rich.table import Table

    from benchmarks import CLAIMS, figures
    from benchmarks.claim import Claim
    from kdrop.errors import UserError
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(f"benchmarks: {missing}: pip install '.[train]'", file=sys.stderr)
    sys.exit(2)

UNITS = {"ms": 1e3, "ns": 1e9, "MiB": 2**-20}  # of a second, and of a byte


def measure(claim: Claim) -> dict[str, float]:
    """Median of each variant in this process, after the rounds to warm up."""
    variants = claim.variants()
    values: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(-claim.warm_up, claim.rounds):
        # Every second round backwards, so that none always follows the same other.
        names = list(reversed(variants)) if turn % 2 else list(variants)
        for name in names:
            found = variants[name]()
            if turn >= 0:
                values[name].append(found)
    return {name: statistics.median(found) for name, found in values.items()}


def compare(name: str, processes: int) -> list[dict]:
    """Measure a claim in fresh processes: one row for each variant."""
    found = []
    for _ in range(processes):
        command = [sys.executable, "-m", "benchmarks", "--here", name]
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if told.returncode:
            raise UserError(f"{name} cannot be measured; the reason stands above.")
        found.append(json.loads(told.stdout.splitlines()[-1]))
    claim = CLAIMS[name]
    rows = []
    for variant in found[0]:
        ratios = [values[variant] / values[claim.rival] for values in found]
        middle = statistics.median(values[variant] for values in found)
        rows.append(
            {
                "claim": name,
                "work": claim.work,
                "rival": claim.rival,
                "variant": variant,
                "value": middle * UNITS[claim.unit],
                "unit": claim.unit,
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "accepted": claim.accepted.get(variant),
                "processes": processes,
            }
        )
    return rows


def show(rows: Iterable[dict], console: Console) -> None:
    table = Table(title="ratio to the first of each: median (range) of the processes")
    table.add_column("work")
    table.add_column("variant")
    for column in ("measured", "ratio", "accepted"):
        table.add_column(column, justify="right")
    last = None
    for row in rows:
        spread = f"{row['ratio_min']:.3g} to {row['ratio_max']:.3g}"
        limit = row["accepted"]
        accepted = "" if limit is None else f"{limit:g}"
        if limit is not None and row["ratio"] > limit:
            accepted += " [bold red]exceeded[/]"
        table.add_row(
            row["work"] if row["claim"] != last else "",
            row["variant"],
            f"{row['value']:.3g} {row['unit']}",
            f"{row['ratio']:.3g} ({spread})",
            accepted,
        )
        last = row["claim"]
    console.print(table)


def main() -> int:
    words = dict.fromkeys(name.split()[0] for name in CLAIMS)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("claims", nargs="*", help=f"of {', '.join(words)}; else all")
    parser.add_argument("--processes", type=int, default=5, help="for each claim")
    parser.add_argument("--csv", type=Path, help="write the rows to this file")
    parser.add_argument("--picture", type=Path, help="draw the ratios in this PNG")
    parser.add_argument("--here", choices=CLAIMS, help="measure once, print JSON")
    options = parser.parse_args()
    if options.here:
        try:
            print(json.dumps(measure(CLAIMS[options.here])))
        except UserError as error:
            sys.exit(f"benchmarks: {error}")
        return 0
    if options.processes < 1:
        parser.error(f"--processes is {options.processes}, but must be at least 1")
    for path in filter(None, (options.csv, options.picture)):
        if not path.parent.is_dir():
            parser.error(f"{path.parent} is not a folder: make it first")
    unknown = [name for name in options.claims if name not in words | CLAIMS]
    if unknown:
        parser.error(f"no claim {', '.join(unknown)}; there are {', '.join(words)}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    rows, failed = [], 0
    for name in CLAIMS:
        if not options.claims or {name, name.split()[0]} & {*options.claims}:
            try:
                rows += compare(name, options.processes)
            except UserError as error:  # the others' figures are not to be lost
                print(f"benchmarks: {error}", file=sys.stderr)
                failed = 2
    if not rows:
        return failed
    show(rows, console)
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    if options.picture:
        figures.ratios(options.picture, rows)
    return failed


if __name__ == "__main__":
    sys.exit(main())
