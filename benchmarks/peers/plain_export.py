"""Exports the eager model to a plain ONNX file or OpenVINO IR, as their documentation recommends.

    python -m dinov2rt.benchmarks.peers.plain_export {onnx,openvino} BUNDLE BATCH HEIGHT WIDTH FILE

It is a separate command, so that the measured process loads neither torch nor a second model.
"""

import argparse
import subprocess
import sys
import warnings
from pathlib import Path

from dinov2rt.benchmarks.peers.candidate import Workload
from dinov2rt.errors import BackendError

Shape = tuple[int, int, int, int]


def plain_export(form: str, workload: Workload, shape: Shape, file: Path) -> None:
    """Write `file` for images of `shape` [B, 3, H, W], in another process.

    Raises:
        BackendError: the exporter failed; the message ends with the last line of its log.
    """
    batch, _, height, width = map(str, shape)
    command = [sys.executable, "-m", __name__, form, str(workload.bundle), batch, height, width]
    done = subprocess.run([*command, str(file)], capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise BackendError(f"plain {form} export for {list(shape)} failed: {said[-1]}")


def exports_any_size(workload: Workload) -> bool:
    """Whether a plain export runs at other image sizes than its example's.

    With an offset, the position table is resampled by a scale that the tracer turns into a
    constant. Its graph declares its height and width dynamic all the same, and at another
    grid it fails, or, where the number of patches happens to be equal, returns wrong tokens.
    """
    return workload.manifest.architecture.offset == 0


def main() -> int:
    """Write one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("form", choices=("onnx", "openvino"))
    parser.add_argument("bundle", type=Path)
    for side in ("batch", "height", "width"):
        parser.add_argument(side, type=int)
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    workload = Workload(given.bundle, device="cpu", threads=1)
    write = _write_onnx if given.form == "onnx" else _write_openvino
    with warnings.catch_warnings(action="ignore"):  # from tracers; accuracy is checked later
        write(workload, (given.batch, 3, given.height, given.width), given.file)
    return 0


def _write_onnx(workload: Workload, shape: Shape, file: Path) -> None:
    import torch

    from dinov2rt.benchmarks.peers.pytorch import load_outputs

    dynamic = {0: "batch"} | ({2: "height", 3: "width"} if exports_any_size(workload) else {})
    # torch.export treats a batch of 1 as a constant, so its documentation uses a larger example.
    images = torch.zeros(max(2, shape[0]), *shape[1:])
    program = torch.onnx.export(
        load_outputs(workload), (images,), dynamo=True, dynamic_shapes=(dynamic,)
    )
    if program is None:
        raise BackendError("torch.onnx.export returned no program")
    program.save(file, external_data=True)


def _write_openvino(workload: Workload, shape: Shape, file: Path) -> None:
    import torch

    from dinov2rt.benchmarks.peers.pytorch import load_outputs
    from dinov2rt.benchmarks.peers.quiet_openvino import openvino

    module = load_outputs(workload)
    images = torch.zeros(shape)
    if exports_any_size(workload):
        # Left dynamic: with fixed sides, OpenVINO resamples the position table at conversion, and
        # differently, so that tokens are several percent off.
        model = openvino.convert_model(module, example_input=images)
    else:  # tracing, which its documentation recommends first, fails on a resampling by scale
        model = openvino.convert_model(torch.export.export(module, (images,)))
        model.reshape(list(shape))
    openvino.save_model(model, file, compress_to_fp16=False)


if __name__ == "__main__":
    raise SystemExit(main())
