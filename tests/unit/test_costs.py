"""What the form of its drafts costs an episode: refused ones, and those of too few or too many words."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from promptloop.objectives.contract import Share
from promptloop.objectives.drafts import misfits
from promptloop.objectives.policy_gradient import group_advantages
from promptloop.objectives.prompts import PromptGRPO
from promptloop.policies import Draft, Request
from promptloop.recipes import runs
from promptloop.recipes.embedded import mini
from promptloop.rollout import Geometry, Rollout

ASKED = Request("a star", "a star")
LENGTHS = (15, 16, 76, 77)


def draft(words: int) -> Draft:
    """Of so many words; 0: an unusable answer, which leaves the query's two."""
    written = Draft(ASKED, " ".join(["word"] * words), tokens=torch.ones(3), log_probs=torch.zeros(3))
    return written if words else written.refuse("empty")


def rolled(rows: list[list[int]], rewards: torch.Tensor) -> Rollout:
    drafts = tuple(tuple(map(draft, row)) for row in rows)
    credited = tuple(range(len(row)) for row in rows)
    return Rollout(("a star",) * len(rows), (0,) * len(rows), drafts, torch.zeros(0), rewards, credited)


def objective(made: Rollout, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> PromptGRPO:
    monkeypatch.setattr(PromptGRPO, "_episodes", lambda *_, **__: made)
    group = Geometry(queries=1, group=len(made.drafts), refinements=1)
    denoiser = SimpleNamespace(text_limit=75, count_tokens=len)
    policy: Any = SimpleNamespace(network=SimpleNamespace(device="cpu"))
    reward: Any = None
    return PromptGRPO(denoiser, policy, reward, lambda update: ["a star"], group, **settings)


def test_both_costs_at_two_are_reprompts_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """One draft an episode: format 1 or -1, length 1, -1, or 0 without an answer, added to the image's.

    Fails if a refused draft counts whole or not at all, a bound is one word off, or a cost is added.
    """
    lengths = [*LENGTHS, 0, 30]
    image = torch.tensor([0.3, -0.2, 0.9, 0.1, 0.4, -0.6])
    form = torch.tensor([-1.0 if not n else 1.0 for n in lengths])
    length = torch.tensor([0.0 if not n else 1.0 if 16 <= n <= 76 else -1.0 for n in lengths])
    expected, _ = group_advantages(image + form + length, len(lengths))
    made = rolled([[n] for n in lengths], image)
    batch = objective(made, monkeypatch, refusal_cost=2.0, length_cost=2.0).collect(0, Share())
    told = {len(d.text.split()) if not d.refused else 0: a for part in batch.parts
            for d, a in zip(part.drafts, part.advantages.tolist(), strict=True)}  # fmt: skip
    assert [told[n] for n in lengths] == pytest.approx(expected.tolist(), abs=1e-6)
    assert batch.metrics["misfits"] == pytest.approx(2.5 / 6) and batch.metrics["refused"] == 1 / 6
    assert batch.metrics["reward"] == pytest.approx(float(image.mean()))


def test_an_episode_pays_for_the_share_of_its_drafts() -> None:
    """Fails if the drafts are added up, or a prompt that was kept is let off."""
    made = rolled([[*LENGTHS], [0, 20], [20, 20, 1]], torch.zeros(3))
    assert misfits(made, (16, 76)).tolist() == pytest.approx([0.5, 0.25, 1 / 3])
    kept = draft(20).refuse("same")  # not refused: the policy chose the query's two words
    assert misfits(Rollout((), (), ((kept,),), torch.zeros(0), torch.zeros(1), ()), (16, 76)).item() == 1
    assert misfits(made, (1, 15)).tolist() == pytest.approx([0.75, 0.75, 2 / 3])


def test_nothing_is_said_of_length_unless_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    made = rolled([[20], [1]], torch.tensor([0.0, 1.0]))
    batch = objective(made, monkeypatch).collect(0, Share())
    assert "misfits" not in batch.metrics
    assert sorted(a for part in batch.parts for a in part.advantages.tolist())[1] > 0


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"length_cost": -0.1}, "length_cost is -0.1"),
        ({"draft_words": (0, 9)}, r"draft_words is \(0, 9\); give the fewest and most"),
        ({"draft_words": (9, 8)}, r"draft_words is \(9, 8\)"),
    ],
)
def test_bad_costs(given: dict[str, Any], wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=wanted):
        mini(**given)
    with pytest.raises(ValueError, match=wanted):
        objective(rolled([[1], [1]], torch.zeros(2)), monkeypatch, **given)


def test_a_run_begun_before_a_setting_was_there_goes_on(tmp_path: Path) -> None:
    """Its config lacks the setting, which then has its default. Fails if that is taken for other settings."""
    settings = mini()
    runs.begin(tmp_path, "mini", settings, resume=False).release()
    config = json.loads((tmp_path / runs.CONFIG).read_text())
    for name in ("length_cost", "draft_words", "embedded_guidance"):
        del config["settings"][name]
    (tmp_path / runs.CONFIG).write_text(json.dumps(config))
    runs.begin(tmp_path, "mini", settings, resume=True).release()
    with pytest.raises(ValueError, match=r"length_cost 0\.0 \(now 1\.0\)"):
        runs.begin(tmp_path, "mini", mini(length_cost=1.0), resume=True)
