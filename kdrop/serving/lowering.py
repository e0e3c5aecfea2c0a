"""Lower a TensorFlow graph to operations that ONNX and LiteRT have.

Neither adds or compares unsigned integers. So each uint32 becomes the int32 of the same
bits: sums, products and moves of data stay as they are, and what depends on the sign
becomes several operations.
"""

import numpy as np
import tensorflow as tf

from kdrop.errors import UserError

INT32, UINT32 = tf.int32.as_datatype_enum, tf.uint32.as_datatype_enum
_LOWEST = -(2**31)

# Operations that compute the same bits from both.
_SAME_BITS = {
    "AddV2", "Bitcast", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BroadcastTo",
    "Case", "ConcatV2", "Equal", "ExpandDims", "Fill", "GatherV2", "Identity",
    "IdentityN", "If", "Mul", "Neg", "NotEqual", "Pack", "Pad", "PadV2",
    "PartitionedCall", "Placeholder", "Reshape", "Select", "SelectV2", "Shape",
    "Size", "Slice", "Split", "SplitV", "Squeeze", "StatefulPartitionedCall",
    "StatelessCase", "StatelessIf", "StatelessWhile", "StopGradient",
    "StridedSlice", "Sub", "Sum", "TensorListFromTensor", "TensorListGetItem",
    "TensorListReserve", "TensorListSetItem", "TensorListStack", "Tile",
    "Transpose", "Unpack", "While", "ZerosLike",
}  # fmt: skip
_RESULTS = {  # names of the results in the body of a function, where it is not `z`
    "Cast": "y", "Const": "output", "Invert": "y", "Max": "output", "Min": "output",
    "TopKV2": "values",
}  # fmt: skip


def lowered(graph):
    """A copy of a frozen `GraphDef` without additions and comparisons of uint32.

    Raises `UserError` if an operation on uint32 cannot be lowered.
    """
    result = tf.compat.v1.GraphDef.FromString(graph.SerializeToString())
    _Body(result.node, in_function=False).lower()
    for function in result.library.function:
        signature = function.signature
        signature.name = _lowered_name(signature.name)
        for argument in [*signature.input_arg, *signature.output_arg]:
            if argument.type == UINT32:
                argument.type = INT32
        body = _Body(function.node_def, in_function=True)
        body.lower()
        for name, reference in function.ret.items():
            function.ret[name] = body.moved(reference)
    return result


def _lowered_name(name):
    # TensorFlow holds one function of each name.
    return f"{name}_lowered"


class _Body:
    """The nodes of a graph or of one of its functions."""

    def __init__(self, nodes, in_function):
        self._nodes, self._in_function = nodes, in_function
        self._new, self._moved, self._constants = [], {}, {}

    def lower(self):
        for node in self._nodes:
            self._current = node
            result = self._lowered() if _uses_uint32(node) else self._copy()
            if result:
                self._moved[self._result(node)] = result
                self._moved[f"^{node.name}"] = f"^{result.split(':')[0]}"
        del self._nodes[:]
        self._nodes.extend(self._new)
        for node in self._nodes:
            node.input[:] = map(self.moved, node.input)

    def moved(self, reference):
        """The reference to what replaces a result, or `^` and a node."""
        return self._moved.get(reference, reference)

    def _result(self, node):
        """The reference to the first result of a node."""
        result = f":{_RESULTS.get(node.op, 'z')}:0" if self._in_function else ""
        return node.name + result

    def _add(self, operation, *inputs, number=None, **types):
        """Add a node and return the reference to its result."""
        name = f"{self._current.name}/lowered_{len(self._new)}"
        node = tf.compat.v1.NodeDef(name=name, op=operation, input=inputs)
        for key, kind in types.items():
            node.attr[key].type = kind
        if number is not None:
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(number, tf.int32))
        self._new.append(node)
        return self._result(node)

    def _add_int32(self, operation, *inputs):
        return self._add(operation, *inputs, T=INT32)

    def _number(self, number):
        return self._add("Const", number=np.int64(number).astype("int32"), dtype=INT32)

    def _cast(self, value, old, new):
        return value if old == new else self._add("Cast", value, SrcT=old, DstT=new)

    def _flipped(self, value):
        """The value whose order as int32 is that of the uint32."""
        return self._add_int32("BitwiseXor", value, self._number(_LOWEST))

    def _copy(self):
        node = tf.compat.v1.NodeDef.FromString(self._current.SerializeToString())
        for value in node.attr.values():
            _lower_attribute(value)
        self._new.append(node)
        return None

    def _lowered(self):
        """Lower the current node; return what replaces its result, if it is moved."""
        attributes = self._current.attr
        inputs = [name for name in self._current.input if name[0] != "^"]
        match self._current.op:
            case "Less":
                return self._compare("NotEqual", *inputs)
            case "Greater":
                return self._compare("NotEqual", *reversed(inputs))
            case "GreaterEqual":
                return self._compare("Equal", *inputs)
            case "LessEqual":
                return self._compare("Equal", *reversed(inputs))
            case "Maximum" | "Minimum" as operation:
                return self._flipped(
                    self._add_int32(operation, *map(self._flipped, inputs))
                )
            case "Max" | "Min" as operation:
                reduced = self._add_int32(
                    operation, self._flipped(inputs[0]), inputs[1]
                )
                for name in "Tidx", "keep_dims":
                    self._new[-1].attr[name].CopyFrom(attributes[name])
                return self._flipped(reduced)
            case "TopKV2":
                operands = self._flipped(inputs[0]), inputs[1]
                values = self._add_int32("TopKV2", *operands)
                self._new[-1].attr["sorted"].CopyFrom(attributes["sorted"])
                second = ":indices:0" if self._in_function else ":1"
                name, new = self._current.name, self._new[-1].name
                self._moved[name + second] = new + second
                return self._flipped(values)
            case "RightShift":  # of int32 it would repeat the sign
                operands = (self._cast(each, INT32, UINT32) for each in inputs)
                shifted = self._add("RightShift", *operands, T=UINT32)
                return self._cast(shifted, UINT32, INT32)
            case "LeftShift" if (bits := inputs[1].split(":")[0]) in self._constants:
                factor = self._number(1 << int(self._constants[bits]))
                return self._add_int32("Mul", inputs[0], factor)
            case "Invert":
                return self._add_int32("BitwiseXor", inputs[0], self._number(-1))
            case "Cast":
                source, target = attributes["SrcT"].type, attributes["DstT"].type
                value = inputs[0]
                if source == UINT32:
                    value = self._cast(value, INT32, UINT32)
                value = self._cast(value, source, target)
                return self._cast(value, UINT32, INT32) if target == UINT32 else value
            case "Const":
                number = tf.make_ndarray(attributes["value"].tensor)
                self._constants[self._current.name] = number
                return self._copy()
            case operation if operation in _SAME_BITS:
                return self._copy()
            case operation:
                raise UserError(
                    f"its operator {operation} of uint32 cannot be written as int32"
                )

    def _compare(self, operation, first, second):
        """Whether the larger operand equals the first one.

        The converter to ONNX compares the order of int32 as float32, which rounds.
        """
        first, second = self._flipped(first), self._flipped(second)
        larger = self._add_int32("Maximum", first, second)
        return self._add_int32(operation, larger, first)


def _uses_uint32(node):
    return any(UINT32 in (x.type, *x.list.type) for x in node.attr.values())


def _lower_attribute(value):
    kind = value.WhichOneof("value")
    if kind == "type" and value.type == UINT32:
        value.type = INT32
    elif kind == "list":
        value.list.type[:] = [INT32 if x == UINT32 else x for x in value.list.type]
        for function in value.list.func:
            function.name = _lowered_name(function.name)
    elif kind == "func":
        value.func.name = _lowered_name(value.func.name)
    elif kind == "tensor" and value.tensor.dtype == UINT32:
        numbers = tf.make_ndarray(value.tensor)
        tensor = tf.make_tensor_proto(numbers.view("int32"), shape=numbers.shape)
        value.tensor.CopyFrom(tensor)
