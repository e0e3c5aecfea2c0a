"""The page at the server's root in a browser: clicks, images, JSON and errors."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from browser import CHROMIUM, browser
from mixed_model import mixed

import kdrop
from kdrop.serving import export

if not CHROMIUM:
    pytest.skip("There is no Chromium", allow_module_level=True)
pytest.importorskip("kserve", reason="KServe is not installed: the extra serve")
from servers import running  # noqa: E402

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=document.title=1>"
COLOURS = "#0072B2", "#D55E00", "#009E73"


@pytest.fixture(scope="module")
def tab(exported_path, tmp_path_factory):
    """The page of a server of points, images, and a mixture of inputs."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(exported_path, folder / "spiral" / "1")
    mixed(folder / "mixed")
    layers = [keras.Input((4, 6, 3)), keras.layers.Flatten()]
    layers += [kdrop.InvertedDropout(0.5, seed=1), keras.layers.Dense(2)]
    images = keras.Sequential([*layers, keras.layers.Softmax()])
    export(images, folder / "images", labels=[HOSTILE, "other"], passes=3)
    with (
        running(folder, tmp_path_factory.mktemp("log") / "log") as (_, client),
        browser(tmp_path_factory.mktemp("profile")) as tab,
    ):
        tab.open(f"{client.base_url}/")
        tab.run(
            "window.bodies = []; const send = window.fetch; window.fetch = (url, x) => "
            "{ bodies.push([url, JSON.parse(x.body)]); return send(url, x) }; 0"
        )
        yield tab
    assert tab.messages == []


def choose(tab, name):
    tab.run(
        "{ const choice = document.querySelector('#choice');"
        f" choice.value = {name!r}; choice.onchange(); bodies.length = 0; }}"
    )


def answers(tab, count):
    """The rows of so many answers, the newest first, and the requests."""
    rows = "[...document.querySelectorAll('#answers tr')]"
    tab.wait_for(f"{rows}.length === {count}")
    cells = tab.run(f"{rows}.map(row => [...row.cells].map(x => x.textContent))")
    return cells, tab.run("bodies")


def error(tab):
    return tab.wait_for("document.querySelector('#error').textContent")


def test_the_models_are_listed(tab):
    rows = "[...document.querySelectorAll('#models tr')]"
    cells = tab.run(f"{rows}.map(row => [...row.cells].map(x => x.textContent))")
    cells[2][2] = "; ".join(sorted(cells[2][2].split("; ")))
    assert cells[1:] == [
        ["images", "1", "inputs FP32 (any, 4, 6, 3)", f"{HOSTILE}, other"],
        [
            "mixed",
            "1",
            "age INT32 (any, 1); new BOOL (any, 1); text BYTES (any, 1)",
            "",
        ],
        ["spiral", "1", "inputs FP32 (any, 2)", "red, green, blue"],
    ]


def test_clicks_on_the_plane_ask_the_model(tab, signatures):
    choose(tab, "spiral")
    tab.run("document.querySelector('svg').scrollIntoView()")
    box = tab.run("document.querySelector('svg').getBoundingClientRect().toJSON()")
    points = [(0.75, 0.0), (-1.125, 1.125), (0.0, -0.375)]
    for number, (x, y) in enumerate(points, start=1):
        # Of the 210 units of a side, 100 are the range of 1.5 from the middle.
        right, up = (105 + 100 * value / 1.5 for value in (x, y))
        across = box["left"] + right / 210 * box["width"]
        tab.click(across, box["top"] + (210 - up) / 210 * box["height"])
        cells, bodies = answers(tab, number)
    asked = [body["instances"][0] for _, body in bodies]
    pixel = 1.5 * 210 / 100 / box["width"]
    np.testing.assert_allclose(asked, points, atol=pixel)
    assert {body["signature_name"] for _, body in bodies} == {"sample"}
    assert {url for url, _ in bodies} == {"v1/models/spiral:predict"}
    circles = "[...document.querySelectorAll('circle')]"
    tab.wait_for(f"{circles}.length === 3")
    colours = tab.run(f"{circles}.map(x => x.getAttribute('fill'))")
    for (name, text), colour in zip(cells, reversed(colours), strict=True):
        winner = text.split()[1]
        assert colour == COLOURS[("red", "green", "blue").index(winner)]
        assert name.startswith(tuple("123")) and text.count("±") == 3
        assert "entropy" in text and "mutual information" in text
    middle = tab.run(
        f"{circles}.map(x => [x.getAttribute('cx'), x.getAttribute('cy')])"
    )
    places = [[100 * x / 1.5, -100 * y / 1.5] for x, y in points]
    np.testing.assert_allclose(np.float64(middle), places, atol=1)


def test_a_typed_point_outside_the_plane_widens_it(tab):
    choose(tab, "spiral")
    tab.run("document.querySelectorAll('#panel input')[1].value = '-5'")
    tab.run("document.querySelector('#panel button').click()")
    _, bodies = answers(tab, 1)
    assert bodies[0][1]["instances"] == [[0, -5]]
    tab.wait_for("document.querySelectorAll('circle').length")
    ticks = tab.run(
        "[...document.querySelectorAll('svg text')].map(x => x.textContent)"
    )
    assert {"-4", "-2", "2", "4"} < set(ticks)
    (cy,) = tab.run("[document.querySelector('circle').getAttribute('cy')]")
    assert float(cy) == pytest.approx(100 * 5 / 6)


def test_an_image_is_sent_in_rows_of_pixels(tab, tmp_path):
    choose(tab, "images")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype("uint8")
    (tmp_path / "a <b>.png").write_bytes(tf.io.encode_png(pixels).numpy())
    tab.choose_file("input[type=file]", tmp_path / "a <b>.png")
    cells, bodies = answers(tab, 1)
    assert bodies[0][1]["instances"] == [pixels.tolist()]
    assert cells[0][0] == "1  a <b>.png" and HOSTILE in cells[0][1]
    assert tab.run("document.querySelectorAll('img').length") == 0
    assert tab.run("document.title") != "1"


def test_an_image_is_scaled_and_cut_to_the_middle(tab, tmp_path):
    choose(tab, "images")
    pixels = np.zeros((40, 100, 3), "uint8")
    pixels[:, 20:80] = 200  # of the 60 columns in the middle
    (tmp_path / "wide.png").write_bytes(tf.io.encode_png(pixels).numpy())
    tab.choose_file("input[type=file]", tmp_path / "wide.png")
    _, bodies = answers(tab, 1)
    (instance,) = bodies[0][1]["instances"]
    np.testing.assert_allclose(np.array(instance)[:, 1:-1], 200, atol=2)


def test_samples_stand_in_for_a_file(tab, tmp_path):
    choose(tab, "images")
    for number, name in enumerate(("Noise", "Grey"), start=1):
        tab.run(
            "[...document.querySelectorAll('#panel button')]"
            f".find(x => x.textContent === {name!r}).click()"
        )
        cells, bodies = answers(tab, number)
    noise, grey = (np.array(body["instances"]) for _, body in bodies)
    assert grey.shape == (1, 4, 6, 3) and set(grey.ravel()) == {128}
    assert len(set(noise.ravel())) > 20 and noise.max() < 256
    (tmp_path / "no.png").write_text("no image")
    tab.choose_file("input[type=file]", tmp_path / "no.png")
    assert error(tab) == "no.png is not an image that this browser can read."


def test_other_inputs_are_json_of_the_right_shape(tab):
    choose(tab, "mixed")
    field = "document.querySelector('textarea')"
    zeros = {"age": [0], "new": [False], "text": [""]}
    assert json.loads(tab.run(f"{field}.value")) == zeros
    button = "document.querySelector('#panel button').click()"
    tab.run(button)
    cells, bodies = answers(tab, 1)
    assert bodies[0][1]["instances"] == [zeros]
    assert json.loads(cells[0][1]).keys() >= {"color_mean", "color_mutual_information"}
    tab.run(f"{field}.value = '{{'; {button}")
    assert error(tab).startswith("This is not JSON")


def test_the_sentence_of_the_server_is_shown(tab):
    choose(tab, "mixed")
    messages = [*tab.messages]
    tab.run("document.querySelector('textarea').value = '[1]'")
    tab.run("document.querySelector('#panel button').click()")
    sentence = error(tab)
    assert sentence.startswith("row 0 must be an object with the fields ")
    (message,) = tab.messages[len(messages) :]
    assert "400" in message["entry"]["text"]  # of the network, not of the policy
    tab.messages[:] = messages
