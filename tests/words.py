"""Write random words to standard output, for a battery of statistical tests.

    python tests/words.py seeds | RNG_test stdin32 -tlmax 64GB
    python tests/words.py long | RNG_test stdin32 -tlmax 8GB

Each word is 4 bytes, little endian, in the order in which a layer would use it. The
argument says what changes from one draw to the next:

    seeds   the seed of a layer
    names   the name of a layer: drop_1, drop_2, ...
    rows    the row within one draw
    draws   the draw number of one layer
    long    the draw number, after 2^31 - 2^22 words (8 GiB less 16 MiB) each

All but `long` take a few words from each draw (--words-per-draw).

`RNG_test` is PractRand's (https://pracrand.sourceforge.net). TestU01
(https://simul.iro.umontreal.ca/testu01/tu01.html; Debian, non-free:
libtestu01-0-dev) is a library and needs a program that reads the words:

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

BigCrush takes hours: `bbattery_RepeatBigCrush` runs single tests of it, each on the
first words. Repeat a test that fails with `--seed 1`: the words are bad if it fails
again.
"""

import argparse
import itertools
import os
import sys
import zlib

import numpy as np
from keras import ops

from kdrop import backend
from kdrop.masks import bits

AXES = ("seeds", "names", "rows", "draws")
NAME_HASH = zlib.crc32(b"drop_1")
CHUNK = 2**22
LONGEST = 2**31 - CHUNK


def u32(value):
    return ops.cast(np.asarray(value, "int64"), "uint32")


def _short(size, seed, name_hash, draw, row):
    return bits.words(bits.fold(seed, name_hash, draw), row, size)


def _part(size, seed, name_hash, draw, row, start):
    # The compiler fuses the slice: only these words are computed.
    row = bits.words(bits.fold(seed, name_hash, draw), row, LONGEST)[0]
    return ops.slice(row, (start,), (size,))


def words(seed=0, name_hash=0, draw=0, row=(0, 0), size=4096):
    """The first words of several draws: uint32 array `(n, size)`.

    Args:
        seed, name_hash, draw: Integers, or `n` of them.
        row: Two integers, or `(n, 2)` of them.
        size: Words in each draw.
    """
    n = max(np.size(seed), np.size(name_hash), np.size(draw), np.size(row) // 2)
    key = (u32(np.broadcast_to(k, n)) for k in (seed, name_hash, draw))
    rows = u32(np.broadcast_to(row, (n, 2)))
    return ops.convert_to_numpy(backend.compiled(_short, None, size)(*key, rows))


def part(start, size, seed=0, name_hash=0, draw=0, row=(0, 0)):
    """Words `start` to `start + size` of one long draw: uint32 array `(size,)`."""
    key = (u32(k) for k in (seed, name_hash, draw))
    start = ops.convert_to_tensor(start, "int32")
    compiled = backend.compiled(_part, None, size)
    return ops.convert_to_numpy(compiled(*key, u32([row]), start))


def draws(axis, first, count, size=4096, seed=0):
    """Draws `first` to `first + count` along an axis: uint32 array `(count, size)`."""
    numbers = np.arange(first, first + count)
    key = {"seed": seed, "name_hash": NAME_HASH}
    if axis == "seeds":
        key["seed"] = seed + numbers
    elif axis == "names":
        key["name_hash"] = [zlib.crc32(f"drop_{i + 1}".encode()) for i in numbers]
    elif axis == "rows":
        key["row"] = np.stack([numbers, np.zeros_like(numbers)], axis=1)
    else:
        key["draw"] = numbers
    return words(size=size, **key)


def stream(axis, size, seed):
    """Chunks of words, without end."""
    if axis == "long":
        for draw in itertools.count():
            for start in range(0, LONGEST, CHUNK):
                yield part(start, CHUNK, seed, NAME_HASH, draw)
    count = max(1, CHUNK // size)
    for first in itertools.count(0, count):
        yield draws(axis, first, count, size, seed)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("axis", choices=[*AXES, "long"])
    parser.add_argument("--words-per-draw", type=int, default=4096)
    parser.add_argument("--gib", type=float, help="where to stop; default: never")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    args = parser.parse_args()
    left = float("inf") if args.gib is None else int(args.gib * 2**30)
    try:
        for chunk in stream(args.axis, args.words_per_draw, args.seed):
            chunk = memoryview(chunk.astype("<u4", copy=False)).cast("B")
            sys.stdout.buffer.write(chunk[: min(left, len(chunk))])
            left -= len(chunk)
            if left <= 0:
                break
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # The battery has closed the pipe. Python would flush again at exit, and fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
