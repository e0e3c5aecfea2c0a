"""Terms of the training loss that Keras lacks."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("kdrop")
class SmoothedCrossentropy(keras.losses.CategoricalCrossentropy):
    """Cross-entropy of integer targets with label smoothing.

    The arguments are those of `keras.losses.CategoricalCrossentropy`: of the target's
    probability, `label_smoothing` in [0, 1] is spread evenly over all classes. Targets
    have the shape `(batch,)` or `(batch, 1)`, outputs `(batch, classes)`; other outputs
    raise `ValueError`.

    >>> loss = kdrop.models.SmoothedCrossentropy(label_smoothing=0.1)
    >>> print(f"{loss(numpy.array([0]), numpy.array([[0.95, 0.05]])):.4f}")
    0.1985

    Reference: [Szegedy et al., 2016](https://arxiv.org/abs/1512.00567), section 7
    """

    def call(self, y_true, y_pred):
        shape = tuple(y_pred.shape)
        if len(shape) != 2 or self.axis not in (-1, 1):
            raise ValueError(
                "Outputs must have the shape (batch, classes). Received: outputs of "
                f"shape {shape}, axis={self.axis}"
            )
        targets = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        return super().call(ops.one_hot(targets, shape[-1]), y_pred)


@keras.saving.register_keras_serializable("kdrop")
class NormPenalty(keras.regularizers.L1L2):
    """Penalty on the L1 norm and the Euclidean norm, not its square, of a parameter.

    Args:
        coefficient: Weight of both norms. At an all-zero parameter their gradient is 0.
        l1, l2: Weights of the absolute and the squared values, which are added.

    >>> float(kdrop.models.NormPenalty(0.5)(numpy.array([3.0, -4.0])))
    6.0
    """

    def __init__(self, coefficient, l1=0.0, l2=0.0):
        super().__init__(l1=l1, l2=l2)
        self.coefficient = coefficient

    def __call__(self, x):
        square = ops.sum(ops.square(x))
        # The root has an infinite slope at 0, and 0 * inf would be a NaN.
        norm = ops.where(square > 0, ops.sqrt(ops.where(square > 0, square, 1.0)), 0.0)
        return super().__call__(x) + self.coefficient * (ops.sum(ops.abs(x)) + norm)

    def get_config(self):
        return {"coefficient": self.coefficient, **super().get_config()}
