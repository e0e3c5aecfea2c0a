"""Masks and noise, from the random bits up.

    bits         random 32-bit words: a pure function of key, row and position
    kernels      what each kind of noise is: pure functions of words and inputs
    run          runs a kernel: compiles, pads and differentiates it
    connections  products in which each example drops other weights

Two arguments mean the same everywhere.

`draw` is the integer vector `[seed, name hash, draw number, threshold, occurrence]`. A
random word below the threshold drops its element. The other four numbers make the key
of the words: see `bits.fold`.

`rows` names the rows of the mask. It is a uint32 tensor of one of these shapes:

    ()           number of the first row; the rows of the batch are numbered from it
    (n, 2)       two words for each row
    (n, 3)       two words for each row, and a seed that replaces the draw's
    (1, 2 or 3)  a single row, which the whole batch shares
"""
