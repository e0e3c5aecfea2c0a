import math

import keras
import numpy as np
import pytest
from keras import ops

from kdrop import InvertedDropout, RateSchedule, VanillaDropout, schedules

DEVIATIONS = 5  # a binomial count is further off in one case of 1.7 million
UNITS = 256
BATCH = 64

# The rates at progress 0, 1/8, 1/4, 1/2 and 1, from the closed forms.
SCHEDULES = {
    "constant": (schedules.constant(0.3), [0.3] * 5),
    "linear": (schedules.linear(0.1, 0.9), [0.1, 0.2, 0.3, 0.5, 0.9]),
    "cosine": (
        schedules.cosine(0.2, 0.6),
        [0.2, 0.4 - 0.2 * math.cos(math.pi / 8), 0.4 - 0.2 * 0.5**0.5, 0.4, 0.6],
    ),
    "early": (schedules.early(0.4), [0.4, 0.1, 0.0, 0.0, 0.0]),
    "early, half": (schedules.early(0.4, cutoff=0.5), [0.4, 0.3, 0.2, 0.0, 0.0]),
    "early, constant": (
        schedules.early(0.4, cutoff=0.25, decay="constant"),
        [0.4, 0.4, 0.0, 0.0, 0.0],
    ),
    "late": (schedules.late(0.4), [0.0, 0.0, 0.4, 0.4, 0.4]),
    "late, half": (schedules.late(0.4, cutoff=0.5), [0.0, 0.0, 0.0, 0.4, 0.4]),
    "curriculum": (
        schedules.curriculum(0.5),
        # One minus the probability of keeping a unit, as the paper has it.
        [1 - (0.5 * math.exp(-10 * t) + 0.5) for t in (0, 1 / 8, 1 / 4, 1 / 2, 1)],
    ),
    "curriculum, slow": (
        schedules.curriculum(0.5, gamma=math.log(2)),
        [0.0, 0.5 - 0.5**1.125, 0.5 - 0.5**1.25, 0.5 - 0.5**1.5, 0.25],
    ),
    "annealed": (schedules.annealed(0.8), [0.8, 0.7, 0.6, 0.4, 0.0]),
    "annealed, half": (schedules.annealed(0.8, end=0.5), [0.8, 0.6, 0.4, 0.0, 0.0]),
    "drop path": (schedules.scheduled_drop_path(0.4), [0.0, 0.05, 0.1, 0.2, 0.4]),
}
every_schedule = pytest.mark.parametrize(
    "schedule, expected", SCHEDULES.values(), ids=SCHEDULES
)


@every_schedule
def test_closed_form(schedule, expected):
    rates = [schedule(t) for t in (0.0, 0.125, 0.25, 0.5, 1.0)]
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-15)
    # No rate of -1e-17, which the layers refuse, and no 1e-17, which never ends.
    np.testing.assert_array_equal(np.equal(rates, 0), np.abs(expected) < 1e-15)


@every_schedule
def test_monotone_and_between_its_ends(schedule, expected):
    rates = np.array([schedule(t) for t in np.linspace(0, 1, 1001)])
    steps = np.diff(rates) * (1 if expected[-1] >= expected[0] else -1)
    assert steps.min() > -1e-15
    assert rates.min() >= min(expected) and rates.max() <= max(expected)


NAN = float("nan")


@pytest.mark.parametrize(
    "make, received",
    [
        *[
            (lambda make=make, rate=rate: make(rate), f"rate={rate!r}")
            for make in (
                schedules.constant,
                schedules.early,
                schedules.late,
                schedules.curriculum,
                schedules.annealed,
                schedules.scheduled_drop_path,
                lambda rate: schedules.over_depth(rate, 3),
            )
            for rate in (1, 1.0, -0.1, NAN, True, "0.5", None)
        ],
        (lambda: schedules.linear(1.5, 0.1), "start=1.5"),
        (lambda: schedules.linear(0.1, NAN), "end=nan"),
        (lambda: schedules.cosine(0.1, 1.0), "end=1.0"),
        (lambda: schedules.early(0.1, cutoff=0), "cutoff=0"),
        (lambda: schedules.early(0.1, cutoff=NAN), "cutoff=nan"),
        (lambda: schedules.late(0.1, cutoff=50), "cutoff=50"),
        (lambda: schedules.early(0.1, decay="cubic"), "'cubic'"),
        (lambda: schedules.annealed(0.1, end=-1), "end=-1"),
        (lambda: schedules.curriculum(0.1, gamma=0), "gamma=0"),
        (lambda: schedules.curriculum(0.1, gamma=math.inf), "gamma=inf"),
        (lambda: schedules.over_depth(0.1, 0), "0"),
        (lambda: schedules.over_depth(0.1, 2.0), "2.0"),
        (lambda: RateSchedule(0.5), "schedule=0.5"),
        (lambda: RateSchedule(schedules.constant(0.5), by="batch"), "by='batch'"),
    ],
)
def test_bad_arguments_are_named(make, received):
    with pytest.raises(ValueError, match=f"must be .*{received}$"):
        make()


def test_rates_over_depth():
    assert schedules.over_depth(0.5, 4) == [0.125, 0.25, 0.375, 0.5]
    # 54 blocks of which the last survives with 0.5 are 40 deep on average: the paper's
    # (3 L - 1) / 4.
    survival = [1 - rate for rate in schedules.over_depth(0.5, 54)]
    assert sum(survival) == pytest.approx((3 * 54 - 1) / 4)
    assert schedules.over_depth(0.3, 1) == [0.3]


class Spy(keras.layers.Layer):
    """Counts the zeros of each batch, one batch after the other."""

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
    """The rate in force at each call of `fit`."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.seen = layer, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.layer.rate)


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
        schedules.scheduled_drop_path(0.5),
        schedules.early(0.5, cutoff=0.5, decay="constant"),
        schedules.late(0.3, cutoff=0.5),
    ],
    ids=["linear", "from zero", "to zero", "late"],
)
@pytest.mark.parametrize("by", ["step", "epoch"])
def test_the_network_sees_the_schedule(schedule, by):
    epochs, steps = 4, 3
    # Its own rate has no say: the rates of both ends differ from it.
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
def test_a_resumed_fit_goes_on_with_the_rates(by):
    schedule = schedules.cosine(0.7, 0.1)
    whole = InvertedDropout(0.5, seed=1, name="drop")
    rates = Rates(whole)
    fit(make_model(whole), 5, 2, RateSchedule(schedule, by=by), rates)
    resumed = InvertedDropout(0.5, seed=1, name="drop")
    tail = Rates(resumed)
    model = make_model(resumed)
    fit(model, 5, 2, RateSchedule(schedule, by=by), tail, initial_epoch=3)
    assert tail.seen == rates.seen[6:]


def test_backup_and_restore_goes_on_with_the_rates(tmp_path):
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
    assert rates.seen == [schedule(step / 9) for step in range(6, 10)]


def test_all_drop_layers_are_set_nested_ones_too():
    one, two = InvertedDropout(0.1, name="one"), VanillaDropout(0.2, name="two")
    nested = keras.Sequential([keras.Input((UNITS,)), two])
    fit(make_model(one, nested), 1, 1, RateSchedule(schedules.constant(0.6)))
    assert (one.rate, two.rate) == (0.6, 0.6)


def test_other_layers_with_a_rate_are_left_alone():
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

    class Learned(InvertedDropout):
        @property
        def rate(self):
            return 0.2

    foreign, learned, keras_s = Foreign(), Learned(0.2), keras.layers.Dropout(0.3)
    model = make_model(foreign, learned, keras_s, InvertedDropout(0.4))
    fit(model, 1, 1, RateSchedule(schedules.constant(0.6)))
    assert (foreign.rate, learned.rate, keras_s.rate) == (0.1, 0.2, 0.3)


def test_given_layers_alone_are_set():
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
def test_several_steps_an_execution_share_a_rate(steps, first_steps):
    drop = InvertedDropout(0.5, seed=1, name="drop")
    rates, schedule = Rates(drop), schedules.linear(0.0, 0.8)
    model = make_model(drop, steps_per_execution=2)
    fit(model, 2, steps, RateSchedule(schedule), rates)
    assert rates.seen == [schedule(step / first_steps[-1]) for step in first_steps]
    assert rates.seen[-1] == 0.8


@pytest.mark.parametrize("by", ["step", "epoch"])
@pytest.mark.parametrize(("steps", "together"), [(1, 1), (3, 4)])
def test_one_step_or_epoch_alone_takes_the_first_rate(by, steps, together):
    drop = InvertedDropout(0.5, name="drop")
    model = make_model(drop, steps_per_execution=together)
    fit(model, 1, steps, RateSchedule(schedules.linear(0.1, 0.9), by=by))
    assert drop.rate == 0.1


def test_a_second_fit_starts_the_schedule_anew():
    drop = InvertedDropout(0.5, seed=1, name="drop")
    rates, callback = Rates(drop), RateSchedule(schedules.annealed(0.8))
    model = make_model(drop)
    fit(model, 1, 2, callback, rates)
    fit(model, 2, 2, callback, rates)
    np.testing.assert_allclose(rates.seen, [0.8, 0.0, 0.8, 1.6 / 3, 0.8 / 3, 0.0])


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
    assert rates.seen == [schedule(0.0), schedule(1.0)]
    by_epoch = RateSchedule(schedule, by="epoch")
    with pytest.warns(UserWarning, match="ran out of data"):  # Keras's own, as ever
        train(callbacks=[by_epoch])
    assert drop.rate == 0.1


def test_a_model_without_drop_layers_is_refused():
    model = make_model(keras.layers.Dropout(0.5))
    with pytest.raises(ValueError, match="no drop layer of kdrop"):
        fit(model, 1, 1, RateSchedule(schedules.constant(0.5)))


def test_a_schedule_that_leaves_the_range_is_refused():
    model = make_model(InvertedDropout(0.5, name="drop"))
    with pytest.raises(ValueError, match=r"rate=3\.0"):
        fit(model, 1, 2, RateSchedule(lambda progress: 3 * progress))
