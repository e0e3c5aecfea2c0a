"""The sub-networks that a network with dropout holds: sampling them, counting them."""

import math
import numbers
import random
import warnings

import keras
import numpy as np
from keras import ops, tree

from kdrop import backend, keras_internals
from kdrop.ensemble.split import (
    Stages,
    Structure,
    compiled,
    length,
    rows_of,
    stochastic,
)
from kdrop.layers.base import check_seed, drop_layers, first_row
from kdrop.layers.replace import remaining
from kdrop.layers.sampling_context import Sampling, sampling

MEMORY = 2**28  # bytes


@keras.saving.register_keras_serializable("kdrop")
class Sampler(keras.Model):
    """A model whose every call gives each row a random sub-network of another model.

    The drop layers of kdrop drop; everything else, batch normalisation included, is at
    inference. `Sampler(model).predict(inputs)` is one Monte Carlo pass.

    Args:
        model: The `keras.Model` to sample. Its weights are shared, not copied.
        seed: Integer in [0, 2^32): each call, and `predict` as a whole, gives pass 0
            of `kdrop.sample` with this seed. In a traced function of your own, models
            that `kdrop.sample` has to compute example by example are refused. `None`:
            the layers draw from their own seeds, and each call is another pass.

    Input and output shapes: the model's.

    Raises:
        ValueError: If an argument is not as said, or at the call, if the model has no
            drop layer.

    Reference: [Gal and Ghahramani, 2016](https://arxiv.org/abs/1506.02142), section 4
    """

    def __init__(self, model, seed=None, **kwargs):
        super().__init__(**kwargs)
        _check_model(model)
        self.model, self.seed = model, check_seed(seed)
        self._kdrop_warned, self._kdrop_structure = False, None

    def call(self, inputs):
        if sampling.get() is not None:
            return self.model(inputs, training=False)
        _check_drops(self.model)
        if not self._kdrop_warned:
            self._kdrop_warned = True
            warn_of_others(self.model)
        if self.seed is None:
            rows = None
        elif backend.is_traced():
            rows = _first_pass(inputs, self.seed)
        else:
            places = np.arange(length(inputs), dtype="int32")
            rows = np.stack([0 * places, places, 0 * places], axis=1).astype("uint32")
            rows[:, 2] = self.seed
            return _passes(self.model, inputs).one(inputs, places, rows)
        with Sampling(drop_layers(self.model), rows):
            return self.model(inputs, training=False)

    def predict(self, x, batch_size=None, verbose="auto", steps=None, callbacks=None):
        if self.seed is None:
            return super().predict(x, batch_size, verbose, steps, callbacks)
        if steps is not None or callbacks is not None:
            raise ValueError(
                "`predict` of a seeded Sampler takes neither `steps` nor `callbacks`. "
                f"Received: steps={steps!r}, callbacks={callbacks!r}"
            )
        shown = 0 if verbose == "auto" else verbose
        samples = sample(self.model, x, 1, batch_size or 32, self.seed, verbose=shown)
        return tree.map_structure(lambda outputs: outputs[0], samples)

    def make_predict_function(self, force=False):
        self._forget_old()
        return super().make_predict_function(force)

    def make_test_function(self, force=False):
        self._forget_old()
        return super().make_test_function(force)

    def _forget_old(self):
        """Make the functions anew if the model is made of other parts."""
        if self._kdrop_structure is None or not self._kdrop_structure.holds():
            self._kdrop_structure = Structure(self.model)
            self.predict_function = self.test_function = None

    def get_config(self):
        model = keras.saving.serialize_keras_object(self.model)
        return {**super().get_config(), "model": model, "seed": self.seed}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        model = keras.saving.deserialize_keras_object(
            config.pop("model"), custom_objects
        )
        return cls(model, **config)


def _first_pass(inputs, seed):
    """The rows `(batch, 3)` of pass 0, as `kdrop.sample` names them."""
    inputs = tree.flatten(inputs)[0]
    examples = ops.cast(ops.arange(ops.shape(inputs)[0], dtype="int32"), "uint32")
    examples = examples + first_row(inputs)
    zeros = ops.zeros_like(examples)
    return ops.stack([zeros, examples, zeros + np.uint32(seed)], axis=1)


def sample(
    model,
    inputs,
    passes=50,
    batch_size=256,
    seed=None,
    consistent=False,
    memory=MEMORY,
    verbose=1,
):
    """Stochastic predictions: in each pass each example has a sub-network of its own.

    What lies before the first drop layer is computed once, the rest for as many passes
    at a time as the memory allows. All but the drop layers of kdrop is at inference.

    Args:
        model: A `keras.Model` with drop layers of kdrop. Of a subclassed one, whose
            graph is not known, whole passes are computed.
        inputs: An array or, as the model takes them, a list or dictionary of arrays;
            or a `tf.data.Dataset` of batches of those or of `(inputs, targets)`.
        passes: Number of passes.
        batch_size: Examples that are computed at a time; a data set has its own.
        seed: Integer in [0, 2^32). The same seed gives the same samples, whatever the
            batch size and the memory; `None` draws a seed.
        consistent: Whether all examples of a pass have the same sub-network.
        memory: Bytes that all intermediate results of the stacked passes may fill
            together. One row at a time is the least.
        verbose: 1 shows a progress bar, 0 does not.

    Returns:
        NumPy array `(passes, examples, ...)`, or the structure of the model's outputs
        with such arrays.

    Raises:
        ValueError: If an argument is invalid, if there is nothing to sample (no drop
            layer of kdrop, or none with a rate above 0), or if a drop layer cannot be
            sampled where it is called.

    Layers of Keras that drop in training stay at inference: one warning names them.

    Reference: [Gal and Ghahramani, 2016](https://arxiv.org/abs/1506.02142), section 4;
    `consistent`: [Kirsch et al., 2019](https://arxiv.org/abs/1906.08158), section 3.3
    """
    _check_model(model)
    for name, value in {
        "passes": passes,
        "batch_size": batch_size,
        "memory": memory,
    }.items():
        _check_count(name, value)
    seed = random.randrange(2**32) if check_seed(seed) is None else seed
    batches, total = _batches(inputs, batch_size)
    bar = keras.utils.Progbar(total, verbose=verbose, unit_name="batch")
    parts, first = [], 0
    for done, batch in enumerate(batches, start=1):
        examples = np.arange(first, first + length(batch), dtype="uint32")
        if not first and len(examples):
            stacked = _passes(model, batch)
            _check_rates(model)
            warn_of_others(model)
        first += len(examples)
        names = np.zeros_like(examples) if consistent else examples
        parts += stacked.run(batch, seed, passes, names, memory)
        bar.update(done)
    if not first:
        raise ValueError("`inputs` must hold one example at least. Received: none")
    if total is None:
        bar.update(done, finalize=True)
    return tree.map_structure(lambda *x: np.concatenate(x, axis=1), *parts)


class Passes:
    """The stacked passes of one model, compiled.

    Args:
        model: A built `keras.Model` with drop layers.
        inputs: A structure of batches with one example at least.
    """

    def __init__(self, model, inputs):
        if names := stateful_layers(model):
            raise ValueError(
                f"A model with stateful layers cannot be sampled: {names}. Each sample "
                "would depend on the one before. Allowed: `stateful=False`."
            )
        self.stages = Stages(model)
        self._compile(model)
        if not self.stages.follow_examples(self.once, self.sample, inputs):
            self._compile(model)
        self.structure = Structure(model)  # a layer may count its traces

    def _compile(self, model):
        self.once = compiled(self.stages.once, model)
        self.sample = compiled(self.stages.sample, model)

    def most(self, shared, memory):
        """How many rows may be computed at once."""
        row = np.zeros(1, "int32"), np.zeros((1, 3), "uint32")
        return max(1, memory // self.sample.row_bytes(shared, *row))

    def one(self, batch, places, rows):
        """The outputs of one sub-network for each example, as `rows` name them."""
        return self.sample(self.once(batch), places, rows)

    def run(self, batch, seed, passes, names, memory):
        """Arrays `(passes, examples, ...)`, for some of the batch's examples at a time.

        Args:
            names: uint32 array `(examples,)`, the second words of the rows.
        """
        shared = self.once(batch)
        most = self.most(shared, memory)
        size = _share(len(names), most)
        together = _share(passes, max(1, most // size))
        for start in range(0, len(names), size):
            places = np.arange(start, min(start + size, len(names)), dtype="int32")
            found = [
                self._stacked(
                    shared, places, seed, range(p, min(p + together, passes)), names
                )
                for p in range(0, passes, together)
            ]
            yield tree.map_structure(lambda *x: np.concatenate(x), *found)

    def _stacked(self, shared, places, seed, numbers, names):
        rows = np.repeat(numbers, len(places)), np.tile(names[places], len(numbers))
        rows = np.stack([*rows, np.full(len(rows[0]), seed)], axis=1).astype("uint32")
        outputs = self.sample(shared, np.tile(places, len(numbers)), rows)

        def apart(output):
            output = ops.convert_to_numpy(output)
            return output.reshape(len(numbers), len(places), *output.shape[1:])

        return tree.map_structure(apart, outputs)


def _passes(model, batch):
    """The model's `Passes`, stored with the model until it is made of other parts."""
    _build(model, batch)
    _check_drops(model)
    passes = vars(model).get("_kdrop_passes")
    if passes is None or not passes.structure.holds():
        passes = vars(model)["_kdrop_passes"] = Passes(model, batch)
    return passes


def _share(total, most):
    """The largest of the fewest equal shares of a total that have at most `most`."""
    return math.ceil(total / math.ceil(total / most))


def _batches(inputs, size):
    """Batches of arrays, and how many there are, or `None`."""
    if hasattr(inputs, "as_numpy_iterator"):
        batches = inputs.as_numpy_iterator()
        total = int(inputs.cardinality())
        inputs_only = (b[0] if isinstance(b, tuple) else b for b in batches)
        return inputs_only, total if total >= 0 else None
    arrays = tree.flatten(inputs)
    sized = [x for x in arrays if len(getattr(x, "shape", ()))]
    lengths = {len(x) for x in sized}
    if len(sized) < len(arrays) or len(lengths) != 1:
        raise ValueError(
            "`inputs` must be an array of examples, a list or dictionary of arrays of "
            "as many examples, or a `tf.data.Dataset`. Received: "
            + ", ".join(f"{type(x).__name__}{getattr(x, 'shape', ())}" for x in arrays)
        )
    starts = range(0, lengths.pop(), size)
    return (rows_of(inputs, slice(s, s + size)) for s in starts), len(starts)


def _build(model, batch):
    if not model.built:
        model(rows_of(batch, slice(1)), training=False)


def _check_model(model):
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a `keras.Model`. Received: {model!r}")


def _check_count(name, value):
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integer or value < 1:
        raise ValueError(
            f"`{name}` must be an integer of 1 or more. Received: {value!r}"
        )


def _check_drops(model):
    if drop_layers(model):
        return
    message = f"Model {model.name!r} has no drop layer of kdrop to sample."
    if remaining(model):
        message += " `kdrop.replace(model)` puts them in place of those of Keras."
    raise ValueError(message)


def stateful_layers(model):
    """Names of the layers whose state goes from one call to the next."""
    layers = keras_internals.layers_of(model)
    return [x.name for x in layers if getattr(x, "stateful", False) is True]


def warn_of_others(model):
    """Warn if a model has other dropout than that of kdrop's layers."""
    if names := remaining(model):
        warnings.warn(
            f"These layers of model {model.name!r} stay at inference while it is "
            f"sampled: {', '.join(map(repr, names))}. `kdrop.replace(model)` puts "
            "kdrop's layers in the place of those that are layers of their own.",
            stacklevel=3,
        )


def _check_rates(model):
    if not stochastic(model):
        raise ValueError(
            f"All drop layers of model {model.name!r} have rate 0: its samples would "
            "all be the same."
        )
