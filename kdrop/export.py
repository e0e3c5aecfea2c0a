"""A trained model as a folder that a model server takes as it is."""

import csv
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kdrop import bits, kernels
from kdrop.data import BadInput
from kdrop.ensemble import MEMORY
from kdrop.stages import Stages, TensorFlowGraph, stochastic

# The model server replays the requests of this file before it says that it is ready:
# https://www.tensorflow.org/tfx/serving/saved_model_warmup
PARTIAL = ".partial-"  # begins the names of folders that are being written
WARM_UP = Path("assets.extra", "tf_serving_warmup_requests")


def check_writable(folder: Path) -> None:
    """Make the folder, or raise `BadInput` if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(
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
    task: str = "classification",
) -> Path:
    """Write the model as the next version of `folder`, whole or not at all.

    All is written beside its place, under a name that no model server picks up, and
    then renamed. A version that exists is never touched.

    Args:
        model: A built Keras model with one input. Its outputs become `probabilities`.
        folder: The model's folder; the version is made below it, one higher than the
            last.
        labels: Class names in the order of the outputs, for `assets/labels.txt`.
        record: What `experiment.json` says besides the versions of the libraries.
        history: Columns of `history.csv`.
        draw: Called with the folder before it appears, to add pictures.
        passes: Sub-networks that the signatures `sample` and `sample_seeded` draw for
            each row; a model without drop layers of kdrop has no such signatures.
        task: `"classification"` or `"regression"`, as in `kdrop.summarise`.

    Returns:
        The path of the new version.

    Raises:
        BadInput: If the folder cannot be written.
    """
    folder = Path(folder)
    check_writable(folder)
    _sweep(folder)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    try:
        _write_saved_model(model, partial, passes, task)
        (partial / "assets").mkdir(exist_ok=True)
        (partial / "assets" / "labels.txt").write_text(
            "".join(f"{label}\n" for label in labels)
        )
        _write_warm_up(model, partial / WARM_UP, folder.name)
        model.save(partial / "model.keras")
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


def _write_saved_model(model, path: Path, passes: int, task: str) -> None:
    if keras.backend.backend() != "tensorflow":
        _write_on_tensorflow(model, path, passes, task)
        return
    shape, dtype = model.inputs[0].shape, model.inputs[0].dtype
    inputs = tf.TensorSpec((None, *shape[1:]), dtype, name="inputs")
    seeds = tf.TensorSpec((None,), tf.int64, name="seeds")
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serve",
        _plain(lambda inputs: {"probabilities": model(inputs, training=False)}),
        input_signature=[inputs],
    )
    if stochastic(model):
        seeded = _sample_seeded(model, passes, task, [inputs, seeds])
        archive.add_endpoint(
            "sample",
            lambda inputs: seeded(inputs, _fresh_seeds(inputs)),
            input_signature=[inputs],
        )
        archive.add_endpoint("sample_seeded", seeded)
    archive.write_out(str(path), verbose=False)


def _plain(function):
    """The function, traced as one that is exported."""

    @functools.wraps(function)
    def call(*args):
        token = kernels.plain.set(True)
        try:
            return function(*args)
        finally:
            kernels.plain.reset(token)

    return call


def _sample_seeded(model, passes, task, signature):
    """The endpoint `sample_seeded`."""
    stages = Stages(model)
    inputs = signature[0]
    shared = stages.once(tf.zeros([n or 1 for n in inputs.shape], inputs.dtype))
    row = tf.range(1), tf.zeros((), tf.uint32), tf.zeros((1, 2), tf.uint32)
    rows = MEMORY // TensorFlowGraph(stages.sample).row_bytes(shared, *row)

    @tf.function(input_signature=signature, autograph=False)
    @_plain
    def seeded(inputs, seeds):
        return _summary(_samples(stages, passes, rows, inputs, seeds), task)

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


def _summary(samples, task):
    """As `kdrop.summarise` has it."""
    mean = tf.reduce_mean(samples, axis=0)
    answer = {"mean": mean, "std": tf.math.reduce_std(samples, axis=0)}
    if task == "classification":
        if samples.shape[-1] == 1:
            samples = tf.concat([1 - samples, samples], axis=-1)
            mean = tf.reduce_mean(samples, axis=0)
        entropy = -tf.reduce_sum(tf.math.xlogy(mean, mean), axis=-1)
        excess = samples - mean
        total = tf.where(mean > 0, mean, 1)
        near, share = excess / total, samples / total
        divergence = tf.where(
            near > -0.5,
            tf.math.xlog1py(samples, tf.maximum(near, -0.5)),
            tf.math.xlogy(samples, share),
        )
        divergence = tf.reduce_sum(divergence - excess, axis=-1)
        information = tf.reduce_mean(divergence, axis=0)
        answer |= {"entropy": tf.maximum(entropy, 0), "mutual_information": information}
    return answer


def _samples(stages, passes, most, inputs, seeds):
    """Tensor `(passes, batch, ...)`: as many passes at a time as `most` rows hold.

    The rows of the masks are named by the seeds and the passes alone, so that a row's
    samples do not depend on the requests that a server batches with it.
    """
    shared, batch = stages.once(inputs), tf.shape(inputs)[0]
    low, high = tf.unstack(tf.bitcast(seeds, tf.uint32), axis=-1)
    places, seed = tf.range(batch), tf.zeros((), tf.uint32)
    chunks = -(-passes // tf.clip_by_value(most // tf.maximum(batch, 1), 1, passes))
    together = -(-passes // chunks)

    def some(first):
        numbers = tf.repeat(tf.range(first, first + together), batch)
        key = tf.cast(numbers, tf.uint32), tf.zeros_like(numbers, tf.uint32)
        counter = tf.tile(low, [together]), tf.tile(high, [together])
        rows = tf.stack(bits.threefry(key, counter), axis=1)
        outputs = stages.sample(shared, tf.tile(places, [together]), seed, rows)
        return tf.cast(outputs, tf.float32)

    samples = tf.map_fn(
        some,
        together * tf.range(chunks),
        fn_output_signature=tf.float32,
        parallel_iterations=1,
    )
    return tf.reshape(samples, (-1, batch, *samples.shape[2:]))[:passes]


def _write_on_tensorflow(model, path: Path, passes: int, task: str) -> None:
    """The same by a process of the TensorFlow backend, to which the model goes."""
    file = path / "model.keras"
    model.save(file)
    places = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")]
    # The accelerators belong to this process, and tracing needs none.
    variables = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    found = subprocess.run(
        [sys.executable, "-m", "kdrop.export", file, path, str(passes), task],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    if found.returncode:
        raise RuntimeError(f"The TensorFlow backend did not export: {found.stderr}")


def _write_warm_up(model: keras.Model, path: Path, name: str) -> None:
    from tensorflow_serving.apis import prediction_log_pb2

    shape = (1, *model.inputs[0].shape[1:])
    zeros = tf.make_tensor_proto(np.zeros(shape, model.inputs[0].dtype))
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature in ["serving_default", *["sample"] * bool(stochastic(model))]:
            log = prediction_log_pb2.PredictionLog()  # ty: ignore[missing-attribute]
            request = log.predict_log.request
            request.model_spec.name = name
            request.model_spec.signature_name = signature
            request.inputs["inputs"].CopyFrom(zeros)
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
    file, folder, passes, task = sys.argv[1:]
    trained = keras.models.load_model(file, compile=False)
    _write_saved_model(trained, Path(folder), int(passes), task)
