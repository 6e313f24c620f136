"""D2-Align's corrected reward (arXiv 2512.24146): a CLIP whose text is moved along one learned direction.

With e the text's point on the sphere and b one vector for all texts: e+ and e- are e + b and e - b, made
unit length, and e~ = e- + omega (e+ - e-). The image is compared with e~ instead of e. Near b = 0 that is
e + (2 omega - 1) b, of which only b's part across e counts. The paper is silent on e~'s length; here it is
made unit length again, or a long b would raise every score.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from promptloop.json_file import read_object
from promptloop.names import imported, one_of
from promptloop.rewards.batches import in_batches
from promptloop.rewards.clip import ClipReward
from promptloop.rewards.known import CLIPS, KNOWN
from promptloop.rewards.towers import unit
from promptloop.rewards.weights import tensors_in

FILE, CONFIG = "direction.safetensors", "direction.json"
OMEGA = 1.5  # the best of the paper's


def corrected(said: Tensor, direction: Tensor, omega: float) -> Tensor:
    """e~ [B, D] of texts [B, D] of length 1 and the direction [D]; `said` itself where the direction is 0."""
    plus, minus = unit(said + direction), unit(said - direction)
    return unit(minus + omega * (plus - minus))


@final
class Directional(nn.Module):
    """`reward`, a CLIP, with its texts moved: images [B, 3, H, W] in [0, 1] and queries to [B], on the
    reward's own scale. `direction` [D] is what is learned (objectives.direction); 0 changes nothing.

    omega: how far; 1/2 moves nothing to first order, 1 is e+ alone.
    """

    differentiable = True

    def __init__(self, reward: ClipReward, direction: Tensor | None = None, omega: float = OMEGA) -> None:
        super().__init__()
        if not isinstance(reward, ClipReward):
            raise ValueError(f"a direction is of a CLIP reward ({', '.join(CLIPS)}), "
                             f"not of {type(reward).__name__}")  # fmt: skip
        if not 0.5 < omega < 100:
            raise ValueError(f"omega is {omega}; give a number above 0.5, as 1.5")
        width = reward.network.config.projection_dim
        b = torch.zeros(width) if direction is None else direction
        if b.shape != (width,):
            raise ValueError(f"a direction of this reward is {width} numbers, not {tuple(b.shape)}")
        if not bool(b.isfinite().all()):
            raise ValueError("a number of the direction is not finite; train it again")
        at = next(reward.network.parameters())
        self.reward, self.omega = reward, float(omega)
        self.direction = nn.Parameter(b.to(at.device, torch.float32), requires_grad=False)

    def forward(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        return in_batches(self._scores, images, queries, self.reward.batch)

    def _scores(self, images: Tensor, queries: list[str]) -> Tensor:
        seen, said = self.reward.seen(self.reward.pixels(images)), self.reward.said(self.reward.ids(queries))
        return self.compared(seen, said)

    def compared(self, seen: Tensor, said: Tensor) -> Tensor:
        """[B] from pictures and texts as points [B, D] of length 1."""
        return self.reward.scaled((seen * corrected(said, self.direction, self.omega)).sum(-1))

    def save(self, folder: str | Path, named: str) -> None:
        """Writes the direction and which reward it is of: `named` ("pickscore:DIR") and its fingerprint."""
        from safetensors.torch import save_file

        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        save_file({"direction": self.direction.detach().cpu().contiguous()}, where / FILE)
        told = {"reward": named, "omega": self.omega, "weights": fingerprint(self.reward)}
        (where / CONFIG).write_text(json.dumps(told, indent=1), encoding="utf-8")

    @staticmethod
    def load(where: str | None = None, *, device: str | torch.device = "cpu") -> Directional:
        """What `save` wrote, and the reward it is of; ValueError where that has other weights now."""
        folder, told = direction_in(where)
        try:
            reward = clip_named(str(told["reward"]), device)
        except ValueError as error:
            raise ValueError(f"the reward that {folder / CONFIG} names cannot be loaded ({error}); put it "
                             "back, or write there where it is now") from error  # fmt: skip
        if fingerprint(reward) != told["weights"]:
            raise ValueError(f"{where} is a direction of other weights than {told['reward']} has now; put "
                             "those back, or train the direction again")  # fmt: skip
        tensors = tensors_in(folder / FILE)
        if set(tensors) != {"direction"}:
            raise ValueError(f"{folder / FILE} holds {', '.join(sorted(tensors)) or 'nothing'}, where one "
                             "tensor, direction, is wanted")  # fmt: skip
        made = Directional(reward, tensors["direction"].float(), float(told["omega"]))
        return made.requires_grad_(False).eval()

    @staticmethod
    def read_from(where: str | None = None) -> list[Path]:
        """Every file that decides a score: the direction's, and those of the reward it is of."""
        folder, told = direction_in(where)
        kind, _, base = str(told["reward"]).partition(":")
        one_of(kind, CLIPS, "CLIP reward")
        files: list[Path] = imported(KNOWN[kind].made, "reward").read_from(base or None)
        return [folder / FILE, folder / CONFIG, *files]


def direction_in(where: str | None) -> tuple[Path, dict[str, Any]]:
    """The folder of a direction and what it tells of itself; ValueError where there is none."""
    folder = Path(where or "").expanduser()
    if where is None or not (folder / CONFIG).is_file():
        raise ValueError(f"no direction in {where or 'no folder'}; give d2-align:RUN, the run of "
                         "`promptloop train d2-align`")  # fmt: skip
    told = read_object(folder / CONFIG)
    if not {"reward", "omega", "weights"} <= told.keys():
        raise ValueError(f"{folder / CONFIG} lacks reward, omega or weights; train the direction again")
    if not isinstance(told["omega"], int | float) or not isinstance(told["reward"], str):
        raise ValueError(f"{folder / CONFIG} is damaged: omega is {told['omega']!r}, reward "
                         f"{told['reward']!r}; train the direction again")  # fmt: skip
    return folder, told


def clip_named(said: str, device: str | torch.device = "cpu") -> ClipReward:
    """The CLIP reward "NAME" or "NAME:WHERE"; ValueError for what is none."""
    kind, _, where = said.partition(":")
    one_of(kind, CLIPS, "CLIP reward")
    made: ClipReward = imported(KNOWN[kind].made, "reward").load(where or None, device=device)
    return made


def fingerprint(reward: nn.Module) -> str:
    """sha256 of every weight's name and value in float32: whatever file they were read from."""
    found = hashlib.sha256()
    for name, weight in sorted(reward.state_dict().items()):
        found.update(name.encode() + weight.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
