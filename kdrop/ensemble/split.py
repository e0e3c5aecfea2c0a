"""A model in two stages: what its sub-networks share, and what each computes anew."""

import functools
import math
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops, tree

from kdrop import keras_internals
from kdrop.layers.base import drop_layers
from kdrop.layers.sampling_context import NOT_BY_EXAMPLE, Sampling, Shared


def stochastic(operation):
    """The drop layers in a layer or model, itself included, but those of rate 0."""
    if not isinstance(operation, keras.Layer):
        return []
    return [layer for layer in drop_layers(operation) if layer.drops]


class Structure:
    """What a model is made of, to see whether a trace of it still holds.

    Layers, variables and functions are compared by identity, numbers by value.

    Args:
        model: A built `keras.Model`.
    """

    def __init__(self, model):
        self._model, self._parts = model, self._of(model)

    @staticmethod
    def _of(model):
        return [
            (layer, _attributes(layer)) for layer in keras_internals.layers_of(model)
        ]

    def holds(self):
        """Whether the model is still the same."""
        parts = self._of(self._model)
        return len(parts) == len(self._parts) and all(
            layer is before and _same(attributes, others)
            for (layer, attributes), (before, others) in zip(
                parts, self._parts, strict=True
            )
        )


def _attributes(layer):
    """What a trace of a layer depends on."""
    state = getattr(layer, "trace_state", None)
    attributes = keras_internals.attributes(layer) if state is None else state()
    return {name: _value(value) for name, value in attributes.items()}


def _value(value):
    """What can be changed in place, by its values."""
    if isinstance(value, np.ndarray) and value.size < 10_000:
        return value.shape, value.dtype.str, value.tobytes()
    mutable = isinstance(value, list | dict | set)
    return repr(value) if mutable and _is_plain(value) else value


def _is_plain(value):
    if isinstance(value, dict):
        return all(map(_is_plain, (*value.keys(), *value.values())))
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _same(attributes, others):
    def equal(value, other):
        plain = isinstance(value, bool | int | float | str | tuple)
        return value is other or (
            plain and type(value) is type(other) and value == other
        )

    names = attributes.keys() | others.keys()
    return all(equal(attributes.get(name), others.get(name)) for name in names)


def graph_of(model):
    """The Functional model that a Functional or Sequential one runs; else `None`."""
    if isinstance(model, keras.Sequential) and _calls(model, keras.Sequential):
        return model._functional
    if isinstance(model, keras_internals.Functional) and _calls(
        model, keras_internals.Functional
    ):
        return model
    return None


def _calls(model, base):
    return type(model).call is base.call


def at_inference(operation, *args, **kwargs):
    """Call a layer or another operation of a graph as at inference."""
    if "training" in getattr(operation, "_call_context_args", ()):
        kwargs["training"] = False
    return operation(*args, **kwargs)


def rows_of(batch, rows):
    """Some rows of each tensor in a structure: a slice, or an integer tensor."""

    def some(tensor):
        if tensor is None or isinstance(rows, slice):
            return tensor if tensor is None else tensor[rows]
        return ops.take(tensor, rows, axis=0)

    return tree.map_structure(some, batch)


class _Step(NamedTuple):
    """A call in the graph. Values have numbers, as a nested model may be called twice.

    Args:
        operation: What is called.
        arguments: Keras's symbolic arguments of the call.
        inputs: Number of the value of each symbolic tensor, by its `id`.
        outputs: Numbers of the values that the call returns.
        varies: Whether sub-networks differ in them.
    """

    operation: Any
    arguments: Any
    inputs: dict[int, int]
    outputs: list[int]
    varies: bool


class Stages:
    """A model cut at its first stochastic layers, in nested models too.

    Of a model whose graph is not known, as that of a subclassed one, the inputs alone
    are shared. No row of a batch may depend on another, as ever at inference.

    Args:
        model: A built `keras.Model`.
    """

    def __init__(self, model):
        self.layers, self.graph = drop_layers(model), graph_of(model)
        self._model, self._steps, self._varying = model, [], []
        self._by_example = False
        if self.graph is not None:
            self._outputs = self._follow(model, self._number(self.graph.inputs, False))
            used = [n for s in self._steps if s.varies for n in s.inputs.values()]
            used = dict.fromkeys([*used, *self._outputs])
            self._shared = [number for number in used if not self._varying[number]]

    def once(self, inputs):
        """What the sub-networks share: a structure of batches for `vary`."""
        if self.graph is None:
            return inputs
        values = dict(enumerate(_standardise(self._model, inputs)))
        with Shared():
            self._run(False, values, at_inference)
        # A mask of Keras is an attribute, which functions do not return.
        return [(values[n], keras_internals.get_mask(values[n])) for n in self._shared]

    def sample(self, shared, places, rows):
        """The model's outputs, one for each of the sub-networks that `rows` choose.

        Args:
            shared: What `once` returned.
            places: Integer tensor `(n,)`: which of its rows the sub-networks take.
            rows: uint32 tensor `(n, 3)`: pass, example and seed of each sub-network.
        """

        def sampled(places, rows):
            with Sampling(self.layers, rows):
                return self.vary(rows_of(shared, places))

        def alone(place_and_row):
            place, row = (ops.expand_dims(x, 0) for x in place_and_row)
            outputs = sampled(place, row)
            return tree.map_structure(lambda x: ops.squeeze(x, 0), outputs)

        if self._by_example:
            return ops.map(alone, (places, rows))
        return sampled(places, rows)

    def follow_examples(self, once, sample, inputs):
        """Whether several examples can be computed at once.

        Where the first axis of something that is shared or dropped is not that of the
        examples, as where time is folded into it, they cannot, and go one by one.

        Args:
            once, sample: The methods, compiled.
            inputs: A structure of batches with one example at least.
        """

        def follows(size):
            places, rows = np.arange(size, dtype="int32"), np.zeros((size, 3), "uint32")
            try:
                shared = once.trial(rows_of(inputs, places * 0))
                batches = [x for x in tree.flatten(shared) if x is not None]
                if any(tuple(x.shape)[:1] != (size,) for x in batches):
                    return False
                sample.trial(shared, places, rows)
            except Exception as error:  # of a graph, it has a class of TensorFlow's
                if NOT_BY_EXAMPLE not in str(error):
                    raise
                return False
            return True

        # Of two sizes, since another axis may have one of them by chance.
        if follows(2) and follows(3):
            return True
        self.go_one_by_one()
        return False

    def go_one_by_one(self):
        """Compute each sub-network by itself from now on, from the inputs."""
        self._by_example, self.graph = True, None

    def vary(self, shared, call=at_inference):
        """The model's outputs from rows of what `once` returned.

        Args:
            shared: A structure as returned by `once`.
            call: Called as `call(operation, *args, **kwargs)` for each operation.
        """
        if self.graph is None:
            return call(self._model, shared)
        values = {}
        for number, (value, mask) in zip(self._shared, shared, strict=True):
            values[number] = value
            if mask is not None:
                keras_internals.set_mask(value, mask)
        self._run(True, values, call)
        outputs = [values[number] for number in self._outputs]
        return tree.pack_sequence_as(self.graph._outputs_struct, outputs)

    def _number(self, tensors, varies):
        start = len(self._varying)
        self._varying += [varies] * len(tensors)
        return list(range(start, start + len(tensors)))

    def _follow(self, model, inputs):
        """Append the steps of a model's graph; return the numbers of its outputs."""
        graph = graph_of(model)
        numbers = dict(zip(map(id, graph.inputs), inputs, strict=True))
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                used = {id(x): numbers[id(x)] for x in node.input_tensors}
                outputs = self._append(node, used)
                numbers.update(zip(map(id, node.outputs), outputs, strict=True))
        return [numbers[id(x)] for x in graph.outputs]

    def _append(self, node, used):
        operation, arguments = node.operation, node.arguments
        varies = any(self._varying[number] for number in used.values())
        drops = bool(stochastic(operation))
        graph = graph_of(operation) if drops else None
        tensors = tree.flatten(arguments.args)
        # Otherwise it is called with a mask, which its own call takes care of.
        if graph is not None and len(tensors) == len(graph.inputs) == len(used):
            inputs = self._number(graph.inputs, varies)
            enter = functools.partial(_standardise, operation)
            self._steps.append(_Step(enter, arguments, used, inputs, varies))
            return self._follow(operation, inputs)
        outputs = self._number(node.outputs, varies or drops)
        self._steps.append(_Step(operation, arguments, used, outputs, varies or drops))
        return outputs

    def _run(self, varies, values, call):
        for step in self._steps:
            if step.varies == varies:
                known = {tensor: values[n] for tensor, n in step.inputs.items()}
                args, kwargs = step.arguments.fill_in(known)
                outputs = tree.flatten(call(step.operation, *args, **kwargs))
                values.update(zip(step.outputs, outputs, strict=True))


def _standardise(model, inputs, **settings):
    """The flat tensors that a model's graph begins with."""
    if model._convert_input_args:
        policy = model.dtype_policy
        inputs = tree.map_structure(
            lambda x: policy.convert_input(x, model.autocast, model.input_dtype), inputs
        )
    return graph_of(model)._standardize_inputs(inputs)


def length(batch):
    """How many rows a structure of batches has."""
    return len(next(x for x in tree.flatten(batch) if x is not None))


def compiled(function, model):
    """A function of structures of batches that reads the variables of a model."""
    if keras.backend.backend() == "jax":
        return JaxGraph(function, model)
    return TensorFlowGraph(function)


class TensorFlowGraph:
    """A function of structures of batches, traced for any number of rows."""

    def __init__(self, function):
        import tensorflow as tf

        self._function = tf.function(function, autograph=False)

    def __call__(self, *structures):
        return self._concrete(structures)(*structures)

    def trial(self, *structures):
        """The results, or what stands for them, to look at their shapes."""
        return self(*structures)

    def row_bytes(self, *structures):
        """Bytes of all that the function computes for one row."""
        results = (
            (result.dtype.size, result.shape.as_list())
            for operation in self._concrete(structures).graph.get_operations()
            for result in operation.outputs
            if result.shape.rank
        )
        return sum(
            size * math.prod(n or 1 for n in shape[1:])
            for size, shape in results
            if shape[0] is None
        )

    def _concrete(self, structures):
        import tensorflow as tf

        def spec(x):
            if x is None:
                return None
            return tf.TensorSpec((None, *x.shape[1:]) if len(x.shape) else (), x.dtype)

        return self._function.get_concrete_function(
            *tree.map_structure(spec, structures)
        )


class JaxGraph:
    """The same for JAX, where it is compiled for each number of rows."""

    def __init__(self, function, model):
        import jax

        self._variables = model.variables

        def pure(values, *structures):
            state = list(zip(self._variables, values, strict=True))
            with keras.StatelessScope(state_mapping=state):
                return function(*structures)

        self._pure, self._compiled = pure, jax.jit(pure)

    def __call__(self, *structures):
        return self._compiled(self._values(), *structures)

    def trial(self, *structures):
        import jax

        return jax.eval_shape(self._pure, self._values(), *structures)

    def row_bytes(self, *structures):
        import jax

        one = tree.map_structure(
            lambda x: x[:1] if getattr(x, "shape", ()) else x, structures
        )
        program = jax.make_jaxpr(self._pure)(self._values(), *one)
        results = [v.aval for e in program.eqns for v in e.outvars]
        return sum(x.size * x.dtype.itemsize for x in results)

    def _values(self):
        return [variable.value for variable in self._variables]
