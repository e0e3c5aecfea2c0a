"""A lowered graph computes the same bits without arithmetic on uint32."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import bitwise

from kdrop.errors import UserError
from kdrop.serving.lowering import lowered

# Where signed and unsigned integers, or floats and integers, are ordered differently.
EDGES = [0, 1, 2, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1]
FIRST, SECOND = (x.ravel() for x in np.meshgrid(np.array(EDGES, "uint32"), EDGES))
SECOND = SECOND.astype("uint32")


def _controlled(x, y):
    with tf.control_dependencies([bitwise.right_shift(x, np.uint32(3))]):
        return tf.maximum(x, y)


OPERATIONS = {
    "add": tf.add,
    "subtract": tf.subtract,
    "multiply": tf.multiply,
    "xor": bitwise.bitwise_xor,
    "invert": lambda x, y: bitwise.invert(x),
    "left": lambda x, y: bitwise.left_shift(x, np.uint32(7)),
    "right": lambda x, y: bitwise.right_shift(x, np.uint32(7)),
    "right_by_each": lambda x, y: bitwise.right_shift(
        x, bitwise.bitwise_and(y, np.uint32(31))
    ),
    "less": tf.less,
    "less_equal": tf.less_equal,
    "greater": tf.greater,
    "greater_equal": tf.greater_equal,
    "equal": tf.equal,
    "maximum": tf.maximum,
    "minimum": tf.minimum,
    "max": lambda x, y: tf.reduce_max(tf.stack([x, y]), axis=0),
    "min": lambda x, y: tf.reduce_min(tf.stack([x, y]), axis=1, keepdims=True),
    "top": lambda x, y: tf.math.top_k(tf.stack([x, y, x + y]), 7, sorted=True)[:2],
    "to_float": lambda x, y: tf.cast(x, tf.float32),
    "to_int64": lambda x, y: tf.cast(x, tf.int64),
    "from_int64": lambda x, y: tf.cast(tf.cast(x, tf.int64) * 77 - 5, tf.uint32),
    "where": lambda x, y: tf.where(x < y, x, y + np.uint32(1)),
    "branch": lambda x, y: tf.cond(
        x[0] < y[1], lambda: x, lambda: bitwise.right_shift(y, np.uint32(1))
    ),
    "case": lambda x, y: tf.switch_case(
        tf.constant(1), [lambda: x, lambda: y + x, lambda: y]
    ),
    "control": lambda x, y: _controlled(x, y),
    "loop": lambda x, y: tf.while_loop(
        lambda x, y: tf.reduce_any(x < np.uint32(2**31)),
        lambda x, y: (
            bitwise.bitwise_or(tf.maximum(x, y), np.uint32(2**31)),
            bitwise.invert(y),
        ),
        (x, y),
    ),
}


def run_lowered(function, *arrays):
    """The results of the lowered function, and its graph."""
    kinds = [tf.TensorSpec([None], tf.uint32)] * len(arrays)

    @tf.function(input_signature=kinds, autograph=False)
    def whole(*arguments):
        return [tf.cast(x, tf.float64) for x in tf.nest.flatten(function(*arguments))]

    concrete = whole.get_concrete_function()
    graph = lowered(concrete.graph.as_graph_def())
    with tf.Graph().as_default() as within, tf.compat.v1.Session() as session:
        tf.graph_util.import_graph_def(graph, name="")
        feed = {
            within.get_tensor_by_name(x.name): array.view("int32")
            for x, array in zip(concrete.inputs, arrays, strict=True)
        }
        results = session.run([x.name for x in concrete.outputs], feed)
    return results, graph


@pytest.mark.parametrize("name", OPERATIONS)
def test_results_are_equal(name):
    function = OPERATIONS[name]
    results, graph = run_lowered(function, FIRST, SECOND)
    expected = tf.nest.flatten(function(tf.constant(FIRST), tf.constant(SECOND)))
    for result, each in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, np.float64(each.numpy()))
    functions = (body.node_def for body in graph.library.function)
    unsigned = {
        node.op
        for nodes in (graph.node, *functions)
        for node in nodes
        if tf.uint32.as_datatype_enum in (x.type for x in node.attr.values())
    }
    assert unsigned <= {"Cast", "RightShift"}, unsigned


@pytest.mark.parametrize("operation", [tf.math.floordiv, tf.math.floormod])
def test_what_depends_on_the_sign_is_refused(operation):
    with pytest.raises(UserError, match="operator Floor.* of uint32 cannot be written"):
        run_lowered(operation, FIRST, SECOND + np.uint32(1))
