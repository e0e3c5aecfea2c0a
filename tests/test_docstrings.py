"""The examples in the docstrings of all public names, executed.

As in Keras's, keras, kdrop and numpy are imported beforehand.
"""

import doctest
import inspect

import keras
import numpy
import pytest
from public_names import OBJECTS

import kdrop


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
