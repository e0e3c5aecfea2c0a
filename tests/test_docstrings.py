"""The examples in the docstrings of all public names, executed.

As in Keras's, keras, kdrop and numpy are imported beforehand.
"""

import doctest
import inspect

import keras
import numpy
import pytest

import kdrop
import kdrop.serving


def public_objects():
    """Each public class and function by its name."""
    objects = {f"kdrop.{name}": getattr(kdrop, name) for name in kdrop.__all__}
    for name, module in list(objects.items()):
        if inspect.ismodule(module):
            del objects[name]
            for inner, value in vars(module).items():
                origin = str(getattr(value, "__module__", ""))
                public = origin.startswith(module.__name__) and inner[0] != "_"
                if callable(value) and public:
                    objects[f"{name}.{inner}"] = value
    return {**objects, "kdrop.serving.export": kdrop.serving.export}


OBJECTS = public_objects()


@pytest.mark.parametrize("name", OBJECTS)
def test_a_public_name_has_an_example_that_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for examples that write files
    docstring = inspect.getdoc(OBJECTS[name]) or ""
    names = {"keras": keras, "kdrop": kdrop, "numpy": numpy}
    example = doctest.DocTestParser().get_doctest(docstring, names, name, None, None)
    assert example.examples, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    output = []
    runner.run(example, out=output.append)
    assert not runner.failures, "".join(output)
