"""The options of an export, and the checks that refuse some before any work is done."""

import os
from dataclasses import dataclass
from pathlib import Path

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.manifest import MANIFEST_NAME
from dinov2rt.bundle.precision import Precision
from dinov2rt.bundle.signature import OPSET, Extras, InputFormat
from dinov2rt.errors import ExportError, InputError
from dinov2rt.export.heads.checkpoint import EagerHead, HeadSource
from dinov2rt.export.portable.opset import check_opset
from dinov2rt.export.portable.static import StaticShape
from dinov2rt.export.weights.architecture import NOTHING_STATED, Stated
from dinov2rt.runtime.backends.openvino import cannot_run_int8


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The graphs of a bundle: their precisions, their input, and their additional outputs.

    `heads` are the task heads in the graphs. `layers`, `unnormed`, `x_prenorm` and `attention` are
    as in `Extras`; a layer below 0 counts from the end. Graphs return float32; with `half_outputs`,
    graphs in half precision return float16 or bfloat16. `stated` takes precedence over files beside
    the weights. `prefix` is the prefix of the backbone's names in the checkpoint; if it is None,
    the export searches for it. An `opset` below the default is for runtimes that do not read the
    default. `calibration` are photographs for int8, see `Calibration.load`.

    Raises:
        InputError: there is no precision, a precision is given twice, `unnormed` is set without
            layers, or graphs cannot be written in `opset`.
    """

    input_format: InputFormat = InputFormat.PIXELS
    layers: tuple[int, ...] = ()
    precisions: tuple[Precision, ...] = (Precision.FP32, Precision.FP16)
    half_outputs: bool = False
    stated: Stated = NOTHING_STATED
    prefix: str | None = None
    unnormed: bool = False
    x_prenorm: bool = False
    attention: bool = False
    heads: tuple[HeadSource, ...] = ()
    opset: int = OPSET
    static: StaticShape | None = None
    calibration: tuple[Path, ...] = ()

    @property
    def extras(self) -> Extras:
        """The outputs of the graphs in addition to the final tokens."""
        return Extras(self.layers, self.unnormed, self.x_prenorm, self.attention)

    def __post_init__(self) -> None:
        check_opset(self.opset)
        if self.opset < OPSET and Precision.INT8 in self.precisions:
            raise InputError(f"int8 graphs are of opset {OPSET}; leave out --opset, or int8")
        if self.static is not None and Precision.INT8 in self.precisions:
            raise InputError("int8 graphs take every shape; leave out --static, or int8")
        if self.calibration and Precision.INT8 not in self.precisions:
            raise InputError(
                "--calibration is for int8 graphs; add int8 to the precisions, or leave it out"
            )
        if self.unnormed and not self.layers:
            raise InputError(
                "unnormed needs intermediate layers; give layers, or x_prenorm for the tokens of "
                "the last block before the final norm"
            )
        if not self.precisions or len(set(self.precisions)) != len(self.precisions):
            raise InputError(
                f"precisions {', '.join(self.precisions) or 'none'}; "
                f"give one or more of {', '.join(Precision)}, each once"
            )


def block_indices(layers: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Block indices from 0, ascending.

    Raises:
        InputError: a block does not exist, or is given twice.
    """
    indices = tuple(sorted(index + depth if index < 0 else index for index in layers))
    if not set(indices) <= set(range(depth)) or len(set(indices)) < len(indices):
        raise InputError(
            f"layers {', '.join(map(str, layers))}; allowed are different block indices from 0 to "
            f"{depth - 1}, or the last {depth} at most"
        )
    return indices


def check_static(
    shape: StaticShape | None, heads: tuple[EagerHead, ...], architecture: Architecture
) -> None:
    """Check that graphs of one shape can be written.

    Raises:
        InputError: the shape has incomplete patches, or a head computes with every size.
    """
    if shape is None:
        return
    shape.check(architecture.patch_size)
    if any(head.spec.is_dense for head in heads):
        raise InputError("dense heads compute with every size; leave out --static, or these heads")


def check_int8(options: ExportOptions) -> None:
    """Refuse int8 early if this machine cannot run int8 graphs, which export must measure.

    Raises:
        ExportError: this machine cannot run them.
    """
    reason = cannot_run_int8() if Precision.INT8 in options.precisions else None
    if reason is not None:
        raise ExportError(f"export must run int8 graphs to choose their products: {reason}")


def check_target(out: Path, *, force: bool) -> None:
    """Check that a bundle can take the place `out`.

    Raises:
        InputError: `out` is in use, or cannot be replaced.
    """
    if not out.exists():
        return
    if (fixed := _fixed_place(out)) is not None:
        raise InputError(
            f"{out} is {fixed}, which a bundle cannot take the place of; "
            f"choose a folder inside it, such as --out {out / 'bundle'}"
        )
    if out.is_dir() and not any(out.iterdir()):
        return
    if not (out / MANIFEST_NAME).is_file():
        raise InputError(f"{out} exists and is no bundle; choose another --out or move it away")
    if not force:
        raise InputError(f"{out} holds a bundle already; --force replaces it, plans included")


def _fixed_place(out: Path) -> str | None:
    """Why this directory cannot be replaced, or None."""
    if os.path.ismount(out):
        return "a mount point"
    return "the current directory" if out.samefile(".") else None
