"""Many training runs in several processes, resumable.

A finished run is a JSON file, an unfinished one a checkpoint. A process has its share
of the cores: networks of this size gain little from a second core.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import keras
import tensorflow as tf
from rich.console import Console
from rich.progress import track

from kdrop.errors import UserError
from kdrop.training.checkpoint import Checkpoint, write
from kdrop.training.data import Data, load
from kdrop.training.experiment import Experiment
from kdrop.training.run import Run, train

Metrics = dict[str, float]
Measure = Callable[[Run, Data], Mapping[str, float]]


class Runner:
    """Trains experiments in `jobs` processes, as a context.

    `folder` is for the finished runs and the checkpoints of the others, and `measure`
    computes further metrics of a run.
    """

    def __init__(
        self, folder: Path, measure: Measure | None, jobs: int, console: Console,
        data_dir: Path | None = None,
    ):  # fmt: skip
        self.folder, self.console = folder, console
        self.commits: dict[Experiment, str] = {}  # that each run was made with
        self.arguments = folder, measure, data_dir
        threads = max(1, usable_cores() // jobs)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # of the workers
        context = multiprocessing.get_context("spawn")  # TensorFlow cannot be forked
        self.pool = ProcessPoolExecutor(jobs, context, _start_worker, (threads,))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is not None:  # the checkpoints suffice to resume
            for process in multiprocessing.active_children():
                process.kill()
        self.pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            message = "A process has died, perhaps for lack of memory: run the same "
            raise UserError(f"{message}command again, or with --jobs 1.") from error

    def run(self, names: Mapping[Experiment, str]) -> dict[Experiment, Metrics]:
        """The metrics of each experiment; its name is for the printed line."""
        metrics, futures = {}, {}
        for experiment in names:
            path = self.folder / f"{experiment.key()}.json"
            if path.exists():
                try:
                    row = json.loads(path.read_text())
                    self.commits[experiment] = row.get("commit", "unknown")
                    read = row["metrics"]
                    metrics[experiment] = {k: float(read[k]) for k in read}
                    metrics[experiment]["validation_accuracy"]
                except Exception as error:  # a damaged file can raise anything
                    message = f"{path} cannot be read: delete it to repeat its run."
                    raise UserError(message) from error
            else:
                future = self.pool.submit(_run, experiment, path, *self.arguments)
                futures[future] = experiment
        for future in track(
            as_completed(futures), "", len(futures), console=self.console,
            transient=True, disable=not self.console.is_terminal,
        ):  # fmt: skip
            result = metrics[futures[future]] = future.result()
            self.commits[futures[future]] = commit()
            accuracy = f"validation accuracy {result['validation_accuracy']:.4f}"
            self.console.print(f"{names[futures[future]]}  {accuracy}", highlight=False)
        return metrics


def usable_cores() -> int:
    """The processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # of Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _start_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study's process handles it
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent():  # or a resumed study would train the same run twice at once
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


_load = lru_cache(maxsize=2)(load)  # the runs of a study share their data


def _run(experiment: Experiment, path: Path, folder, measure, data_dir) -> Metrics:
    """Train or resume a run, measure it, and save its metrics in `path`."""
    sizes = experiment.train_size, experiment.validation
    data = _load(experiment.data, *sizes, experiment.data_seed, data_dir)
    checkpoint = Checkpoint(folder / experiment.key())
    run = train(experiment, data, checkpoint)
    metrics = {**run.metrics, **(measure(run, data) if measure else {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {"commit": commit(), "experiment": asdict(experiment), "metrics": metrics}
    write(path, json.dumps(row, indent=1))
    checkpoint.discard()
    keras.utils.clear_session()
    return metrics


def commit() -> str:
    """The commit of the checkout, marked if files differ from it."""
    command = "git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"
    try:
        git = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return git.stdout.strip() or "unknown"
