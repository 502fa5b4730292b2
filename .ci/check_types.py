"""Type checkers of users know every type of the package: pyright on the built wheel."""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
SCRIPTS = Path(sysconfig.get_path("scripts"))


def main() -> int:
    """Print a line for each unknown type; 1 if there is one."""
    with tempfile.TemporaryDirectory() as folder:
        report = _report(Path(folder))
    symbols = report["typeCompleteness"]["symbols"]
    unknown = [each for each in symbols if not each["isTypeKnown"] or each["isTypeAmbiguous"]]
    for symbol in unknown:
        reasons = [each["message"].partition("\n")[0] for each in symbol["diagnostics"]]
        print(f"{symbol['name']}: {'; '.join(reasons)}")
    print(f"{len(symbols)} symbols checked, {len(unknown)} with an unknown type")
    return 1 if unknown or not symbols else 0


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
        check=False,  # it is 1 for missing docstrings as well
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    raise SystemExit(main())
