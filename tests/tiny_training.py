"""Training from the command line in processes of its own, on tiny models, and what it leaves behind."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

TESTS = Path(__file__).resolve().parent
FOUND = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
SMALL = [
    "--queries", "2", "--group", "4", "--denoising-steps", "4", "--refinements", "2", "--window", "0 1",
    "--reward", "tiny_reward:brightness", "--gold", "none", "--max-new-tokens", "6", "--save-every", "2",
    "--sheet-every", "3", "--noise", "fresh", "--first-alone", "1",
]  # fmt: skip


def start(*arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": FOUND, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "promptloop", "train", *arguments]
    return subprocess.Popen(
        command, cwd=TESTS, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def train(*arguments: str) -> tuple[int, str, str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def result(run: Path) -> dict:
    folder = run / "policy"
    return load_file(next(f for f in sorted(folder.glob("*.safetensors"))))


def learned(policy: dict) -> bool:
    """Whether the LoRA has left its start, where its second factor is 0."""
    return any(bool((t != 0).any()) for name, t in policy.items() if "lora_B" in name)


def numbers(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in rows]


def updates_done(run: Path) -> int:
    return len(numbers(run)) if (run / "metrics.jsonl").exists() else 0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def two(*arguments: str, ends: int = 0, **environment: str) -> str:
    """A training in two gloo processes, which ends with that exit code; what it says."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = [sys.executable, *launch, "-m", "promptloop", "train", "mini", *arguments]
    everything = {**os.environ, "PYTHONPATH": FOUND, "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, cwd=TESTS, env=everything, capture_output=True, text=True, timeout=300)
    assert done.returncode == ends, done.stderr
    return done.stderr
