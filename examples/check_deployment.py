"""Check a bundle on the machine that will serve it, before it gets traffic.

python examples/check_deployment.py artifacts/dinov2_vits14_reg --weights-sha256 0123...

Exit status 0: serve it. 1: a check failed; the reason is printed.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import dinov2rt
from dinov2rt.bundle.manifest import Manifest


def problems(
    bundle: Path, *, weights_sha256: str | None, backend: str | None, most_ms: float | None
) -> list[str]:
    """The reasons not to serve `bundle` here; empty if there are none."""
    found = []
    weights = Manifest.read(bundle).weights
    if weights_sha256 is not None and weights.sha256 != weights_sha256:
        found.append(f"the bundle was made from {weights.source} {weights.sha256}")
    # Every file is compared with the hash in the manifest; `verify` compares outputs with those
    # that the eager PyTorch model gave at export.
    with dinov2rt.load(bundle, backend=backend) as model:
        print(model.describe())
        report = model.verify()
        print(report)
        if not report:
            found.append("its outputs disagree with the golden outputs")
        median_ms = _median_ms(model)
        print(f"{median_ms:.1f} ms for one image of 224x224")
        if most_ms is not None and median_ms > most_ms:
            found.append(f"one image takes {median_ms:.1f} ms, more than {most_ms} ms")
    return found


def _median_ms(model: dinov2rt.Model, calls: int = 10) -> float:
    model.warm_up([(1, 224, 224)])
    pixels = np.zeros((1, 224, 224, 3), np.uint8)
    times_ms = []
    for _ in range(calls):
        started = time.perf_counter()
        model(pixels)
        times_ms.append(1e3 * (time.perf_counter() - started))
    return float(np.median(times_ms))


def main() -> int:
    """Print what was found."""
    parser = argparse.ArgumentParser(description="check a bundle at deployment")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--weights-sha256", help="of the checkpoint that must have been exported")
    parser.add_argument("--backend", help="that must run it; any other is an error")
    parser.add_argument("--most-ms", type=float, help="for one image of 224x224")
    given = parser.parse_args()
    try:
        found = problems(
            given.bundle,
            weights_sha256=given.weights_sha256,
            backend=given.backend,
            most_ms=given.most_ms,
        )
    except dinov2rt.Dinov2rtError as error:
        found = [str(error)]
    for problem in found:
        print(f"do not serve: {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
