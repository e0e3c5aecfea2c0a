"""Two devices, and the figure that a test draws, as it is written."""

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from kdrop.training import run as run_module
from kdrop.training.devices import Devices


class Drawn:
    """The figure of a picture, its file, and where each text ended up, in pixels."""

    def __init__(self, path):
        self.path, self.boxes, self.figure = path, {}, None

    @property
    def texts(self):
        return [text.get_text() for text in self.boxes]

    def pixel(self, panel, x, y):
        """The colour in the file at a place given in the panel's coordinates."""
        column, row = panel.transData.transform((x, y)) * 200 / self.figure.dpi
        image = imread(self.path)
        return image[int(len(image) - row), int(column), :3]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    result = Drawn(tmp_path / "picture.png")
    draw, save = Text.draw, Figure.savefig

    def record_box(text, renderer):
        if text.get_text() and text.get_visible():
            result.boxes[text] = text.get_window_extent(renderer)
        return draw(text, renderer)

    def record_figure(figure, *arguments, **settings):
        result.boxes.clear()
        result.figure = figure
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Text, "draw", record_box)
    monkeypatch.setattr(Figure, "savefig", record_figure)
    return result


@pytest.fixture
def pair(strategy):
    return Devices(2, scope=strategy.scope)


@pytest.fixture
def single_steps(monkeypatch):
    """Each step is its own call of the training function, and each epoch is saved."""
    monkeypatch.setattr(run_module, "EXECUTION_STEPS", 1)
    monkeypatch.setattr(run_module, "SCHEDULED_STEPS", 1)
    monkeypatch.setattr("kdrop.training.progress.SAVE_SECONDS", 0)
