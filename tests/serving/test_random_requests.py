"""Random requests to the server's application: an answer, or 4xx with one sentence."""

import json

import pytest
from bodies import JSON, V1, V2, assert_rejected, binary
from hypothesis import given, settings
from hypothesis import strategies as st

# KServe answers with a class that FastAPI has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:ORJSONResponse is deprecated")

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
values = st.recursive(
    scalars,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x),
    max_leaves=6,
)
numbers = st.integers(-9, 9) | st.floats(allow_nan=False, width=32)
signature_names = st.sampled_from(["serve", "sample", "sample_seeded", "no"]) | values


def some_of(**fields):
    """Objects with some of these fields."""
    return st.fixed_dictionaries({}, optional=fields)


rows = st.lists(numbers, min_size=2, max_size=2)
rows |= some_of(inputs=rows | values, seeds=st.integers() | values) | values
v1_bodies = values | some_of(
    instances=st.lists(rows, max_size=3) | values, signature_name=signature_names
)
sizes = st.sampled_from([[1, 2], [2], [2, 1], [-1, 2], [0, 2], [2**40]])
v2_tensors = some_of(
    name=st.sampled_from(["inputs", "seeds"]) | values,
    shape=sizes | values,
    datatype=st.sampled_from(["FP32", "INT64", "BYTES"]) | values,
    data=st.lists(numbers, min_size=2, max_size=2) | values,
    parameters=values | some_of(binary_data_size=st.integers(-2, 20) | values),
)
v2_bodies = values | some_of(
    inputs=st.lists(v2_tensors, max_size=2) | values,
    parameters=some_of(signature_name=signature_names, binary_data_output=values),
    outputs=st.lists(some_of(name=st.just("probabilities") | values)) | values,
    id=values,
)


def assert_answered(answer, field):
    if answer.status_code == 200:
        assert answer.json()[field]
    else:
        assert_rejected(answer)


examples = settings(max_examples=80, derandomize=True, deadline=None)


@examples
@given(body=v1_bodies)
def test_any_v1_request_is_answered_or_rejected(client, body):
    answer = client.post(V1, content=json.dumps(body), headers=JSON)
    assert_answered(answer, "predictions")


@examples
@given(body=v2_bodies)
def test_any_v2_request_is_answered_or_rejected(client, body):
    answer = client.post(V2, content=json.dumps(body), headers=JSON)
    assert_answered(answer, "outputs")


@examples
@given(body=v2_bodies, tail=st.binary(max_size=20))
def test_any_binary_v2_request_is_answered_or_rejected(client, body, tail):
    content, headers = binary(body, tail)
    assert_answered(client.post(V2, content=content, headers=headers), "outputs")


@examples
@given(content=st.binary(max_size=40), url=st.sampled_from([V1, V2]))
def test_any_bytes_are_rejected(client, content, url):
    assert_rejected(client.post(url, content=content, headers=JSON))
