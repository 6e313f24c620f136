"""The claims of the paper as rows of a table: which policy, prompted how, on which backbone.

`TRAINED` says how each policy was trained, `ROWS` how each row is measured, `CLAIMS` which rows and which
paired differences a claim is read from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

from promptloop.bench.arms import Way
from promptloop.recipes.dpo_settings import MiniDPO
from promptloop.recipes.embedded import LATER, mini
from promptloop.recipes.settings import Grpo
from promptloop.recipes.titles import TITLES
from promptloop.recipes.usual import PAPER_WINDOW, TURBO_WINDOW

SEEDS = 3  # of the noise, where nothing is trained

AHEAD = mini()
ALONE = mini(refinements=5, credit="branch")
LOOP = mini(**LATER, first="ahead")  # of the same seed

TRAINED: dict[str, tuple[Grpo, int]] = {  # name -> settings, number of seeds
    "ahead": (AHEAD, 3),
    "longer": (replace(AHEAD, steps=220), 3),  # as many updates as "ahead" and "image" together
    "blind": (replace(LOOP, image_dropout=1.0), 3),
    "image": (LOOP, 3),
    "alone": (ALONE, 3),
    "always": (replace(LOOP, image_dropout=0.0), 3),
    "preference": (replace(AHEAD, reward="preference", gold="oracle"), 3),
}

SHIPPED = "image"  # as mini-policy, with seed 0
TUNED: dict[str, MiniDPO] = {  # backbones with weights of their own
    "tuned": MiniDPO(policy="mini-policy"),
    "tuned-preference": MiniDPO(policy="mini-policy", reward="preference", gold="oracle"),
}

EIGHT = Way(window=TURBO_WINDOW, steps=8, guidance=1.0)  # how mini-turbo is sampled
TWENTY = Way()  # how mini-unet and mini-flow are
FEW = Way(steps=8, refinements=4)  # more do not fit into the window


@final
@dataclass(frozen=True)
class Row:
    """`policy` is one of TRAINED, "untrained", or None: the query as it is; `backbone` may be in TUNED."""

    title: str
    policy: str | None
    way: Way = EIGHT
    backbone: str = "mini-turbo"
    solver: str = ""

    @property
    def seeds(self) -> int:
        return TRAINED[self.policy][1] if self.policy in TRAINED else SEEDS


@final
@dataclass(frozen=True)
class Claim:
    """`pairs`: (row, row) whose difference is told with its interval; `histories`: trainings (seed 0) whose
    reward and gold are told by quarters.
    """

    title: str
    rows: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] = ()
    histories: tuple[str, ...] = ()


ONE = replace(EIGHT, refinements=1)
BLIND = replace(EIGHT, shown="nothing")


def looped(refinements: int, **changed: Any) -> Row:
    """The policy trained with five refinements and image, written so often."""
    title = f"GRPO with image, {refinements} refinement{'s' * (refinements != 1)}"
    told = {"open": ", open loop", "another's": ", shown another sample's estimate",
            "nothing": ", shown nothing", PAPER_WINDOW: ", over the whole trajectory"}  # fmt: skip
    way = replace(EIGHT, refinements=refinements, **changed)
    return Row(title + "".join(told[value] for value in changed.values()), "image", way)


ROWS: dict[str, Row] = {
    "base": Row("the query", None),
    "untrained-one": Row("untrained, one refinement", "untrained", ONE),
    "untrained-blind": Row("untrained, five refinements without image", "untrained", BLIND),
    "untrained": Row("untrained, five refinements with image", "untrained"),
    "untrained-another": Row(
        "untrained, five refinements, shown another sample's estimate",
        "untrained",
        replace(EIGHT, shown="another's"),
    ),
    **{f"n{n}": looped(n) for n in (1, 2, 3, 5)},
    "n8": looped(8, window=PAPER_WINDOW),
    "whole5": looped(5, window=PAPER_WINDOW),
    **{f"open{n}": looped(n, loop="open") for n in (1, 3, 5)},
    "another5": looped(5, shown="another's"),
    "blind5": looped(5, shown="nothing"),
    "another8": looped(8, window=PAPER_WINDOW, shown="another's"),
    "ahead": Row("GRPO, one refinement (feed-forward)", "ahead", ONE),
    "ahead5": Row("GRPO, one refinement, writing five", "ahead"),
    "longer": Row("GRPO, one refinement, as many updates", "longer", ONE),
    "alone": Row("GRPO, five refinements with image by one policy", "alone"),
    "blind": Row("GRPO, five refinements without image", "blind", BLIND),
    "always": Row("trained without image dropout, closed loop", "always"),
    "always-open": Row("trained without image dropout, open loop", "always", replace(EIGHT, loop="open")),
    "preference": Row("GRPO, one refinement, on the learned reward", "preference", ONE),
    "unet-base": Row("mini-unet (20 guided steps), the query", None, TWENTY, "mini-unet"),
    "unet-policy": Row("mini-unet, the policy", SHIPPED, TWENTY, "mini-unet"),
    "flow-base": Row("mini-flow (20 guided steps), the query", None, TWENTY, "mini-flow"),
    "flow-policy": Row("mini-flow, the policy", SHIPPED, TWENTY, "mini-flow"),
    "few-base": Row("mini-unet in 8 steps of DPM-Solver++, the query", None, FEW, "mini-unet", "dpm++"),
    "few-policy": Row("mini-unet in 8 steps, the policy, 4 refinements", SHIPPED, FEW, "mini-unet", "dpm++"),
    "tuned-base": Row("mini-unet tuned by Diffusion-DPO, the query", None, TWENTY, "tuned"),
    "tuned-policy": Row("tuned mini-unet, the policy", SHIPPED, TWENTY, "tuned"),
    "tuned-preference": Row("mini-unet tuned on the learned reward", None, TWENTY, "tuned-preference"),
}

CLAIMS: dict[str, Claim] = {
    "C1": Claim(TITLES["C1"], ("base", "ahead", "ahead5", "n1", "n5"),
                (("ahead", "base"), ("ahead5", "base"), ("n5", "base"), ("n5", "n1"))),
    "C2": Claim(TITLES["C2"],
                ("ahead", "longer", "n5"), (("n5", "longer"), ("n5", "ahead"))),
    "C3": Claim(TITLES["C3"],
                ("base", "untrained-one", "untrained-blind", "untrained", "ahead", "alone", "blind", "n5"),
                (("untrained", "base"), ("untrained", "untrained-blind"), ("ahead", "untrained-one"),
                 ("alone", "untrained"), ("blind", "ahead"), ("n5", "blind"),
                 ("n5", "ahead"), ("n5", "untrained"))),
    "C4": Claim(TITLES["C4"],
                ("unet-base", "unet-policy", "flow-base", "flow-policy", "few-base", "few-policy"),
                (("unet-policy", "unet-base"), ("flow-policy", "flow-base"), ("few-policy", "few-base"))),
    "C5": Claim(TITLES["C5"],
                ("unet-base", "tuned-base", "unet-policy", "tuned-policy"),
                (("tuned-base", "unet-base"), ("tuned-policy", "tuned-base"),
                 ("tuned-policy", "unet-policy"))),
    "C6": Claim(TITLES["C6"],
                ("base", "ahead", "preference", "unet-base", "tuned-base", "tuned-preference"),
                (("preference", "base"), ("ahead", "preference"), ("tuned-preference", "unet-base"),
                 ("tuned-base", "tuned-preference")),
                ("ahead", "preference", "tuned", "tuned-preference")),
    "C7": Claim(TITLES["C7"], ("base", "n1", "n3", "n5", "open1", "open3", "open5")),
    "C8": Claim(TITLES["C8"],
                ("n5", "open5", "always", "always-open"),
                (("n5", "open5"), ("always", "always-open"), ("n5", "always"))),
    "C9": Claim(TITLES["C9"], ("base", "n1", "n2", "n3", "n5", "whole5", "n8"),
                (("n2", "n1"), ("n3", "n2"), ("n5", "n3"), ("n5", "n1"), ("n5", "whole5"), ("n8", "n5"))),
    "feedback": Claim(TITLES["feedback"],
                      ("untrained", "untrained-another", "n5", "another5", "blind5", "n8", "another8"),
                      (("untrained", "untrained-another"), ("n5", "another5"), ("n5", "blind5"),
                       ("n8", "another8"))),
}  # fmt: skip
