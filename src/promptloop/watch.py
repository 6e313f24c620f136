"""The hacking watch: what to see beside the trained reward, and when to warn that it is being gamed.

Known ways to game an image reward are emptied scenes, grids and texture, lost diversity, and prompts that
leave the query (users.md names the reports). None of them shows in the reward itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from promptloop.rewards.contract import Reward, scored
from promptloop.rollout import Rollout

WORD = 3  # letters from which a word counts as one of the query's


def edge_density(images: Tensor) -> Tensor:
    """[B] mean absolute difference of neighbouring pixels of images [B, 3, H, W] in [0, 1]: texture and
    grids.
    """
    across = (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3))
    along = (images[..., 1:, :] - images[..., :-1, :]).abs().mean((1, 2, 3))
    return across + along


def colour_entropy(images: Tensor, bins: int = 8) -> Tensor:
    """[B] entropy in nats of each image's colours in bins^3 boxes: 0 for a blank image."""
    levels = (images.clamp(0, 1) * (bins - 1)).round().long()
    codes = (levels[:, 0] * bins + levels[:, 1]) * bins + levels[:, 2]
    out = []
    for row in codes.flatten(1):
        shares = torch.bincount(row, minlength=bins**3).float() / row.numel()
        out.append(torch.special.entr(shares).sum())
    return torch.stack(out)


def saturation(images: Tensor) -> Tensor:
    """[B] mean of (max - min) over the channels."""
    return (images.amax(1) - images.amin(1)).mean((1, 2))


def diversity(images: Tensor, group: int) -> Tensor:
    """[B / group] mean pairwise root-mean-square distance inside each group; 0 for copies."""
    rows = images.flatten(1).view(-1, group, images[0].numel())
    apart = torch.cdist(rows, rows) / rows.shape[-1] ** 0.5
    return apart.sum((1, 2)) / (group * (group - 1))


def intent_drift(queries: Sequence[str], prompts: Sequence[str]) -> float:
    """The share of a query's words (of three letters or more) that its last prompt has lost, on average."""
    lost = []
    for query, prompt in zip(queries, prompts, strict=True):
        words = {w for w in query.lower().replace(",", " ").split() if len(w) >= WORD}
        gone = words - set(prompt.lower().replace(",", " ").split())
        lost.append(len(gone) / max(len(words), 1))
    return sum(lost) / max(len(lost), 1)


@final
@dataclass(frozen=True)
class WatchSettings:
    """Warns where the last `window` updates stand against those `window` earlier ones in which the gold was
    best, so: the trained reward is higher by more than `rise` standard errors of that difference, and the
    gold lower by more than `fall`. The best, since hacking may be slow, and begin after both have risen.

    It is looked at after every update, hence so many: of 4,000 runs of 200 updates in which neither reward
    changes, 0.5% warn where the two are independent, and none where they correlate by 0.5.
    """

    window: int = 20
    rise: float = 2.0
    fall: float = 3.5


@final
class HackingWatch:
    """A hook of the training loop: adds the watched numbers to the metrics, and warns through `tell`.

    `gold` is a reward that is not trained on; None: the images' statistics alone are watched. `past` gives
    the metrics of a resumed run, so that it warns as the uninterrupted one would. `means` averages metrics
    over the processes of a run.
    """

    def __init__(
        self,
        group: int,
        gold: Reward | None,
        tell: Callable[[str], None],
        settings: WatchSettings | None = None,
        past: Callable[[], Sequence[dict[str, float]]] = tuple,
        means: Callable[[dict[str, float]], dict[str, float]] = dict,
    ) -> None:
        self.group, self.gold, self.tell, self.past, self.means = group, gold, tell, past, means
        self.settings = settings or WatchSettings()
        self.seen: list[tuple[float, float]] = []  # trained reward and gold, of each update
        self.begun = False

    def __call__(self, update: int, batch: Any, line: dict[str, float]) -> dict[str, float]:
        made: Rollout = batch.shown
        found = {
            "watch/edges": float(edge_density(made.images).mean()),
            "watch/colours": float(colour_entropy(made.images).mean()),
            "watch/saturation": float(saturation(made.images).mean()),
            "watch/diversity": float(diversity(made.images, self.group).mean()),
            "watch/drift": intent_drift(made.queries, [written[-1].text for written in made.drafts]),
        }
        if self.gold is not None:
            found["watch/gold"] = float(scored(self.gold, made.images, made.queries).mean())
            self._recall()  # before the others are waited for: the first may write its line afterwards
        found = self.means(found)
        if self.gold is not None:
            self.seen.append((line["reward"], found["watch/gold"]))
            if told := self._warning():
                self.tell(f"update {update}: {told}")
        return found

    def _recall(self) -> None:
        """Takes in the metrics from before a resume; what was warned of then is not told again."""
        if not self.begun:
            self.begun = True
            for line in self.past():
                if "watch/gold" in line:  # not where measuring it has failed
                    self.seen.append((line["reward"], line["watch/gold"]))
                    self._warning()

    def _warning(self) -> str | None:
        """After one it looks at what follows alone, and so can warn again."""
        size = self.settings.window
        if len(self.seen) < 2 * size:
            return None
        rows = torch.tensor(self.seen, dtype=torch.float64)
        earlier, last = rows[:-size], rows[-size:]
        blocks = earlier[: len(earlier) // size * size].view(-1, size, 2)
        best = blocks[blocks[..., 1].mean(1).argmax()]
        change = last.mean(0) - best.mean(0)
        error = ((last.var(0) + best.var(0)) / size).sqrt()  # of the change
        if not (change[0] > self.settings.rise * error[0] and change[1] < -self.settings.fall * error[1]):
            return None
        over = len(self.seen)
        self.seen.clear()
        return (
            f"the trained reward rose by {change[0]:.3f} while the held-out one fell by {-change[1]:.3f} "
            f"within {over} updates; look at the newest sample sheet before going on"
        )
