"""What the policy is told, and how its answer is read. The wording of the whole project is in this file.

A policy sees a system instruction and one user turn: the denoised estimate (when there is one), the query,
the prompt in force and how far the trajectory has come. What it answers is the prompt: its first line and
nothing else reaches the text encoder.
"""

from __future__ import annotations

import re
from typing import Any

from promptloop.policies.contract import Kept, Request

SYSTEM = (
    "You write prompts for an image generator. "
    "Reply with one short line: the prompt that best leads the picture to what is wanted, or keep."
)
USER = "Wanted: {query}\nPrompt now: {prompt}\nDone: {percent}%\nNew prompt:"
NEGATIVE_SYSTEM = (
    "You write negative prompts for an image generator: what the picture must not show. "
    "Reply with one short line: what to keep out of the picture so that it shows what is wanted, or keep."
)
NEGATIVE_USER = "Wanted: {query}\nNegative prompt now: {prompt}\nDone: {percent}%\nNew negative prompt:"
THOUGHTS = re.compile(r"\s*<think>.*?</think>", re.DOTALL)  # what a model says to itself first
KEEP = "keep"  # the answer that leaves the prompt in force: two tokens instead of a whole prompt


def percent(request: Request) -> int:
    """Progress as the policy reads it: a whole number from 0 to 100."""
    return round(100 * request.progress)


def messages(request: Request) -> list[dict[str, Any]]:
    """The request as chat messages for a transformers chat template (image first, only when there is one).

    The image is a placeholder; the pixels (`request.estimate`) go to the processor beside the text.
    """
    system, user = (NEGATIVE_SYSTEM, NEGATIVE_USER) if request.negative else (SYSTEM, USER)
    text = user.format(query=request.query, prompt=request.prompt, percent=percent(request))
    picture = [] if request.estimate is None else [{"type": "image"}]
    return [
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {"role": "user", "content": [*picture, {"type": "text", "text": text}]},
    ]


def read(request: Request, answer: str, *, ended: bool = True) -> tuple[str, Kept | None]:
    """The prompt in force after `answer`, and why the old one was kept (None: the answer is used).

    What a model has thought between <think> and </think> beforehand is left out. `ended` is False when the
    answer was cut by the token limit; half a prompt is never used.
    """
    if not ended:
        return request.prompt, "overlong"
    answer = THOUGHTS.sub("", answer, count=1) if THOUGHTS.match(answer) else answer
    lines = answer.strip().splitlines()
    text = lines[0].strip() if lines else ""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    if not text:
        return request.prompt, "empty"
    broken = "\N{REPLACEMENT CHARACTER}" in text or any("\ud800" <= char <= "\udfff" for char in text)
    if broken or text.startswith("<think>") or not any(char.isalnum() for char in text):
        return request.prompt, "unparsable"
    if text == request.prompt or text.rstrip(".").lower() == KEEP:
        return request.prompt, "same"
    return text, None
