"""What `benchmarks` measures: each claim's work, its variants, what is accepted.

A variant is named as in the table: `InvertedDropout` is kdrop's layer, `keras Dropout`
is Keras's, `none` is the work without one, and `copy` is copying the same two tensors
that a layer reads and writes, forward and backward.
"""

from benchmarks import inference, layers, training

# Several claims may share their first word, which asks for them all.
CLAIMS = {**layers.CLAIMS, **inference.CLAIMS, **training.CLAIMS}
