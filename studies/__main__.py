"""The command line of the studies."""

import argparse
import signal
import sys
from pathlib import Path

try:
    from rich.console import Console

    import studies
    from kdrop.errors import UserError, check_choice
    from kdrop.serving.saved_model import check_writable
    from kdrop.training.experiment import load_data
    from studies.cifar import alexnet, family
    from studies.mnist import rate, regularisers, votes
    from studies.runner import MOST_JOBS, Runner, cores
    from studies.spiral import spiral
    from studies.study import answer, search_table, settings, table, write
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(f"studies: {missing}: pip install '.[train]'", file=sys.stderr)
    sys.exit(2)

STUDIES = {
    study.__name__: study
    for study in (regularisers, rate, votes, family, spiral, alexnet)
}


def conduct(
    name: str,
    size: str,
    output: Path,
    jobs: int,
    console: Console,
    data_dir: Path | None = None,
) -> Path:
    """Run what is left of a study, show its table, write its CSV and its figure.

    Returns:
        The study's folder.
    """
    check_choice("study", name, STUDIES)
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}, but must be at least 1.")
    study = STUDIES[name](size)
    folder = output / (name if size == "default" else f"{name}-{size}")
    check_writable(folder)
    load_data(study.arms[0].candidates[0], data_dir)  # one process alone downloads
    console.print(f"{study.question}  {study.runs} runs, {jobs} at once")
    for arm in study.arms:
        if len(arm.candidates) > 1:
            words = "; ".join(settings(arm).values())
            console.print(f"{arm.label}  one of: {words}", highlight=False)
    with Runner(folder, study.measure, study.work, jobs, console, data_dir) as runner:
        results = answer(study, runner)
    if (searched := search_table(results)).row_count:
        console.print(searched)
    console.print(table(study, results))
    write(folder / f"{name}.csv", results)
    finding = study.draw(folder / f"{name}.png", results)
    console.print(finding, highlight=False)
    if size == "quick":
        console.print("A first look: too few steps for dropout to be judged.")
    return folder


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}.")


def main() -> int:
    parser = _Parser(
        "studies",
        description=studies.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help=f"one of {', '.join(STUDIES)}")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--quick", action="store_true", help="a first look, too short for findings"
    )
    sizes.add_argument(
        "--full", action="store_true", help="the paper's own size, or more"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("studies"),
        help="a folder for the studies' own; default: %(default)s",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(cores(), MOST_JOBS),
        help="runs at once; default: %(default)s",
    )
    parser.add_argument(
        "--data-dir", type=Path, help="of tensorflow-datasets; default: TFDS_DATA_DIR"
    )
    console = Console(width=None if sys.stdout.isatty() else 120)
    for stop in signal.SIGINT, signal.SIGTERM:
        signal.signal(stop, signal.default_int_handler)
    try:
        options = parser.parse_args()
        size = "quick" if options.quick else "full" if options.full else "default"
        folder = conduct(
            options.name, size, options.output, options.jobs, console, options.data_dir
        )
    except (UserError, ModuleNotFoundError, OSError) as error:
        print(f"studies: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command goes on.", file=sys.stderr)
        return 130
    console.print(f"written {folder}", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
