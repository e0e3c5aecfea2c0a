"""The figures of the studies draw the numbers that they get."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from studies import figures

VALUES = [1.0, 3.0, 8.0]
ERROR = np.std(VALUES, ddof=1) / np.sqrt(3)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    saved, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path: [saved.append(self), save(self, path)]
    )
    return saved


def bar(container):
    """The ends of an error bar."""
    return container.lines[2][0].get_segments()[0]


def test_dots_are_means_with_their_standard_errors(drawn, tmp_path):
    arms = {"a": VALUES, "b": [2.0, 2.0]}
    figures.dots(tmp_path / "f.png", "A is best", arms, "Error (%)", {"least": 0.5})
    panel = drawn[0].axes[0]
    means = [container.lines[0] for container in panel.containers]
    assert [line.get_xdata()[0] for line in means] == [4, 2]
    np.testing.assert_allclose(bar(panel.containers[0])[:, 0], [4 - ERROR, 4 + ERROR])
    seeds = [line for line in panel.lines if line.get_markerfacecolor() == "none"]
    assert [list(line.get_xdata()) for line in seeds] == [VALUES, [2, 2]]
    assert [line.get_ydata()[0] for line in means] == [0, 1]
    assert panel.yaxis_inverted()  # arms from the top
    assert [text.get_text() for text in panel.get_yticklabels()] == ["a", "b"]
    assert drawn[0].get_suptitle() == "A is best"
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["least"]


def test_lines_are_means_with_their_standard_errors(drawn, tmp_path):
    points, other = {1.0: VALUES, 10.0: [2.0, 2.0, 2.0]}, {1.0: [3.0, 3.0, 3.0]}
    panels = {"left": {"test": points, "train": other}, "right": {"test": other}}
    labels = "Sub-networks", "Error (%)"
    figures.lines(tmp_path / "f.png", "It falls", panels, *labels, ylim=(0, 6))
    left, right = drawn[0].axes
    test, train = left.containers
    np.testing.assert_allclose(test.lines[0].get_xydata(), [[1, 4], [10, 2]])
    np.testing.assert_allclose(bar(test)[:, 1], [4 - ERROR, 4 + ERROR])
    assert test.lines[0].get_marker() != train.lines[0].get_marker()
    # A line looks the same in each panel.
    assert right.containers[0].lines[0].get_marker() == test.lines[0].get_marker()
    assert left.get_ylim() == (0, 6) and left.get_title() == "left"
    assert (left.get_xlabel(), left.get_ylabel()) == labels


def test_the_figure_notes_values_above_its_axes(drawn, tmp_path):
    panels = {"one": {"test": {0.1: [4.0, 4.0], 0.9: [40.0, 45.4]}}}
    for ylim, expected in ((0, 12), True), ((0, 50), False):
        figures.lines(tmp_path / "f.png", "It rises", panels, "Rate", "%", ylim=ylim)
        texts = [text.get_text() for text in drawn[-1].findobj(Text)]
        assert any("Not shown: values above 12." in text for text in texts) == expected
