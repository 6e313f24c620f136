"""What the drafts of a rollout were like: refused, of a wrong length, and what a run's log says of them."""

from __future__ import annotations

import torch
from torch import Tensor

from promptloop.policies.contract import Draft
from promptloop.rollout import Rollout


def refusals(made: Rollout) -> Tensor:
    """The share of each episode's drafts that were refused, [E]."""
    return torch.tensor([sum(d.refused for d in written) / len(written) for written in made.drafts])


def misfits(made: Rollout, words: tuple[int, int]) -> Tensor:
    """The share of each episode's drafts of fewer or more words than `words` (fewest, most), [E].

    A refused draft counts half: RePrompt's length term (arXiv 2505.17540) is 1 for 16 to 76 words, -1 for
    others and 0 without an answer, and its format term 1 or -1. So a length cost of 2 beside a refusal cost
    of 2 is RePrompt up to a constant, which changes no advantage. Its paper tells of one draft; with several
    we take the mean. Words are counted in the prompt that is in force after the draft, whatever the answer
    said: a draft that keeps a short prompt is short.
    """
    least, most = words

    def wrong(draft: Draft) -> float:
        return 0.5 if draft.refused else float(not least <= len(draft.text.split()) <= most)

    return torch.tensor([sum(map(wrong, written)) / len(written) for written in made.drafts])


def described(made: Rollout, telling: Tensor, group: int) -> dict[str, float]:
    """What a run's log says of a rollout."""
    drafts = [draft for written in made.drafts for draft in written]
    groups = made.rewards.view(-1, group)
    return {
        "reward": float(made.rewards.mean()),
        "reward_spread": float(groups.std(1).mean()),
        "groups_dropped": float((~telling).view(-1, group)[:, 0].float().mean()),
        "tokens_per_draft": sum(len(d.tokens) for d in drafts) / len(drafts),
        "kept": sum(d.kept == "same" for d in drafts) / len(drafts),
        "refused": sum(d.refused for d in drafts) / len(drafts),
        **{f"reward/{name}": float(values.mean()) for name, values in made.terms.items()},
    }
