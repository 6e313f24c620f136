"""Copies finished training runs to the embedded studies: fp16 weights, card and log.

    python benchmarks/ship.py out/policies/image-1 out/policies/tuned-0

A run's folder is named NAME-SEED, as `promptloop reproduce --train` names it.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from promptloop.recipes import runs
from promptloop.world import WEIGHTS


def halved(file: Path) -> None:
    """The same weights in fp16, the file's own words kept."""
    with safe_open(file, "pt") as held:
        words = held.metadata()
    weights = {name: value.half().contiguous() for name, value in load_file(file).items()}
    save_file(weights, file, metadata=words)


def ship(run: Path, target: Path) -> int:
    """Replaces `target` by what the run in `run` made; the bytes written."""
    made = [run / role for role in (runs.POLICY, runs.BACKBONE) if (run / role).is_dir()]
    if len(made) != 1:
        raise ValueError(f"{run} holds no finished policy or backbone")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(made[0], target)
    for file in target.rglob("*.safetensors"):
        halved(file)
    shutil.copy(run / runs.METRICS, target / "training_log.jsonl")
    role = made[0].name
    card = (run / "README.md").read_text(encoding="utf-8")
    card = card.replace(f"--{role} {run.name} ", f"--{role} {target} ")  # where it lies now
    (target / "README.md").write_text(card, encoding="utf-8")
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=WEIGHTS / "studies")
    args = parser.parse_args()
    for run in args.runs:
        print(f"{run.name}: {ship(run, args.out / run.name)} bytes")


if __name__ == "__main__":
    main()
