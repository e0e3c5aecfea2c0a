"""Keras's own tests of attention, cloning and models, with our dropout in them."""

import os
import re
import warnings

import keras
import pytest

import kdrop

if os.environ.get("CI_FULL") != "1":
    pytest.skip("minutes long: CI_FULL=1 runs it", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of marks that Keras registers for its own runs
    from keras.src import layers as keras_layers
    from keras.src.layers import layer_test
    from keras.src.layers.attention import (
        grouped_query_attention,
        grouped_query_attention_test,
        multi_head_attention,
        multi_head_attention_test,
    )
    from keras.src.models import (
        cloning_test,
        functional_test,
        model_test,
        sequential_test,
    )

# Keras's tests are not run with warnings as errors.
pytestmark = pytest.mark.filterwarnings("default")

# Tests that kdrop fails by design, and why.
STATE = "a layer of rate 0 has its seed and draw count too, since its rate may be set"
DIFFERENT = {
    "test_basics": STATE,
    "test_high_dim_attention_.*": STATE,
    "test_lora": STATE,
    "test_recursive": "the saved state of a drop layer is a layer inside it",
    "test_flash_attention_with_errors": "Keras skips it on TensorFlow",
    "test_torch_params_create_deterministic": "of the torch backend",
}

CLASSES = [
    each
    for module in (
        multi_head_attention_test,
        grouped_query_attention_test,
        cloning_test,
        layer_test,
        functional_test,
        model_test,
        sequential_test,
    )
    for each in vars(module).values()
    if isinstance(each, type)
    and each.__module__ == module.__name__
    and issubclass(each, keras.src.testing.TestCase)
]
TESTS = [
    (each, name) for each in CLASSES for name in dir(each) if name.startswith("test_")
]


@pytest.mark.parametrize(
    ("tests", "name"), TESTS, ids=[f"{t.__name__}-{n}" for t, n in TESTS]
)
def test_of_keras(tests, name, monkeypatch):
    for pattern, reason in DIFFERENT.items():
        if re.fullmatch(pattern, name):
            pytest.skip(reason)
    for module in (keras_layers, multi_head_attention, grouped_query_attention):
        monkeypatch.setattr(module, "Dropout", kdrop.InvertedDropout)
    result = tests(name).run()
    if result.skipped:
        pytest.skip(result.skipped[0][1])
    assert result.wasSuccessful(), (result.failures + result.errors)[0][1]
