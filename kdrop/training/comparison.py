"""Train experiments side by side with several seeds, report, export the best seeds."""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from kdrop.ensemble.calibration import vote
from kdrop.errors import UserError
from kdrop.serving.versions import check_name, check_writable, remove_partial, versions
from kdrop.training.checkpoint import Checkpoint, check_folder, lock, write
from kdrop.training.data import Data
from kdrop.training.devices import Devices
from kdrop.training.experiment import Experiment
from kdrop.training.export import draw_comparison, export_best
from kdrop.training.fields import check_settings, setting
from kdrop.training.report import results_table, vote_table
from kdrop.training.run import (
    Run,
    SeedRuns,
    load_data,
    network,
    train,
)

CHECKPOINTS = ".unfinished"  # below the output folder; no model server reads it
MAX_RUNS = 500  # each holds the file of its lock
# Test examples of the vote: 50 samples of 1,000 CIFAR-10 images take about a minute.
VOTE_SIZES = {"spiral": 3000, "cifar10": 1000, "mnist": 10000}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What to train and compare, and where the models go."""

    experiments: Sequence[Experiment]  # of one data set
    seeds: int = setting(1, "runs of each layer, with seeds from `seed` on", "[1, 100]")
    passes: int = setting(50, "Monte Carlo samples that vote, 0: no vote", "[0, 10000]")
    vote_size: int = setting(1000, "test examples to vote on", "[1, 1000000]")
    output: Path = setting(Path("saved_models"), "folder of the models")
    name: str | None = setting(
        None,
        "of the model's folder; of several, what it begins with",
        "",
        "data set and layer",
    )
    resume: bool = setting(False, "continue after the last saved epoch")
    tensorboard: Path | None = setting(None, "folder for TensorBoard", "", "no logs")
    data_dir: Path | None = setting(None, "folder of data sets", "", "TFDS_DATA_DIR")

    def __post_init__(self):
        check_settings(self)
        if len(self.runs()) > MAX_RUNS:
            rule = f"must make at most {MAX_RUNS} runs, not {len(self.runs())}"
            raise UserError(f"`seeds` is {self.seeds}, but with these layers {rule}.")
        if self.name is not None:
            try:
                for name in (self.name, *(folder.name for folder in self.folders())):
                    check_name(name)
            except UserError as error:
                raise UserError(f"`name` is wrong: {error}") from None

    def folders(self) -> list[Path]:
        """The folder of each experiment's model."""
        names = [experiment.slug() for experiment in self.experiments]
        if self.name is not None:
            prefix = self.experiments[0].data
            names = [self.name + name.removeprefix(prefix) for name in names]
            names = [self.name] if len(names) == 1 else names
        return [self.output / name for name in names]

    def seeded(self, experiment: Experiment) -> list[Experiment]:
        """The runs of an experiment, one for each seed."""
        seeds = range(experiment.seed, experiment.seed + self.seeds)
        return [replace(experiment, seed=seed) for seed in seeds]

    def runs(self) -> list[Experiment]:
        return [run for each in self.experiments for run in self.seeded(each)]

    def checkpoint(self, experiment: Experiment) -> Checkpoint:
        return Checkpoint(self.output / CHECKPOINTS / experiment.key())

    def can_resume(self) -> bool:
        """Whether an epoch of a run is saved, or a comparison was not cleaned up."""
        saved = any(self.checkpoint(run).saved for run in self.runs())
        return saved or bool(self.exported())

    @property
    def mark(self) -> Path:
        """The file that lists the exported versions until the checkpoints are gone."""
        names = [run.key() for run in self.runs()] + [x.name for x in self.folders()]
        digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
        return self.output / f".exported-{digest[:16]}"

    def exported(self) -> list[Path]:
        """The versions that `mark` lists, if all of them are there."""
        with contextlib.suppress(Exception):  # a damaged file can raise anything
            paths = [self.output / x for x in json.loads(self.mark.read_text())]
            if len(paths) == len(self.experiments) and all(map(_is_version, paths)):
                return paths
        return []


def compare(comparison: Comparison, devices: Devices, console: Console) -> list[Path]:
    """Train each experiment with each seed, print tables, export the best seeds.

    Checkpoints are deleted only after all exports, so that a stopped comparison can be
    resumed. Of several processes only the first prints and exports. Returns the path
    of each experiment's exported version.
    """
    names = ", ".join(each.dropout for each in comparison.experiments)
    shared = {"seeds": comparison.seeds, "resume": comparison.resume, "dropout": names}
    for settings in (shared, *map(asdict, comparison.experiments)):
        devices.check_equal(settings)
    if devices.process:
        with tempfile.TemporaryDirectory() as folder:
            comparison = replace(comparison, output=Path(folder), tensorboard=None)
            if not devices.agree(False):
                _train_all(comparison, _load(comparison), devices, Console(quiet=True))
        return []
    check_writable(comparison.output)
    for folder in comparison.folders():
        check_folder(folder)
        if folder.exists():
            check_writable(folder)
    if comparison.tensorboard is not None:
        check_writable(comparison.tensorboard)
    try:
        with _locked(comparison):
            paths = comparison.exported() if comparison.resume else []
            if not devices.agree(bool(paths)):  # else the clean-up was interrupted
                comparison.mark.unlink(missing_ok=True)
                paths = _train_and_export(comparison, devices, console)
                names = [str(path.relative_to(comparison.output)) for path in paths]
                write(comparison.mark, json.dumps(names))
            checkpoints = [x for path in paths for x in _record(path)["checkpoints"]]
            for checkpoint in map(comparison.checkpoint, comparison.runs()):
                # Another command may have begun the run anew.
                if checkpoint.digest() in ["", *checkpoints]:
                    checkpoint.discard()
            for folder in comparison.folders():
                remove_partial(folder)
        comparison.mark.unlink(missing_ok=True)  # last: nothing is left to be deleted
        return paths
    except (OSError, MemoryError, tf.errors.ResourceExhaustedError) as error:
        reason = (str(error) or "The memory is full").splitlines()[0]
        saved = comparison.can_resume()
        hint = "; `resume` continues from the last checkpoint" if saved else ""
        raise UserError(f"{reason}{hint}") from error


@contextlib.contextmanager
def _locked(comparison: Comparison) -> Generator[None]:
    """Keep other processes from the comparison's runs."""
    folder = comparison.output / CHECKPOINTS
    check_folder(folder)
    try:
        with contextlib.ExitStack() as locks:
            for run in dict.fromkeys(comparison.runs()):
                locks.enter_context(lock(comparison.checkpoint(run).folder))
            yield
    finally:
        with contextlib.suppress(OSError):  # not empty: it has checkpoints
            folder.rmdir()


def _train_and_export(
    comparison: Comparison, devices: Devices, console: Console
) -> list[Path]:
    data = _load(comparison)
    results = _train_all(comparison, data, devices, console)
    console.print(results_table(results))
    if any(result.best.vote is not None for result in results):
        console.print(vote_table(results, data))
    with tempfile.TemporaryDirectory() as pictures:
        draw_comparison(results, data, Path(pictures))
        return _export_all(comparison, results, data, Path(pictures))


def _export_all(comparison, results, data, pictures: Path) -> list[Path]:
    paths = []
    for result, folder in zip(results, comparison.folders(), strict=True):
        checkpoints = [comparison.checkpoint(run.experiment) for run in result.runs]
        record = {
            "passes": comparison.passes,
            "voted_on": min(comparison.vote_size, len(data.test.targets)),
            "checkpoints": [checkpoint.digest() for checkpoint in checkpoints],
        }
        paths.append(
            _version_with(record, folder)
            or export_best(result, data, folder, record, pictures)
        )
    return paths


def _version_with(record: dict[str, Any], folder: Path) -> Path | None:
    """The version that was exported with this record, from these checkpoints."""
    for path in versions(folder).values():
        if _is_version(path) and record.items() <= _record(path).items():
            return path
    return None


def _record(version: Path) -> dict[str, Any]:
    """What `experiment.json` of a version records; without it, no checkpoints."""
    with contextlib.suppress(Exception):  # a damaged file can raise anything
        record = json.loads((version / "experiment.json").read_text())
        return {**record, "checkpoints": list(record["checkpoints"])}
    return {"checkpoints": []}


def _is_version(path: Path) -> bool:
    return (path / "saved_model.pb").exists()


def _load(comparison: Comparison) -> Data:
    """The data set, after a check that all networks can be built for it."""
    data = load_data(comparison.experiments[0], comparison.data_dir)
    for experiment in comparison.experiments:
        network(experiment, data)
    return data


def _train_all(
    comparison: Comparison, data: Data, devices: Devices, console: Console
) -> list[SeedRuns]:
    results = []
    for experiment in comparison.experiments:
        runs: list[Run] = []
        for seeded in comparison.seeded(experiment):
            runs.append(_train_one(seeded, comparison, data, devices, console))
            # Only one model is held in memory, whatever the number of seeds.
            best = SeedRuns(runs).best
            runs = [r if r is best else replace(r, model=None, vote=None) for r in runs]
        results.append(SeedRuns(runs))
    return results


def _train_one(experiment, comparison, data, devices, console) -> Run:
    """Train or resume one run, and let its Monte Carlo samples vote."""
    suffix = f" seed {experiment.seed}" if comparison.seeds > 1 else ""
    label = experiment.dropout + suffix
    checkpoint = comparison.checkpoint(experiment)
    if comparison.resume:
        if not checkpoint.saved:
            console.print(f"{label}  nothing to resume with these settings")
        devices.broadcast_folder(checkpoint.folder)
    elif checkpoint.discard():
        console.print(f"{label}  starts from epoch 1 and deletes what was saved")
    callbacks = []
    if comparison.tensorboard is not None:
        folder = comparison.tensorboard / experiment.key()
        callbacks.append(keras.callbacks.TensorBoard(folder, write_graph=False))
    run = train(
        experiment, data, checkpoint, console=console, label=label,
        callbacks=callbacks, devices=devices,
    )  # fmt: skip
    # The first process alone cannot compute on the devices of all.
    if not comparison.passes or devices.processes > 1:
        return run
    part = data.test.first(comparison.vote_size)
    seed, verbose = experiment.seed, int(console.is_terminal)
    model: Any = run.model
    inputs, scaled = np.float32(part.inputs), run.probabilities[: len(part.targets)]
    result = vote(model, inputs, scaled, comparison.passes, seed, verbose)
    if result is None:
        return run
    metrics = {**run.metrics, **result.metrics(part.targets)}
    return replace(run, metrics=metrics, vote=result)
