"""The site: `sphinx-build -W -j 4 docs docs/_build/html` builds it."""

import inspect
import os
import re
import sysconfig
from pathlib import Path

import kdrop

HERE = Path(__file__).parent
# The pages run in processes that inherit these.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["MATPLOTLIBRC"] = str(HERE / "matplotlibrc")
scripts = sysconfig.get_path("scripts")
os.environ["PATH"] = f"{scripts}{os.pathsep}{os.environ['PATH']}"

project = "kdrop"
release = kdrop.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "jupyter_execute"]

highlight_language = "text"  # blocks of code say theirs
html_theme = "furo"
html_title = "kdrop"
html_static_path = ["_static"]
html_css_files = ["kdrop.css"]
html_show_copyright = False
html_copy_source = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove"  # TensorFlow's log
nb_merge_streams = True

copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

autodoc_typehints = "none"
napoleon_use_rtype = False


def to_restructured_text(app, what, name, obj, options, lines):
    """Turn what the docstrings have of Markdown into reStructuredText, in place."""
    paragraphs = []
    for text in "\n".join(lines).split("\n\n"):
        if text.startswith("    ") and paragraphs and ">>>" not in text:
            # Deeper than the paragraph before: a block of code.
            paragraphs[-1] += "\n\n::"
            paragraphs.append(text.replace("`", ""))
            continue
        text = re.sub(r"(?<!`)`([^`]+)`(?![`_])", r"``\1``", text)
        link = r"\[([^\]]+)\]\((https?:\S+)\)"
        paragraphs.append(re.sub(link, r"`\1 <\2>`__", text))
    lines[:] = "\n\n".join(paragraphs).split("\n")


def plain_signature(app, what, name, obj, options, signature, returned):
    """The signature of `__init__`, where Keras hides it, and without types."""
    if not callable(obj):
        return None
    plain = inspect.signature(obj)
    empty = inspect.Parameter.empty
    parameters = [x.replace(annotation=empty) for x in plain.parameters.values()]
    return str(plain.replace(parameters=parameters, return_annotation=empty)), None


def setup(app):
    app.connect("autodoc-process-docstring", to_restructured_text, priority=400)
    app.connect("autodoc-process-signature", plain_signature)
