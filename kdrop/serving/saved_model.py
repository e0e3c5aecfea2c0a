"""A trained model as a folder that a model server takes as it is."""

import csv
import functools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import keras
import tensorflow as tf
from keras import tree

from kdrop import backend, keras_internals
from kdrop.ensemble.checks import stateful_layers, warn_of_other_dropout
from kdrop.ensemble.compiled_sampler import MEMORY, CompiledSampler
from kdrop.ensemble.sampling import Sampler
from kdrop.ensemble.split import SplitModel
from kdrop.ensemble.uncertainty import summarise_tensors
from kdrop.errors import UserError
from kdrop.layers.base import active_drop_layers
from kdrop.masks import run
from kdrop.serving.interface import Interface

# The model server replays the requests of this file before it says that it is ready:
# https://www.tensorflow.org/tfx/serving/saved_model_warmup
PARTIAL = ".partial-"  # begins the names of folders that are being written
KERAS_FILE = "model.keras"
WARM_UP = Path("assets.extra", "tf_serving_warmup_requests")


def check_writable(folder: Path) -> None:
    """Make the folder, or raise `UserError` if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"the output folder {folder} cannot be written "
            f"({error.strerror}); choose another with --output"
        ) from None


def versions(folder: Path) -> list[int]:
    """The versions that a model's folder holds, in ascending order."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


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
) -> Path:
    """Write the model as the next version of `folder`, whole or not at all.

    All is written beside its place, under a name that no model server picks up, and
    then renamed. A version that exists is never touched.

    Args:
        model: A Keras model that has been built, and called if it is subclassed. One
            input is served as `inputs`, one output as `probabilities`. Several have a
            dictionary's keys as names, or in a list those of the layers, or nested ones
            all keys on the way, joined by `_`.
        folder: The model's folder; the version is made below it, one higher than the
            last.
        labels: Class names in the order of the outputs, for `assets/labels.txt`.
        record: What `experiment.json` says besides the versions of the libraries.
        history: Columns of `history.csv`.
        draw: Called with the folder before it appears, to add pictures.
        passes: Sub-networks that the signatures `sample` and `sample_seeded` draw for
            each row; a model without drop layers of kdrop has no such signatures.
        task: `"classification"` or `"regression"`, as in `kdrop.summarise`; of several
            outputs a mapping from each one's name to its task, or one for all. Outputs
            that are not numbers for each example are not sampled.

    Returns:
        The path of the new version.

    Raises:
        UserError: If the folder cannot be written, or the model cannot be exported.
        ValueError: If `model` is no model, or has not been built.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a `keras.Model`. Received: {model!r}")
    keras_internals.input_structure(model)  # raises before anything is written
    folder = Path(folder)
    check_writable(folder)
    _sweep(folder)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    try:
        _write_model(model, partial, passes, task, folder.name)
        (partial / "assets").mkdir(exist_ok=True)
        (partial / "assets" / "labels.txt").write_text(
            "".join(f"{label}\n" for label in labels)
        )
        (partial / "experiment.json").write_text(
            _json({**(record or {}), "made_with": _made_with()})
        )
        if history is not None:
            write_csv(partial / "history.csv", history)
        if draw is not None:
            draw(partial)
        partial.chmod(0o755)  # a server runs as another user
        return _appear(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_csv(path: Path, columns: Mapping[str, Sequence[object]]) -> None:
    """Write columns of one length under their names."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _write_model(model, path: Path, *settings) -> None:
    """Write the Keras file and the SavedModel.

    Raises:
        UserError: If the model cannot be saved or traced.
    """
    try:
        model.save(path / KERAS_FILE)
        if keras.backend.backend() == "tensorflow":
            _write_saved_model(model, path, *settings)
        else:
            _write_on_tensorflow(model, path, *settings)
    except (UserError, OSError):
        raise
    except Exception as error:  # whatever the model's layers raise
        sentence = f"model {model.name!r} cannot be exported: {_sentence(error)}"
        raise UserError(sentence) from error


def _sentence(error: Exception) -> str:
    """One line of an error message, without what Keras and AutoGraph put around it."""
    message = str(
        error.args[0] if isinstance(error, KeyError) and error.args else error
    )
    message = re.sub(r"\x1b\[[0-9;]*m", "", message).split("Arguments received by")[0]
    lines = [
        x.strip() for x in message.splitlines() if not x.startswith("Exception enc")
    ]
    lines = [line for line in lines if line] or ["no reason"]
    line = f"{type(error).__name__}: {lines[0]}"
    if lines[0] == "in user code:":  # a traceback, which ends with the error
        line = lines[-1]
    return textwrap.shorten(line, 300, placeholder=" ...")


def _write_saved_model(model, path: Path, passes: int, task, name: str) -> None:
    if any(isinstance(layer, Sampler) for layer in keras_internals.layers_of(model)):
        raise UserError(
            f"{model.name!r} holds a Sampler, which drops at each call: export the "
            "model itself, which has a signature `sample` besides"
        )
    interface = Interface(model)
    archive = keras.export.ExportArchive()
    archive.track(model)
    serve = archive.add_endpoint(
        "serve",
        _plain(interface.serve),
        input_signature=[interface.inputs],
    )
    outputs = serve.get_concrete_function().structured_outputs
    sampled = active_drop_layers(model) and not stateful_layers(model)
    tasks = interface.sampled(outputs, task) if sampled else {}
    warm = {"serving_default": serve}
    if tasks:
        warn_of_other_dropout(model)
        seeded = _sample_seeded(interface, passes, tasks, len(outputs) > 1)
        warm["sample"] = archive.add_endpoint(
            "sample",
            lambda inputs: seeded(inputs, _fresh_seeds(tree.flatten(inputs)[0])),
            input_signature=[interface.inputs],
        )
        archive.add_endpoint("sample_seeded", seeded)
    archive.write_out(str(path), verbose=False)
    _write_warm_up(warm, interface, path / WARM_UP, name)


def _plain(function):
    """The function, traced as one that is exported."""

    @functools.wraps(function)
    def call(*args):
        token = run.exporting.set(True)
        try:
            with backend.retraced_for(backend.new_trace_key()):
                return function(*args)
        finally:
            run.exporting.reset(token)

    return call


def _sample_seeded(interface, passes, tasks, several):
    """The endpoint `sample_seeded`."""
    if isinstance(interface.inputs, dict) and "seeds" in interface.inputs:
        raise UserError("a model with drop layers must not have an input named seeds")

    split, most = SplitModel(interface.call), 1  # a pass at a time, of all rows
    if not interface.batch_size:
        example = interface.pack(_zeros(interface))
        try:
            sampler = CompiledSampler(interface.call, example)
            split = sampler.split
            most = sampler.max_rows(sampler.prefix(example), MEMORY)
        except (ValueError, tf.errors.OpError):
            # Sizes of 1 in place of unknown ones may be too small for the model.
            split.compute_one_by_one()

    def sample(*arguments):
        outputs = interface.name(split.sample(*arguments))
        return {name: tf.cast(outputs[name], tf.float32) for name in tasks}

    seeds = tf.TensorSpec((None,), tf.int64, name="seeds")

    @tf.function(input_signature=[interface.inputs, seeds], autograph=False)
    @_plain
    def seeded(inputs, seeds):
        shared = split.prefix(interface.pack(inputs))
        rows = tf.shape(tree.flatten(inputs)[0])[0]
        tf.debugging.assert_equal(
            tf.size(seeds), rows, "seeds must be one for each row"
        )
        samples = _samples(sample, tasks, shared, passes, most, seeds)
        return {
            f"{name}_{key}" if several else key: values
            for name, task in tasks.items()
            for key, values in summarise_tensors(samples[name], task).items()
        }

    return seeded


def _fresh_seeds(inputs: tf.Tensor) -> tf.Tensor:
    """A seed for each row, from an operation that each process seeds at random.

    It is safe to run at once in many threads, unlike a generator's state in a variable.
    """
    return tf.raw_ops.RandomUniformInt(
        shape=tf.shape(inputs)[:1],
        minval=tf.constant(tf.int64.min, tf.int64),
        maxval=tf.constant(tf.int64.max, tf.int64),
        seed=0,
        seed2=0,
    )


def _samples(sample, tasks, shared, passes, most, seeds):
    """Tensors `(passes, batch, ...)`: as many passes at a time as `most` rows hold.

    The rows of the masks are named by the seeds and the passes alone, so that a row's
    samples do not depend on the requests that a server batches with it.
    """
    batch = tf.size(seeds)
    low, high = tf.unstack(tf.bitcast(seeds, tf.uint32), axis=-1)
    places = tf.range(batch)
    chunks = -(-passes // tf.clip_by_value(most // tf.maximum(batch, 1), 1, passes))
    together = -(-passes // chunks)

    def some(first):
        numbers = tf.repeat(tf.range(first, first + together), batch)
        # As `kdrop.sample` names the only example of a batch, under the row's own seed.
        named = tf.cast(numbers, tf.uint32), tf.tile(high, [together])
        rows = tf.stack([*named, tf.tile(low, [together])], axis=1)
        return sample(shared, tf.tile(places, [together]), rows)

    def apart(samples):
        # `-1` would hide an output whose rows are not those of the batch.
        sizes = [chunks * together, batch], tf.shape(samples)[2:]
        return tf.reshape(samples, tf.concat(sizes, axis=0))[:passes]

    samples = tf.map_fn(
        some,
        together * tf.range(chunks),
        fn_output_signature=dict.fromkeys(tasks, tf.float32),
        parallel_iterations=1,
    )
    return tree.map_structure(apart, samples)


def _write_on_tensorflow(model, path: Path, passes: int, task, name: str) -> None:
    """The same by a process of the TensorFlow backend, which loads the Keras file."""
    places = [str(Path(__file__).parent.parent), *sys.path]  # of the model's classes
    # The accelerators belong to this process, and tracing needs none.
    variables = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    settings = [int(passes), dict(task) if isinstance(task, Mapping) else task, name]
    arguments = [path, json.dumps(settings), *keras_internals.custom_classes(model)]
    process = subprocess.run(
        [sys.executable, "-m", "kdrop.serving.saved_model", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        reason = (process.stderr.splitlines() or ["the process ended"])[-1]
        raise UserError(f"model {model.name!r} cannot be exported: {reason}")


def _zeros(interface):
    """As many examples as the model is built for, or one: of zeros or empty strings."""
    rows = interface.batch_size or 1
    return tree.map_structure(
        lambda x: tf.zeros([rows, *(n or 1 for n in x.shape[1:])], x.dtype),
        interface.inputs,
    )


def _write_warm_up(functions, interface, path: Path, name: str) -> None:
    """Write a request for each signature, or no file if the model fails on one."""
    from tensorflow_serving.apis import prediction_log_pb2

    logs = []
    for signature, function in functions.items():
        zeros = _zeros(interface)
        try:
            function(zeros)
        except tf.errors.OpError:
            return
        log = prediction_log_pb2.PredictionLog()  # ty: ignore[missing-attribute]
        request = log.predict_log.request
        request.model_spec.name = name
        request.model_spec.signature_name = signature
        for key, x in (zeros if isinstance(zeros, dict) else {"inputs": zeros}).items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(x.numpy()))
        logs.append(log)
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for log in logs:
            writer.write(log.SerializeToString())  # ty: ignore[missing-attribute]


def _sweep(folder: Path) -> None:
    """Delete what a process that was killed left a day ago or longer."""
    for left in folder.glob(f"{PARTIAL}*"):
        if time.time() - left.stat().st_mtime > 86400:
            shutil.rmtree(left, ignore_errors=True)


def _appear(partial: Path, folder: Path) -> Path:
    version = max(versions(folder), default=0) + 1
    while True:
        try:
            return partial.rename(folder / str(version))
        except OSError:
            # Another process took this version since it was looked up.
            if not (folder / str(version)).exists():
                raise
            version += 1


def _json(record) -> str:
    # JSON has no NaN, which a run that diverged holds: null instead.
    plain = json.loads(json.dumps(record), parse_constant=lambda _: None)
    return json.dumps(plain, indent=2) + "\n"


def _made_with() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("kdrop", "tensorflow", "keras", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout
            found[package] = None
    return {**found, "commit": _commit()}


def _commit() -> str | None:
    """The commit of the checkout that this file is tracked in, if there is one."""
    here = Path(__file__)

    def git(*arguments):
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD").strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":  # as `_write_on_tensorflow` calls it
    folder, settings, *classes = sys.argv[1:]
    try:
        trained = keras_internals.load_called(Path(folder, KERAS_FILE), classes)
        _write_saved_model(trained, Path(folder), *json.loads(settings))
    except Exception as error:
        sys.exit(str(error) if isinstance(error, UserError) else _sentence(error))
