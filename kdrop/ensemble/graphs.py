"""Compile functions of batches for any number of rows, on TensorFlow and JAX."""

import math

import keras
from keras import tree

from kdrop import backend

if backend.name() == "tensorflow":
    import tensorflow as tf
else:
    import jax


def compiled(function, model):
    """Compile a function of structures of batches that reads a model's variables."""
    if backend.name() == "jax":
        return JaxGraph(function, model)
    return TensorFlowGraph(function)


class TensorFlowGraph:
    """A function of structures of batches, traced once for any number of rows."""

    def __init__(self, function):
        self._function = tf.function(function, autograph=False)

    def __call__(self, *structures):
        return self._concrete(structures)(*structures)

    def try_shapes(self, *structures):
        """Results of the right shapes, or the error of a function that fails."""
        return self(*structures)

    def row_bytes(self, *structures):
        """Bytes of all intermediate results for one row."""
        results = (
            (result.dtype.size, result.shape.as_list())
            for operation in self._concrete(structures).graph.get_operations()
            for result in operation.outputs
            if result.shape.rank
        )
        return sum(
            size * math.prod(n or 1 for n in shape[1:])
            for size, shape in results
            if shape[0] is None
        )

    def _concrete(self, structures):
        def spec(x):
            if x is None:
                return None
            return tf.TensorSpec((None, *x.shape[1:]) if len(x.shape) else (), x.dtype)

        specs = tree.map_structure(spec, structures)
        return self._function.get_concrete_function(*specs)


class JaxGraph:
    """The same for JAX, which compiles for each number of rows."""

    def __init__(self, function, model):
        self._variables = model.variables

        def pure(values, *structures):
            state = list(zip(self._variables, values, strict=True))
            with keras.StatelessScope(state_mapping=state):
                return function(*structures)

        self._pure, self._compiled = pure, jax.jit(pure)

    def __call__(self, *structures):
        return self._compiled(self._values(), *structures)

    def try_shapes(self, *structures):
        return jax.eval_shape(self._pure, self._values(), *structures)

    def row_bytes(self, *structures):
        first = tree.map_structure(
            lambda x: x[:1] if getattr(x, "shape", ()) else x, structures
        )
        program = jax.make_jaxpr(self._pure)(self._values(), *first)
        results = [v.aval for e in program.eqns for v in e.outvars]
        return sum(x.size * x.dtype.itemsize for x in results)

    def _values(self):
        return [variable.value for variable in self._variables]
