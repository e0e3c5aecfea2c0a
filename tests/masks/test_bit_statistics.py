"""The random words have the statistics of a good generator.

Each statistic is measured along five axes: over short draws of neighbouring seeds,
layer names, rows and draw numbers, and over the positions of a long draw. A block has
2^22 words. To test more blocks:

    python -m pytest tests/masks/test_bit_statistics.py --blocks 64
"""

import itertools
from statistics import NormalDist

import numpy as np
import pytest
import words

LAGS = (1, 2, 4, 256)
DRAWS, SIZE = 1024, 4096
SLOW_AXES = [
    pytest.param(axis, marks=pytest.mark.slow) for axis in (*words.AXES[1:], "long")
]


@pytest.fixture(params=["seeds", *SLOW_AXES])
def axis(request):
    return request.param


@pytest.fixture(scope="module")
def blocks(pytestconfig):
    return range(pytestconfig.getoption("blocks"))


def block(axis, number, lag=0):
    """A block of words along an axis, or the words `lag` further: `(DRAWS, SIZE)`."""
    if axis == "long":
        start, size = number * DRAWS * SIZE + lag, DRAWS * SIZE
        drawn = words.part(start, size, name_hash=words.NAME_HASH)
        return drawn.reshape(DRAWS, SIZE)
    return words.draws(axis, number * DRAWS + lag, DRAWS, SIZE)


def unpack(drawn):
    """The bits of each word, in a new last dimension of 32."""
    drawn = np.ascontiguousarray(drawn, "<u4")
    return np.unpackbits(drawn.view(np.uint8), axis=-1).reshape(*drawn.shape, 32)


def limit(comparisons):
    """Deviations that one of some normal variables exceeds in 1 of a million tests."""
    return NormalDist().inv_cdf(1 - 1e-6 / 2 / comparisons)


def assert_fits(counts, shares):
    """Counts are neither too uneven nor too even for random ones with these shares."""
    expected = counts.sum() * shares
    freedom = counts.size - 1
    chi2 = ((counts - expected) ** 2 / expected).sum()
    # Close to normal: Wilson and Hilferty, 1931
    width = 2 / (9 * freedom)
    assert abs((chi2 / freedom) ** (1 / 3) - 1 + width) < limit(1) * width**0.5


def test_words_of_a_long_draw_repeat_as_by_chance(blocks):
    # A row that is part of a permutation of all words would hold no word twice.
    repeated = expected = 0
    for b in blocks:
        drawn = np.sort(block("long", b), axis=None)
        repeated += (drawn[1:] == drawn[:-1]).sum()
        expected += drawn.size**2 / 2**33
    assert abs(repeated - expected) < limit(1) * np.sqrt(expected)


def test_each_bit_is_balanced(axis, blocks):
    ones = sum(unpack(block(axis, b)).sum(axis=(0, 1)) for b in blocks)
    size = len(blocks) * DRAWS * SIZE
    assert abs(ones - size / 2).max() < limit(32) * np.sqrt(size / 4)


def test_bytes_and_halves_are_uniform(axis, blocks):
    for half in range(2):
        counts = sum(
            np.bincount(block(axis, b).view("<u2")[:, half::2].ravel(), minlength=2**16)
            for b in blocks
        )
        assert_fits(counts, 1 / counts.size)
        for byte in range(2):
            assert_fits(counts.reshape(256, 256).sum(axis=byte), 1 / 256)


def test_neighbours_differ_in_half_their_bits(axis, blocks):
    for b in blocks:
        drawn = block(axis, b)
        for lag in LAGS:
            differ = unpack(drawn ^ block(axis, b, lag)).sum(axis=(1, 2))
            bound = limit(len(blocks) * len(LAGS) * DRAWS) * np.sqrt(SIZE * 32 / 4)
            assert abs(differ - SIZE * 32 / 2).max() < bound


def planes(drawn):
    """Each of the 32 bits of all words, packed into a row of 64-bit words."""
    bits_of_words = np.ascontiguousarray(unpack(drawn).reshape(-1, 32).T)
    return np.packbits(bits_of_words, axis=1).view(np.uint64)


def test_no_bit_is_correlated_with_one_of_a_neighbour(axis, blocks):
    lags = (0, *LAGS)
    differ = np.zeros((len(lags), 32, 32))
    for b in blocks:
        drawn = planes(block(axis, b)[:, :1024])
        for i, lag in enumerate(lags):
            for bit, plane in enumerate(planes(block(axis, b, lag)[:, :1024])):
                differ[i, bit] += np.bitwise_count(drawn ^ plane).sum(axis=1)
    size = len(blocks) * DRAWS * 1024
    assert not differ[0].diagonal().any()
    differ[0] += size / 2 * np.eye(32)
    assert abs(differ - size / 2).max() < limit(differ.size) * np.sqrt(size / 4)


@pytest.mark.parametrize("flipped", range(5), ids="seed name draw row column".split())
def test_flipping_a_bit_of_the_key_flips_half_the_bits(flipped, blocks):
    size = 4096 * len(blocks)
    key = np.random.default_rng(1).integers(2**32, size=(5, 33, size))
    key[:] = key[:, :1]
    key[flipped, 1:] ^= 2 ** np.arange(32)[:, None]
    *key, row, column = key.reshape(5, -1)
    drawn = words.words(*key, np.stack([row, column], axis=1), size=3)[:, 2]
    drawn = drawn.reshape(33, size)
    flips = unpack(drawn[1:] ^ drawn[0]).sum(axis=1)
    assert abs(flips - size / 2).max() < limit(flips.size) * np.sqrt(size / 4)


def test_flipping_a_bit_of_the_position_flips_half_the_bits():
    size, rows = 2**13, 4
    flips = np.zeros((30, 32))
    for row in range(rows):
        drawn = words.part(0, size, row=(row, 0))
        for bit in range(30):
            if 2**bit < size:
                pairs = drawn.reshape(-1, 2, 2**bit)
                difference = (pairs[:, 0] ^ pairs[:, 1]).ravel()
            else:
                other = words.part(2**bit, size, row=(row, 0))
                difference = (drawn ^ other)[: size // 2]
            flips[bit] += unpack(difference).sum(axis=0)
    size = rows * size // 2
    assert abs(flips - size / 2).max() < limit(flips.size) * np.sqrt(size / 4)


def test_pairs_of_bytes_are_uniform(axis, blocks):
    counts = np.zeros((4, 2**16))
    for b in blocks:
        drawn = block(axis, b)
        along, across = (drawn[:, ::2], drawn[:, 1::2]), (drawn[::2], drawn[1::2])
        for i, (one, other) in enumerate((along, across)):
            low = (one & 0xFF) << 8 | other & 0xFF
            high = one >> 24 << 8 | other >> 24
            counts[2 * i] += np.bincount(low.ravel(), minlength=2**16)
            counts[2 * i + 1] += np.bincount(high.ravel(), minlength=2**16)
    for pairs in counts:
        assert_fits(pairs, 2.0**-16)


def test_gaps_are_geometric(axis, blocks):
    longest = 128
    share, tail = 1 / 16, (15 / 16) ** longest
    shares = np.append(share * (1 - share) ** np.arange(longest), tail)
    counts = np.zeros((4, longest + 1))
    for b in blocks:
        drawn = block(axis, b)
        nibbles = (drawn >> 28, drawn.T >> 28, drawn & 15, drawn.T & 15)
        for i, nibble in enumerate(nibbles):
            gaps = np.diff(np.flatnonzero(nibble == 0)) - 1
            counts[i] += np.bincount(gaps.clip(max=longest), minlength=longest + 1)
    for gaps in counts:
        assert_fits(gaps, shares)


def test_birthdays_are_spaced_as_by_chance(axis, blocks):
    """Marsaglia, 1985: equal spacings between sorted words are Poisson."""
    for sorted_axis, birthdays in ((0, DRAWS), (1, SIZE)):
        equal, expected = 0, 0
        for b in blocks:
            days = np.sort(block(axis, b), axis=sorted_axis)
            spacings = np.sort(np.diff(days, axis=sorted_axis), axis=sorted_axis)
            equal += (np.diff(spacings, axis=sorted_axis) == 0).sum()
            years = days.size / birthdays
            pairs = (birthdays - 1) * (birthdays - 2) / 2
            expected += years * pairs * birthdays / 2**33
        assert abs(equal - expected) < limit(1) * np.sqrt(expected)


def ranks(matrices):
    """The ranks of bit matrices, each of 32 words."""
    matrices = matrices.copy()
    rank = np.zeros(len(matrices), int)
    for bit in range(32):
        odd = matrices >> bit & 1
        pivot = np.take_along_axis(matrices, odd.argmax(axis=1)[:, None], axis=1)
        matrices ^= odd * pivot  # the pivot too: it is used up
        rank += odd.any(axis=1)
    return rank


def test_bit_matrices_have_the_ranks_of_random_ones(axis, blocks):
    below = np.cumprod(1 - 0.5 ** np.arange(1, 33))
    full = below[31]  # Marsaglia and Tsay, 1985
    shares = np.array([0, full * 2 * (1 - 2.0**-32), full])
    shares[0] = 1 - shares.sum()
    counts = np.zeros((2, 3))
    for b in blocks:
        drawn = block(axis, b)[:, :512]
        for i, order in enumerate((drawn, drawn.T)):
            rank = ranks(order.reshape(-1, 32))
            counts[i] += np.bincount((rank - 30).clip(min=0), minlength=3)
    for rank_counts in counts:
        assert_fits(rank_counts, shares)


@pytest.mark.parametrize("rate", [0.5, 0.01])
def test_masks_of_neighbours_share_drops_as_by_chance(axis, rate, blocks):
    threshold = round(rate * 2**32)
    shared = np.zeros(len(LAGS))
    for b in blocks:
        drop = block(axis, b) < threshold
        shared += [(drop & (block(axis, b, lag) < threshold)).sum() for lag in LAGS]
    size, share = len(blocks) * DRAWS * SIZE, (threshold / 2**32) ** 2
    bound = limit(len(LAGS)) * np.sqrt(size * share * (1 - share))
    assert abs(shared - size * share).max() < bound


def test_any_two_masks_of_a_small_rate_share_drops_as_by_chance(axis, blocks):
    threshold = round(1e-3 * 2**32)
    rate = threshold / 2**32
    for over, masks in ((0, DRAWS), (1, SIZE)):
        shared = 0
        for b in blocks:
            dropped = (block(axis, b) < threshold).sum(axis=over)
            shared += (dropped * (dropped - 1) // 2).sum()
        sets = len(blocks) * DRAWS * SIZE / masks
        pairs, triples = masks * (masks - 1) / 2, masks * (masks - 1) * (masks - 2)
        variance = pairs * (rate**2 - rate**4) + triples * (rate**3 - rate**4)
        bound = limit(1) * np.sqrt(sets * variance)
        assert abs(shared - sets * pairs * rate**2) < bound


def test_a_stream_continues_where_the_last_chunk_ended(axis):
    first, second = itertools.islice(words.stream(axis, SIZE, seed=0), 2)
    assert (np.reshape(first, (DRAWS, SIZE)) == block(axis, 0)).all()
    assert (np.reshape(second, (DRAWS, SIZE)) == block(axis, 1)).all()
