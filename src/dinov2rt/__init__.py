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
    from dinov2rt.bundle.variants import Variant, variants
    from dinov2rt.errors import Dinov2rtError, PlanWarning
    from dinov2rt.runtime.features import Features, LayerFeatures
    from dinov2rt.runtime.images import load_image
    from dinov2rt.runtime.model import Model, load

__all__ = [
    "AccuracyReport",
    "Dinov2rtError",
    "Features",
    "LayerFeatures",
    "Model",
    "PlanWarning",
    "Variant",
    "__version__",
    "load",
    "load_image",
    "variants",
]

_MODULES = {
    "AccuracyReport": "bundle.accuracy",
    "Dinov2rtError": "errors",
    "Features": "runtime.features",
    "LayerFeatures": "runtime.features",
    "Model": "runtime.model",
    "PlanWarning": "errors",
    "Variant": "bundle.variants",
    "load": "runtime.model",
    "load_image": "runtime.images",
    "variants": "bundle.variants",
}


def __getattr__(name: str) -> Any:
    # A public name is imported when it is first used: numpy alone takes a tenth of a second.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"dinov2rt.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
