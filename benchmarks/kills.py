"""Kills a training with SIGKILL many times, resumes it, and compares it bit for bit with one left alone.

    python benchmarks/kills.py [--kills 20] [--steps 40]

The same tiny models as in tests/runs/test_train.py, which does it with 5 kills.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "runs"))

import test_train as runs
import tiny
import tiny_vlm


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60, help="updates; three for each kill are enough")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        backbone = tiny.saved(tiny.sd(), root / "sd")
        models = ["--backbone", str(backbone), "--policy", str(tiny_vlm.build("idefics3", root / "vlm"))]
        whole, parts = root / "whole", root / "parts"
        steps = ["--steps", str(args.steps)]
        code, _, err = runs.train("mini", "--out", str(whole), *steps, *models, *runs.SMALL)
        assert code == 0, err
        runs.killed_and_resumed(parts, args.steps, args.kills, models)
        a, b = runs.result(whole), runs.result(parts)
        same = a.keys() == b.keys() and all(bool((a[k] == b[k]).all()) for k in a)
        logs = runs.numbers(whole) == runs.numbers(parts)
        print(f"{args.kills} kills in {args.steps} updates: weights equal bit for bit: {same}; "
              f"log lines equal: {logs}")  # fmt: skip
        raise SystemExit(0 if same and logs and runs.learned(a) else 1)


if __name__ == "__main__":
    main()
