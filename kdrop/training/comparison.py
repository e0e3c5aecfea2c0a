"""Train experiments side by side with several seeds, report, export the best seeds."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Generator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from kdrop.ensemble.calibration import vote
from kdrop.errors import UserError
from kdrop.serving.versions import check_writable, remove_partial, versions
from kdrop.training.checkpoint import Checkpoint, lock, write
from kdrop.training.data import Data
from kdrop.training.devices import Devices
from kdrop.training.experiment import Experiment
from kdrop.training.export import draw_comparison, export_best
from kdrop.training.findings import findings
from kdrop.training.report import tables
from kdrop.training.run import Run, SeedRuns, load_data, network, train
from kdrop.training.settings import Comparison

CHECKPOINTS = ".unfinished"  # below the output folder; no model server reads it


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
    existing = filter(os.path.lexists, comparison.folders())
    for folder in (comparison.output, *existing, comparison.tensorboard):
        if folder is not None:
            check_writable(folder)
    try:
        with _locked(comparison):
            paths = _exported(comparison) if comparison.resume else []
            if not devices.agree(bool(paths)):  # else the clean-up was interrupted
                _mark(comparison).unlink(missing_ok=True)
                paths = _train_and_export(comparison, devices, console)
                names = [str(path.relative_to(comparison.output)) for path in paths]
                write(_mark(comparison), json.dumps(names))
            checkpoints = [x for path in paths for x in _record(path)["checkpoints"]]
            for run in comparison.runs():
                checkpoint = _checkpoint(comparison, run)
                # Another command may have begun the run anew.
                if checkpoint.digest() in ["", *checkpoints]:
                    checkpoint.discard()
            for folder in comparison.folders():
                remove_partial(folder)
        _mark(comparison).unlink(missing_ok=True)  # last: nothing is left to be deleted
        return paths
    except (OSError, MemoryError, tf.errors.ResourceExhaustedError) as error:
        reason = (str(error) or "The memory is full").splitlines()[0]
        saved = can_resume(comparison)
        hint = "; `resume` continues from the last checkpoint" if saved else ""
        raise UserError(f"{reason}{hint}") from error


def can_resume(comparison: Comparison) -> bool:
    """Whether an epoch of a run is saved, or a comparison was not cleaned up."""
    saved = any(_checkpoint(comparison, run).saved for run in comparison.runs())
    return saved or bool(_exported(comparison))


def _checkpoint(comparison: Comparison, run: Experiment) -> Checkpoint:
    return Checkpoint(comparison.output / CHECKPOINTS / run.key())


def _mark(comparison: Comparison) -> Path:
    """The file that lists the exported versions until the checkpoints are gone."""
    names = [run.key() for run in comparison.runs()]
    names += [folder.name for folder in comparison.folders()]
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    return comparison.output / f".exported-{digest[:16]}"


def _exported(comparison: Comparison) -> list[Path]:
    """The versions that `_mark` lists, if all are there in all formats."""
    with contextlib.suppress(Exception):  # a damaged file can raise anything
        names = json.loads(_mark(comparison).read_text())
        paths = [comparison.output / name for name in names]
        formats = comparison.formats()
        whole = [_is_version(x) and _record(x)["formats"] == formats for x in paths]
        if len(paths) == len(comparison.experiments) and all(whole):
            return paths
    return []


@contextlib.contextmanager
def _locked(comparison: Comparison) -> Generator[None]:
    """Keep other processes from the comparison's runs."""
    folder = comparison.output / CHECKPOINTS
    check_writable(folder)
    try:
        with contextlib.ExitStack() as locks:
            for run in dict.fromkeys(comparison.runs()):
                locks.enter_context(lock(_checkpoint(comparison, run).folder))
            yield
    finally:
        with contextlib.suppress(OSError):  # not empty: it has checkpoints
            folder.rmdir()


def _train_and_export(
    comparison: Comparison, devices: Devices, console: Console
) -> list[Path]:
    data = _load(comparison)
    results = _train_all(comparison, data, devices, console)
    for table in tables(results, data):
        console.print(table.for_terminal())
    for sentence in findings(results):
        console.print(sentence, highlight=False)
    paths = []
    with tempfile.TemporaryDirectory() as name:
        draw_comparison(results, data, pictures := Path(name))
        for result, folder in zip(results, comparison.folders(), strict=True):
            runs = [_checkpoint(comparison, run.experiment) for run in result.runs]
            record = {
                "passes": comparison.passes,
                "voted_on": min(comparison.vote_size, len(data.test.targets)),
                "checkpoints": [run.digest() for run in runs],
                "formats": comparison.formats(),
            }
            paths.append(
                _exported_with(record, folder)
                or export_best(result, results, data, folder, record, pictures)
            )
    return paths


def _exported_with(record: dict[str, Any], folder: Path) -> Path | None:
    """The version that was exported with this record, from these checkpoints."""
    paths = filter(_is_version, versions(folder).values())
    return next((x for x in paths if record.items() <= _record(x).items()), None)


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
    checkpoint = _checkpoint(comparison, experiment)
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
