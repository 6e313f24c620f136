"""The distillation of mini-turbo: its target is Luo et al.'s, its levels are the scheduler's."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from promptloop.denoisers import load
from promptloop.policies.mllm import Mllm
from promptloop.recipes.usual import Usual, usual
from promptloop.world import distil, weights
from promptloop.world.captions import describe
from promptloop.world.scene import random_scene


class Linear(nn.Module):
    """A denoiser whose answer can be followed by hand: `slope` x plus the mean of the text."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x, t, text):
        assert len(t) == len(x) == len(text)
        return SimpleNamespace(sample=self.slope * x + text.mean((1, 2)).view(-1, 1, 1, 1))


def lesson(teacher: float, student: float) -> distil.Distillation:
    texts = {"": 0.0, "a": 0.1, "b": 0.3}

    def encode(ids):
        return [torch.stack([torch.full((4, 3), float(i)) for i in ids[:, 0]])]

    def words(said, **_):
        return SimpleNamespace(input_ids=torch.tensor([[texts[text]] for text in said]))

    signal = torch.linspace(0.999, 0.005, 1000)
    pipe = SimpleNamespace(
        unet=Linear(teacher),
        text_encoder=encode,
        tokenizer=words,
        device="cpu",
        scheduler=SimpleNamespace(alphas_cumprod=signal),
    )
    return distil.Distillation(pipe, Linear(student))


def test_the_goal_is_the_students_answer_one_guided_teacher_step_on() -> None:
    """By hand, for every level. Fails if guidance is left out, or the target is taken at the same level."""
    made = lesson(0.4, 0.7)
    x = torch.randn(8, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    level = torch.arange(8)
    goal = made._goal(x, level, torch.full((8, 4, 3), 0.3))
    signal = torch.linspace(0.999, 0.005, 1000)
    for k in range(8):
        alpha, sigma = signal[distil.TIMES[k]] ** 0.5, (1 - signal[distil.TIMES[k]]) ** 0.5
        noise = 0.4 * x[k] + 5.0 * 0.3  # without text 0.4 x, with it 0.4 x + 0.3
        clean = (x[k] - sigma * noise) / alpha
        if k == 7:
            assert torch.allclose(goal[k], clean, atol=1e-4)
            continue
        alpha, sigma = signal[distil.TIMES[k + 1]] ** 0.5, (1 - signal[distil.TIMES[k + 1]]) ** 0.5
        after = alpha * clean + sigma * noise
        assert torch.allclose(goal[k], (after - sigma * (0.7 * after + 0.3)) / alpha, atol=1e-3)


def test_only_the_student_learns() -> None:
    """Fails when the target is not cut off: the student would be pulled towards its own errors."""
    made = lesson(0.4, 0.7)
    clean, noise = torch.randn(2, 16, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    made(clean, noise, ["a", "b"] * 8).backward()
    assert made.student.slope.grad is not None and made.student.slope.grad != 0
    assert made.teacher.unet.slope.grad is None
    slope = made.student.slope
    level = torch.arange(16) % 8
    text = torch.tensor([0.1, 0.3] * 8).view(-1, 1, 1).expand(16, 4, 3)
    x = made._wide(made.alpha, level) * clean + made._wide(made.sigma, level) * noise
    goal = made._goal(x, level, text).detach()
    error = (made._answer(made.student, x, level, text) - goal).square().mean((1, 2, 3))
    weight = (made.alpha[level] / made.sigma[level]).clamp(max=1.0).sqrt()
    (wanted,) = torch.autograd.grad((weight * (error + 1e-6).sqrt()).mean(), slope)
    assert slope.grad == pytest.approx(wanted.item(), rel=1e-4)


def test_its_levels_are_its_schedulers() -> None:
    """Fails when LCMScheduler is told another number of steps than the student was taught."""
    from diffusers import DDIMScheduler

    teacher = SimpleNamespace(
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    )
    scheduler = distil.scheduler_of(teacher)
    for steps in (8, 4, 2):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == list(distil.TIMES[:: 8 // steps])
    assert torch.allclose(scheduler.alphas_cumprod, teacher.scheduler.alphas_cumprod)


def test_what_is_usual_follows_the_scheduler(tmp_path: Path) -> None:
    """Fails when a distilled backbone is sampled in 20 steps with guidance 5 unless told otherwise."""
    assert usual("mini-unet") == Usual(20, 12, 5.0, (0.15, 0.55))
    (tmp_path / "model_index.json").write_text('{"scheduler": ["diffusers", "LCMScheduler"]}')
    assert usual(str(tmp_path)) == Usual(8, 8, 1.0, (0.0, 1.0))
    (tmp_path / "model_index.json").write_text('{"scheduler": ["diffusers", "DDIMScheduler"]}')
    assert usual(str(tmp_path)) == Usual()


def test_embedded_models_load_by_their_names() -> None:
    """Fails when a name goes to the hub."""
    assert load("mini-unet").latent_shape == (4, 16, 16)
    assert Mllm.load(weights("mini-vlm")).network.num_parameters() < 4e6
    with pytest.raises(ValueError, match="does not exist"):
        Mllm.load("mini-vlm")


def test_curated_captions_count_truly() -> None:
    """Every number names all there are of what it names; the web's do not. Fails without `exact`."""
    wrong = {True: 0, False: 0}
    for curated in wrong:
        for seed in range(400):
            rng = random.Random(seed)
            scene = random_scene(rng)
            for group in describe(scene, rng, curated=curated).groups:
                met = [
                    t
                    for t in scene.things
                    if group.shape in (None, t.shape) and group.colour in (None, t.colour)
                ]
                wrong[curated] += group.count > 1 and len(met) != group.count
    assert wrong[True] == 0 and wrong[False] > 3
