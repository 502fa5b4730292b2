"""DINOv2 features without torch: exact ONNX graphs, TensorRT plans, and numpy in between.

import dinov2rt

model = dinov2rt.load("artifacts/dinov2_vits14_reg")
features = model(pixels)          # uint8 [B, H, W, 3]
features.cls_token                # [B, D]
features.patch_tokens             # [B, h, w, D]
"""

import importlib
from typing import TYPE_CHECKING, Any

from dinov2rt._version import __version__

if TYPE_CHECKING:
    from dinov2rt.bundle.accuracy import AccuracyReport
    from dinov2rt.bundle.geometry import Snap, SnapName
    from dinov2rt.bundle.precision import Precision, PrecisionName
    from dinov2rt.bundle.variants import Variant, variants
    from dinov2rt.errors import (
        AccuracyError,
        BackendError,
        BuildError,
        BundleError,
        BundleReplacedError,
        Dinov2rtError,
        ExportError,
        FusionError,
        InputError,
        MissingDependencyError,
        PlanInputError,
        PlanWarning,
        WeightsError,
    )
    from dinov2rt.extraction.job import extract_features
    from dinov2rt.extraction.reader import read_features
    from dinov2rt.runtime.backends.modes import BackendName, DeviceName
    from dinov2rt.runtime.embedding import PoolName
    from dinov2rt.runtime.features import Features, LayerFeatures
    from dinov2rt.runtime.gpu.phases import Phases
    from dinov2rt.runtime.images import load_image
    from dinov2rt.runtime.loading import ScaledWarning
    from dinov2rt.runtime.model import Model, load
    from dinov2rt.runtime.predictions import (
        Classification,
        Depth,
        Predictions,
        Segmentation,
    )
    from dinov2rt.runtime.preprocess import Preprocess
    from dinov2rt.runtime.recipes import RecipeName

__all__ = [
    "AccuracyError",
    "AccuracyReport",
    "BackendError",
    "BackendName",
    "BuildError",
    "BundleError",
    "BundleReplacedError",
    "Classification",
    "Depth",
    "DeviceName",
    "Dinov2rtError",
    "ExportError",
    "Features",
    "FusionError",
    "InputError",
    "LayerFeatures",
    "MissingDependencyError",
    "Model",
    "Phases",
    "PlanInputError",
    "PlanWarning",
    "PoolName",
    "Precision",
    "PrecisionName",
    "Predictions",
    "Preprocess",
    "RecipeName",
    "ScaledWarning",
    "Segmentation",
    "Snap",
    "SnapName",
    "Variant",
    "WeightsError",
    "__version__",
    "extract_features",
    "load",
    "load_image",
    "read_features",
    "variants",
]

_MODULES = {
    "AccuracyError": "errors",
    "AccuracyReport": "bundle.accuracy",
    "BackendError": "errors",
    "BackendName": "runtime.backends.modes",
    "BuildError": "errors",
    "BundleError": "errors",
    "BundleReplacedError": "errors",
    "Classification": "runtime.predictions",
    "Depth": "runtime.predictions",
    "DeviceName": "runtime.backends.modes",
    "Dinov2rtError": "errors",
    "ExportError": "errors",
    "Features": "runtime.features",
    "FusionError": "errors",
    "InputError": "errors",
    "LayerFeatures": "runtime.features",
    "MissingDependencyError": "errors",
    "Model": "runtime.model",
    "Phases": "runtime.gpu.phases",
    "PlanInputError": "errors",
    "PlanWarning": "errors",
    "PoolName": "runtime.embedding",
    "Precision": "bundle.precision",
    "PrecisionName": "bundle.precision",
    "Predictions": "runtime.predictions",
    "Preprocess": "runtime.preprocess",
    "RecipeName": "runtime.recipes",
    "ScaledWarning": "runtime.loading",
    "Segmentation": "runtime.predictions",
    "Snap": "bundle.geometry",
    "SnapName": "bundle.geometry",
    "Variant": "bundle.variants",
    "WeightsError": "errors",
    "extract_features": "extraction.job",
    "load": "runtime.model",
    "load_image": "runtime.images",
    "read_features": "extraction.reader",
    "variants": "bundle.variants",
}


def __getattr__(name: str) -> Any:
    # A public name is imported when it is first used: numpy alone takes a tenth of a second.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"dinov2rt.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
