"""Export a trained model as a version folder that model servers load."""

import csv
import json
import os
import platform
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import kdrop
from kdrop import backend, keras_internals
from kdrop.errors import SAVED_MODEL, UserError, check, checked_formats, is_number
from kdrop.layers.base import active_drop_layers, check_model
from kdrop.layers.replace import remaining
from kdrop.serving.signatures import write_model
from kdrop.serving.versions import add_version

KERAS_FILE = "model.keras"
MAX_PASSES = 1_000_000  # a server computes all samples of a row in one go


def export(
    model: keras.Model,
    folder: str | os.PathLike,
    *,
    labels: Sequence[str] = (),
    record: Mapping[str, object] | None = None,
    history: Mapping[str, Sequence[float]] | None = None,
    draw: Callable[[Path], None] | None = None,
    passes: int = 50,
    task: str | Mapping[str, str] = "classification",
    formats: Sequence[str] = (SAVED_MODEL,),
) -> Path:
    """Export a model as the next version of `folder`, complete or not at all.

    The signature `serve` (also `serving_default`) returns the outputs at inference.
    A model with drop layers of kdrop also has `sample`, which summarises Monte Carlo
    samples, and `sample_seeded`, which takes an int64 seed for each row. Returns the
    path of the new version.

    Args:
        model: A Keras model that has been built, and called if it is subclassed. A
            single input is named `inputs`, a single output `probabilities`. Several are
            named by their keys in a dictionary, by their layers in a list; nested keys
            are joined by `_`.
        folder: The model's folder, whose name is that of the model: ASCII letters,
            digits, `_`, `-` and `.`, not a number. The version is the next integer.
        labels: Class names in the order of the outputs, for `assets/labels.txt`: one
            for each class, each of one line.
        record: Settings and metrics for `experiment.json`.
        history: Columns of `history.csv`, one value for each epoch.
        draw: Adds pictures and pages. Called last, with the version's temporary
            folder, which then holds all other files.
        passes: Number of Monte Carlo samples for each row, at most a million.
        task: `"classification"` or `"regression"`, as in `kdrop.summarise`, or a
            mapping from the name of each output to its task. Outputs that are not
            numbers for each row are not sampled.
        formats: Of `"saved_model"`, which is always written, `"onnx"` and `"litert"`.
            Those two have a file for each of `serve` and `sample_seeded`, such as
            `serve.onnx` and `serve.tflite`, with the same masks. They compute all
            samples of a batch at once, and need the extra `formats`.

    Raises:
        UserError: If the folder has another name or cannot be written, or the model
            cannot be exported.
        ValueError: If `model` is not a `keras.Model`, or has not been built; for
            labels, passes or formats that are not allowed.

    >>> import tempfile
    >>> import tensorflow as tf
    >>> from kdrop import InvertedDropout
    >>> from kdrop.serving import export
    >>> layers = [keras.Input((2,)), InvertedDropout(0.5), keras.layers.Softmax()]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = export(keras.Sequential(layers), folder, labels=["red", "blue"])
    ...     signatures = tf.saved_model.load(str(path)).signatures
    >>> path.name, sorted(signatures)
    ('1', ['sample', 'sample_seeded', 'serve', 'serving_default'])
    >>> sorted(signatures["sample"](inputs=tf.constant([[0.1, 0.2]])))
    ['entropy', 'mean', 'mutual_information', 'std']
    """
    check_model(model)
    fits = is_number(passes, Integral) and 1 <= passes <= MAX_PASSES
    check("passes", passes, fits, f"an integer from 1 to {MAX_PASSES}")
    fits = isinstance(labels, Iterable) and not isinstance(labels, str)
    labels = [*labels] if fits else labels
    fits = fits and all(isinstance(x, str) and x.splitlines() == [x] for x in labels)
    check("labels", labels, fits, "a list of strings of one line each")
    if not active_drop_layers(model) and (names := remaining(model)):
        warnings.warn(
            f"Model {model.name!r} has no drop layer of kdrop, so that its export has "
            "no signature `sample`. `kdrop.replace(model)` replaces the dropout layers "
            f"of Keras: {', '.join(map(repr, names))}.",
            stacklevel=2,
        )
    others = checked_formats(formats)
    keras_internals.input_structure(model)  # raises before anything is written

    def write(version: Path) -> None:
        _write_model(model, version, int(passes), task, others, labels)
        (version / "assets").mkdir(exist_ok=True)
        text = "".join(f"{label}\n" for label in labels)
        (version / "assets" / "labels.txt").write_text(text)
        made_with = {"python": platform.python_version(), "commit": _commit()}
        made_with |= {x.__name__: x.__version__ for x in (kdrop, tf, keras, np)}
        # JSON has no NaN, which a diverged run contains: write null instead.
        text = json.dumps({**(record or {}), "made_with": made_with})
        plain = json.loads(text, parse_constant=lambda _: None)
        (version / "experiment.json").write_text(json.dumps(plain, indent=2) + "\n")
        if history is not None:
            with (version / "history.csv").open("w", newline="") as file:
                rows = zip(*history.values(), strict=True)
                csv.writer(file).writerows([history, *rows])
        if draw is not None:
            draw(version)

    return add_version(Path(folder), write)


def _write_model(model, version: Path, passes: int, task, formats, labels) -> None:
    write = write_model if backend.name() == "tensorflow" else _write_on_tensorflow
    try:
        model.save(version / KERAS_FILE)
        write(model, version, passes, task, formats, len(labels))
    except (UserError, OSError):
        raise
    except Exception as error:  # a layer may raise any exception
        sentence = f"model {model.name!r} cannot be exported: {_sentence(error)}"
        raise UserError(sentence) from error


def _write_on_tensorflow(
    model, version: Path, passes: int, task, formats, label_count: int
) -> None:
    """Write the model in a process that loads the Keras file with TensorFlow."""
    # The model's classes must be importable there.
    paths = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
    environment = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",  # this process uses the accelerators
        "PYTHONPATH": os.pathsep.join(paths),
    }
    task = dict(task) if isinstance(task, Mapping) else task
    settings = json.dumps([passes, task, formats, label_count])
    program = f"from {__name__} import write_in_process; write_in_process()"
    command = [sys.executable, "-c", program, version, settings]
    command += keras_internals.custom_classes(model)
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        reason = (process.stderr.splitlines() or ["the process ended"])[-1]
        raise UserError(f"model {model.name!r} cannot be exported: {reason}")


def _sentence(error: Exception) -> str:
    """One line of an error message, without the text that Keras and AutoGraph add."""
    # The text of a `KeyError` would be the representation of its message.
    named = isinstance(error, KeyError) and error.args
    message = str(error.args[0] if named else error)
    message = re.sub(r"\x1b\[[0-9;]*m", "", message).split("Arguments received by")[0]
    lines = [line.strip() for line in message.splitlines()]
    lines = [x for x in lines if x and not x.startswith("Exception enc")]
    line = f"{type(error).__name__}: {lines[0] if lines else 'no reason'}"
    if lines and lines[0] == "in user code:":  # a traceback, which ends with the error
        line = lines[-1]
    return textwrap.shorten(line, 300, placeholder=" ...")


def _commit() -> str | None:
    """The commit of the checkout that holds this file, if there is one."""
    file = Path(__file__)
    command = ["git", "-C", file.parent, "rev-parse", "HEAD", f"HEAD:./{file.name}"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return process.stdout.split()[0]


def write_in_process() -> None:
    """Write the model that `_write_on_tensorflow` asks this process for."""
    version, settings, *classes = sys.argv[1:]
    try:
        model = keras_internals.load_called(Path(version, KERAS_FILE), classes)
        write_model(model, Path(version), *json.loads(settings))
    except Exception as error:
        sys.exit(str(error) if isinstance(error, UserError) else _sentence(error))
