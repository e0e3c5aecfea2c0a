"""Raw random words on stdout, for a battery of statistical tests.

    python tests/words.py seeds | RNG_test stdin32 -tlmax 64GB
    python tests/words.py long | RNG_test stdin32 -tlmax 8GB

The words come as they are drawn, 4 bytes each, little endian. All axes but the last
give short draws (--draw-words), each under the next

    seeds   seed of one layer
    names   layer name: drop_1, drop_2, ...
    rows    row of one draw
    draws   number of the draw of one layer
    long    position: draws of 2^31 - 2^22 words, 8 GiB less 16 MiB

`RNG_test` is PractRand's (https://pracrand.sourceforge.net). TestU01
(https://simul.iro.umontreal.ca/testu01/tu01.html; Debian: libtestu01-0-dev) is a
library. Its generator is the next word of standard input:

    #include <stdio.h>
    #include <testu01/bbattery.h>
    static unsigned int word(void) {
        unsigned int w;
        if (fread(&w, 4, 1, stdin) != 1) _Exit(1);
        return w;
    }
    int main(void) {
        bbattery_BigCrush(unif01_CreateExternGenBits("kdrop", word));
    }

Compile it with `-ltestu01 -ltestu01probdist -ltestu01mylib -lm` and run

    python tests/words.py names | ./bigcrush

A p-value that looks bad is bad if it comes again with `--seed 1`.
"""

import argparse
import functools
import itertools
import os
import sys
import zlib

import keras
import numpy as np
from keras import ops

from kdrop.masks import bits

AXES = ("seeds", "names", "rows", "draws")
SALT = zlib.crc32(b"drop_1")
CHUNK = 2**22
LONGEST = 2**31 - CHUNK


def u32(value):
    return ops.cast(np.asarray(value, "int64"), "uint32")


@functools.cache
def compiled(function, *static):
    function = functools.partial(function, *static)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True, autograph=False)
    import jax

    return jax.jit(function)


def _short(size, seed, salt, draw, row):
    return bits.words(bits.fold(seed, salt, draw), row, size)


def _part(size, seed, salt, draw, row, start):
    # The compiler fuses the slice: only these words are computed.
    row = bits.words(bits.fold(seed, salt, draw), row, LONGEST)[0]
    return ops.slice(row, (start,), (size,))


def words(seed=0, salt=0, draw=0, row=(0, 0), size=4096):
    """Short draws side by side: uint32 array `(n, size)`.

    Args:
        seed, salt, draw: Integers, or `n` of them.
        row: Two integers, or `(n, 2)` of them.
        size: Words in each draw.
    """
    n = max(np.size(seed), np.size(salt), np.size(draw), np.size(row) // 2)
    keys = (u32(np.broadcast_to(k, n)) for k in (seed, salt, draw))
    rows = u32(np.broadcast_to(row, (n, 2)))
    return ops.convert_to_numpy(compiled(_short, size)(*keys, rows))


def part(start, size, seed=0, salt=0, draw=0, row=(0, 0)):
    """Words `start` to `start + size` of one long draw: uint32 array `(size,)`."""
    keys = (u32(k) for k in (seed, salt, draw))
    start = ops.convert_to_tensor(start, "int32")
    return ops.convert_to_numpy(compiled(_part, size)(*keys, u32([row]), start))


def draws(axis, first, count, size=4096, seed=0):
    """Draws `first` to `first + count` along an axis: uint32 array `(count, size)`."""
    along = np.arange(first, first + count)
    key = {"seed": seed, "salt": SALT}
    if axis == "seeds":
        key["seed"] = seed + along
    elif axis == "names":
        key["salt"] = [zlib.crc32(f"drop_{i + 1}".encode()) for i in along]
    elif axis == "rows":
        key["row"] = np.stack([along, np.zeros_like(along)], axis=1)
    else:
        key["draw"] = along
    return words(size=size, **key)


def stream(axis, size, seed):
    """Chunks of words, without end."""
    if axis == "long":
        for draw in itertools.count():
            for start in range(0, LONGEST, CHUNK):
                yield part(start, CHUNK, seed, SALT, draw)
    count = max(1, CHUNK // size)
    for first in itertools.count(0, count):
        yield draws(axis, first, count, size, seed)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("axis", choices=[*AXES, "long"])
    parser.add_argument("--draw-words", type=int, default=4096, help="of a short draw")
    parser.add_argument("--gib", type=float, help="where to stop; default: never")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    args = parser.parse_args()
    left = float("inf") if args.gib is None else int(args.gib * 2**30)
    try:
        for chunk in stream(args.axis, args.draw_words, args.seed):
            chunk = memoryview(chunk.astype("<u4", copy=False)).cast("B")
            sys.stdout.buffer.write(chunk[: min(left, len(chunk))])
            left -= len(chunk)
            if left <= 0:
                break
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # The battery has seen enough; Python's own flush at exit would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
