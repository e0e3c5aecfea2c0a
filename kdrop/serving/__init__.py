"""Export trained models as SavedModels, and serve them: `python -m kdrop.serving`."""

from kdrop.serving.saved_model import export

__all__ = ["export"]
