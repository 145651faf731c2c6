"""Side effects of training, one a file: curves, progress, routing schedules, saved models, the record."""

from layerroute.training.callbacks.best import BestModelCallback
from layerroute.training.callbacks.curves import CurvesCallback
from layerroute.training.callbacks.flow import FinalStepCallback
from layerroute.training.callbacks.folder import FolderCallback
from layerroute.training.callbacks.noise import NoiseCallback
from layerroute.training.callbacks.progress import ProgressCallback
from layerroute.training.callbacks.record import RecordCallback
from layerroute.training.callbacks.routing import RoutingCallback

__all__ = [
    "BestModelCallback",
    "CurvesCallback",
    "FinalStepCallback",
    "FolderCallback",
    "NoiseCallback",
    "ProgressCallback",
    "RecordCallback",
    "RoutingCallback",
]
