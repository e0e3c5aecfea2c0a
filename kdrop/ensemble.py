"""The sub-networks that a network with dropout holds: sampling them."""

import keras

from kdrop.layers.base import Noise, Sampling, sampling


@keras.saving.register_keras_serializable("kdrop")
class Sampler(keras.Model):
    """A model whose every call gives each row a random sub-network of another model.

    The drop layers of kdrop drop; everything else, batch normalisation included, is at
    inference. `Sampler(model).predict(inputs)` is one Monte Carlo pass.

    Args:
        model: The `keras.Model` to sample. Its weights are shared, not copied.

    Input and output shapes: the model's.

    Raises:
        ValueError: At the call, if the model has no drop layer.

    Reference: [Gal and Ghahramani, 2016](https://arxiv.org/abs/1506.02142), section 4
    """

    def __init__(self, model, **kwargs):
        super().__init__(**kwargs)
        self.model = model

    def call(self, inputs):
        if not any(isinstance(layer, Noise) for layer in self.model._flatten_layers()):
            raise ValueError(
                f"Model {self.model.name!r} has no drop layer of kdrop to sample."
            )
        token = sampling.set(Sampling())
        try:
            return self.model(inputs, training=False)
        finally:
            sampling.reset(token)

    def get_config(self):
        model = keras.saving.serialize_keras_object(self.model)
        return {**super().get_config(), "model": model}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        model = keras.saving.deserialize_keras_object(
            config.pop("model"), custom_objects
        )
        return cls(model, **config)
