"""The settings of one training run."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass
from numbers import Real
from typing import Any

from kdrop import schedules
from kdrop.errors import UserError, check_choice
from kdrop.schedules import Schedule
from kdrop.training.fields import check, check_settings, setting

# Copies of the names in `kdrop.layers` and of the defaults in `kdrop.models`, which a
# test compares: those modules import Keras, and that takes seconds.
LAYERS = (
    "AlphaDropout", "ConcreteDropout", "DropBlock1D", "DropBlock2D", "DropBlock3D",
    "DropConnectConv2D", "DropConnectDense", "DropKey", "DropPath", "EmbeddingDropout",
    "ExactDropout", "GaussianDropout", "InvertedDropout", "LockedDropout",
    "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "StandoutDropout",
    "StochasticDepth", "TokenDropout", "UniformDropout", "VanillaDropout",
    "VariationalDropout", "WeightDropout", "Zoneout",
)  # fmt: skip
WITHOUT_RATE = ("none", "ConcreteDropout", "StandoutDropout", "VariationalDropout")
NETWORKS: dict[str, dict[str, Any]] = {
    "spiral_mlp": dict(hidden=(256, 256)),
    "mnist_mlp": dict(hidden=(1024, 1024)),
    "concat_mlp": dict(hidden=(512, 512)),
    "alexnet": dict(hidden=(4096, 4096)),
    "alexnet32": dict(width=32, hidden=(1024,)),
    "resnet32": dict(width=16, hidden=()),
    "srivastava_cnn": dict(hidden=(2048, 2048), input_rate=0.1, max_norm=4.0),
}
# Each makes a schedule of the rate that a layer has before training.
SCHEDULES: dict[str, Callable[[float], Schedule]] = {
    "constant": schedules.constant,
    "linear": lambda rate: schedules.linear(rate, 0.0),
    "cosine": lambda rate: schedules.cosine(rate, 0.0),
    "early": schedules.early,
    "late": schedules.late,
    "curriculum": schedules.curriculum,
    "annealed": schedules.annealed,
    "scheduled_drop_path": schedules.scheduled_drop_path,
}
PRESETS: dict[str, dict[str, Any]] = {
    "spiral": dict(
        model="spiral_mlp", train_size=2250, validation=0.2, mirror=False,
        epochs=20, steps_per_epoch=200, batch_size=300, learning_rate=0.005,
    ),
    "cifar10": dict(
        model="alexnet32", train_size=5000, validation=0.1, mirror=True, shift=4,
        epochs=40, steps_per_epoch=None, batch_size=64, learning_rate=0.001,
        label_smoothing=0.1,
    ),
    "mnist": dict(
        model="mnist_mlp", train_size=60000, validation=0.1, mirror=False, shift=2,
        epochs=20, steps_per_epoch=None, batch_size=128, learning_rate=0.001,
        jit_compile=True,
    ),
}  # fmt: skip
# Of the networks with batch normalisation, whatever the data set.
NORMALISED = ("alexnet32", "resnet32")
RECIPE: dict = dict(optimizer="sgd", learning_rate=0.1, warmup=0.1, weight_decay=0.02)
OPTIMIZERS = ("adam", "sgd")
# Allowed values.
FRACTION, SIZE, WIDTH = "[0, 1)", "[1, 1000000]", "[1, 16384]"
WEIGHT, SEED = "[0, 1000000]", "[0, 4294967295]"
USUAL = "the network's"  # what an unset value means


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The settings of one training run; `Experiment.preset` fills in a data set's.

    Raises `UserError` for a value out of range, an unknown name, or a rate or a
    schedule for a layer that has no rate to set.
    """

    data: str = setting(
        MISSING, "data set: spiral, cifar10 or mnist", group="what to train"
    )
    dropout: str = setting("InvertedDropout", "a layer of kdrop, or none")
    # A single number becomes a tuple.
    rate: tuple[float, ...] = setting(
        (),
        "fraction to drop, in all layers (resnet32: in the last block) or in each",
        FRACTION,
        USUAL,
    )
    input_rate: float = setting(0.0, "fraction of inputs to drop", FRACTION, USUAL)
    schedule: str = setting(
        "constant",
        "how the rate changes from step to step: constant, linear or cosine (both to "
        "0), early, late, curriculum, annealed or scheduled_drop_path",
    )
    model: str = setting(MISSING, ", ".join(NETWORKS), group="network")
    hidden: tuple[int, ...] = setting(MISSING, "widths of dense layers", WIDTH)
    width: int = setting(0, "first filters (alexnet32, resnet32)", "[0, 16384]", "none")
    train_size: int = setting(
        MISSING, "examples, with those to validate on", SIZE, group="data"
    )
    validation: float = setting(MISSING, "fraction to validate on", FRACTION)
    mirror: bool = setting(False, "mirror half of the images")
    shift: int = setting(0, "largest shift of the images in pixels", "[0, 1000]")
    cutout: int = setting(0, "side of a square to hide, in pixels", "[0, 1000]")
    epochs: int = setting(MISSING, "training epochs", SIZE, group="training")
    steps_per_epoch: int | None = setting(
        None, "training steps of an epoch", SIZE, "each example once"
    )
    batch_size: int = setting(MISSING, "examples in a step", SIZE)
    optimizer: str = setting(
        "adam",
        "adam (AdamW with `weight_decay`), or sgd with Nesterov momentum 0.9; for any "
        "data set alexnet32 and resnet32 take sgd, and settings that suit it",
    )
    learning_rate: float = setting(MISSING, "before it decays", "(0, 1000]")
    warmup: float = setting(
        0.0, "fraction of the steps in which the learning rate rises from 0", FRACTION
    )
    decay: float | str = setting(
        "cosine",
        "of the learning rate: cosine (to 0), or a number d for 1 / (1 + d * step)",
        WEIGHT,
        word="cosine",
    )
    l1: float = setting(
        0.0,
        "weight of hidden layers' absolute parameters",
        WEIGHT,
        group="regularisation",
    )
    l2: float = setting(0.0, "weight of hidden layers' squared parameters", WEIGHT)
    max_norm: float = setting(0.0, "limit of a unit's weights' norm", WEIGHT, USUAL)
    norm_penalty: float = setting(0.0, "weight of the norms of every parameter", WEIGHT)
    weight_decay: float = setting(
        0.0, "fraction of each kernel to subtract, times the learning rate", WEIGHT
    )
    label_smoothing: float = setting(
        0.0, "fraction of the target to spread over all classes", FRACTION
    )
    # It pays where products of matrices take the time: see benchmarks/README.md.
    jit_compile: bool = setting(
        False, "compile training steps with XLA, on one device", group="training"
    )
    seed: int = setting(0, "seed of initial weights, shuffling and masks", SEED)
    data_seed: int = setting(0, "seed of the choice of examples", SEED)

    @classmethod
    def preset(cls, data: str, **settings: Any) -> "Experiment":
        """The data set's and the network's usual settings, changed by `settings`."""
        check_choice("data set", data, PRESETS)
        model = settings.get("model", PRESETS[data]["model"])
        check_choice("model", model, NETWORKS)
        recipe = {}
        if model in NORMALISED and settings.get("optimizer", "sgd") == "sgd":
            cosine = settings.get("decay", "cosine") == "cosine"
            recipe = RECIPE if cosine else {**RECIPE, "warmup": 0.0}
        settings = {**NETWORKS[model], **PRESETS[data], **recipe, **settings}
        check("width", settings.get("width", 1), WIDTH)
        return cls(data=data, **settings)

    def __post_init__(self):
        for name in ("rate", "hidden"):
            value: Any = getattr(self, name)
            several = (value,) if isinstance(value, Real) else tuple(value)
            object.__setattr__(self, name, several)
        check_choice("data set", self.data, PRESETS)
        check_choice("layer", self.dropout, ["none", *LAYERS])
        check_choice("model", self.model, NETWORKS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_settings(self)
        if self.warmup and self.decay != "cosine":
            raise UserError("`warmup` is set, but `decay` is not cosine.")
        network = NETWORKS[self.model]
        if self.width and "width" not in network:
            raise UserError(f"`width` is not for `model` {self.model}.")
        if self.dropout in WITHOUT_RATE:
            usual = network.get("input_rate", 0.0)
            unset = {"rate": ((), (0.0,)), "schedule": ("constant",)}
            for name, values in {**unset, "input_rate": (usual, 0.0)}.items():
                if getattr(self, name) not in values:
                    raise UserError(
                        f"`{name}` is set, but `dropout` is {self.dropout}, which has "
                        "no rate to set."
                    )

    def slug(self) -> str:
        """Data set and layer, as in `spiral-inverted-dropout`."""
        words = re.sub("(?<=[a-z])(?=[A-Z0-9])", "-", self.dropout)
        return f"{self.data}-{words.lower()}"

    def key(self) -> str:
        """A file name that differs between any two settings."""
        settings = json.dumps(asdict(self)).encode()
        digest = hashlib.sha256(settings).hexdigest()[:8]
        return f"{self.slug()}-seed{self.seed}-{digest}"
