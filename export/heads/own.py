"""Heads of the user's own, from the files that `dinov2rt train-head` writes."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.entries import sha256_of
from dinov2rt.bundle.heads import Decoder, HeadEntry, HeadSpec, Task
from dinov2rt.bundle.tasks.classifier_file import OwnClassifier, read_classifier
from dinov2rt.bundle.tasks.segmenter_file import OwnSegmenter, read_segmenter
from dinov2rt.errors import InputError
from dinov2rt.export.heads.eager import BATCH_NORM_EPS, Classifier, PixelClassifier

CLASSIFIER, SEGMENTER = "classifier", "segmenter"

OWN_DATA = "own"
"""The data set of a head of the user's own, as its specification names it."""

LoadedHead = tuple[HeadSpec, HeadEntry, nn.Module]


def load_own(name: str, source: str, architecture: Architecture) -> LoadedHead:
    """The head `name`, one of `OWN_HEADS`, in the file `source`.

    Raises:
        InputError: no file is given, or the head was fitted on features of another backbone.
        WeightsError: the file cannot be read, or its shapes do not fit.
    """
    if source == "official":
        raise InputError(f"head {name} needs a file: --head {name}=FILE, as train-head writes it")
    return _LOADERS[name](source, architecture)


def _load_classifier(source: str, architecture: Architecture) -> LoadedHead:
    own = read_classifier(Path(source))
    own.check(architecture)
    classes = len(own.class_names)
    spec = HeadSpec(
        CLASSIFIER, Task.CLASSIFICATION, Decoder.CLASSIFIER, OWN_DATA, own.num_layers, classes
    )
    entry = _entry(spec, source, architecture, own.class_names, uses_mean=own.uses_mean)
    return spec, entry, _classifier_module(own)


def _load_segmenter(source: str, architecture: Architecture) -> LoadedHead:
    own = read_segmenter(Path(source))
    own.check(architecture)
    classes = len(own.class_names)
    spec = HeadSpec(SEGMENTER, Task.SEGMENTATION, Decoder.PIXELS, OWN_DATA, 1, classes)
    entry = _entry(spec, source, architecture, own.class_names, palette=own.palette)
    return spec, entry, _segmenter_module(own)


_LOADERS: dict[str, Callable[[str, Architecture], LoadedHead]] = {
    CLASSIFIER: _load_classifier,
    SEGMENTER: _load_segmenter,
}

OWN_HEADS = tuple(_LOADERS)


def _entry(
    spec: HeadSpec,
    source: str,
    architecture: Architecture,
    class_names: tuple[str, ...],
    *,
    palette: tuple[tuple[int, ...], ...] = (),
    uses_mean: bool = True,
) -> HeadEntry:
    return HeadEntry(
        name=spec.name,
        task=spec.task,
        decoder=spec.decoder,
        data=spec.data,
        output=str(spec.task),
        source=source,
        sha256=sha256_of(Path(source)),
        layers=spec.layers_of(architecture),
        num_classes=spec.num_classes,
        class_names=class_names,
        palette=palette,
        uses_mean=uses_mean,
    )


def _classifier_module(own: OwnClassifier) -> nn.Module:
    classes, features = own.weight.shape
    module = Classifier(features, classes, uses_mean=own.uses_mean)
    state = {"weight": torch.from_numpy(own.weight), "bias": torch.from_numpy(own.bias)}
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def _segmenter_module(own: OwnSegmenter) -> nn.Module:
    """The official module with a batch norm that changes nothing, as `fit` has folded it."""
    classes, features = own.weight.shape
    module = PixelClassifier(features, classes)
    # A new batch norm has mean 0, weight 1 and bias 0; this makes its deviation 1 as well.
    state = module.state_dict() | {
        "bn.running_var": torch.full((features,), 1 - BATCH_NORM_EPS),
        "conv_seg.weight": torch.from_numpy(own.weight)[:, :, None, None],
        "conv_seg.bias": torch.from_numpy(own.bias),
    }
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)
