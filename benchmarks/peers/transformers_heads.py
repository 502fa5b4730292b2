"""Heads that transformers has as well, from normalised images to answers."""

import re
from typing import Any

from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    DPTConfig,
    DPTForDepthEstimation,
)

from dinov2rt.benchmarks.peers.transformers import config_facts
from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.heads import Decoder
from dinov2rt.export.heads.answers import center_padded
from dinov2rt.export.heads.checkpoint import EagerHead
from dinov2rt.export.heads.eager import DPT_WIDTH, dpt_channels, resize
from dinov2rt.export.weights.huggingface import from_official_names
from dinov2rt.export.weights.state_dict import StateDict

_DPT_NAMES = (
    (r"^reassemble_blocks\.readout_projects\.", r"neck.reassemble_stage.readout_projects."),
    (r"^reassemble_blocks\.projects\.(\d)\.conv\.", r"neck.reassemble_stage.layers.\1.projection."),
    (r"^reassemble_blocks\.resize_layers\.(\d)\.", r"neck.reassemble_stage.layers.\1.resize."),
    (r"^convs\.(\d)\.conv\.", r"neck.convs.\1."),
    (r"^fusion_blocks\.(\d)\.project\.conv\.", r"neck.fusion_stage.layers.\1.projection."),
    (
        r"^fusion_blocks\.(\d)\.res_conv_unit(\d)\.conv(\d)\.conv\.",
        r"neck.fusion_stage.layers.\1.residual_layer\2.convolution\3.",
    ),
    (r"^project\.conv\.", r"head.projection."),
    (r"^conv_depth\.head\.", r"head.head."),
)
"""Official names of a DPT head, and those in transformers."""

_UNUSED = "neck.fusion_stage.layers.0.residual_layer1."
"""A unit of transformers that is never called; the official head has none in its place."""


class HuggingFaceHead(nn.Module):
    """The model of transformers that computes `head` on a backbone with the official `weights`.

    For `linear`, `Dinov2ForImageClassification` or its sibling with registers. For DPT,
    `DPTForDepthEstimation`, which ends before the range and the way back to the image's size: both
    are added here, and images are padded before, as its user has to.

    Other heads are refused before, see `requirements.cannot_run_transformers`.
    """

    def __init__(self, architecture: Architecture, weights: StateDict, head: EagerHead) -> None:
        super().__init__()
        self.head: EagerHead = head
        self.patch_size: int = architecture.patch_size
        build = {Decoder.CLASSIFIER: _classifier, Decoder.DPT: _dpt}[head.spec.decoder]
        self.model: Any = build(architecture, weights, head).eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, 3, H, W] to logits [B, K], or to metres [B, H, W]."""
        if self.head.spec.depth_range is None:
            return (self.model(pixel_values=images).logits,)
        low, high = self.head.spec.depth_range
        padded = center_padded(images, self.patch_size)
        depth = self.model(pixel_values=padded).predicted_depth + low
        size = (images.shape[2], images.shape[3])
        return (resize(depth.clamp(low, high)[:, None], size)[:, 0],)


def _classifier(architecture: Architecture, weights: StateDict, head: EagerHead) -> Any:
    facts = config_facts(architecture) | {"num_labels": head.spec.num_classes}
    made: Any
    if registers := architecture.num_registers:
        config = Dinov2WithRegistersConfig(num_register_tokens=registers, **facts)
        made, prefix = Dinov2WithRegistersForImageClassification(config), "dinov2_with_registers."
    else:
        made, prefix = Dinov2ForImageClassification(Dinov2Config(**facts)), "dinov2."
    state = _backbone_state(made, weights, prefix)
    state |= {f"classifier.{key}": value for key, value in head.module.state_dict().items()}
    made.load_state_dict(state)
    return made


def _dpt(architecture: Architecture, weights: StateDict, head: EagerHead) -> Any:
    taps: dict[str, Any] = {
        "out_indices": [layer + 1 for layer in head.entry.layers],
        "apply_layernorm": False,
        "reshape_hidden_states": False,
    }
    backbone = Dinov2Config(**config_facts(architecture), **taps)
    attention: dict[str, Any] = {"attn_implementation": "sdpa"}
    config = DPTConfig(
        backbone_config=backbone,
        is_hybrid=False,
        readout_type="project",
        hidden_act="gelu",
        neck_hidden_sizes=list(dpt_channels(architecture.embed_dim)),
        reassemble_factors=[4, 2, 1, 0.5],
        fusion_hidden_size=DPT_WIDTH,
        use_batch_norm_in_fusion_residual=False,
        use_bias_in_fusion_residual=False,
        add_projection=True,
        **attention,
    )
    made = DPTForDepthEstimation(config)
    unused = {key: value for key, value in made.state_dict().items() if key.startswith(_UNUSED)}
    official = head.module.state_dict().items()
    state = _backbone_state(made, weights, "backbone.") | unused
    made.load_state_dict(state | {dpt_name(key): value for key, value in official})
    return made


def dpt_name(key: str) -> str:
    """The name in transformers of a tensor of the official DPT head."""
    for pattern, name in _DPT_NAMES:
        if re.match(pattern, key):
            return re.sub(pattern, name, key)
    raise KeyError(key)


def _backbone_state(made: Any, weights: StateDict, prefix: str) -> dict[str, Tensor]:
    names = [name for name in made.state_dict() if name.startswith(prefix)]
    bare = [name.removeprefix(prefix) for name in names]
    found = from_official_names(weights, bare)
    return dict(zip(names, found.values(), strict=True))
