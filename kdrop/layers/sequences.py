"""Layers for sequences: words, features of all steps, and states of recurrent cells."""

import keras
from keras import ops, tree

from kdrop.errors import check, check_bool
from kdrop.keras_internals import DropoutRNNCell
from kdrop.layers.base import Drop, check_rate, refuse_quantization
from kdrop.layers.regions import SpatialDropout1D
from kdrop.layers.units import VanillaDropout
from kdrop.masks import bits, kernels, run


@keras.saving.register_keras_serializable("kdrop")
class LockedDropout(SpatialDropout1D):
    """`SpatialDropout1D` by its name in recurrent networks: steps share one mask.

    For the inputs and outputs of a recurrent layer `(batch, steps, features)`; also
    called variational dropout.

    >>> layer = kdrop.LockedDropout(0.5, seed=1, name="drop")
    >>> outputs = layer(keras.ops.ones((1, 2, 6)), training=True)
    >>> print(keras.ops.convert_to_numpy(outputs[0]))
    [[2. 0. 0. 2. 0. 0.]
     [2. 0. 0. 2. 0. 0.]]

    Reference: [Gal and Ghahramani, 2016](https://arxiv.org/abs/1512.05287), section 4;
    [Merity et al., 2017](https://arxiv.org/abs/1708.02182), section 4.2
    """

    place = "sequences"


@keras.saving.register_keras_serializable("kdrop")
class EmbeddingDropout(keras.layers.Embedding, Drop):
    """An embedding that drops words: all occurrences of a word share one decision.

    In training the vectors of dropped words are 0, the others scaled by
    `1 / (1 - rate)`. At inference the layer is `keras.layers.Embedding`, whose weights
    and masks it has. The cost does not depend on the size of the vocabulary.

    Args:
        input_dim, output_dim: Sizes of the vocabulary and of a vector.
        rate: Fraction of the words to drop, in [0, 1). It can be set at any time.
        per_example: Whether each example has its own decisions, as in Gal and
            Ghahramani. If not, the batch shares them, as in Merity et al.
        *args: Those of `keras.layers.Embedding` after `output_dim`.
        **kwargs: Those of `keras.layers.Embedding`; `seed` and errors are those of
            `InvertedDropout`.

    Input shape: `(batch, ...)`, integers. Output shape: `(batch, ..., output_dim)`.

    >>> layer = kdrop.EmbeddingDropout(9, 1, 0.5, "ones", seed=1, name="drop")
    >>> outputs = layer(numpy.array([[3, 4, 3, 4, 5]]), training=True)
    >>> print(keras.ops.convert_to_numpy(outputs[0, :, 0]))
    [2. 0. 2. 0. 0.]

    Reference: [Gal and Ghahramani, 2016](https://arxiv.org/abs/1512.05287), section
    4.2; [Merity et al., 2017](https://arxiv.org/abs/1708.02182), section 4.3
    """

    place = "words to embed"
    config_arguments = ("per_example",)
    call = Drop.call
    quantize = quantized_build = refuse_quantization

    def __init__(
        self, input_dim, output_dim, rate, *args, per_example=True, seed=None, **kwargs
    ):
        super().__init__(input_dim, output_dim, *args, rate=rate, seed=seed, **kwargs)
        self.per_example = check_bool("per_example", per_example)

    def check(self, inputs):
        """Accept what Keras's layer does: it casts other dtypes to integers."""

    def shares_batch(self, inputs):
        return not self.per_example

    def compute_output_spec(self, inputs, **kwargs):
        return super().compute_output_spec(inputs)

    def infer(self, inputs):
        return super().call(inputs)

    def drop(self, inputs, draw, rows):
        ids = run.row_ids(rows, ops.shape(inputs))
        # A word's position in its row is its number: equal words, equal decisions.
        inner = (1,) * (len(inputs.shape) - 1)
        keys = bits.row_keys(run.draw_key(draw, ids), ids)
        first, second = (ops.reshape(key, (-1, *inner)) for key in keys)
        words = bits.word(ops.cast(inputs, "uint32"), first, second)
        mask = ops.expand_dims(kernels.dropped(words, draw), -1)
        return kernels.select_and_scale(self.infer(inputs), mask, draw)


def _forward(name):
    """A method of `Zoneout` that RNN layers call: it is passed on to the cell."""

    def method(self, *inputs):
        if isinstance(self.layer, DropoutRNNCell):
            getattr(self.layer, name)(*inputs)

    return method


@keras.saving.register_keras_serializable("kdrop")
class Zoneout(keras.layers.Wrapper, DropoutRNNCell):
    """Let units of a recurrent cell's state keep their previous value, at random.

    In training each unit keeps its value with probability `rate`, independently in each
    step, and else takes the new one. At inference the state is the expectation,
    `rate * previous + (1 - rate) * new`. Masked steps change nothing.

    The masks are those of a `VanillaDropout` for each state, which `drop_layers` lists.
    Each step needs another one, so `StepClock` has no effect on them: with TensorFlow,
    do not compute the layer again (`keras.remat`).

    Args:
        cell: Cell of a `keras.layers.RNN` whose output is its first state. In a stack,
            wrap each cell. On JAX the RNN layer needs `unroll=True` for training.
        rate: Probability, in [0, 1), or a list of one for each state: for the states
            (h, c) of an LSTM the paper takes [.05, .5]. It can be set at any time.

    Arguments of a call, states and shapes: those of the cell. `seed` and errors as in
    `InvertedDropout`.

    >>> cell = kdrop.Zoneout(keras.layers.LSTMCell(4), rate=[0.05, 0.5], seed=1)
    >>> print(keras.layers.RNN(cell)(keras.ops.ones((2, 5, 3)), training=True).shape)
    (2, 4)

    Reference: [Krueger et al., 2017](https://arxiv.org/abs/1606.01305), section 3
    """

    place = "a recurrent cell to wrap"

    def __init__(self, cell, rate, seed=None, **kwargs):
        fits = isinstance(cell, keras.Layer) and hasattr(cell, "state_size")
        if not fits or isinstance(cell, keras.layers.RNN):
            raise ValueError(f"Zoneout wraps a recurrent cell. Received: cell={cell!r}")
        kwargs.setdefault("dtype", cell.dtype_policy)
        super().__init__(cell, **kwargs)
        self.seed = seed
        count = len(tree.flatten(cell.state_size))
        dtype = kernels.wide(self.compute_dtype)
        self.zones = [
            VanillaDropout(each, seed=seed, dtype=dtype, name=f"{self.name}_{i}")
            for i, each in enumerate(_rates(rate, count))
        ]
        for zone in self.zones:
            zone.once_per_step = False
        if hasattr(cell, "get_initial_state"):
            self.get_initial_state = cell.get_initial_state

    @property
    def rate(self):
        """Probability of the units of each state to keep their value. It can be set."""
        return [zone.rate for zone in self.zones]

    @rate.setter
    def rate(self, rate):
        for zone, each in zip(self.zones, _rates(rate, len(self.zones)), strict=True):
            zone.rate = each

    @property
    def state_size(self):
        return self.layer.state_size

    @property
    def output_size(self):
        return getattr(self.layer, "output_size", None)

    def call(self, inputs, states, training=False):
        output, new_states = self.layer(inputs, states)
        previous, new = tree.flatten(states), tree.flatten(new_states)
        if output is not new[0]:
            raise ValueError(
                f"Layer {self.name!r} zones out cells whose output is their first "
                f"state. Received: cell={self.layer!r}"
            )
        for i, zone in enumerate(self.zones):
            share = zone(ops.ones_like(new[i], dtype=zone.dtype), training=training)
            new[i] = _blend(share, new[i], previous[i])
        return new[0], tree.pack_sequence_as(new_states, new)

    # What an RNN layer calls before its loop over the steps, and after it.
    get_dropout_mask = _forward("get_dropout_mask")
    get_recurrent_dropout_mask = _forward("get_recurrent_dropout_mask")
    reset_dropout_mask = _forward("reset_dropout_mask")
    reset_recurrent_dropout_mask = _forward("reset_recurrent_dropout_mask")

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


def _blend(share, new, previous):
    """`share * new + (1 - share) * previous`, without a NaN whose share is 0."""
    after = ops.where(share > 0, share * ops.cast(new, share.dtype), 0)
    before = ops.where(share < 1, (1 - share) * ops.cast(previous, share.dtype), 0)
    return ops.cast(before + after, new.dtype)


def _rates(rate, count):
    rates = rate if isinstance(rate, list | tuple) else [rate] * count
    check("rate", rate, len(rates) == count, f"a number, or a list of {count}")
    return [check_rate(each) for each in rates]
