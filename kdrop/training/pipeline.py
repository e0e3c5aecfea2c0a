"""The pipeline that feeds a data set to training.

data = cifar10(train_size=5000, seed=3)
model.fit(batches(data.train, 128, shuffle_seed=3, mirror=True), ...)
"""

import math

import tensorflow as tf

from kdrop.errors import UserError
from kdrop.training.data import Part


def batches(
    part: Part,
    batch_size: int,
    *,
    passes: int | None = None,
    first_pass: int = 0,
    shuffle_seed: int | None = None,
    mirror: bool = False,
    shift: int = 0,
    devices: int = 1,
    process: int = 0,
    processes: int = 1,
) -> tf.data.Dataset:
    """Pairs of a float32 batch of inputs and its int32 targets, pass after pass.

    Where the examples of a batch cannot be shared out evenly among the devices, the
    last is repeated, and the batches are triples, with a weight for each example: 0
    for repeated ones, and such that the mean of the weighted losses is the mean over
    the others.

    The order of the examples and what augmentation does to each are functions of
    (`shuffle_seed`, pass, example) alone, so that a pipeline that starts at
    `first_pass` gives what an uninterrupted one gives from there on.

    Args:
        batch_size: Examples in a batch; the last one of a pass holds the remainder.
        passes: How many passes to give, counted from `first_pass`; no end if `None`.
        first_pass: The pass to start with.
        shuffle_seed: Shuffles each pass anew; the order of the part if `None`.
        mirror: Mirror half of the images, left to right.
        shift: Shift images by up to so many pixels each way, the border reflected.
        devices: How many devices share a batch, over all processes.
        process: The process whose rows of each batch are to be read.
        processes: How many processes share a batch, with as many devices each.

    Raises:
        UserError: A batch of none, a shift that is not one within the image, or
            augmentation of what is not images.
        ValueError: No examples, or augmentation without a seed.
    """
    count = len(part.targets)
    if batch_size < 1:
        raise UserError(f"The batch size is {batch_size}, but must be at least 1.")
    if not count:
        raise ValueError("A part without examples gives no batches.")
    augment = mirror or shift != 0
    if augment and part.inputs.ndim != 4:
        raise UserError(
            "Only images can be augmented, and these inputs are not images."
        )
    if augment and not 0 <= shift < min(part.inputs.shape[1:3]):
        raise UserError(f"The shift is {shift}, but must be from 0 to below the side.")
    if augment and shuffle_seed is None:
        raise ValueError("mirror and shift take a shuffle_seed.")
    sizes = min(batch_size, count), count % batch_size
    uneven = any(size % devices for size in sizes)
    with tf.device("CPU:0"):  # tf.data works there
        inputs, targets = tf.constant(part.inputs), tf.constant(part.targets)

    def one_pass(number):
        order = tf.range(count)
        if shuffle_seed is not None:
            seed = tf.stack([tf.constant(shuffle_seed, tf.int64), number])
            order = tf.random.experimental.stateless_shuffle(order, seed)
        if augment:
            moves = _moves(count, tf.random.fold_in(seed, 1), mirror, shift)

        def batch(start):
            size = tf.minimum(count - start, batch_size)
            whole = -(-size // devices) * devices
            own = whole // processes
            place = process * own + tf.range(own)
            chosen = tf.gather(order, start + tf.minimum(place, size - 1))
            if augment:
                values = _moved(inputs, chosen, tf.gather(moves, chosen))
            else:
                values = tf.gather(inputs, chosen)
            given = tf.cast(values, tf.float32), tf.gather(targets, chosen)
            if not uneven:
                return given
            weight = tf.cast(whole / size, tf.float32)
            return *given, tf.where(place < size, weight, 0.0)

        return tf.data.Dataset.range(0, count, batch_size).map(batch)

    numbers = tf.data.Dataset.counter(first_pass)
    steps = tf.data.INFINITE_CARDINALITY
    if passes is not None:
        numbers, steps = numbers.take(passes), passes * math.ceil(count / batch_size)
    dataset = numbers.flat_map(one_pass)
    return dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)


def _moves(count, seed, mirror, shift):
    """For each example: whether to mirror it, how far to shift it down and right."""
    words = tf.random.stateless_uniform(
        (count, 3), seed, minval=None, maxval=None, dtype=tf.uint32
    )
    choices = [2 if mirror else 1, 2 * shift + 1, 2 * shift + 1]
    return tf.cast(words % tf.constant(choices, tf.uint32), tf.int64) - [
        0,
        shift,
        shift,
    ]


def _moved(images, chosen, moves):
    """The chosen images, mirrored and shifted: one gather of pixels, still in uint8."""
    height, width, channels = images.shape[1:]
    mirror, down, right = tf.unstack(moves[:, :, None], axis=1)
    rows = _reflected(tf.range(height, dtype=tf.int64) - down, height)
    columns = _reflected(tf.range(width, dtype=tf.int64) - right, width)
    columns = tf.where(mirror == 1, width - 1 - columns, columns)
    first_row = tf.cast(chosen, tf.int64)[:, None] * height
    pixels = (first_row + rows)[:, :, None] * width + columns[:, None, :]
    return tf.gather(tf.reshape(images, (-1, channels)), pixels)


def _reflected(index, size):
    return size - 1 - abs(size - 1 - abs(index))
