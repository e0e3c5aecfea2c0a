"""Monte Carlo dropout: stochastic predictions of a network with drop layers."""

import random
from reprlib import repr as shortened

import keras
import numpy as np
from keras import ops, tree

from kdrop import backend
from kdrop.ensemble import compiled_sampler
from kdrop.ensemble.split import length, rows_of
from kdrop.errors import check_integer, check_seed
from kdrop.layers.base import check_model, drop_layers
from kdrop.layers.sampling_context import Sampling, sampling


@keras.saving.register_keras_serializable("kdrop")
class Sampler(keras.Model):
    """A model whose every call gives each row a random sub-network of another model.

    The drop layers of kdrop drop; everything else, batch normalisation included, is at
    inference. `Sampler(model).predict(inputs)` is one Monte Carlo sample.

    Args:
        model: The `keras.Model` to sample. Its weights are shared, not copied.
        seed: Integer in [0, 2^32): each call, and `predict` as a whole, returns sample
            0 of `kdrop.sample` with this seed. A call in a traced function raises for
            models that `kdrop.sample` computes example by example. `None`: the layers
            draw from their own seeds, and each call is a new sample.

    Input and output shapes: the model's.

    Raises:
        ValueError: If an argument is invalid; at the call, if the model has no drop
            layer.

    Reference: [Gal and Ghahramani, 2016](https://arxiv.org/abs/1506.02142), section 4

    >>> model = keras.Sequential([keras.Input((4,)), kdrop.InvertedDropout(0.5)])
    >>> sampler, ones = kdrop.Sampler(model, seed=1), numpy.ones((2, 4))
    >>> [float(x) for x in numpy.unique(sampler(ones))]
    [0.0, 2.0]
    >>> numpy.array_equal(sampler.predict(ones, verbose=0), sampler(ones))
    True
    """

    def __init__(self, model, seed=None, **kwargs):
        super().__init__(**kwargs)
        check_model(model)
        self.model, self.seed = model, check_seed(seed)
        self._kdrop_warned = False

    def call(self, inputs):
        if sampling.get() is not None:  # an outer model is sampled
            return self.model(inputs, training=False)
        compiled_sampler.check_drop_layers(self.model)
        if not self._kdrop_warned:
            self._kdrop_warned = True
            compiled_sampler.warn_of_other_dropout(self.model)
        if self.seed is not None and not backend.is_traced():
            sampler = compiled_sampler.sampler_of(self.model, inputs)
            indices = np.arange(length(inputs), dtype="int32")
            rows = compiled_sampler.sample_rows([0], indices, self.seed)
            return sampler.suffix(sampler.prefix(inputs), indices, rows)
        rows = None if self.seed is None else _traced_rows(inputs, self.seed)
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
        verbose = 0 if verbose == "auto" else verbose
        samples = sample(self.model, x, 1, batch_size or 32, self.seed, verbose=verbose)
        return tree.map_structure(lambda outputs: outputs[0], samples)

    def make_predict_function(self, force=False):
        self._forget_stale_functions()
        return super().make_predict_function(force)

    def make_test_function(self, force=False):
        self._forget_stale_functions()
        return super().make_test_function(force)

    def _forget_stale_functions(self):
        current = compiled_sampler.fingerprint(self.model)
        if self.__dict__.get("_kdrop_fingerprint") != current:
            self.__dict__["_kdrop_fingerprint"] = current  # not tracked by Keras
            self.predict_function = self.test_function = None

    def get_config(self):
        model = keras.saving.serialize_keras_object(self.model)
        return {**super().get_config(), "model": model, "seed": self.seed}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        inner = keras.saving.deserialize_keras_object(config["model"], custom_objects)
        return cls(**{**config, "model": inner})


def _traced_rows(inputs, seed):
    """`sample_rows` of sample 0 for a batch whose size is known only at run time."""
    inputs = tree.flatten(inputs)[0]
    examples = ops.cast(ops.arange(ops.shape(inputs)[0], dtype="int32"), "uint32")
    examples = examples + backend.first_row(inputs)
    zeros = ops.zeros_like(examples)
    return ops.stack([zeros, examples, zeros + np.uint32(seed)], axis=1)


def sample(
    model, inputs, passes=50, batch_size=256, seed=None, consistent=False,
    memory=compiled_sampler.MEMORY, verbose=1,
):  # fmt: skip
    """Draw Monte Carlo samples: each one gives each example a random sub-network.

    Only the drop layers of kdrop drop; everything else is at inference. One warning
    names the layers of Keras that drop in training and are not sampled.

    Args:
        model: A `keras.Model` with drop layers. A subclassed one has no prefix.
        inputs: An array or, as the model takes them, a list or dictionary of arrays;
            or a `tf.data.Dataset` of batches of those or of `(inputs, targets)`.
        passes: Number of Monte Carlo samples.
        batch_size: Examples that are computed at a time, unless `inputs` is a dataset.
        seed: Integer in [0, 2^32). The same seed gives the same samples, whatever the
            batch size and the memory; `None` draws a seed.
        consistent: Whether all examples of a sample have the same sub-network.
        memory: Bytes that all intermediate results of a suffix may take, summed up; at
            least one row is computed at a time.
        verbose: 1 shows a progress bar, 0 does not.

    Returns:
        NumPy array `(passes, examples, ...)`, or the structure of the model's outputs
        with such arrays.

    Raises:
        ValueError: If an argument is invalid, if there is nothing to sample (no drop
            layer of kdrop, or none with a rate above 0), or if a drop layer cannot be
            sampled where it is called.

    Reference: [Gal and Ghahramani, 2016](https://arxiv.org/abs/1506.02142), section 4;
    `consistent`: [Kirsch et al., 2019](https://arxiv.org/abs/1906.08158), section 3.3

    >>> model = keras.Sequential([keras.Input((4,)), kdrop.InvertedDropout(0.5)])
    >>> samples = kdrop.sample(model, numpy.ones((3, 4)), passes=100, seed=1, verbose=0)
    >>> samples.shape, bool(abs(samples.mean() - 1) < 0.15)
    ((100, 3, 4), True)
    """
    check_model(model)
    counts = {"passes": passes, "batch_size": batch_size, "memory": memory}
    for name, value in counts.items():
        check_integer(name, value, lowest=1)
    seed = random.randrange(2**32) if check_seed(seed) is None else seed
    batches, total = _batches(inputs, batch_size)
    bar = keras.utils.Progbar(total, verbose=verbose, unit_name="batch")
    parts, first, sampler = [], 0, None
    for done, batch in enumerate(batches, start=1):
        examples = np.arange(first, first + length(batch), dtype="uint32")
        first += len(examples)
        if len(examples):
            if sampler is None:
                compiled_sampler.prepare(model, batch)
                sampler = compiled_sampler.sampler_of(model, batch)
            numbers = np.zeros_like(examples) if consistent else examples
            parts += sampler.sample_batch(batch, seed, passes, numbers, memory)
        bar.update(done)
    if sampler is None:
        raise ValueError("`inputs` must hold one example at least. Received: none")
    if total is None:
        bar.update(done, finalize=True)
    return tree.map_structure(lambda *x: np.concatenate(x, axis=1), *parts)


def _batches(inputs, size):
    """Batches of arrays, and their number, or `None` if it is unknown."""
    if hasattr(inputs, "as_numpy_iterator"):
        total, batches = int(inputs.cardinality()), inputs.as_numpy_iterator()
        batches = (b[0] if isinstance(b, tuple) else b for b in batches)
        return batches, total if total >= 0 else None
    arrays = tree.flatten(inputs)
    lengths = {len(x) if len(getattr(x, "shape", ())) else -1 for x in arrays}
    if len(lengths) != 1 or -1 in lengths:
        received = [f"{type(x).__name__}{getattr(x, 'shape', '')}" for x in arrays]
        raise ValueError(
            "`inputs` must be an array of examples, a list or dictionary of arrays of "
            f"as many examples, or a `tf.data.Dataset`. Received: {shortened(received)}"
        )
    starts = range(0, lengths.pop(), size)
    return (rows_of(inputs, slice(s, s + size)) for s in starts), len(starts)
