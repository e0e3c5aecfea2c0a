"""The figures of studies: what they draw is what they are given."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from studies import figures


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    saved, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path: [saved.append(self), save(self, path)]
    )
    return saved


ERROR = np.std([1.0, 3.0, 8.0], ddof=1) / np.sqrt(3)


def legends(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def bar(container):
    """The ends of an error bar."""
    return container.lines[2][0].get_segments()[0]


def test_dots_are_means_with_their_standard_errors(drawn, tmp_path):
    groups = {"few": {"a": [1.0, 3.0, 8.0], "b": [2.0]}, "many": {"a": [5.0, 5.0]}}
    figures.dots(tmp_path / "f.png", "A is best", groups, "Error (%)", {"least": 0.5})
    panel = drawn[0].axes[0]
    means = [container.lines[0] for container in panel.containers]
    assert [line.get_xdata()[0] for line in means] == [4, 2, 5]
    np.testing.assert_allclose(bar(panel.containers[0])[:, 0], [4 - ERROR, 4 + ERROR])
    seeds = [line for line in panel.lines if line.get_markerfacecolor() == "none"]
    assert [list(line.get_xdata()) for line in seeds] == [[1, 3, 8], [2], [5, 5]]
    # Arms from the top, and groups side by side in an arm.
    heights = [line.get_ydata()[0] for line in means]
    assert round(heights[0]) == round(heights[2]) == 0 and round(heights[1]) == 1
    assert heights[0] < heights[2] and panel.yaxis_inverted()
    assert [text.get_text() for text in panel.get_yticklabels()] == ["a", "b"]
    assert panel.get_xlabel() == "Error (%)"
    assert drawn[0].get_suptitle() == "A is best"
    assert legends(drawn[0]) == ["few", "many", "least"]
    assert means[0].get_marker() != means[2].get_marker()  # not by colour alone


def test_lines_are_means_with_their_standard_errors(drawn, tmp_path):
    points = {1.0: [1.0, 3.0, 8.0], 10.0: [2.0, 2.0, 2.0]}
    other = {1.0: [3.0, 3.0, 3.0]}
    figures.lines(
        tmp_path / "f.png",
        "It falls",
        {"left": {"test": points, "training": other}, "right": {"test": other}},
        "Passes",
        "Error (%)",
        {"level": [1.0, 3.0, 8.0]},
        logarithmic=True,
        top=6,
    )
    left, right = drawn[0].axes
    test, training = left.containers
    np.testing.assert_allclose(test.lines[0].get_xydata(), [[1, 4], [10, 2]])
    np.testing.assert_allclose(bar(test)[:, 1], [4 - ERROR, 4 + ERROR])
    assert test.lines[0].get_marker() != training.lines[0].get_marker()
    # A line looks the same in each panel.
    assert right.containers[0].lines[0].get_marker() == test.lines[0].get_marker()
    (level,) = [line for line in left.lines if line.is_dashed()]
    assert set(level.get_ydata()) == {4}
    (band,) = left.patches
    low, high = band.get_y(), band.get_y() + band.get_height()
    np.testing.assert_allclose([low, high], [4 - ERROR, 4 + ERROR])
    assert left.get_xscale() == "log" and left.get_ylim() == (0, 6)
    assert left.get_title() == "left"
    assert (left.get_xlabel(), left.get_ylabel()) == ("Passes", "Error (%)")
    assert legends(drawn[0]) == ["test", "training", "level"]


def test_what_is_cut_off_is_told(tmp_path, drawn):
    points = {0.0: [1.0, 1.2], 0.9: [40.0, 41.0]}
    for top, told in (4, " Cut off: wide, test: 40.5 at 0.9."), (None, ""):
        panels = {"wide": {"test": points}}
        figures.lines(tmp_path / "lines.png", "", panels, "Rate", "Error", top=top)
        title = drawn[-1].legends[0].get_title().get_text().replace("\n", " ")
        assert title == f"Bars: standard error of 2 seeds.{told}"
