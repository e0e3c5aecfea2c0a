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
from kdrop.errors import UserError, silent_stderr
from kdrop.serving.lowering import lowered

_OPSET = 18  # the first with the exclusive or of integers
# Relative to the largest output: another order of sums, and of half precision.
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 2e-2


def write(function, name: str, file_format: str, version: Path, example) -> None:
    """Write the file `name.onnx` or `name.tflite` of a version.

    Args:
        function: A `tf.function` with a signature, from named tensors to named tensors.
        name: That of the function.
        file_format: `"onnx"` or `"litert"`.
        version: The folder.
        example: Arguments of `function`.

    Raises:
        UserError: If the format cannot hold the function, or the file computes
            something else.
    """
    convert, run, suffix = {
        "onnx": (_to_onnx, _run_onnx, ".onnx"),
        "litert": (_to_litert, _run_litert, ".tflite"),
    }[file_format]
    file = version / f"{name}{suffix}"
    frozen = backend.frozen(function.get_concrete_function())
    kinds = {
        x.dtype.name for each in frozen.graph.get_operations() for x in each.outputs
    }
    try:
        with _quiet():
            graph, inputs, outputs = _named(function, frozen)
            content = convert(graph, inputs, outputs)
            tensors = dict(zip(inputs, tf.nest.flatten(example), strict=True))
            results = run(content, {key: x.numpy() for key, x in tensors.items()})
    except Exception as error:
        reasons = [str(error)] if isinstance(error, UserError) else []
        if others := kinds & {"bfloat16", "float16", "float64"}:
            reasons.append(f"the model computes in {', '.join(sorted(others))}")
        if not reasons:
            raise
        sentence = f"{file.name} cannot be written: {'; '.join(reasons)}"
        raise UserError(sentence) from error
    tolerance = _HALF_TOLERANCE if "float16" in kinds else _TOLERANCE
    _check(file.name, results, _computed(function, example), tolerance)
    file.write_bytes(content)


def _computed(function, example) -> dict:
    """The outputs of TensorFlow, in float32 also where a GPU would round it."""
    rounds = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        return {key: x.numpy() for key, x in function(*example).items()}
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(rounds)


def _check(file: str, results: dict, expected: dict, tolerance: float) -> None:
    """Raise `UserError` unless the results are those of TensorFlow."""
    expected = {key: np.asarray(x, "float64") for key, x in expected.items()}
    largest: dict[str, float] = {}
    for key, values in expected.items():
        finite = np.abs(values[np.isfinite(values)]).max(initial=0)
        largest[_output(key)] = max(finite, largest.get(_output(key), 0))
    for key, values in expected.items():
        result = np.asarray(results[key], "float64")
        limit = tolerance * largest[_output(key)]
        if not np.allclose(result, values, 0, limit, equal_nan=True):
            difference = np.abs(np.nan_to_num(result) - np.nan_to_num(values)).max()
            raise UserError(
                f"{file} does not compute TensorFlow's {key}: they differ by up to "
                f"{difference:.1g}"
            )


def _output(key: str) -> str:
    """The output that a measure summarises. All its measures have one scale."""
    return re.sub("(mean|std|entropy|mutual_information)$", "", key)


@contextlib.contextmanager
def _quiet():
    """Silence the converters, which warn of each other's old functions and print."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "tf2onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with silent_stderr():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _named(function, frozen):
    """The lowered graph, and the names of its inputs and outputs with their tensors."""
    inputs = {x.op.name: x.name for x in frozen.inputs}
    # TensorFlow flattens dictionaries in this order.
    names = sorted(function.get_concrete_function().structured_outputs)
    outputs = dict(zip(names, (x.name for x in frozen.outputs), strict=True))
    return lowered(frozen.graph.as_graph_def()), inputs, outputs


def _to_onnx(graph, inputs, outputs) -> bytes:
    import onnx
    import tf2onnx

    if both := inputs.keys() & outputs.keys():
        raise UserError(f"ONNX needs other names for outputs than for inputs: {both}")
    names = {tensor: name for name, tensor in (inputs | outputs).items()}
    model, _ = tf2onnx.convert.from_graph_def(
        graph, input_names=[*inputs.values()], output_names=[*outputs.values()],
        opset=_OPSET, tensors_to_rename=names,
        custom_op_handlers={"Erfc": (_erfc, [])},
    )  # fmt: skip
    unknown = {
        node.op_type
        for node in _onnx_nodes(model.graph)
        if not onnx.defs.has(node.op_type, _OPSET, node.domain)
    }
    if unknown:
        raise UserError(f"ONNX has no operator {', '.join(sorted(unknown))}")
    return model.SerializeToString()


def _erfc(context, node, name, _):
    """Write `Erfc`, of Keras's GELU, as 1 - Erf: the converter has only that."""
    (output,) = node.output
    kind, shape = context.get_dtype(output), context.get_shape(output)
    one = context.make_const(f"{name}/one", np.ones((), "float32")).output
    one = context.make_node("Cast", one, attr={"to": kind}).output
    erf = context.make_node("Erf", node.input).output
    context.remove_node(name)
    context.make_node(
        "Sub", [*one, *erf], outputs=[output], name=name, dtypes=[kind], shapes=[shape]
    )


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
            missing = ["".join(each) for each in re.findall(pattern, str(error))]
            if not missing:
                raise
            names = ", ".join(dict.fromkeys(missing))
            hint = "; recurrent layers need `unroll=True`" * ("TensorList" in names)
            raise UserError(f"LiteRT has no operator for {names}{hint}") from error


def _run_litert(content: bytes, inputs) -> dict:
    from ai_edge_litert import interpreter

    model = interpreter.Interpreter(model_content=content)
    return model.get_signature_runner()(**inputs)
