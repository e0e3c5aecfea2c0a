"""The network of an experiment, built and compiled."""

import re
from typing import Any

import keras

from kdrop import backend, layers
from kdrop.errors import UserError
from kdrop.models import MODELS
from kdrop.training.data import Data
from kdrop.training.experiment import Experiment
from kdrop.training.pipeline import batches

EVALUATION_BATCH = 500


def network(experiment: Experiment, data: Data) -> keras.Model:
    """The experiment's network before training, not compiled.

    Raises:
        UserError: The layer or the settings do not fit the network.
    """
    settings: dict[str, Any] = {
        name: getattr(experiment, name)
        for name in ("hidden", "input_rate", "l1", "l2", "max_norm", "norm_penalty")
    }
    if experiment.rate:
        one = len(experiment.rate) == 1
        settings["rate"] = experiment.rate[0] if one else experiment.rate
    if experiment.width:
        settings["width"] = experiment.width
    try:
        return MODELS[
            experiment.model
        ](
            getattr(layers, experiment.dropout, None),  # `None` for "none"
            classes=len(data.labels),
            input_shape=data.train.inputs.shape[1:],
            examples=len(data.train.targets),
            seed=experiment.seed,
            **settings,
        )
    except (TypeError, ValueError) as error:
        # Keras puts the sentence in bold, between others about the call.
        bold = re.search(r"\x1b\[1m(.*?)\x1b\[0m", str(error), re.DOTALL)
        reason = " ".join((bold[1] if bold else str(error)).split())
        raise UserError(
            f"The model {experiment.model} with dropout {experiment.dropout} cannot be "
            f"built: {reason}"
        ) from error


def build(experiment: Experiment, data: Data) -> keras.Model:
    """The experiment's network, standardised to the training part and compiled.

    Raises:
        UserError: The layer or the settings do not fit the network.
    """
    keras.utils.set_random_seed(experiment.seed)
    model = network(experiment, data)
    examples = batches(data.train, EVALUATION_BATCH, epochs=1).map(lambda x, _: x)
    model.get_layer("standardise").adapt(examples)
    steps = experiment.epochs * steps_per_epoch(experiment, data)
    schedules = keras.optimizers.schedules
    rate, decay = experiment.learning_rate, experiment.decay
    cosine = decay == "cosine"
    model.compile(
        optimizer=keras.optimizers.Adam(
            schedules.CosineDecay(rate, steps)
            if cosine
            else schedules.InverseTimeDecay(rate, 1, decay)
        ),
        loss="sparse_categorical_crossentropy",
        weighted_metrics=[
            "accuracy",
            keras.metrics.SparseCategoricalCrossentropy(name="data_loss"),
        ],
        # Otherwise Keras runs each operation of JAX on its own.
        jit_compile=experiment.jit_compile or backend.name() == "jax",
    )
    return model


def steps_per_epoch(experiment: Experiment, data: Data) -> int:
    one_pass = -(-len(data.train.targets) // experiment.batch_size)
    return experiment.steps_per_epoch or one_pass
