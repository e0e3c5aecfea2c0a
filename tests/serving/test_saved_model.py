"""The exported folder: its files, what its signatures compute, and model servers.

What TensorFlow Serving requires is checked with its protocol files.
"""

import collections
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

import kdrop
from kdrop.ensemble.split import SplitModel
from kdrop.serving import export
from kdrop.serving.interface import Interface
from kdrop.serving.signatures import WARM_UP, tracing

SUMMARY = {"mean", "std", "entropy", "mutual_information"}


def monte_carlo(model, points, seeds, count=20):
    """Oracle: rows of sample number, upper and lower half of the seed."""
    low, high = np.array(seeds, "int64").view("uint32").reshape(-1, 2).T
    numbers = np.repeat(np.arange(count, dtype="uint32"), len(seeds))
    rows = np.stack([numbers, np.tile(high, count), np.tile(low, count)], axis=1)
    split = SplitModel(model)
    places = np.tile(np.arange(len(seeds), dtype="int32"), count)
    outputs = split.sample(split.prefix(points), places, rows)
    return np.reshape(outputs, (count, len(seeds), 3))


def assert_summarises(answer, samples):
    expected = kdrop.summarise(samples)
    assert set(answer) == SUMMARY
    for name, values in answer.items():
        np.testing.assert_allclose(values, getattr(expected, name), atol=1e-6)


@pytest.mark.parametrize("memory, scale", [(None, 1), (None, 300), (2000, 1)])
def test_samples_are_summarised(
    model, points, signatures, tmp_path, memory, scale, monkeypatch
):
    if memory:  # several chunks
        monkeypatch.setattr("kdrop.ensemble.compiled_sampler.MEMORY", memory)
        loaded = tf.saved_model.load(str(export(model, tmp_path, passes=20)))
        signatures = loaded.signatures
    inputs, seeds = scale * points, np.array([0, 1, -1, 2**62, -(2**63), 5, 5])
    answer = signatures["sample_seeded"](
        inputs=tf.constant(inputs), seeds=tf.constant(seeds)
    )
    samples = monte_carlo(model, inputs, seeds)
    assert_summarises(answer, samples)
    if scale == 1:
        assert (answer["std"].numpy() > 0.01).any(axis=1).all()
    else:  # almost certain
        assert (samples[samples > 0] < 1e-9).any()


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_seeded_samples_equal_kdrop_sample(model, points, signatures, seed):
    seeds = tf.constant([seed] * 7, tf.int64)
    answer = signatures["sample_seeded"](inputs=tf.constant(points), seeds=seeds)
    for row in (0, 6):
        samples = kdrop.sample(model, points[[row]], 20, seed=seed, verbose=0)
        assert_summarises({k: x[row : row + 1] for k, x in answer.items()}, samples)


def test_answers_for_a_row_do_not_depend_on_its_batch(points, signatures):
    serve, sample = signatures["serve"], signatures["sample_seeded"]
    batch = sample(inputs=tf.constant(points), seeds=tf.range(7, dtype=tf.int64))
    for row in (0, 6):
        inputs, seeds = tf.constant(points[[3, row]]), tf.constant([99, row], tf.int64)
        pair = sample(inputs=inputs, seeds=seeds)
        np.testing.assert_allclose(pair["mean"][1], batch["mean"][row], atol=1e-6)
    batch = serve(inputs=tf.constant(points))["probabilities"]
    row = serve(inputs=tf.constant(points[6:]))["probabilities"]
    np.testing.assert_allclose(row, batch[6:], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_tensorflow_alone_computes_the_same(
    model, points, signatures, exported_path, tmp_path
):
    np.save(tmp_path / "points.npy", points)
    code = """
import sys
sys.modules["keras"] = sys.modules["kdrop"] = None  # makes their import fail
import numpy as np, tensorflow as tf
points = tf.constant(np.load("points.npy"))
loaded = tf.saved_model.load(sys.argv[1]).signatures
for name in ("serve", "serving_default", "sample"):
    np.savez(name, **loaded[name](inputs=points))
seeds = tf.range(7, dtype=tf.int64)
np.savez("sample_seeded", **loaded["sample_seeded"](inputs=points, seeds=seeds))
"""
    command = [sys.executable, "-c", code, str(exported_path)]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=600)
    names = ("serve", "serving_default", "sample", "sample_seeded")
    answers = {name: np.load(tmp_path / f"{name}.npz") for name in names}
    expected = model.predict(points, verbose=0)
    for name in ("serve", "serving_default"):
        assert set(answers[name]) == {"probabilities"}
        np.testing.assert_allclose(answers[name]["probabilities"], expected, atol=1e-6)
    here = signatures["sample"](inputs=tf.constant(points))
    assert (answers["sample"]["mean"] != here["mean"]).numpy().any(axis=1).all()
    seeds = tf.range(7, dtype=tf.int64)
    here = signatures["sample_seeded"](inputs=tf.constant(points), seeds=seeds)
    for name in SUMMARY:
        np.testing.assert_array_equal(answers["sample_seeded"][name], here[name])


def test_concurrent_samples_are_all_distinct(points, signatures):
    inputs = tf.constant(np.repeat(points[:1], 2, axis=0))
    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(
            lambda _: signatures["sample"](inputs=inputs)["mean"], range(100)
        )
    answers = np.concatenate([answer.numpy() for answer in answers])
    assert len(np.unique(answers, axis=0)) == 200


def reachable(graph):
    """The nodes of a graph and of the functions that it calls, and those functions."""
    library = {function.signature.name: function for function in graph.library.function}
    nodes, functions, names = list(graph.node), [], set()
    for node in nodes:  # grows in the loop
        for value in node.attr.values():
            for called in [value.func, *value.list.func]:
                if called.name and called.name not in names:
                    names.add(called.name)
                    functions.append(library[called.name])
                    nodes += library[called.name].node_def
    return nodes, functions


@pytest.mark.parametrize(
    "name", ["serve", "serving_default", "sample", "sample_seeded"]
)
def test_only_unseeded_samples_are_random_and_nothing_needs_xla(signatures, name):
    nodes, functions = reachable(signatures[name].graph.as_graph_def())
    random = {node.op for node in nodes if "Random" in node.op}
    assert random == ({"RandomUniformInt"} if name == "sample" else set())
    assert not any(x.attr["_XlaMustCompile"].b for x in [*nodes, *functions])
    assert (len(nodes) > 100) == name.startswith("sample")


def test_at_inference_only_vanilla_dropout_adds_operations():
    def operations(*layers):
        dense = keras.layers.Dense(3, activation="softmax")
        interface = Interface(keras.Sequential([keras.Input((2,)), *layers, dense]))
        serve = tracing()(interface.serve)
        serve = tf.function(
            serve, input_signature=[interface.argument], autograph=False
        )
        nodes, _ = reachable(serve.get_concrete_function().graph.as_graph_def())
        return collections.Counter(node.op for node in nodes)

    none = operations()
    assert operations(kdrop.InvertedDropout(0.5)) == none
    assert operations(kdrop.VanillaDropout(0.5)) - none == {"Mul": 1, "Const": 1}


def test_the_folder_holds_labels_record_history_and_pictures(exported_path):
    labels = exported_path / "assets" / "labels.txt"
    assert labels.read_text() == "red\ngreen\nblue\n"
    text = (exported_path / "experiment.json").read_text()
    record = json.loads(text, parse_constant=int)  # fails on NaN
    assert record["settings"] == {"rate": 0.5}
    assert record["metrics"] == {"test_loss": None}
    assert record["made_with"]["tensorflow"] == tf.__version__
    assert record["made_with"]["keras"] == keras.__version__
    assert (exported_path / "history.csv").read_text() == "epoch,loss\n1,0.5\n2,0.25\n"
    assert (exported_path / "picture.png").read_bytes() == b"drawn"


@pytest.fixture(scope="module")
def definitions(exported_path):
    saved = saved_model_pb2.SavedModel.FromString(
        (exported_path / "saved_model.pb").read_bytes()
    )
    (graph,) = saved.meta_graphs
    assert list(graph.meta_info_def.tags) == ["serve"]
    signatures = {k: v for k, v in graph.signature_def.items() if k[:2] != "__"}
    assert set(signatures) == {"serve", "serving_default", "sample", "sample_seeded"}
    return signatures


def answer(signature, request):
    inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
    return signature(**inputs)


def test_a_model_server_can_batch_every_signature(definitions, signatures):
    # It joins requests along axis 0, and splits the outputs at the same rows.
    for name, definition in definitions.items():
        assert definition.method_name == "tensorflow/serving/predict"
        request = predict_pb2.PredictRequest()
        for key, info in definition.inputs.items():
            sizes = [dim.size for dim in info.tensor_shape.dim]
            assert sizes[0] == -1 and all(size > 0 for size in sizes[1:])
            values = np.random.default_rng(0).uniform(0, 255, (5, *sizes[1:]))
            values = values.astype(tf.as_dtype(info.dtype).as_numpy_dtype)
            request.inputs[key].CopyFrom(tf.make_tensor_proto(values))
        for info in definition.outputs.values():
            assert info.tensor_shape.dim[0].size == -1
        outputs = answer(signatures[name], request)
        assert {key: len(output) for key, output in outputs.items()} == dict.fromkeys(
            definition.outputs, 5
        )


def test_a_model_server_can_replay_the_warm_up(signatures, exported_path):
    names = []
    for record in tf.data.TFRecordDataset(str(exported_path / WARM_UP)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.name == exported_path.parent.name
        names.append(request.model_spec.signature_name)
        assert answer(signatures[names[-1]], request)
    assert names == ["serving_default", "sample"]
