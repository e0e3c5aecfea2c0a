"""Requests to the server's application: a prediction, or 4xx with one sentence."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf
from bodies import BINARY, JSON, V1, V2, assert_rejected, binary

# KServe answers with a class that FastAPI has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:ORJSONResponse is deprecated")

LABELS = ["red", "green", "blue"]
PLAIN_V1, MIXED_V1 = "/v1/models/plain:predict", "/v1/models/mixed:predict"
MIXED_V2 = "/v2/models/mixed/infer"


def tensor(data, shape, datatype="FP32", name="inputs"):
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def test_v1_equals_the_saved_model(client, signatures, points):
    expected = signatures["serve"](inputs=tf.constant(points))["probabilities"]
    rows = points.tolist()
    for request in (
        {"instances": rows},
        {"signature_name": "serve", "instances": rows},
        {"signature_name": "serve", "instances": [{"inputs": row} for row in rows]},
    ):
        # With the type of JSON, and with that of a form, as `curl -d` sends it.
        for headers in (JSON, {"content-type": "application/x-www-form-urlencoded"}):
            answer = client.post(V1, content=json.dumps(request), headers=headers)
            assert answer.status_code == 200
            body = answer.json()
            np.testing.assert_allclose(body.pop("predictions"), expected, rtol=1e-5)
            assert body == {"labels": LABELS, "model_version": "1"}


def test_measures_come_in_the_order_of_their_names(client):
    request = {"signature_name": "sample", "instances": [[0.1, 0.2]]}
    (answer,) = client.post(V1, json=request).json()["predictions"]
    assert list(answer) == ["entropy", "mean", "mutual_information", "std"]


def test_an_invalid_number_is_named_as_in_json(client):
    answer = client.post(V1, json={"instances": [[1, None]]})
    expected = "inputs[0, 1] holds null, but must hold float or int"
    assert expected in answer.json()["error"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"instances": [[0, 0], [0, 1e40]]}, r"inputs\[1, 1\] holds 1e\+40, which is"),
        ({"instances": [[0, 0], [0]]}, r"inputs must .* equal length.* \[1, 2\]"),
        (
            {
                "signature_name": "sample_seeded",
                "instances": [{"inputs": [0, 0], "seeds": 10**20}],
            },
            r"seeds\[0\] holds 1e\+20, but must hold int",
        ),
        (
            {
                "signature_name": "sample_seeded",
                "instances": [{"inputs": [0, 0], "seed": 1}],
            },
            r"row 0 .* inputs, seeds. Received: \['inputs', 'seed'\]",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(client, request_, message):
    answer = client.post(V1, json=request_)
    assert answer.status_code == 400 and re.search(message, answer.json()["error"])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"inputs": [tensor([0, 0], [1, 2], name="x")]}, "inputs. Received: ['x']"),
        ({"inputs": [tensor([[0], [0]], [1, 2])]}, "shape [2, 1], which is not"),
        ({"inputs": [tensor([0, 0, 0], [1, 2])]}, "shape [3], which is not"),
        ({"inputs": [tensor([[0, 0], [0]], [2, 2])]}, "equal length and depth"),
        (
            {"inputs": [tensor([0, 0], [1, 2])], "signature_name": "sample"},
            "signature_name: Extra inputs are not permitted",
        ),
    ],
)
def test_what_is_wrong_with_a_tensor_is_named(client, request_, message):
    answer = client.post(V2, json=request_)
    assert answer.status_code == 400 and message in answer.json()["error"]
    content, headers = binary(request_, b"")
    answer = client.post(V2, content=content, headers=headers)
    assert answer.status_code == 400 and message in answer.json()["error"]


def test_v2_equals_the_saved_model(client, signatures, points):
    expected = signatures["serve"](inputs=tf.constant(points))["probabilities"]
    for data in (points.tolist(), points.ravel().tolist()):
        request = {
            "id": "mine",
            "inputs": [tensor(data, [7, 2])],
            "parameters": {"signature_name": "serve"},
        }
        body = client.post(V2, json=request).json()
        (output,) = body["outputs"]
        values = np.reshape(output["data"], output["shape"])
        np.testing.assert_allclose(values, expected, rtol=1e-5)
        assert (output["name"], output["datatype"]) == ("probabilities", "FP32")
        assert (body["id"], body["model_version"]) == ("mine", "1")
        assert json.loads(body["parameters"]["labels"]) == LABELS
    metadata = client.get("/v2/models/spiral").json()
    assert metadata["inputs"] == [
        {"name": "inputs", "datatype": "FP32", "shape": [-1, 2]}
    ]
    assert metadata["outputs"][0]["shape"] == [-1, 3]


TEXTS = ["Red fish!", "", "blau \u2713 \0"]
MIXED = {"text": TEXTS, "age": [7, 0, -3], "new": [True, False, True]}


@pytest.fixture(scope="module")
def mixed(models_folder):
    """The outputs of a signature of the model `mixed` for `MIXED`."""
    loaded = tf.saved_model.load(str(models_folder / "mixed" / "1"))
    inputs = {
        "text": np.array(TEXTS, dtype=object)[:, None],
        "age": np.array(MIXED["age"], "int32")[:, None],
        "new": np.array(MIXED["new"])[:, None],
    }

    def run(signature, **more):
        tensors = {name: tf.constant(x) for name, x in {**inputs, **more}.items()}
        outputs = loaded.signatures[signature](**tensors)
        return {name: output.numpy() for name, output in outputs.items()}

    return run


def test_v1_takes_and_returns_text_integers_and_booleans(client, mixed):
    rows = [{name: [MIXED[name][row]] for name in MIXED} for row in range(3)]
    answer = client.post(MIXED_V1, json={"instances": rows}).json()["predictions"]
    expected = mixed("serve")
    for row, color, name in zip(
        answer, expected["color"], expected["name"], strict=True
    ):
        assert set(row) == {"color", "name"}
        np.testing.assert_allclose(row["color"], color, rtol=1e-5)
        assert row["name"] == name.decode() in LABELS
    rows = [{**row, "seeds": number} for number, row in enumerate(rows)]
    request = {"signature_name": "sample_seeded", "instances": rows}
    answer = client.post(MIXED_V1, json=request).json()["predictions"]
    expected = mixed("sample_seeded", seeds=np.arange(3))
    assert expected["color_std"].max() > 0.01
    for number, row in enumerate(answer):
        assert set(row) == set(expected)
        for name, values in row.items():
            np.testing.assert_allclose(values, expected[name][number], atol=1e-6)


def test_v2_takes_and_returns_text_integers_and_booleans(client, mixed):
    types = {"text": "BYTES", "age": "INT32", "new": "BOOL"}
    inputs = [tensor(MIXED[name], [3, 1], types[name], name) for name in types]
    answer = client.post(MIXED_V2, json={"inputs": inputs}).json()
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert {name: output["datatype"] for name, output in outputs.items()} == {
        "color": "FP32",
        "name": "BYTES",
    }
    expected = mixed("serve")
    color = np.reshape(outputs["color"]["data"], outputs["color"]["shape"])
    np.testing.assert_allclose(color, expected["color"], rtol=1e-5)
    assert outputs["name"]["data"] == [name.decode() for name in expected["name"]]
    metadata = client.get("/v2/models/mixed").json()["inputs"]
    assert [each["name"] for each in metadata] == sorted(types)
    assert {each["name"]: (each["datatype"], each["shape"]) for each in metadata} == {
        name: (datatype, [-1, 1]) for name, datatype in types.items()
    }
    # Text as bytes after the JSON, each with its length in front.
    raw = b"".join(
        len(text).to_bytes(4, "little") + text for text in map(str.encode, TEXTS)
    )
    del inputs[0]["data"]
    inputs[0]["parameters"] = {"binary_data_size": len(raw)}
    content, headers = binary({"inputs": inputs}, raw)
    in_binary = client.post(MIXED_V2, content=content, headers=headers).json()
    assert in_binary["outputs"] == answer["outputs"]


INVALID = {
    V1: [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        *({"instances": rows} for rows in ([], None, {}, 3, "ab", [[]], [[[1, 2]]])),
        *({"instances": rows} for rows in ([1, 2], [[1]], [[1, 2, 3]], [[1, 2], [3]])),
        *({"instances": [[1, x]]} for x in ("2", None, True, [], {}, 1e39, 10**400)),
        *(b'{"instances": [[1, %s]]}' % x for x in (b"NaN", b"Infinity", b"1e999")),
        *({"instances": [x]} for x in ({}, {"input": [1, 2]}, {"inputs": [1]})),
        {"instances": [{"inputs": [1, 2]}, [1, 2]]},
        {"instances": [[1, 2]], "signature": "sample"},  # for `signature_name`
        *({"signature_name": x, "instances": [[1, 2]]} for x in ("no", 1, [], "")),
        *([], 3, "instances", None, {"inputs": [[1, 2]]}),
    ],
    "/v1/models/missing:predict": [{"instances": [[1, 2]]}],
    PLAIN_V1: [
        {"signature_name": "sample_seeded", "instances": [row]}
        for row in (
            [1, 2],
            {"inputs": [1, 2]},
            {"inputs": [1, 2], "seeds": 1.5},
            {"inputs": [1, 2], "seeds": True},
            {"inputs": [1, 2], "seeds": 2**31},
            {"inputs": [1, 2], "seeds": 2**70},
            {"inputs": [1, 2], "seeds": [1]},
            {"inputs": [1, 2], "seeds": 1, "more": 1},
        )
    ]
    + [{"signature_name": x, "instances": [1, 2]} for x in ("total", "raw")],
    MIXED_V1: [
        {"instances": [{"text": ["a"], "age": [1], "new": [True], **row}]}
        for row in (
            *({"text": [x]} for x in (1, None, True, ["a"], {"b64": "YQ=="})),
            *({"age": [x]} for x in ("1", 1.5, True, None)),
            *({"new": [x]} for x in (1, "true", None)),
            *({"text": "a"}, {"other": 1}),
        )
    ]
    + [b'{"instances": [{"text": ["\\ud800"], "age": [1], "new": [true]}]}'],
    MIXED_V2: [
        {
            "inputs": [
                tensor(text, shape, datatype, "text"),
                tensor([1], [1, 1], "INT32", "age"),
                tensor([True], [1, 1], "BOOL", "new"),
            ]
        }
        for text, shape, datatype in (
            (["a"], [1, 1], "STRING"),
            (["a"], [1, 2], "BYTES"),
            ([1], [1, 1], "BYTES"),
            (["a", "b"], [2, 1], "BYTES"),
        )
    ],
    V2: [
        *(b"", b"{", b"[" * 100_000, [], {}, "text", {"inputs": []}),
        *({"inputs": [tensor([1, 2], shape)]} for shape in ([2], [2, 1], [1, 3], [])),
        *({"inputs": [tensor([1, 2], shape)]} for shape in ([-1, 2], [1, -2], [2**70])),
        *({"inputs": [tensor([], shape)]} for shape in ([0, 2], [2**32, 2**32])),
        *({"inputs": [tensor([1, x], [1, 2])]} for x in ("2", None, True, 1e39)),
        b'{"inputs": [{"name": "inputs", "shape": [1, 2], "datatype": "FP32", '
        b'"data": [NaN, 1]}]}',
        *({"inputs": [tensor([1, 2], [1, 2], x)]} for x in ("INT32", "FP64", "?", 1)),
        {"inputs": [tensor([1, 2], [1, 2], name="other")]},
        {"inputs": [tensor([1, 2], [1, 2])] * 2},
        {"inputs": [tensor([1, 2], [1, 2])], "outputs": [{"name": "no"}]},
        {"inputs": [tensor([1, 2], [1, 2])], "parameters": {"signature_name": "no"}},
        {"inputs": [tensor([1, 2], [1, 2])], "id": 3},
    ],
    "/v2/models/missing/infer": [{"inputs": [tensor([1, 2], [1, 2])]}],
    "/v2/repository/models/spiral/unload": [{}],
}


@pytest.mark.parametrize("url", INVALID)
def test_invalid_requests_are_rejected(client, url):
    for body in INVALID[url]:
        content = body if isinstance(body, bytes) else json.dumps(body)
        for headers in (JSON, {}):
            assert_rejected(client.post(url, content=content, headers=headers))


@pytest.mark.parametrize("length", ["x", "-1", "2", "20", "10000"])
def test_invalid_binary_requests_are_rejected(client, length):
    headers = {**BINARY, "inference-header-content-length": length}
    for content in (b"{}", b'{"inputs": [{}], "a": 1}', b'{"inputs": 3, "b": 1}', b"x"):
        assert_rejected(client.post(V2, content=content, headers=headers))
