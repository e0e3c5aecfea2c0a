"""The random words: known answers, and the statistics of a good generator."""

import numpy as np
import pytest
from keras import ops

from kdrop import bits


def u32(value):
    return ops.cast(np.asarray(value, "int64"), "uint32")


def words(seed=0, salt=0, draw=0, rows=1, size=4096, first_row=0):
    ids = np.stack([np.arange(first_row, first_row + rows), np.zeros(rows)], axis=1)
    key = bits.fold(u32(seed), u32(salt), u32(draw))
    return ops.convert_to_numpy(bits.words(key, u32(ids), size))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        (
            (0x243F6A88, 0x85A308D3),
            (0x13198A2E, 0x03707344),
            (0xC4923A9C, 0x483DF7A0),
        ),
    ],
)
def test_threefry_gives_the_known_answers_of_its_authors(counter, key, expected):
    answer = bits.threefry([u32(k) for k in key], [u32(c) for c in counter])
    assert tuple(int(a) for a in answer) == expected


def finalise(word):
    """lowbias32 once more, in Python's unbounded integers."""
    word ^= word >> 16
    word = word * 0x7FEB352D % 2**32
    word ^= word >> 15
    word = word * 0x846CA68B % 2**32
    return word ^ word >> 16


def test_a_word_is_a_function_of_key_row_and_position():
    key = bits.fold(u32(3), u32(5), u32(7))
    first, second = bits.threefry(key, (u32(11), u32(0)))
    expected = finalise((finalise((100 + int(first)) % 2**32) + int(second)) % 2**32)
    assert words(3, 5, 7, rows=12, size=101)[11, 100] == expected
    # ... whatever else is drawn beside it.
    alone = words(3, 5, 7, rows=1, size=4096, first_row=11)
    assert alone[0, 100] == expected


AXES = {
    "rows": lambda i: words(rows=256, first_row=256 * i),
    "draws": lambda i: np.concatenate([words(draw=256 * i + j) for j in range(256)]),
    "seeds": lambda i: np.concatenate([words(seed=256 * i + j) for j in range(256)]),
    "salts": lambda i: np.concatenate([words(salt=256 * i + j) for j in range(256)]),
}


@pytest.mark.parametrize("axis", AXES)
def test_neighbouring_keys_give_independent_words(axis):
    drawn = np.unpackbits(AXES[axis](0).view(np.uint8), axis=1)
    # Shares of equal bits between each draw and the next are binomial; 6 deviations
    # are missed by one comparison in 5e8.
    size = drawn.shape[1]
    shared = (drawn[1:] == drawn[:-1]).sum(axis=1)
    assert abs(shared - size / 2).max() < 6 * np.sqrt(size / 4)
    # Bytes are uniform: chi-squared of 255 degrees of freedom has variance 510.
    count = np.bincount(np.packbits(drawn), minlength=256)
    chi2 = ((count - count.mean()) ** 2 / count.mean()).sum()
    assert abs(chi2 - 255) < 6 * np.sqrt(510)


def test_each_bit_of_one_long_draw_is_balanced_and_uncorrelated():
    drawn = words(size=2**22)[0]
    planes = (drawn[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    bound = 6 * np.sqrt(len(drawn) / 4)
    assert abs(planes.sum(axis=0) - len(drawn) / 2).max() < bound
    for lag in (1, 2, 3, 64, 4096):
        equal = (planes[lag:] == planes[:-lag]).sum(axis=0)
        assert abs(equal - (len(drawn) - lag) / 2).max() < bound


def test_no_word_repeats_within_a_row():
    assert len(np.unique(words(size=2**20))) == 2**20
