"""The command line of the studies."""

import argparse
import sys
from pathlib import Path

from kdrop.errors import check_choice, one_sentence, stop_on_signals

with one_sentence("studies", "train"):
    from rich.console import Console

    from kdrop.serving.versions import check_writable
    from kdrop.training.checkpoint import lock
    from kdrop.training.fields import check
    from kdrop.training.run import load_data
    from studies.cifar import alexnet, family, recipe, residual
    from studies.mnist import mnist, rate, regularisers, votes
    from studies.runner import Runner, usable_cores
    from studies.spiral import points, spiral
    from studies.study import answer, settings, table, write

QUESTIONS = (
    spiral, points, votes, rate, regularisers, mnist, alexnet, family, recipe, residual
)  # fmt: skip
STUDIES = {question.__name__: question for question in QUESTIONS}


def conduct(
    name: str, quick: bool, output: Path, jobs: int, console: Console,
    data_dir: Path | None = None,
) -> Path:  # fmt: skip
    """Run or resume a study, print its table, write its CSV and its figure."""
    check_choice("study", name, STUDIES)
    check("--jobs", jobs, "[1, 256]")
    study = STUDIES[name](quick)
    folder = output / (f"{name}-quick" if quick else name)
    check_writable(folder)
    load_data(study.arms[0].candidates[0], data_dir)  # only one process downloads
    console.print(f"{study.question}  {study.runs} runs, {jobs} at once")
    for arm in study.arms:
        if len(arm.candidates) > 1:
            console.print(f"{arm.label}  one of:", "; ".join(settings(arm).values()))
    runs = folder / "runs"
    with lock(runs), Runner(runs, study.measure, jobs, console, data_dir) as runner:
        results = answer(study, runner)
    console.print(table(study, results))
    write(folder / f"{name}.csv", results, runner.commits)
    console.print(study.draw(folder / f"{name}.png", results), highlight=False)
    if quick:
        console.print("Too few steps to judge dropout: see the default size.")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(
        "studies", description="What dropout does on real data: see studies/README.md."
    )
    add = parser.add_argument
    add("name", help=f"one of {', '.join(STUDIES)}")
    add("--quick", action="store_true", help="a first look, too short for findings")
    add("--output", type=Path, default=Path("studies/results"), help="folder")
    jobs = min(usable_cores(), 8)  # each holds the data set in memory
    add("--jobs", type=int, default=jobs, help="runs at once; default: %(default)s")
    add("--data-dir", type=Path, help="of tensorflow-datasets; default: TFDS_DATA_DIR")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    stop_on_signals()
    try:
        with one_sentence("studies", "train"):
            folder = conduct(console=console, **vars(options))
    except KeyboardInterrupt as stopped:
        print("Stopped: run the same command again to resume.", file=sys.stderr)
        return next(iter(stopped.args), 130)
    console.print(f"written to {folder}", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
