"""One reward in a process of its own: messages come by a pipe, values go back by another."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import torch

from promptloop.rewards import frames, wire
from promptloop.rewards.contract import RewardFailed, scored


def run(load: Callable[[], Any]) -> None:
    """Loads the reward, says how that went, and answers until the pipe closes. What libraries print goes to
    the error stream, for the output is the pipe.
    """
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this
    try:
        reward = load()
    except Exception as error:
        frames.write(out, {"broken": str(error) or type(error).__name__})
        return
    told = {name: bool(getattr(reward, name, False)) for name in ("differentiable", "stochastic")}
    frames.write(out, {"ready": told})
    serve(reward, sys.stdin.buffer, out)


def serve(reward: Any, source: IO[bytes], out: IO[bytes]) -> None:
    """Answers each message with {"values": [...]}, or {"why", "index", "prompt"}."""
    while (message := frames.read(source)) is not None:
        header, content = message
        images = np.frombuffer(content, header["dtype"]).reshape(header["shape"])
        try:
            with torch.no_grad():
                found = scored(reward, torch.from_numpy(np.array(wire.fractions(images))), header["prompts"])
            answer: dict[str, Any] = {"values": found.tolist()}
        except RewardFailed as error:
            answer = {"why": error.why, "index": error.index, "prompt": error.query}
        except Exception as error:
            answer = {"why": f"failed: {error or type(error).__name__}", "index": None, "prompt": None}
        frames.write(out, answer)
