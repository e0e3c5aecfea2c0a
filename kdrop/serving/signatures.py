"""The signatures of an exported model (`serve`, `sample`, `sample_seeded`).

A model server answers the warm-up requests before it reports that it is ready. Their
file has the format of TensorFlow Serving:
https://www.tensorflow.org/tfx/serving/saved_model_warmup
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from reprlib import repr as shortened

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from kdrop import backend, keras_internals
from kdrop.ensemble import compiled_sampler
from kdrop.ensemble.sampling import Sampler
from kdrop.ensemble.split import SplitModel
from kdrop.ensemble.uncertainty import measures, wrong_rows
from kdrop.errors import UserError
from kdrop.layers.base import active_drop_layers
from kdrop.masks import run
from kdrop.serving import formats
from kdrop.serving.interface import Interface, check_label_count

WARM_UP = Path("assets.extra", "tf_serving_warmup_requests")


def write_model(
    model, path: Path, passes: int, task, file_formats: Sequence[str], label_count: int
) -> None:
    """Write a SavedModel and its warm-up requests; the arguments are as in `export`.

    Each of the other `file_formats` has one file for each function.
    """
    layers = keras_internals.layers_of(model)
    if any(isinstance(layer, Sampler) for layer in layers):
        raise UserError(
            f"{model.name!r} contains a Sampler, which drops at inference: export the "
            "model that it samples; the export adds a signature `sample`"
        )
    interface = Interface(model)
    archive = keras.export.ExportArchive()
    archive.track(model)
    specification = [interface.argument]
    serve = archive.add_endpoint("serve", tracing()(interface.serve), specification)
    signatures = {"serving_default": serve}
    outputs = serve.get_concrete_function().structured_outputs
    check_label_count(outputs, label_count)
    sampled = active_drop_layers(model) and not compiled_sampler.stateful_layers(model)
    tasks = interface.tasks(outputs, task) if sampled else {}
    if tasks:
        compiled_sampler.warn_of_other_dropout(model)
        _check_probabilities(interface, tasks)
        seeded = _sample_seeded(interface, passes, tasks, len(outputs) > 1)
        archive.add_endpoint("sample_seeded", seeded)

        def sample(inputs):
            # Unlike a generator, which has a variable, this operation can run in many
            # threads at once. Each process seeds it at random.
            seeds = tf.raw_ops.RandomUniformInt(
                shape=[tf.shape(tree.flatten(inputs)[0])[0]],
                minval=tf.constant(tf.int64.min, tf.int64),
                maxval=tf.constant(tf.int64.max, tf.int64),
            )
            return seeded(inputs, seeds)

        signatures["sample"] = archive.add_endpoint("sample", sample, specification)
    archive.write_out(str(path), verbose=False)
    _write_requests(path, signatures, interface)
    example = [_example(interface)] if file_formats else []
    for file_format in file_formats:
        formats.write(serve, "serve", file_format, path, example)
        if tasks:
            several = len(outputs) > 1
            seeded = _sample_seeded(interface, passes, tasks, several, file_format)
            rows = len(tree.flatten(example)[0])
            seeds = (2**40 + 3) * tf.range(rows, dtype=tf.int64) - 2
            formats.write(seeded, "sample_seeded", file_format, path, [*example, seeds])


def _example(interface):
    """Inputs that the model takes, whatever sizes it leaves open."""
    for size in 1, 32:
        example = interface.example(size, 2, tf.random.Generator.from_seed(0))
        with contextlib.suppress(tf.errors.OpError, ValueError):
            interface.serve(example)
            return example
    raise UserError(
        "the model refuses the inputs with which other formats are checked: numbers in "
        "[0, 1) or zeros, of size 1 or 32 where a size is open"
    )


def _check_probabilities(interface, tasks) -> None:
    """Raise `UserError` if a classification has outputs that are not probabilities.

    It calls the model on its example and on -1000 times that, far from what it was
    trained on. Rows of zeros (of masked inputs) and of NaN, and errors, pass.
    """
    for scale in 1, -1000:
        outputs = {}
        with contextlib.suppress(Exception):  # a layer may raise any
            inputs = tree.map_structure(
                lambda x, scale=scale: x * scale if x.dtype.is_floating else x,
                _example(interface),
            )
            outputs = interface.serve(inputs)
        for name, output in outputs.items():
            if tasks.get(name) != "classification":
                continue
            wrong = wrong_rows(tf.cast(output, tf.float64).numpy())
            wrong = wrong[np.isfinite(wrong).all(axis=-1) & wrong.any(axis=-1)]
            if len(wrong):
                raise UserError(
                    f"output {name} does not hold probabilities, but values such as "
                    f"{shortened(wrong[0].round(3).tolist())}: end the model with a "
                    "softmax over the last dimension or one sigmoid unit, or set its "
                    '`task` to "regression"'
                )


@contextlib.contextmanager
def tracing():
    """Trace a function with plain kernels and separately from other traces."""
    token = run.exporting.set(True)
    try:
        with backend.retraced_for(backend.TraceKey()):
            yield
    finally:
        run.exporting.reset(token)


def _split(interface):
    """The model's prefix and suffix, and how many rows of the suffix fit in memory."""
    if interface.batch_size:
        return SplitModel(interface.call), 1
    example = interface.pack(interface.example())
    try:
        sampler = compiled_sampler.CompiledSampler(interface.call, example)
        outputs = sampler.prefix(example)
        return sampler.split, sampler.max_rows(outputs, compiled_sampler.MEMORY)
    except (ValueError, tf.errors.OpError):
        # Size 1 in place of unknown sizes may be too small for the model.
        return SplitModel(interface.call, one_by_one=True), 1


def _sample_seeded(interface, passes, tasks, several_outputs, file_format=None):
    """The function `sample_seeded`, which takes a seed for each row.

    The masks of a row depend on its seed and the sample's number alone, so that a model
    server may batch requests. For other formats than a SavedModel it has no loop over
    the samples, whose shape LiteRT would not know.
    """
    if "seeds" in interface.inputs:
        raise UserError("a model with drop layers must not have an input named seeds")
    split, max_rows = _split(interface)
    seeds = tf.TensorSpec((None,), tf.int64, name="seeds")

    @tf.function(input_signature=[interface.argument, seeds], autograph=False)
    @tracing()
    def sample_seeded(inputs, seeds):
        batch = tf.shape(tree.flatten(inputs)[0])[0]
        if file_format:  # without assertions
            seeds = tf.reshape(seeds, [batch])
        message = "seeds must be one for each row"
        tf.debugging.assert_equal(tf.size(seeds), batch, message)
        prefix_outputs = split.prefix(interface.pack(inputs))
        if file_format == "onnx":  # It has no `bitcast`, and `//` rounds towards 0.
            low = tf.cast(seeds, tf.uint32)
            high = tf.cast((seeds - tf.cast(low, tf.int64)) // 2**32, tf.uint32)
        else:
            low, high = tf.unstack(tf.bitcast(seeds, tf.uint32), axis=-1)
        chunk = tf.clip_by_value(max_rows // tf.maximum(batch, 1), 1, passes)
        chunks = -(-passes // chunk)
        chunk = -(-passes // chunks)  # chunks of equal size

        def compute(first, chunk):
            number = tf.range(chunk * batch)
            places = number % batch
            # The rows of `kdrop.sample` for a batch of one example and this seed.
            numbers = tf.cast(first + number // batch, tf.uint32)
            rows = [numbers, tf.gather(high, places), tf.gather(low, places)]
            rows = tf.stack(rows, axis=1)
            outputs = interface.name(split.sample(prefix_outputs, places, rows))
            return {name: tf.cast(outputs[name], tf.float32) for name in tasks}

        if file_format:
            chunk, chunks = passes, 1
            samples = {name: x[None] for name, x in compute(0, passes).items()}
        else:
            samples = tf.map_fn(
                lambda first: compute(first, chunk),
                chunk * tf.range(chunks),
                fn_output_signature=dict.fromkeys(tasks, tf.float32),
                parallel_iterations=1,
            )
        answer = {}
        for name, values in samples.items():
            # With -1 in place of `batch`, an output of other rows would pass unnoticed.
            sizes = [chunks * chunk, batch], tf.shape(values)[2:]
            values = tf.reshape(values, tf.concat(sizes, axis=0))[:passes]
            summary = measures(values, tasks[name], tf.experimental.numpy)
            prefix = f"{name}_" if several_outputs else ""
            answer |= {prefix + key: value for key, value in summary.items()}
        return answer

    return sample_seeded


def _prediction_log(**fields):
    from tensorflow_serving.apis import prediction_log_pb2  # an optional dependency

    return prediction_log_pb2.PredictionLog(**fields)  # ty: ignore[missing-attribute]


def _write_requests(version: Path, signatures, interface) -> None:
    """Write one request for each signature, or no file if one rejects the inputs."""
    inputs = interface.example()
    logs = []
    tensors = interface.by_name(inputs)
    protos = {name: tf.make_tensor_proto(x.numpy()) for name, x in tensors.items()}
    for name, function in signatures.items():
        try:
            function(inputs)
        except tf.errors.OpError:
            return
        model = {"name": version.parents[1].name, "signature_name": name}
        request = {"model_spec": model, "inputs": protos}
        logs.append(_prediction_log(predict_log={"request": request}))
    (version / WARM_UP).parent.mkdir()
    with tf.io.TFRecordWriter(str(version / WARM_UP)) as writer:
        for log in logs:
            writer.write(log.SerializeToString())  # ty: ignore[missing-attribute]


def read_requests(version: Path) -> Iterator[tuple[str, dict]]:
    """The signature and the inputs of each warm-up request of a version."""
    if (version / WARM_UP).exists():
        for record in tf.data.TFRecordDataset(str(version / WARM_UP)):
            log = _prediction_log()
            log.ParseFromString(record.numpy())
            request = log.predict_log.request
            arrays = {name: tf.make_ndarray(x) for name, x in request.inputs.items()}
            tensors = {name: tf.constant(array) for name, array in arrays.items()}
            yield request.model_spec.signature_name, tensors
