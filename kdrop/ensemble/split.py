"""Split a model into a prefix that its sub-networks share, and a suffix."""

import functools
from typing import Any, NamedTuple

from keras import ops, tree

from kdrop import keras_internals
from kdrop.keras_internals import call_at_inference
from kdrop.layers.base import active_drop_layers, drop_layers
from kdrop.layers.sampling_context import PrefixContext, Sampling


class _Step(NamedTuple):
    """A call of an operation in the graph.

    Tensors have numbers: a nested model that is called twice has the same symbolic
    tensors with different values.
    """

    operation: Any
    arguments: Any  # Keras's symbolic arguments of the call
    inputs: dict[int, int]  # from the `id` of each symbolic tensor to its number
    outputs: list[int]
    in_suffix: bool  # whether the values differ between sub-networks


class SplitModel:
    """A model split at its first active drop layers, also inside nested models.

    The prefix has the calls that depend on no drop layer, the suffix has all others. A
    model without a known graph, such as a subclassed one, has only a suffix. As always
    at inference, no row of a batch may depend on another. `one_by_one` computes one
    sub-network at a time, from the model's inputs.
    """

    def __init__(self, model, one_by_one=False):
        self.layers = drop_layers(model)
        self._model, self._one_by_one = model, one_by_one
        self._graph = None if one_by_one else keras_internals.functional_graph(model)
        self._steps, self._in_suffix = [], []
        if self._graph is not None:
            inputs = self._new_values(self._graph.inputs, False)
            self._outputs = self._add_steps(model, inputs)
            used = [n for s in self._steps if s.in_suffix for n in s.inputs.values()]
            used = dict.fromkeys([*used, *self._outputs])
            self._prefix_outputs = [n for n in used if not self._in_suffix[n]]

    def prefix(self, inputs):
        """What all sub-networks share: pairs of a tensor and its Keras mask.

        Without a known graph, the inputs themselves.
        """
        if self._graph is None:
            return inputs
        tensors = keras_internals.standardise_inputs(self._model, inputs)
        values = dict(enumerate(tensors))
        with PrefixContext():
            self._run(False, values, call_at_inference)
        # A mask of Keras is an attribute of a tensor, which traced functions lose.
        outputs = [values[n] for n in self._prefix_outputs]
        return [(value, keras_internals.get_mask(value)) for value in outputs]

    def suffix(self, prefix_outputs, call=call_at_inference):
        """Compute the model's outputs from rows of what `prefix` returned.

        `call(operation, *args, **kwargs)` calls an operation.
        """
        if self._graph is None:
            return call(self._model, prefix_outputs)
        values = {}
        for n, (value, mask) in zip(self._prefix_outputs, prefix_outputs, strict=True):
            values[n] = value
            if mask is not None:
                keras_internals.set_mask(value, mask)
        self._run(True, values, call)
        outputs = [values[number] for number in self._outputs]
        return keras_internals.pack_outputs(self._graph, outputs)

    def sample(self, prefix_outputs, indices, rows):
        """Compute the model's outputs for n sub-networks.

        `indices` has the row of `prefix_outputs` for each of them, and `rows`, uint32
        `(n, 3)`, the sample, example and seed that give its masks.
        """
        if self._one_by_one:

            def alone(index_and_row):
                index, row = (x[None] for x in index_and_row)
                outputs = self._sample(prefix_outputs, index, row)
                return tree.map_structure(lambda x: x[0], outputs)

            return ops.map(alone, (indices, rows))
        return self._sample(prefix_outputs, indices, rows)

    def _sample(self, prefix_outputs, indices, rows):
        with Sampling(self.layers, rows):
            return self.suffix(rows_of(prefix_outputs, indices))

    def _new_values(self, tensors, in_suffix):
        start = len(self._in_suffix)
        self._in_suffix += [in_suffix] * len(tensors)
        return list(range(start, start + len(tensors)))

    def _add_steps(self, model, inputs):
        """Append the steps of a model's graph; return the numbers of its outputs."""
        graph = keras_internals.functional_graph(model)
        numbers = dict(zip(map(id, graph.inputs), inputs, strict=True))
        for node in keras_internals.graph_calls(graph):
            used = {id(x): numbers[id(x)] for x in node.input_tensors}
            outputs = self._add_step(node, used)
            numbers.update(zip(map(id, node.outputs), outputs, strict=True))
        return [numbers[id(x)] for x in graph.outputs]

    def _add_step(self, node, used):
        operation, arguments = node.operation, node.arguments
        in_suffix = any(self._in_suffix[number] for number in used.values())
        drops = bool(active_drop_layers(operation))
        graph = keras_internals.functional_graph(operation) if drops else None
        tensors = tree.flatten(arguments.args)
        # A nested model that is called with a mask is one step: its call handles it.
        if graph is not None and len(tensors) == len(graph.inputs) == len(used):
            enter = functools.partial(keras_internals.standardise_inputs, operation)
            inputs = self._new_values(graph.inputs, in_suffix)
            self._steps.append(_Step(enter, arguments, used, inputs, in_suffix))
            return self._add_steps(operation, inputs)
        in_suffix = in_suffix or drops
        outputs = self._new_values(node.outputs, in_suffix)
        self._steps.append(_Step(operation, arguments, used, outputs, in_suffix))
        return outputs

    def _run(self, in_suffix, values, call):
        for step in self._steps:
            if step.in_suffix == in_suffix:
                tensors = {key: values[n] for key, n in step.inputs.items()}
                args, kwargs = step.arguments.fill_in(tensors)
                outputs = tree.flatten(call(step.operation, *args, **kwargs))
                values.update(zip(step.outputs, outputs, strict=True))


def length(batch):
    """The number of rows in a structure of batches."""
    return len(next(x for x in tree.flatten(batch) if x is not None))


def rows_of(batch, rows):
    """Some rows, a slice or an integer tensor, of each tensor in a structure."""

    def some(tensor):
        if tensor is None:
            return None
        return tensor[rows] if isinstance(rows, slice) else ops.take(tensor, rows, 0)

    return tree.map_structure(some, batch)
