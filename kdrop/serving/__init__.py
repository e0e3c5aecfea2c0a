"""Export trained models as SavedModels, and serve them: `python -m kdrop.serving`.

A SavedModel is a program, which runs when it is loaded: serve only folders into which
nobody writes whom you would not let run code. The server follows no links out of a
model's folder, and has neither authentication nor encryption.
"""

from kdrop.serving.saved_model import export

__all__ = ["export"]
