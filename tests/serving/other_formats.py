"""Runs the files of an exported model as their users do."""

import numpy as np
import onnxruntime
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

SEEDS = np.array([1, -2, 2**40, -(2**63), 2**32 - 1])


def run_onnx(file, inputs):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def run_litert(file, inputs):
    return Interpreter(str(file)).get_signature_runner()(**inputs)


RUN = {"onnx": run_onnx, "tflite": run_litert}


def differences(version, inputs):
    """The largest difference from the SavedModel, for each file and each output."""
    loaded, found = tf.saved_model.load(str(version)), {}
    tensors = {name: tf.constant(values) for name, values in inputs.items()}
    first = tensors if len(tensors) > 1 else tensors["inputs"]
    for name, seeds in ("serve", {}), ("sample_seeded", {"seeds": SEEDS}):
        arguments = {**inputs, **seeds}
        expected = getattr(loaded, name)(first, *map(tf.constant, seeds.values()))
        for suffix, run in RUN.items():
            results = run(version / f"{name}.{suffix}", arguments)
            assert {*results} == {*expected}
            for key, values in expected.items():
                difference = np.abs(results[key] - values.numpy()).max()
                found[name, suffix, key] = difference
    return found
