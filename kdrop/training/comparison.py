"""Train experiments side by side with several seeds, report, export the best seeds."""

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from kdrop.ensemble.calibration import vote
from kdrop.errors import UserError
from kdrop.serving.versions import check_writable
from kdrop.training.checkpoint import Checkpoint
from kdrop.training.data import Data
from kdrop.training.devices import Devices
from kdrop.training.experiment import Experiment
from kdrop.training.export import export_best
from kdrop.training.pipeline import batches
from kdrop.training.report import results_table, vote_table
from kdrop.training.run import (
    EVALUATION_BATCH,
    Run,
    SeedRuns,
    load_data,
    network,
    train,
)
from kdrop.training.settings import check_settings, setting

CHECKPOINTS = ".unfinished"  # below the output folder; no model server reads it
# Test examples of the vote: 50 samples of 1,000 CIFAR-10 images take about a minute.
VOTE_SIZES = {"spiral": 3000, "cifar10": 1000, "mnist": 10000}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What to train and compare, and where the models go."""

    experiments: Sequence[Experiment]  # of one data set
    seeds: int = setting(
        1, "runs of each layer, with seeds from `seed` on", "[1, 1000]"
    )
    passes: int = setting(50, "Monte Carlo samples that vote, 0: no vote", "[0, 10000]")
    vote_size: int = setting(1000, "test examples to vote on", "[1, 1000000]")
    output: Path = setting(Path("saved_models"), "folder of the models")
    name: str | None = setting(None, "of the model's folder", "", "data set and layer")
    resume: bool = setting(False, "continue after the last saved epoch")
    tensorboard: Path | None = setting(None, "folder for TensorBoard", "", "no logs")
    data_dir: Path | None = setting(None, "folder of data sets", "", "TFDS_DATA_DIR")

    def __post_init__(self):
        check_settings(self)
        name = self.name
        if name is not None and (Path(name).name != name or name[:1] in ("", ".")):
            raise UserError(f"`name` is {name!r}, but must be a plain folder name.")

    def folders(self) -> list[Path]:
        """The folder of each experiment's model."""
        names = [experiment.slug() for experiment in self.experiments]
        if self.name is not None:
            prefix = self.experiments[0].data
            names = [self.name + name.removeprefix(prefix) for name in names]
            names = [self.name] if len(names) == 1 else names
        return [self.output / name for name in names]

    def checkpoint(self, experiment: Experiment) -> Checkpoint:
        return Checkpoint(self.output / CHECKPOINTS / experiment.key())


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
            _train_all(comparison, _load(comparison), devices, Console(quiet=True))
        return []
    check_writable(comparison.output)
    for folder in comparison.folders():
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, but must be a folder.")
    data = _load(comparison)
    results = _train_all(comparison, data, devices, console)
    console.print(results_table(results))
    if any(result.best.vote is not None for result in results):
        console.print(vote_table(results, data))
    paths = []
    for result, folder in zip(results, comparison.folders(), strict=True):
        checkpoint = comparison.checkpoint(result.runs[0].experiment)
        note = checkpoint.folder / "exported"
        if note.exists():
            path = Path(note.read_text())
        else:
            voted_on = min(comparison.vote_size, len(data.test.targets))
            record = {"passes": comparison.passes, "voted_on": voted_on}
            path = export_best(result, results, data, folder, record)
            note.write_text(str(path))
        paths.append(path)
    for result in results:
        for run in result.runs:
            comparison.checkpoint(run.experiment).discard()
    with contextlib.suppress(OSError):  # not empty: checkpoints of another comparison
        (comparison.output / CHECKPOINTS).rmdir()
    return paths


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
        seeds = range(experiment.seed, experiment.seed + comparison.seeds)
        # All before the first trains, so that a wrong seed is reported at once.
        for seeded in [replace(experiment, seed=seed) for seed in seeds]:
            runs.append(_train_one(seeded, comparison, data, devices, console))
            # Only one model is held in memory, whatever the number of seeds.
            best = SeedRuns(runs).best
            runs = [r if r is best else replace(r, model=None, vote=None) for r in runs]
        results.append(SeedRuns(runs))
    return results


def _train_one(experiment, comparison, data, devices, console) -> Run:
    """Train or resume one run, and let its Monte Carlo samples vote."""
    seed = f" seed {experiment.seed}" if comparison.seeds > 1 else ""
    label = experiment.dropout + seed
    checkpoint = comparison.checkpoint(experiment)
    if comparison.resume:
        if not checkpoint.folder.exists():
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
    inputs = batches(part, EVALUATION_BATCH, epochs=1)
    seed, verbose = experiment.seed, int(console.is_terminal)
    model: Any = run.model
    result = vote(model, inputs, comparison.passes, seed, verbose)
    if result is None:
        return run
    metrics = {**run.metrics, **result.metrics(part.targets)}
    return replace(run, metrics=metrics, vote=result)
