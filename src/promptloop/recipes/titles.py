"""The claims and studies by name: what can be known of them without loading anything."""

from __future__ import annotations

from promptloop.names import one_of

TITLES = {
    "C1": "A trained policy against the query alone",
    "C2": "Against feed-forward GRPO (one rewrite, no image), the same episodes and updates",
    "C3": "The ablation",
    "C4": "One policy, other backbones",
    "C5": "Does the policy add to tuned weights?",
    "C6": "Trained on an imperfect reward, graded by the oracle",
    "C7": "What refinements cost",
    "C8": "Open loop against closed, with and without image dropout",
    "C9": "Refinements",
    "feedback": "Does feedback help, or only more compute?",
}
STUDIES = {
    "steering": "Every method that steers, against its cost, alone and behind the policy",
    "grid": "Policy, tuned weights, RL Guidance and particles together",
    "dial": "RL Guidance from the base past the tuned weights",
}  # of the sampling; measured when they are named


def claim_named(name: str) -> str:
    """The claim's or study's own spelling; ValueError with the nearest for an unknown one."""
    known = {claim.lower(): claim for claim in (*TITLES, *STUDIES)}
    return known[name.lower()] if name.lower() in known else one_of(name, [*TITLES, *STUDIES], "claim")
