"""Type checkers of users know every type of the public rooms: pyright on the built wheel.

Rooms that only this project calls (export, benchmarks, the command line) are left out: mypy checks
them, and their torch modules would need an annotation at every layer.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
INTERNAL = ("dinov2rt.export.", "dinov2rt.benchmarks.", "dinov2rt.cli.", "dinov2rt.demo.")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
SCRIPTS = Path(sysconfig.get_path("scripts"))


def main() -> int:
    """Print a line for each unknown type; 1 if there is one."""
    with tempfile.TemporaryDirectory() as folder:
        report = _report(Path(folder))
    symbols = report["typeCompleteness"]["symbols"]
    unknown = [each for each in symbols if not each["isTypeKnown"] or each["isTypeAmbiguous"]]
    own = [each for each in unknown if not each["name"].startswith(INTERNAL)]
    for symbol in own:
        reasons = [each["message"].partition("\n")[0] for each in symbol["diagnostics"]]
        print(f"{symbol['name']}: {'; '.join(reasons)}")
    print(f"{len(symbols)} symbols checked, {len(own)} public ones with an unknown type")
    return 1 if own or not symbols else 0


def _report(folder: Path) -> Any:
    wheels, site = folder / "wheels", folder / "site"
    subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(ROOT)], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    # pyright asks the first `python` on the path where packages are.
    path = os.pathsep.join([str(SCRIPTS), os.environ.get("PATH", "")])
    done = subprocess.run(
        [SCRIPTS / "pyright", "--verifytypes", "dinov2rt", "--ignoreexternal", "--outputjson"],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,  # it is 1 for what we leave out
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    raise SystemExit(main())
