"""The input pipeline of training: batches as functions of a seed and a step."""

import tensorflow as tf

from kdrop.errors import UserError
from kdrop.training.data import Part
from kdrop.training.devices import ALONE, Devices
from kdrop.training.fields import check


def batches(
    part: Part,
    batch_size: int,  # examples in a batch, of all devices together
    *,
    epochs: int | None = None,  # including what `first_step` skips; no end if `None`
    first_step: int = 0,  # batches to skip
    shuffle_seed: int | None = None,  # shuffles each epoch anew; else in order
    mirror: bool = False,  # half of the images, left to right
    shift: int = 0,  # of the images each way in pixels at most, the border reflected
    cutout: int = 0,  # side in pixels of a square in each image; 0 for none
    devices: Devices = ALONE,  # that share a batch; this process gets its rows of it
) -> tf.data.Dataset:
    """Pairs of a float32 batch of inputs and its int32 targets, epoch after epoch.

    An epoch has each example of the part once; its last batch holds the remainder. The
    order of the examples and their augmentation are functions of (`shuffle_seed`,
    epoch, example) alone: a pipeline that starts at `first_step` continues exactly
    where an interrupted one stopped.

    Where the examples of a batch cannot be divided evenly among the devices, the last
    example is repeated, and the batches are triples with a weight for each example: 0
    for repeated ones, and such that the mean of the weighted losses is the mean over
    the others.

    The square of `cutout` lies around a random pixel and gets the mean colour of the
    part: [DeVries and Taylor, 2017](https://arxiv.org/abs/1708.04552).
    """
    count = len(part.targets)
    check("batch_size", batch_size, "[1, inf)")
    if not count:
        raise ValueError("A part without examples gives no batches.")
    augment = mirror or shift != 0 or cutout != 0
    if augment and part.inputs.ndim != 4:
        raise UserError("Only images can be augmented: these inputs are not images.")
    if augment:
        side = min(part.inputs.shape[1:3])
        check("shift", shift, f"[0, {side})")
        check("cutout", cutout, f"[0, {side}]")
    if augment and shuffle_seed is None:
        raise ValueError("Augmentation needs a `shuffle_seed`.")
    sizes = min(batch_size, count), count % batch_size
    uneven = any(size % devices.count for size in sizes)
    steps = -(-count // batch_size)
    first_epoch, skipped = divmod(first_step, steps)
    with tf.device("CPU:0"):  # where tf.data runs
        inputs, targets = tf.constant(part.inputs), tf.constant(part.targets)
        colour = tf.constant(part.inputs.mean((0, 1, 2)) if cutout else 0, tf.float32)

    def epoch(number):
        order = tf.range(count)
        if shuffle_seed is not None:
            seed = tf.stack([tf.constant(shuffle_seed, tf.int64), number])
            order = tf.random.experimental.stateless_shuffle(order, seed)
        if augment:
            choices = [2 if mirror else 1, 2 * shift + 1, 2 * shift + 1]
            moves = _integers(count, tf.random.fold_in(seed, 1), choices)
            moves -= [0, shift, shift]
            side_lengths = part.inputs.shape[1:3]
            centres = _integers(count, tf.random.fold_in(seed, 2), side_lengths)

        def batch(start):
            size = tf.minimum(count - start, batch_size)
            padded_size = -(-size // devices.count) * devices.count
            process_size = padded_size // devices.processes
            row = devices.process * process_size + tf.range(process_size)
            examples = tf.gather(order, start + tf.minimum(row, size - 1))
            if augment:
                values = _moved(inputs, examples, tf.gather(moves, examples))
            else:
                values = tf.gather(inputs, examples)
            values = tf.cast(values, tf.float32)
            if cutout:
                hidden = _squares(values, tf.gather(centres, examples), cutout)
                values = tf.where(hidden, colour, values)
            pair = values, tf.gather(targets, examples)
            weight = tf.cast(padded_size / size, tf.float32)
            return (*pair, tf.where(row < size, weight, 0.0)) if uneven else pair

        start = skipped * batch_size * tf.cast(number == first_epoch, "int64")
        return tf.data.Dataset.range(start, count, batch_size).map(batch)

    numbers = tf.data.Dataset.counter(first_epoch)
    length = tf.data.INFINITE_CARDINALITY
    if epochs is not None:
        numbers = numbers.take(epochs - first_epoch)
        length = epochs * steps - first_step
    dataset = numbers.flat_map(epoch)
    return dataset.apply(tf.data.experimental.assert_cardinality(length)).prefetch(2)


def _integers(count, seed, sizes):
    """For each example a random integer below each of the sizes."""
    words = tf.random.stateless_uniform(
        (count, len(sizes)), seed, minval=None, maxval=None, dtype=tf.uint32
    )
    return tf.cast(words % tf.constant(sizes, tf.uint32), tf.int64)


def _moved(images, examples, moves):
    """The examples' images, mirrored and shifted: one gather of pixels, in uint8.

    A move is whether an image is mirrored, and its shift down and right.
    """
    height, width, channels = images.shape[1:]
    mirror, down, right = tf.unstack(moves[:, :, None], axis=1)
    rows = _reflected(tf.range(height, dtype=tf.int64) - down, height)
    columns = _reflected(tf.range(width, dtype=tf.int64) - right, width)
    columns = tf.where(mirror == 1, width - 1 - columns, columns)
    first_row = tf.cast(examples, tf.int64)[:, None] * height
    pixels = (first_row + rows)[:, :, None] * width + columns[:, None, :]
    return tf.gather(tf.reshape(images, (-1, channels)), pixels)


def _reflected(index, size):
    return size - 1 - abs(size - 1 - abs(index))


def _squares(images, centres, side):
    """Which pixels lie in the square around each image's centre."""
    height, width = images.shape[1:3]
    rows = tf.range(height, dtype=tf.int64) - centres[:, :1]
    columns = tf.range(width, dtype=tf.int64) - centres[:, 1:]
    rows, columns = ((x + side // 2) // side == 0 for x in (rows, columns))
    return (rows[:, :, None] & columns[:, None, :])[..., None]
