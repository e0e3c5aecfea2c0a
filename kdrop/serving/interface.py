"""The names and tensors by which a model of any structure is served."""

import re
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf
from keras import tree

from kdrop import keras_internals
from kdrop.ensemble.uncertainty import TASKS
from kdrop.errors import UserError


class Interface:
    """A model as a function of named tensors that returns named tensors.

    Args:
        model: A `keras.Model` that has been built, and called if it is subclassed.

    Attributes:
        call: The model as a function of one structure and `training`.
        inputs: A `tf.TensorSpec` named `inputs`, or of several inputs a dictionary.
        batch_size: The number of rows that the model is built for, or `None`.

    Raises:
        ValueError: If the model has not been built.
        UserError: If inputs or outputs cannot be named.
    """

    def __init__(self, model):
        self._model = model
        self._structure, layers, several = keras_internals.input_structure(model)
        self.call = Arguments(model) if several else model
        self._names = _names(self._structure, "input", layers)
        leaves = tree.flatten(self._structure)
        specs = {
            name: tf.TensorSpec((None, *leaf.shape[1:]), leaf.dtype, name=name)
            for name, leaf in zip(self._names, leaves, strict=True)
        }
        self.inputs = specs if len(specs) > 1 else specs["inputs"]
        self.batch_size = next((x.shape[0] for x in leaves if x.shape[0]), None)

    def serve(self, inputs):
        """The named outputs at inference."""
        return self.name(self.call(self.pack(inputs), training=False))

    def pack(self, inputs):
        """The structure that the model takes, from what `inputs` specifies."""
        if isinstance(inputs, Mapping):
            inputs = [inputs[name] for name in self._names]
        return tree.pack_sequence_as(self._structure, tree.flatten(inputs))

    def name(self, outputs):
        """A dictionary of the tensors in the structure that the model returns."""
        names = _names(outputs, "output", getattr(self._model, "output_names", ()))
        return dict(zip(names, tree.flatten(outputs), strict=True))

    def sampled(self, outputs, task) -> dict[str, str]:
        """The task of each output that is sampled: of numbers for each example.

        Args:
            outputs: A dictionary of the `tf.TensorSpec` of each output.
            task: One of `TASKS`, or a mapping from the name of each output to one.

        Raises:
            UserError: If the task is invalid, or not one for the shape of its output.
        """
        mapping = isinstance(task, Mapping)
        tasks = dict(task) if mapping else dict.fromkeys(outputs, task)
        if {*tasks} != {*outputs} or any(each not in TASKS for each in tasks.values()):
            raise UserError(
                f"`task` must be one of {TASKS}, or a mapping to one of them from each "
                f"output's name: {', '.join(outputs)}. Received: {task!r}"
            )
        for name, output in outputs.items():
            dtype, shape = output.dtype, output.shape
            numbers = dtype.is_floating or dtype.is_integer or dtype.is_bool
            if (
                not numbers
                or shape.rank == 0
                or shape[0] not in (None, self.batch_size)
            ):
                del tasks[name]
            elif tasks[name] == "classification" and shape.rank == 1:
                raise UserError(
                    f"output {name} has shape {shape}, but a classification has its "
                    'classes in the last dimension; its `task` may be "regression"'
                )
        return tasks


class Arguments(keras.Model):
    """A model that is called with several arguments, as one of a dictionary of them."""

    def __init__(self, model):
        super().__init__(name=model.name, autocast=False)
        self.model = model

    def call(self, inputs, training=False):
        return self.model(**inputs, training=training)


def _valid(names) -> list[str]:
    return [re.sub(r"\W", "_", name, flags=re.ASCII) for name in names]


def _names(structure, kind: str, layers: Sequence[str]) -> list[str]:
    """A name for each tensor of a structure, of letters, digits and `_`.

    TensorFlow puts `_` for all other characters, ignores the case of inputs, and has an
    argument `self`.
    """
    leaves = tree.flatten_with_path(structure)
    paths = [tuple(map(str, path)) for path, _ in leaves]
    for path, (_, leaf) in zip(paths, leaves, strict=True):
        if leaf is None:
            raise UserError(f"{kind} {'_'.join(path)} is None, not a tensor")
    if len(paths) == 1:
        return ["inputs" if kind == "input" else "probabilities"]
    flat = all(len(path) == 1 for path in paths) and not isinstance(structure, dict)
    names, layers = _valid(map("_".join, paths)), _valid(layers)
    if flat and len({name.lower() for name in layers}) == len(paths):
        names = layers
    for number, name in enumerate(names):
        if not name[:1].isalpha() or name == "self":
            names[number] = f"{kind}_{name}"
    if len({name.lower() for name in names}) < max(1, len(names)):
        raise UserError(
            f"{kind}s need names that differ in more than case and punctuation. "
            f"Received: {', '.join(names) or f'no {kind}'}"
        )
    return names
