"""What TensorFlow Serving asks of a folder, by its own protocol files."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

import kdrop
from kdrop.serving.saved_model import WARM_UP, export

DEFAULT = "serving_default"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((5, 4, 3)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            kdrop.InvertedDropout(0.5, seed=1, name="drop"),
            keras.layers.Flatten(),
            keras.layers.Dense(6, activation="softmax"),
        ]
    )
    folder = tmp_path_factory.mktemp("models") / "images"
    export(model, folder, labels="abcdef")
    (folder / ".partial-x").mkdir()
    return folder


@pytest.fixture(scope="module")
def signature_defs(folder):
    saved = saved_model_pb2.SavedModel.FromString(
        (folder / "1" / "saved_model.pb").read_bytes()
    )
    (graph,) = saved.meta_graphs
    assert list(graph.meta_info_def.tags) == ["serve"]
    found = {k: v for k, v in graph.signature_def.items() if not k.startswith("__")}
    assert {"serve", DEFAULT} <= set(found)
    return found


def example(info, rows):
    """Random values for a signature's input of so many rows."""
    shape = [rows, *(dim.size for dim in info.tensor_shape.dim[1:])]
    dtype = tf.as_dtype(info.dtype).as_numpy_dtype
    return np.random.default_rng(0).uniform(0, 255, shape).astype(dtype)


def test_the_server_can_batch_every_signature(signature_defs, folder):
    # It joins requests along dimension 0, and splits the outputs at the same places.
    loaded = tf.saved_model.load(str(folder / "1"))
    for name, definition in signature_defs.items():
        assert definition.method_name == "tensorflow/serving/predict"
        for info in [*definition.inputs.values(), *definition.outputs.values()]:
            assert not info.tensor_shape.unknown_rank
            assert info.tensor_shape.dim[0].size == -1
            assert all(dim.size > 0 for dim in info.tensor_shape.dim[1:])
        request = predict_pb2.PredictRequest()
        for key, info in definition.inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(example(info, rows=5)))
        given = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
        outputs = loaded.signatures[name](**given)
        assert {key: len(output) for key, output in outputs.items()} == dict.fromkeys(
            definition.outputs, 5
        )


def test_a_batch_is_its_rows(signature_defs, folder):
    serve = tf.saved_model.load(str(folder / "1")).signatures[DEFAULT]
    inputs = example(signature_defs[DEFAULT].inputs["inputs"], rows=5)
    together = serve(inputs=tf.constant(inputs))["probabilities"]
    alone = [serve(inputs=tf.constant(row[None]))["probabilities"][0] for row in inputs]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-7)


def test_the_server_can_replay_the_warm_up(signature_defs, folder):
    loaded = tf.saved_model.load(str(folder / "1"))
    records = list(tf.data.TFRecordDataset(str(folder / "1" / WARM_UP)))
    assert 1 <= len(records) <= 1000  # more are refused
    for record in records:
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.name == folder.name
        definition = signature_defs[request.model_spec.signature_name]
        assert set(request.inputs) == set(definition.inputs)
        for key, tensor in request.inputs.items():
            wanted = definition.inputs[key]
            assert tensor.dtype == wanted.dtype
            sizes = [dim.size for dim in tensor.tensor_shape.dim]
            assert sizes[1:] == [dim.size for dim in wanted.tensor_shape.dim[1:]]
        given = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
        outputs = loaded.signatures[request.model_spec.signature_name](**given)
        assert set(outputs) == set(definition.outputs)


def test_the_folder_is_a_base_path(folder):
    config = text_format.Parse(
        f"""model_config_list {{
            config {{
                name: "{folder.name}"
                base_path: "{folder}"
                model_platform: "tensorflow"
                model_version_policy {{ latest {{ num_versions: 1 }} }}
            }}
        }}""",
        model_server_config_pb2.ModelServerConfig(),
    )
    (model,) = config.model_config_list.config
    names = [path.name for path in folder.parent.joinpath(model.name).iterdir()]
    # The server takes the folders whose names are numbers, and no others.
    assert sorted(names) == [".partial-x", "1"]
    assert (folder / "1" / "saved_model.pb").is_file()
