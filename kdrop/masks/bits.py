"""Random words from a counter: a pure function of (key, row, position).

`fold` makes a key of two 32-bit words, each row of a batch turns it into two words for
the row, and an element's word is a hash of its position under those two. All of it is
32-bit arithmetic, so eager mode, graphs, XLA and both backends compute the same bits.
"""

import numpy as np
from keras import ops

from kdrop import backend

# Key, rotations and parity constant of Threefry-2x32: Salmon et al., 2011, "Parallel
# random numbers: as easy as 1, 2, 3", https://doi.org/10.1145/2063384.2063405, table 2
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
_ZERO = np.uint32(0)


def _rotate(word, bits):
    # Exclusive, since LiteRT has no other or; the bits do not overlap.
    left = ops.left_shift(word, np.uint32(bits))
    return ops.bitwise_xor(left, ops.right_shift(word, np.uint32(32 - bits)))


def threefry(key, counter):
    """Threefry-2x32 with 20 rounds: encrypts a 64-bit counter under a 64-bit key.

    Key and counter are pairs of uint32 scalars or vectors `(n,)`, and so is the result.
    Reference: Salmon et al., 2011, section 3.2
    """
    # It has most of a kernel's operations, so TensorFlow traces it once, for vectors of
    # any size, and not in each kernel: a layer's first step takes far less time.
    arguments = *key, *counter
    shape = ops.shape(ops.bitwise_xor(key[0], counter[0]))
    vectors = [ops.reshape(x, (-1,)) for x in arguments]
    return [ops.reshape(x, shape) for x in backend.of_vectors(_threefry)(*vectors)]


def _threefry(*arguments):
    key, counter = arguments[:2], arguments[2:]
    parity = ops.bitwise_xor(ops.bitwise_xor(key[0], key[1]), _PARITY)
    schedule = (key[0], key[1], parity)
    first, second = counter[0] + key[0], counter[1] + key[1]
    for group in range(5):
        for bits in _ROTATIONS[group % 2]:
            first = first + second
            second = ops.bitwise_xor(_rotate(second, bits), first)
        first = first + schedule[(group + 1) % 3]
        second = second + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return first, second


def _finalise(word):
    """A bijection of 32-bit words in which each input bit flips half the output bits.

    Reference: Wellons, "Prospecting for hash functions", 2018 (`lowbias32`)
    """
    word = ops.bitwise_xor(word, ops.right_shift(word, np.uint32(16)))
    word = word * np.uint32(0x7FEB352D)
    word = ops.bitwise_xor(word, ops.right_shift(word, np.uint32(15)))
    word = word * np.uint32(0x846CA68B)
    return ops.bitwise_xor(word, ops.right_shift(word, np.uint32(16)))


def fold(seed, name_hash, draw, occurrence=_ZERO):
    """The key of one draw of one layer, mixed to full entropy.

    All are uint32 scalars; the seed can be `(n,)`, one for each row, and so is the key.
    """
    return threefry((seed, name_hash), (draw, occurrence))


def row_keys(key, rows):
    """The two words under which each row hashes its positions, uint32 `(n,)` each."""
    return threefry(key, (rows[:, 0], rows[:, 1]))


def words(key, rows, size, distinct=False):
    """Random 32-bit words under a key of `fold`: uint32 `(n, size)`.

    The first two words of `rows`, uint32 `(n, 2 or more)`, name a row. The `size`, an
    integer or a scalar tensor, is less than 2^31. If `distinct`, no word repeats within
    a row.
    """
    first, second = (each[:, None] for each in row_keys(key, rows))
    # XLA has no range of unsigned integers.
    position = ops.cast(ops.arange(size, dtype="int32"), "uint32")
    if distinct:
        return _hash(position + first, second)
    return word(position, first, second)


def word(position, first, second):
    """The random word at a position, under the two words of its row."""
    position = position + first
    # The hash alone is a permutation: no word would repeat within a row, so that long
    # rows would be too even. XOR with the position makes words repeat as by chance.
    return ops.bitwise_xor(_hash(position, second), position)


def _hash(position, second):
    return _finalise(_finalise(position) + second)
