"""Many runs, several at once, each kept when it is finished.

A run is a process's own, with its share of the cores: networks of this size gain little
from a second core. Two side by side, a thread for each, made 1.7 times the steps of one
with two threads.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import keras
import tensorflow as tf
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from kdrop.errors import UserError
from kdrop.training.data import Data
from kdrop.training.experiment import Experiment, Run, load_data, train
from kdrop.training.progress import Recorder, Unfinished, duration

FINISHED, UNFINISHED = "finished", "unfinished"  # folders
MOST_JOBS = 8  # of which each holds the data set
POLL_SECONDS = 1.0

Metrics = dict[str, float]
Measure = Callable[[Run, Data], Mapping[str, float]]


class Runner:
    """Gives the metrics of experiments, trained if they are not finished yet.

    Args:
        folder: Where a file for each finished run is kept, and the last epoch of those
            that are not finished: a killed study goes on with both.
        measure: Further metrics of a run, or `None`.
        work: The sum of `effort` over all that will be asked for, for the time left.
        jobs: How many runs go on at once.
        data_dir: Of tensorflow-datasets.

    Use it as a context: at its end the other processes are gone.

    Raises:
        UserError: A kept run that cannot be read, or a run's process that has died.
    """

    def __init__(
        self,
        folder: Path,
        measure: Measure | None,
        work: float,
        jobs: int,
        console: Console,
        data_dir: Path | None = None,
    ):
        self.folder, self.measure, self.data_dir = folder, measure, data_dir
        self.console = console
        self.known: dict[Experiment, Metrics] = {}
        self.work, self.done, self.resumed = work, 0.0, 0.0
        self.started = time.perf_counter()
        self.pool = ProcessPoolExecutor(
            jobs,
            multiprocessing.get_context("spawn"),  # TensorFlow cannot be forked
            initializer=_begin,
            initargs=(max(1, cores() // jobs),),
        )
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=600,
        )

    def __enter__(self):
        self.bar.start()
        self.task = self.bar.add_task("", total=self.work)
        return self

    def __exit__(self, *error):
        self.bar.stop()
        if error[0] is not None:  # what has been kept of their runs is enough
            for process in multiprocessing.active_children():
                process.kill()
        self.pool.shutdown(cancel_futures=True)
        if isinstance(error[1], BrokenProcessPool):
            raise UserError(
                "A run's process ended unexpectedly (too little memory?): the same "
                "command goes on, with --jobs 1 if need be."
            ) from error[1]

    def run(self, experiments: Mapping[str, Experiment]) -> dict[Experiment, Metrics]:
        """The metrics of each of the experiments; their names are for the lines."""
        before = self.resumed
        for experiment in experiments.values():
            path = self._path(experiment)
            if experiment not in self.known and path.exists():
                self.known[experiment] = _read(path)
                self.done += effort(experiment)
                self.resumed += effort(experiment)
        names = {
            experiment: name
            for name, experiment in experiments.items()
            if experiment not in self.known
        }
        arguments = self.folder, self.measure, self.data_dir
        with _silence():
            running = {self.pool.submit(_run, each, *arguments): each for each in names}
        self.resumed += sum(map(self._part, names))
        if self.resumed > before:  # or it would seem to be the work of a moment
            self.bar.reset(self.task, completed=round(self._reached(names)))
        while running:
            finished, _ = wait(running, POLL_SECONDS, return_when="FIRST_COMPLETED")
            for future in finished:
                experiment = running.pop(future)
                self.known[experiment] = future.result()
                self.done += effort(experiment)
                self._tell(names[experiment], experiment, running.values())
            self.bar.update(self.task, completed=self._reached(running.values()))
        return {each: self.known[each] for each in experiments.values()}

    def _path(self, experiment: Experiment) -> Path:
        return self.folder / FINISHED / f"{experiment.key()}.json"

    def _part(self, experiment: Experiment) -> float:
        """The effort that a run which goes on has behind it."""
        history = self.folder / UNFINISHED / experiment.key() / "history.json"
        with contextlib.suppress(OSError, ValueError, LookupError):  # not there yet
            reached = json.loads(history.read_text())["epoch"][-1]
            return effort(experiment) * reached / experiment.resolved().epochs
        return 0.0

    def _reached(self, running: Iterable[Experiment]) -> float:
        return self.done + sum(map(self._part, running))

    def _tell(self, name, experiment, running):
        reached = self._reached(running)
        seconds = time.perf_counter() - self.started
        # A run that goes on repeats what came after its last kept epoch.
        new = reached - self.resumed
        left = "some time"
        if new > 0.001 * self.work:
            left = duration(seconds / new * max(self.work - reached, 0))
        accuracy = self.known[experiment]["validation_accuracy"]
        self.console.print(
            f"{name}  val {accuracy:.4f}  {100 * reached / self.work:.0f} % done, "
            f"{left} left",
            soft_wrap=True,
            highlight=False,
        )


def cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def effort(experiment: Experiment) -> float:
    """About how long a run takes, in a unit that only comparisons know."""
    settings = experiment.resolved()
    wide = sum(settings.hidden or ()) + 200  # what does not grow with the widths
    return settings.epochs * settings.train_size * wide


def _read(path: Path) -> Metrics:
    try:
        return json.loads(path.read_text())["metrics"]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read: delete it, and its run is trained again."
        ) from error


@contextlib.contextmanager
def _silence():
    """Let processes that begin in here write no errors: TensorFlow's start is loud."""
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


def _begin(threads: int) -> None:
    """What a process does before its first run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study's own process is told
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_it():  # or two would go on with one run when the study is started anew
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()


def _run(
    experiment: Experiment, folder: Path, measure: Measure | None, data_dir: Path | None
) -> Metrics:
    """Train what is left of the run, measure it, and keep what was found."""
    settings = experiment.resolved()
    parts = ("data", "train_size", "validation", "data_seed")
    data = _data(Experiment(**{p: getattr(settings, p) for p in parts}), data_dir)
    unfinished = Unfinished(folder / UNFINISHED / experiment.key())
    run = train(experiment, data, unfinished, Recorder(Console(quiet=True), ""))
    metrics = {**run.metrics, **(measure(run, data) if measure else {})}
    path = folder / FINISHED / f"{experiment.key()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    row = {"experiment": asdict(settings), "metrics": metrics}
    partial.write_text(json.dumps(row, indent=1))
    partial.replace(path)
    unfinished.discard()
    keras.utils.clear_session()
    return metrics


@lru_cache(maxsize=2)
def _data(experiment: Experiment, data_dir: Path | None) -> Data:
    return load_data(experiment, data_dir)
