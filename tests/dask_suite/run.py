"""Run sets of Dask's own tests on workers of dask-redisq: ``python tests/dask_suite/run.py A D``.

The sets are those of section 2.2 of Dask's contract.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dask

HERE = Path(__file__).parent
DASK = Path(dask.__file__).parent
#: Independent of the scheduler, or a test of `dask.distributed`.
OTHER = ("distributed", "order", "config", "cli", "tokenize")
SETS: dict[str, list[str]] = {
    "A": ["tests", "bag/tests", "diagnostics/tests"],
    "B": [f"array/tests/test_{name}.py" for name in ("array_core", "optimization", "map_blocks")],
    "C": [
        "dataframe/dask_expr/tests/test_shuffle.py",
        "dataframe/tests/test_dataframe.py",
        "dataframe/tests/test_shuffle.py",
    ],
    "D": [
        *(
            f"tests/test_{name}.py"
            for name in ("threaded", "multiprocessing", "local", "callbacks")
        ),
        "diagnostics/tests/test_profiler.py",
        "diagnostics/tests/test_progress.py",
    ],
}


def run(name: str, *more: str) -> int:
    """Run one set; return pytest's exit code."""
    path = os.pathsep.join([str(HERE), str(HERE.parent.parent)])
    command = [
        sys.executable, "-m", "pytest", "-p", "redisq_dasktests", "-p", "no:cacheprovider", "-q",
        "--timeout", "180", "-c", os.devnull, "--rootdir", str(DASK.parent), "--tb=no", "-rfE",
        *(str(DASK / part) for part in SETS[name]), *more,
    ]  # fmt: skip
    if name == "A":
        command += [f"--ignore={DASK / 'tests' / f'test_{other}.py'}" for other in OTHER]
    sys.stdout.write(f"set {name}\n")
    sys.stdout.flush()
    return subprocess.call(command, env={**os.environ, "PYTHONPATH": path})


def main() -> None:
    """Run the sets that are named, or all; then the options of pytest."""
    names = [a for a in sys.argv[1:] if a in SETS] or list(SETS)
    options = [a for a in sys.argv[1:] if a not in SETS]
    sys.exit(max(run(name, *options) for name in names))


if __name__ == "__main__":
    main()
