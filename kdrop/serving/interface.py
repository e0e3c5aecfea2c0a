"""Names for the inputs and outputs of a model of any structure."""

import re
from collections.abc import Mapping

import keras
import tensorflow as tf
from keras import tree

from kdrop import keras_internals
from kdrop.ensemble.uncertainty import TASKS
from kdrop.errors import UserError


class Interface:
    """A built model as a function from named tensors to named tensors.

    `call` is the model as a function of one structure, `inputs` the `tf.TensorSpec` of
    each input by name, `argument` that of the exported functions' argument, and
    `batch_size` the number of rows that the model is built for, or `None`.
    """

    def __init__(self, model):
        self._structure, layers, by_argument = keras_internals.input_structure(model)
        self._output_layers = getattr(model, "output_names", ())
        self.call = CallByDictionary(model) if by_argument else model
        leaves = tree.flatten(self._structure)
        names = _names(self._structure, "input", layers)
        self.inputs = {
            name: tf.TensorSpec((None, *leaf.shape[1:]), leaf.dtype, name=name)
            for name, leaf in zip(names, leaves, strict=True)
        }
        # A single input is a plain argument, so that `loaded.serve(x)` takes a tensor.
        self.argument = self.inputs if len(names) > 1 else self.inputs[names[0]]
        self.batch_size = next((x.shape[0] for x in leaves if x.shape[0]), None)

    def example(self, size=1, rows=1, random=None):
        """A batch of zeros or empty strings, with `size` in place of unknown sizes.

        It has `rows` rows unless the batch size is fixed. With a `tf.random.Generator`
        floats are in [0, 1), and may be indices of an embedding.
        """
        example = {}
        for name, spec in self.inputs.items():
            sizes = [self.batch_size or rows, *(n or size for n in spec.shape[1:])]
            make = random.uniform if random and spec.dtype.is_floating else tf.zeros
            example[name] = make(sizes, dtype=spec.dtype)
        return example if len(example) > 1 else example["inputs"]

    def serve(self, inputs):
        """The named outputs at inference."""
        return self.name(self.call(self.pack(inputs), training=False))

    def by_name(self, inputs) -> dict:
        """The tensors by name; `inputs` is as `argument` specifies."""
        return dict(inputs) if isinstance(inputs, Mapping) else {"inputs": inputs}

    def pack(self, inputs):
        """The structure that the model takes; `inputs` is as `argument` specifies."""
        tensors = self.by_name(inputs)
        tensors = [tensors[name] for name in self.inputs]
        return tree.pack_sequence_as(self._structure, tensors)

    def name(self, outputs):
        """The tensors of the structure that the model returns, by name."""
        names = _names(outputs, "output", self._output_layers)
        return dict(zip(names, tree.flatten(outputs), strict=True))

    def tasks(self, outputs, task) -> dict[str, str]:
        """The task of each output that can be sampled: it holds numbers for each row.

        Raises `UserError` if a task is invalid or does not fit the shape of its output.
        """
        by_name = isinstance(task, Mapping)
        tasks = dict(task) if by_name else dict.fromkeys(outputs, task)
        if {*tasks} != {*outputs} or any(each not in TASKS for each in tasks.values()):
            raise UserError(
                f"`task` must be one of {TASKS}, or a mapping to one of them from each "
                f"output's name: {', '.join(outputs)}. Received: {task!r}"
            )
        for name, output in outputs.items():
            dtype, shape = output.dtype, output.shape
            numbers = dtype.is_floating or dtype.is_integer or dtype.is_bool
            rows = shape.rank != 0 and shape[0] in (None, self.batch_size)
            if not (numbers and rows):
                del tasks[name]
            elif tasks[name] == "classification" and shape.rank == 1:
                raise UserError(
                    f"output {name} has shape {shape}, but a classification needs its "
                    'classes in the last dimension; set its `task` to "regression"'
                )
        return tasks


def check_label_count(outputs, count: int) -> None:
    """Raise `UserError` unless an output has a class for each of the labels.

    Outputs are not classes if they are not floats, or have one dimension.
    """
    floats = [x.shape for x in outputs.values() if x.dtype.is_floating]
    sizes = {shape[-1] if shape.rank else None for shape in floats if shape.rank != 1}
    allowed = {*sizes, *([2] if 1 in sizes else [])}  # of a sigmoid
    if count and sizes and None not in sizes and count not in allowed:
        raise UserError(
            f"there are {count} labels, but the last dimension of the model's outputs "
            f"has size {' or '.join(sorted(map(str, sizes)))}"
        )


class CallByDictionary(keras.Model):
    """A model of several arguments, called with a dictionary of them."""

    def __init__(self, model):
        super().__init__(name=model.name, autocast=False)
        self.model = model

    def call(self, inputs, training=False):
        return self.model(**inputs, training=training)


def _names(structure, kind: str, layers) -> list[str]:
    """A name for each tensor of a structure, of ASCII letters, digits and `_`.

    TensorFlow replaces other characters by `_`, ignores the case of inputs, and
    reserves the argument `self`.
    """

    def valid(name):
        name = re.sub(r"\W", "_", name, flags=re.ASCII)
        return name if name[:1].isalpha() and name != "self" else f"{kind}_{name}"

    names, flat = [], not isinstance(structure, dict)
    for path, leaf in tree.flatten_with_path(structure):
        names.append(valid("_".join(map(str, path))))
        flat = flat and len(path) == 1
        if leaf is None:
            raise UserError(f"{kind} {names[-1]} is None, not a tensor")
    if len(names) == 1:
        return ["inputs" if kind == "input" else "probabilities"]
    by_layer = [valid(name) for name in layers]
    if flat and len({name.lower() for name in by_layer}) == len(names):
        names = by_layer
    if len({name.lower() for name in names}) < max(1, len(names)):
        raise UserError(
            f"{kind}s need names that differ in more than case and punctuation. "
            f"Received: {', '.join(names) or f'no {kind}'}"
        )
    return names
