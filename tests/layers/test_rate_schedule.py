"""The callback that applies a schedule in `fit`."""

import keras
import numpy as np
import pytest
from family import DEVIATIONS
from keras import ops

from kdrop import InvertedDropout, RateSchedule, VanillaDropout, schedules
from kdrop.layers.base import Noise

UNITS = 256
BATCH = 64


class Spy(keras.layers.Layer):
    """Counts the zeros of each batch."""

    def __init__(self, steps):
        super().__init__()
        self.counts = self.add_weight(
            shape=(steps,), initializer="zeros", trainable=False
        )
        self.step = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False
        )

    def call(self, inputs):
        zeros = ops.sum(ops.cast(ops.equal(inputs, 0), "float32"))
        now = ops.equal(ops.arange(self.counts.shape[0]), self.step.value)
        self.counts.assign(self.counts + ops.where(now, zeros, 0.0))
        self.step.assign(self.step + 1)
        return inputs


class Rates(keras.callbacks.Callback):
    """Records the rate after each execution of `fit`."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.rates = layer, []

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(self.layer.rate)


def make_model(*layers, **arguments):
    model = keras.Sequential([keras.Input((UNITS,)), *layers, keras.layers.Dense(1)])
    model.compile("sgd", "mse", **arguments)
    return model


def fit(model, epochs, steps, *callbacks, **arguments):
    inputs = np.ones((steps * BATCH, UNITS), "float32")
    targets = np.zeros((steps * BATCH, 1), "float32")
    return model.fit(
        inputs,
        targets,
        batch_size=BATCH,
        epochs=epochs,
        callbacks=list(callbacks),
        verbose=0,
        **arguments,
    ).history


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.linear(0.1, 0.9),
        schedules.early(0.5, cutoff=0.5, decay="constant"),
    ],
    ids=["linear", "to zero"],
)
@pytest.mark.parametrize("by", ["step", "epoch"])
def test_the_network_sees_the_schedule(schedule, by):
    epochs, steps = 4, 3
    # The initial rate, 0, must have no effect.
    spy, drop = Spy(epochs * steps), InvertedDropout(0.0, seed=1, name="drop")
    model = make_model(drop, spy)
    history = fit(model, epochs, steps, RateSchedule(schedule, by=by))
    moments = np.arange(epochs * steps) / (epochs * steps - 1)
    if by == "epoch":
        moments = (np.arange(epochs) / (epochs - 1)).repeat(steps)
    rates = np.array([schedule(float(moment)) for moment in moments])
    size = BATCH * UNITS
    bound = DEVIATIONS * np.sqrt(rates * (1 - rates) * size)
    counts = ops.convert_to_numpy(spy.counts)
    assert (abs(counts - rates * size) <= bound).all()
    assert history["rate"] == list(rates[steps - 1 :: steps])
    assert drop.rate == rates[-1] == history["rate"][-1] == schedule(1.0)


@pytest.mark.parametrize("by", ["step", "epoch"])
def test_a_resumed_fit_continues_the_schedule(by):
    schedule = schedules.cosine(0.7, 0.1)
    whole = InvertedDropout(0.5, seed=1, name="drop")
    rates = Rates(whole)
    fit(make_model(whole), 5, 2, RateSchedule(schedule, by=by), rates)
    resumed = InvertedDropout(0.5, seed=1, name="drop")
    tail = Rates(resumed)
    model = make_model(resumed)
    fit(model, 5, 2, RateSchedule(schedule, by=by), tail, initial_epoch=3)
    assert tail.rates == rates.rates[6:]


@pytest.mark.slow
def test_backup_and_restore_continues_the_schedule(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    schedule = schedules.linear(0.0, 0.5)
    first = make_model(InvertedDropout(0.5, seed=1, name="drop"))
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        fit(first, 5, 2, RateSchedule(schedule), backup, Stop())
    drop = InvertedDropout(0.5, seed=1, name="drop")
    rates = Rates(drop)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    fit(make_model(drop), 5, 2, backup, RateSchedule(schedule), rates)
    assert rates.rates == [schedule(step / 9) for step in range(6, 10)]


def test_all_drop_layers_are_set_nested_ones_too():
    one, two = InvertedDropout(0.1, name="one"), VanillaDropout(0.2, name="two")
    nested = keras.Sequential([keras.Input((UNITS,)), two])
    fit(make_model(one, nested), 1, 1, RateSchedule(schedules.constant(0.6)))
    assert (one.rate, two.rate) == (0.6, 0.6)


def test_other_layers_with_a_rate_stay_unchanged():
    class Foreign(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self._rate = 0.1

        def call(self, inputs):
            return inputs

        @property
        def rate(self):
            return self._rate

        @rate.setter
        def rate(self, rate):
            self._rate = rate

    class Learned(Noise):
        rate = 0.2

        def drop(self, inputs, draw, rows):
            return inputs

    foreign, learned, dropout = Foreign(), Learned(), keras.layers.Dropout(0.3)
    model = make_model(foreign, learned, dropout, InvertedDropout(0.4))
    fit(model, 1, 1, RateSchedule(schedules.constant(0.6)))
    assert (foreign.rate, learned.rate, dropout.rate) == (0.1, 0.2, 0.3)


def test_only_the_layers_of_the_argument_are_set():
    one, two, three = (InvertedDropout(0.1, name=n) for n in ("one", "two", "three"))
    callbacks = [
        RateSchedule(schedules.constant(0.2), layers=(one,)),
        RateSchedule(schedules.constant(0.4), layers=[two]),
    ]
    history = fit(make_model(one, two, three), 1, 1, *callbacks)
    assert (one.rate, two.rate, three.rate) == (0.2, 0.4, 0.1)
    assert history["rate"] == [0.4]


def test_only_changes_are_written():
    class Counted:
        written = 0
        _rate = 0.5

        @property
        def rate(self):
            return self._rate

        @rate.setter
        def rate(self, rate):
            self.written += 1
            self._rate = rate

    layer = Counted()
    schedule = schedules.early(0.5, cutoff=0.5, decay="constant")
    fit(make_model(), 4, 3, RateSchedule(schedule, layers=[layer]))
    assert (layer.written, layer.rate) == (1, 0.0)


@pytest.mark.parametrize(
    ("steps", "first_steps"), [(4, (0, 2, 4, 6)), (5, (0, 2, 4, 5, 7, 9)), (2, (0, 2))]
)
def test_the_steps_of_an_execution_share_a_rate(steps, first_steps):
    drop = InvertedDropout(0.5, seed=1, name="drop")
    rates, schedule = Rates(drop), schedules.linear(0.0, 0.8)
    model = make_model(drop, steps_per_execution=2)
    fit(model, 2, steps, RateSchedule(schedule), rates)
    assert rates.rates == [schedule(step / first_steps[-1]) for step in first_steps]
    assert rates.rates[-1] == 0.8


@pytest.mark.parametrize(
    ("by", "steps", "steps_per_execution"), [("step", 3, 4), ("epoch", 1, 1)]
)
def test_a_single_step_or_epoch_has_the_first_rate(by, steps, steps_per_execution):
    drop = InvertedDropout(0.5, name="drop")
    model = make_model(drop, steps_per_execution=steps_per_execution)
    fit(model, 1, steps, RateSchedule(schedules.linear(0.1, 0.9), by=by))
    assert drop.rate == 0.1


def test_a_second_fit_starts_the_schedule_anew():
    drop = InvertedDropout(0.5, seed=1, name="drop")
    rates, callback = Rates(drop), RateSchedule(schedules.annealed(0.8))
    model = make_model(drop)
    fit(model, 1, 2, callback, rates)
    fit(model, 2, 2, callback, rates)
    np.testing.assert_allclose(rates.rates, [0.8, 0.0, 0.8, 1.6 / 3, 0.8 / 3, 0.0])


def test_unknown_number_of_steps():
    drop = InvertedDropout(0.5, name="drop")
    model, schedule = make_model(drop), schedules.linear(0.1, 0.5)
    batch = np.ones((BATCH, UNITS), "float32"), np.zeros((BATCH, 1), "float32")

    def train(**arguments):
        batches = (batch for _ in range(2))
        model.fit(batches, shuffle=False, verbose=0, **arguments)

    with pytest.raises(ValueError, match="`steps_per_epoch`.* by='epoch'"):
        train(callbacks=[RateSchedule(schedule)])
    rates = Rates(drop)
    train(steps_per_epoch=2, callbacks=[RateSchedule(schedule), rates])
    assert rates.rates == [schedule(0.0), schedule(1.0)]
    by_epoch = RateSchedule(schedule, by="epoch")
    with pytest.warns(UserWarning, match="ran out of data"):  # of Keras
        train(callbacks=[by_epoch])
    assert drop.rate == 0.1


def test_a_model_without_drop_layers_is_rejected():
    model = make_model(keras.layers.Dropout(0.5))
    with pytest.raises(ValueError, match="no drop layer of kdrop"):
        fit(model, 1, 1, RateSchedule(schedules.constant(0.5)))
    drop = InvertedDropout(0.3)
    with pytest.raises(ValueError, match="no drop layer of kdrop"):
        fit(make_model(drop), 1, 1, RateSchedule(schedules.constant(0.5), layers=[]))


def test_a_schedule_that_leaves_the_range_is_rejected():
    model = make_model(InvertedDropout(0.5, name="drop"))
    with pytest.raises(ValueError, match=r"rate=3\.0"):
        fit(model, 1, 2, RateSchedule(lambda progress: 3 * progress))
