"""The random words: known answers on every backend."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import words
from keras import ops
from words import u32

from kdrop import backend
from kdrop.masks import bits


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


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="of TensorFlow")
def test_threefry_is_traced_once_for_all_sizes():
    keys = [bits.fold(u32(1), u32(2), u32(0)), bits.fold(u32([1, 2]), u32(2), u32(0))]
    traces = backend.of_vectors(bits._threefry).experimental_get_tracing_count()
    for count in (2, 3, 4):
        first, _ = bits.row_keys(keys[0], u32(np.zeros((count, 2))))
        assert first.shape == (count,)
    np.testing.assert_array_equal(keys[1][0][0], keys[0][0])
    after = backend.of_vectors(bits._threefry).experimental_get_tracing_count()
    assert traces == after > 0


def finalise(word):
    """lowbias32 in Python's unbounded integers."""
    word ^= word >> 16
    word = word * 0x7FEB352D % 2**32
    word ^= word >> 15
    word = word * 0x846CA68B % 2**32
    return word ^ word >> 16


def test_a_word_is_a_function_of_key_row_and_position():
    key = bits.fold(u32(3), u32(5), u32(7))
    first, second = bits.threefry(key, (u32(11), u32(13)))

    def word(position):
        position = (position + int(first)) % 2**32
        return finalise((finalise(position) + int(second)) % 2**32) ^ position

    expected = word(100)
    rows = [[i, 13] for i in range(12)]
    assert words.words(3, 5, 7, rows, size=101)[11, 100] == expected
    # The word does not depend on the number of rows, or of positions.
    assert words.words(3, 5, 7, (11, 13), size=4096)[0, 100] == expected
    for start in (90, 2**30):
        part = words.part(start, 64, 3, 5, 7, (11, 13))
        assert part[10] == word(start + 10)


@pytest.mark.parametrize(
    ("seed", "name_hash", "draw", "row", "expected"),
    [
        (0, 0, 0, (0, 0), (0xA7D78A9C, 0x37CABCBB, 0xE11133ED, 0x2C825A19)),
        (
            42,
            0x82F9D5A5,
            1000,
            (255, 0),
            (0x1B2E850C, 0x61E78AD0, 0x153BE84D, 0xEB4A0DF1),
        ),
        (
            2**32 - 1,
            2**32 - 1,
            2**32 - 1,
            (2**32 - 1, 2**32 - 1),
            (0x44956F18, 0x5D2CD329, 0x12F53F5E, 0x3E354E30),
        ),
    ],
)
def test_the_words_are_these_on_every_backend(seed, name_hash, draw, row, expected):
    key = [u32(k) for k in (seed, name_hash, draw)]

    def draw_words(*key):
        return bits.words(bits.fold(*key), u32([row]), 4)

    assert ops.convert_to_numpy(draw_words(*key))[0].tolist() == list(expected)
    assert words.words(seed, name_hash, draw, row, size=4)[0].tolist() == list(expected)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        assert tf.function(draw_words)(*key)[0].numpy().tolist() == list(expected)


def test_no_two_keys_of_a_grid_share_a_word():
    numbers = np.array([0, 1, 2, 3, 4, 8, 2**16, 2**31])
    seed, name_hash, draw, row = (n.ravel() for n in np.meshgrid(*[numbers] * 4))
    drawn = words.words(seed, name_hash, draw, np.stack([row, 0 * row], axis=1), size=4)
    shared = np.bincount(np.unique(drawn[:, 2:], return_inverse=True)[1].ravel())
    # 2^13 random words hold 2^-7 equal pairs on average.
    assert shared.max() == 1


@pytest.mark.slow
def test_the_command_streams_words_until_the_pipe_closes():
    command = [sys.executable, words.__file__, "names", "--words-per-draw", "1024"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe) as process:
        streamed = np.frombuffer(process.stdout.read(2**14), "<u4").reshape(4, 1024)
        process.stdout.close()
        assert "Error" not in process.stderr.read().decode()
    assert process.returncode == 0
    assert (streamed == words.draws("names", 0, 4, 1024)).all()
