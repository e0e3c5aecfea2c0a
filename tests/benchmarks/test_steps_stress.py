"""Networks and votes that the benchmarks time, at a small size on both backends."""

import pytest
from test_steps import check

from benchmarks import inference, layers, training
from kdrop import drop_layers

pytestmark = pytest.mark.slow


def test_each_network_has_its_dropout(monkeypatch):
    names, layer = [], training.drop_layer

    def noted(name, rate):
        names.append(name)
        return layer(name, rate)

    monkeypatch.setattr(training, "drop_layer", noted)
    variants = training.networks(training.convolutions, (4, 32, 32, 3), 1)
    assert names == ["keras Dropout"] * 4 + ["InvertedDropout"] * 4
    check(variants, "none")
    check(training.networks(training.mnist_mlp, (4, 28, 28, 1), 1, xla=True), "none")
    assert names[8:] == ["keras Dropout"] * 2 + ["InvertedDropout"] * 2


def test_a_transformer_drops_at_its_three_places():
    layer = lambda rate: layers.drop_layer(layers.INVERTED, rate)  # noqa: E731
    model = training.transformer(layer)
    # The layer of both branches is one layer, called twice.
    assert [layer.rate for layer in drop_layers(model)] == [0.1, 0.1]
    assert not drop_layers(training.transformer(None))
    check(training.networks(training.transformer, (2, 197, 384), 1), "none")


def test_votes():
    variants = inference.votes(batch=2, width=2, hidden=(8,))
    check(variants, inference.BASELINE, inference.CALLS)
