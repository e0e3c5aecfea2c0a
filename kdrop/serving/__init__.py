"""Trained models as SavedModels, and a server for them: `python -m kdrop.serving`."""

from kdrop.serving.saved_model import export

__all__ = ["export"]
