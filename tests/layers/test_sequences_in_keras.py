"""Keras's `run_layer_test` on the layers for sequences."""

import os

import keras
import pytest
from keras import layers
from keras.src.testing import TestCase

import kdrop

if os.environ.get("CI_FULL") != "1":
    pytest.skip("CI_FULL=1 runs Keras's own tests", allow_module_level=True)
# Keras's tests are not run with warnings as errors.
pytestmark = pytest.mark.filterwarnings("default")
STEPS = {"input_shape": (3, 5, 4)}
WORDS = {"input_shape": (3, 5), "input_dtype": "int32"}
CASES = {
    "locked": (
        kdrop.LockedDropout, {}, {**STEPS, "assert_built_after_instantiation": True}
    ),
    "embedding": (
        kdrop.EmbeddingDropout, {"input_dim": 6, "output_dim": 4, "mask_zero": True},
        {**WORDS, "expected_num_trainable_weights": 1,
         "expected_output_shape": (3, 5, 4), "expected_mask_shape": (3, 5)},
    ),
    "weights": (
        kdrop.WeightDropout, {"layer": layers.LSTM(2, return_sequences=True)},
        {**STEPS, "expected_num_trainable_weights": 3,
         "expected_output_shape": (3, 5, 2)},
    ),
    "weights of a dense layer": (
        kdrop.WeightDropout, {"layer": layers.Dense(2)},
        {**STEPS, "expected_num_trainable_weights": 2,
         "expected_output_shape": (3, 5, 2)},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "settings", "checks"), CASES.values(), ids=CASES)
def test_of_keras(kind, settings, checks):
    settings = {"rate": 0.5, "seed": 1, **settings}
    checks = {
        "expected_num_trainable_weights": 0,
        "expected_num_non_trainable_weights": 0,
        "expected_num_losses": 0,
        "supports_masking": True,
        **checks,
    }
    TestCase().run_layer_test(kind, settings, call_kwargs={"training": True}, **checks)


def test_of_keras_on_a_recurrent_layer():
    cell = kdrop.Zoneout(layers.LSTMCell(2), [0.1, 0.5], seed=1)
    TestCase().run_layer_test(
        layers.RNN,
        {"cell": cell, "unroll": keras.backend.backend() == "jax"},
        **STEPS,
        call_kwargs={"training": True},
        expected_output_shape=(3, 2),
        expected_num_trainable_weights=3,
        expected_num_non_trainable_weights=0,
        supports_masking=True,
    )
