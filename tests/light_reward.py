"""A process that serves a reward of NumPy alone, since it starts at once: how bright an image is.

Some queries say what is to happen instead: "slow", "die", "die once FILE", "wrong".
"""

import os
import sys
import time
from pathlib import Path

import numpy as np

from promptloop.rewards import frames, wire


def obey(prompt: str) -> None:
    if prompt == "slow":
        time.sleep(300)
    once = prompt.removeprefix("die once ")
    if prompt == "die" or (once != prompt and not Path(once).exists()):
        Path(once).touch() if once != prompt else None
        os._exit(9)


def main(pause: float, loading: float = 0.0) -> None:
    time.sleep(loading)  # as a constructor that hangs
    out = os.fdopen(os.dup(1), "wb")
    frames.write(out, {"ready": {"differentiable": False, "stochastic": False}})
    while (message := frames.read(sys.stdin.buffer)) is not None:
        header, content = message
        images = wire.fractions(np.frombuffer(content, header["dtype"]).reshape(header["shape"]))
        for prompt in header["prompts"]:
            obey(prompt)
        time.sleep(pause)
        if "wrong" in header["prompts"]:
            where = header["prompts"].index("wrong")
            frames.write(out, {"why": "raised KeyError: no", "index": where, "prompt": "wrong"})
        else:
            frames.write(out, {"values": images.mean(axis=(1, 2, 3), dtype=np.float64).tolist()})


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
