"""The command line of the benchmarks."""

import argparse
import csv
import json
import sys
from pathlib import Path

from rich.console import Console

from kdrop.errors import UserError, check_choice, one_sentence

with one_sentence("benchmarks", "train,serve"):
    from benchmarks import harness, inference, layers, scaling, training
    from kdrop.training.fields import check

SUBJECTS = {**layers.SUBJECTS, **inference.SUBJECTS, **training.SUBJECTS}
COMPARISONS = {n: c for subject in SUBJECTS.values() for n, c in subject.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        "benchmarks", description="Measure what kdrop costs. See benchmarks/README.md."
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME",
        help=f"{', '.join(SUBJECTS)}, scaling (a model of many devices), or one "
        f"comparison of a subject: {', '.join(COMPARISONS)}; default: all",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, default=5, help="for each comparison")
    parser.add_argument("--csv", type=Path, help="file for the rows of the comparisons")
    parser.add_argument("--in-process", choices=COMPARISONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.names or [*SUBJECTS, "scaling"]
    with one_sentence("benchmarks", "train,serve"):
        if options.in_process:
            print(json.dumps(harness.measure(COMPARISONS[options.in_process])))
            return 0
        for name in names:
            check_choice("benchmark", name, [*SUBJECTS, "scaling", *COMPARISONS])
        check("--processes", options.processes, "[1, 1000]")
        if options.csv:
            options.csv.open("a").close()
    console = Console(width=None if sys.stdout.isatty() else 120)
    rows, code = [], 0
    for name in [n for each in names for n in SUBJECTS.get(each, [each])]:
        try:
            if name == "scaling":
                scaling.report(console)
            else:
                rows += harness.compare(name, COMPARISONS[name], options.processes)
        except UserError as error:  # the other comparisons go on
            print(f"benchmarks: {error}", file=sys.stderr)
            code = 2
    if rows:
        console.print(harness.table(rows))
    if rows and options.csv:
        with options.csv.open("w", newline="") as file:
            csv.writer(file).writerows([rows[0], *(row.values() for row in rows)])
    return code


if __name__ == "__main__":
    sys.exit(main())
