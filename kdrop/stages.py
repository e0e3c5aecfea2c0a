"""A model in two stages: what its sub-networks share, and what each computes anew."""

import functools
import math
from typing import Any, NamedTuple

import keras
from keras import ops, tree
from keras.src.backend import get_keras_mask, set_keras_mask
from keras.src.models.functional import Functional

from kdrop.layers.base import Drop, Noise, Sampling, sampling


def stochastic(operation):
    """The drop layers in a layer or model, itself included, but those of rate 0."""
    if not isinstance(operation, keras.Layer):
        return []
    layers = operation._flatten_layers()
    return [
        layer
        for layer in layers
        if isinstance(layer, Noise) and not (isinstance(layer, Drop) and not layer.rate)
    ]


def graph_of(model):
    """The Functional model that a Functional or Sequential one runs; else `None`."""
    if isinstance(model, keras.Sequential) and _calls(model, keras.Sequential):
        return model._functional
    if isinstance(model, Functional) and _calls(model, Functional):
        return model
    return None


def _calls(model, base):
    return type(model).call is base.call


def at_rest(operation, *args, **kwargs):
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
        self.layers, self.graph = stochastic(model), graph_of(model)
        self._model, self._steps, self._varying = model, [], []
        if self.graph is not None:
            self._outputs = self._follow(model, self._number(self.graph.inputs, False))
            used = [n for s in self._steps if s.varies for n in s.inputs.values()]
            used = dict.fromkeys([*used, *self._outputs])
            self._shared = [number for number in used if not self._varying[number]]

    def hold(self, model):
        """Whether the model is still cut at these places."""
        return self.layers == stochastic(model) and self.graph is graph_of(model)

    def once(self, inputs):
        """What the sub-networks share: a structure of batches for `vary`."""
        if self.graph is None:
            return inputs
        values = dict(enumerate(_standardise(self._model, inputs)))
        self._run(False, values, at_rest)
        # A mask of Keras is an attribute, which functions do not return.
        return [(values[n], get_keras_mask(values[n])) for n in self._shared]

    def sample(self, shared, places, seed, rows):
        """The model's outputs, one for each of the sub-networks that `rows` choose.

        Args:
            shared: What `once` returned.
            places: Integer tensor `(n,)`: which of its rows the sub-networks take.
            seed: Scalar integer tensor.
            rows: uint32 tensor `(n, 2)`.
        """
        token = sampling.set(Sampling(seed, rows))
        try:
            return self.vary(rows_of(shared, places))
        finally:
            sampling.reset(token)

    def vary(self, shared, call=at_rest):
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
                set_keras_mask(value, mask)
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
