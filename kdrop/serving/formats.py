"""Write a function of an exported model as a file for ONNX Runtime or LiteRT.

A file is run once before it is published: its outputs must be those of TensorFlow.
"""

import contextlib
import logging
import re
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

from kdrop import backend
from kdrop.errors import UserError
from kdrop.serving.lowering import lowered

_OPSET = 18  # the first with the exclusive or of integers
_TOLERANCE = 1e-4  # relative to the largest output: sums in another order differ


def write(function, name: str, file_format: str, version: Path, example) -> None:
    """Write the file `name.onnx` or `name.tflite` of a version.

    Args:
        function: A `tf.function` with a signature, from named tensors to named tensors.
        file_format: `"onnx"` or `"litert"`.
        example: Arguments of `function`.
    """
    convert, run, suffix = {
        "onnx": (_to_onnx, _run_onnx, ".onnx"),
        "litert": (_to_litert, _run_litert, ".tflite"),
    }[file_format]
    file = version / f"{name}{suffix}"
    try:
        with _without_warnings():
            graph, inputs, outputs = _frozen(function)
            content = convert(graph, inputs, outputs)
    except UserError as error:
        raise UserError(f"{file.name} cannot be written: {error}") from error
    file.write_bytes(content)
    expected = {key: x.numpy() for key, x in function(*example).items()}
    tensors = dict(zip(inputs, tf.nest.flatten(example), strict=True))
    results = run(content, {key: x.numpy() for key, x in tensors.items()})
    for key, values in expected.items():
        scale = np.abs(values).max(initial=1)
        if not np.allclose(results[key], values, 0, _TOLERANCE * scale, equal_nan=True):
            raise UserError(
                f"{file.name} computes another {key} than TensorFlow: its largest "
                f"difference is {np.abs(results[key] - values).max()}"
            )


@contextlib.contextmanager
def _without_warnings():
    """Silence the loggers that warn of each other's old functions."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "tf2onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _frozen(function):
    """The lowered graph, and the names of its inputs and outputs with their tensors."""
    concrete = function.get_concrete_function()
    frozen = backend.frozen(concrete)
    inputs = {x.op.name: x.name for x in frozen.inputs}
    names = sorted(concrete.structured_outputs)  # TensorFlow flattens in this order
    outputs = dict(zip(names, (x.name for x in frozen.outputs), strict=True))
    return lowered(frozen.graph.as_graph_def()), inputs, outputs


def _to_onnx(graph, inputs, outputs) -> bytes:
    import onnx
    import tf2onnx

    names = {tensor: name for name, tensor in (inputs | outputs).items()}
    model, _ = tf2onnx.convert.from_graph_def(
        graph, input_names=[*inputs.values()], output_names=[*outputs.values()],
        opset=_OPSET, tensors_to_rename=names,
    )  # fmt: skip
    unknown = {
        node.op_type
        for node in _onnx_nodes(model.graph)
        if not onnx.defs.has(node.op_type, _OPSET, node.domain)
    }
    if unknown:
        raise UserError(f"ONNX has no operator {', '.join(sorted(unknown))}")
    return model.SerializeToString()


def _onnx_nodes(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _onnx_nodes(attribute.g)  # of a branch or a loop, or empty


def _run_onnx(content: bytes, inputs) -> dict:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def _to_litert(graph, inputs, outputs) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        folder = str(Path(name, "model"))
        with tf.Graph().as_default() as within, tf.compat.v1.Session() as session:
            tf.graph_util.import_graph_def(graph, name="")
            tensors = [
                {key: within.get_tensor_by_name(each) for key, each in names.items()}
                for names in (inputs, outputs)
            ]
            tf.compat.v1.saved_model.simple_save(session, folder, *tensors)
        try:
            return tf.lite.TFLiteConverter.from_saved_model(folder).convert()
        except Exception as error:  # the converter's own class is private
            pattern = r"(?:Select|Custom) ops: (.*)|legalize operation 'tf\.(\w+)'"
            found = ["".join(each) for each in re.findall(pattern, str(error))]
            if not found:
                raise
            names = ", ".join(dict.fromkeys(found))
            raise UserError(f"LiteRT has no operator for {names}") from error


def _run_litert(content: bytes, inputs) -> dict:
    from ai_edge_litert import interpreter

    # The default delegate prints a line.
    kind = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    model = interpreter.Interpreter(
        model_content=content, experimental_op_resolver_type=kind
    )
    return model.get_signature_runner()(**inputs)
