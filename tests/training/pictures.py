"""Data for the pictures: histories, points, images and forecasts."""

import numpy as np

CIFAR = "airplane automobile bird cat deer dog frog horse ship truck".split()
ARMS = ["arm 0", "arm 1", "arm 2"]
LONG = [f"the class of number {n}, whose name does not end" for n in range(10)]
RUNS = ["none", "InvertedDropout 0.5", "VanillaDropout $0.5$ on a wide network, seed 3"]
RUNS += ["SpatialDropout2D", "_DropBlock2D"]
TITLE = "StochasticDepth, test set"


def history(epochs, number=0, validation=True, low=0.3, rates=()):
    noise = np.random.default_rng(number)
    fall = np.exp(np.linspace(0, min(-5, np.log(low)), epochs))
    columns = {"epoch": np.arange(1, epochs + 1), "learning_rate": fall}
    for part in ("", "val_")[: 1 + validation]:
        columns[part + "data_loss"] = low + fall + 0.1 * low * noise.random(epochs)
        columns[part + "accuracy"] = 0.9 - 0.5 * fall - 0.05 * noise.random(epochs)
    for place, rate in enumerate(rates, start=1):
        columns[f"rate_drop_{place}"] = rate * fall
    return columns


def sectors(classes):
    angles = 2 * np.pi * np.arange(classes) / classes

    def predict(points):
        scores = np.exp(5 * points @ np.stack([np.cos(angles), np.sin(angles)]))
        return scores / scores.sum(axis=1, keepdims=True)

    return predict


def disc(count):
    generator = np.random.default_rng(1)
    return generator.uniform(-1, 1, (count, 2)).astype(np.float32)


def images(count, channels, classes, size=32):
    generator = np.random.default_rng(2)
    pixels = generator.integers(0, 256, (count, size, size, channels), np.uint8)
    targets = generator.integers(0, classes, count)
    return pixels, targets, generator.dirichlet(np.full(classes, 0.3), count)


def sample(points, classes=3, samples=20):
    """Samples that agree within a unit of the middle, and not beyond."""
    noise = np.random.default_rng(5).normal(size=(samples, 1, classes))
    far = np.clip(np.linalg.norm(points, axis=1) - 1, 0, 20)
    scores = np.exp(np.tanh(3 * points.sum(axis=1))[:, None] * np.arange(classes))
    scores = scores / scores.sum(axis=1, keepdims=True) * np.exp(far[:, None] * noise)
    return scores / scores.sum(axis=-1, keepdims=True)


def forecast(count, samples=50, classes=10):
    """Weight scaling, samples, and targets that are drawn from their mean."""
    generator = np.random.default_rng(6)
    middle = generator.dirichlet(np.full(classes, 0.3), count)
    shape = (samples, count, classes)
    values = generator.gamma(20 * middle + 0.1, size=shape)
    values /= values.sum(axis=-1, keepdims=True)
    targets = [generator.choice(classes, p=each) for each in values.mean(axis=0)]
    return middle, values, np.array(targets)
