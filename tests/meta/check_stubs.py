"""Generates python/moesaic/_core.pyi from the built extension and says whether the committed one
is the same.

python tests/meta/check_stubs.py            exit 1 with a diff when it is out of date
python tests/meta/check_stubs.py --write    rewrite it
"""

import difflib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STUB = ROOT / "python" / "moesaic" / "_core.pyi"


def generate() -> str:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pybind11_stubgen",
                "moesaic._core",
                "--output-dir",
                folder,
                "--numpy-array-wrap-with-annotated",
                "--exit-code",
                "--enum-class-locations=.*:moesaic._core",
            ],
            check=True,
            capture_output=True,
        )
        out = next(Path(folder).rglob("_core.pyi"))
        subprocess.run(
            [sys.executable, "-m", "ruff", "format", "-q", "--no-cache", "--line-length=100", out],
            check=True,
        )
        return out.read_text()


def main() -> int:
    fresh = generate()
    if "--write" in sys.argv[1:]:
        STUB.write_text(fresh)
        return 0
    committed = STUB.read_text() if STUB.exists() else ""
    if fresh == committed:
        return 0
    sys.stdout.writelines(
        difflib.unified_diff(
            committed.splitlines(keepends=True),
            fresh.splitlines(keepends=True),
            "committed",
            "built",
        )
    )
    print("\npython/moesaic/_core.pyi is out of date: run ./dev stubs")
    return 1


if __name__ == "__main__":
    sys.exit(main())
