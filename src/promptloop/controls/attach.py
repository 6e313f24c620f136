"""The closed loop in a user's own pipeline: `loop = attach(pipe, policy)`, then `loop(...)` for `pipe(...)`.

A callable, because nothing smaller reaches far enough: the first prompt has to be written before `pipe(...)`
encodes it, and a callback only runs after a step. The later prompts go in through the pipeline's own
`callback_on_step_end` (callback.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from promptloop.controls.callback import Callback, watched
from promptloop.controls.prompt import PromptLoop
from promptloop.denoisers import FAMILIES, from_pipeline
from promptloop.names import nearest
from promptloop.policies.contract import Policy
from promptloop.sample import Run, default_solver
from promptloop.schedules import check, from_scheduler

TENSORS = {  # pipeline class -> what its callback lets us replace, in the order of encode_prompt's answer
    "StableDiffusionPipeline": ("prompt_embeds",),
    "StableDiffusionXLPipeline": ("prompt_embeds", "add_text_embeds"),
    "StableDiffusion3Pipeline": ("prompt_embeds", "pooled_prompt_embeds"),
    "ZImagePipeline": ("prompt_embeds",),
}
OUT_OF_REACH = {
    "FluxPipeline": "its callback does not reach the pooled text embedding nor a prompt of another length",
    "QwenImagePipeline": "its callback does not reach the prompt's mask, so not a prompt of another length",
    "PixArtAlphaPipeline": "it has no callback_on_step_end",
    "PixArtSigmaPipeline": "it has no callback_on_step_end",
}
REFUSED = {
    "prompt_embeds": "the policy rewrites words; give the prompt itself",
    "pooled_prompt_embeds": "the policy rewrites words; give the prompt itself",
    "prompt_2": "all text encoders read the prompt that the policy writes; leave it out",
    "prompt_3": "all text encoders read the prompt that the policy writes; leave it out",
    "denoising_end": "the loop needs the whole trajectory; leave it out",
    "skip_guidance_layers": "no callback reaches the prompt of the skipped layers; leave it out",
}
GRID = ("timesteps", "sigmas", "mu")  # options that decide the levels


def attach(
    pipe: Any,
    policy: Policy,
    *,
    refinements: int = 5,
    window: tuple[float, float] = (0.0, 1.0),
    loop: Literal["closed", "open"] = "closed",
) -> Attached:
    """`pipe` with its prompt refined by `policy` while the image forms: call it as you call the pipeline.

    `refinements`, `window` and `loop` are PromptLoop's. Reaches Stable Diffusion 1.x/2.x, XL and 3/3.5,
    and Z-Image; ValueError with the reason and the way round for other pipelines. The pipeline itself is not
    changed.
    """
    if not isinstance(policy, Policy):
        raise ValueError(f"policy is {policy!r}; load it first: promptloop.load_policy(name)")
    return Attached(pipe, PromptLoop(policy, refinements, window, loop=loop))


@final
@dataclass(frozen=True)
class Attached:
    """A diffusers pipeline under a PromptLoop. Nothing is kept between calls."""

    pipe: Any
    control: PromptLoop

    def __post_init__(self) -> None:
        name = type(self.pipe).__name__
        if name not in TENSORS:
            raise ValueError(_out_of_reach(name))
        lacking = [tensor for tensor in self._tensors if tensor not in self.pipe._callback_tensor_inputs]
        if lacking:
            raise ValueError(f"this {name}'s callback_on_step_end does not reach {', '.join(lacking)}")
        from_pipeline(self.pipe)

    def __call__(
        self, prompt: str | Sequence[str], *more: Any, seeds: Sequence[int] | None = None, **options: Any
    ) -> Any:
        """What `pipe(prompt, **options)` returns; its attribute `drafts` holds each image's drafts in order.

        `seeds`, one for each image, make the noise (where no `generator` and no `latents` do) and the
        policy's draws, which come without them from the seeds of the generators, or of torch. Image i is that
        of `sample(from_pipeline(pipe), [prompt], seeds=[seeds[i]], controls=[PromptLoop(...), CFG(...)])` as
        far as the scheduler draws no noise of its own. Each of `num_images_per_prompt` images has its own
        drafts. ValueError for options that the loop cannot honour, and for unknown ones.
        """
        known = inspect.signature(type(self.pipe).__call__).parameters
        if more:
            names = [name for name in known if name not in ("self", "prompt")][: len(more)]
            raise TypeError(f"give what comes after the prompt by name ({'=, '.join(names)}=): pipelines "
                            "differ in the order of their options")  # fmt: skip
        self._refuse(options, known)
        steps = options.get("num_inference_steps", known["num_inference_steps"].default)
        queries, options = _one_prompt_an_image(prompt, options)
        chosen = _seeds(seeds, options.get("generator"), len(queries))
        if seeds is not None and options.get("generator") is None and options.get("latents") is None:
            options["generator"] = [torch.Generator().manual_seed(seed) for seed in chosen]
        denoiser = from_pipeline(self.pipe)
        if options.get("max_sequence_length") is not None:
            denoiser.read_at_most(options["max_sequence_length"])
        grid = {name: options[name] for name in GRID if options.get(name) is not None}
        levels = from_scheduler(self.pipe.scheduler, steps, **denoiser.scheduler_options | grid)
        call = Callback(self.control, self._tensors, self.pipe, options)
        call.begin(Run(denoiser, check(levels), default_solver(denoiser), (self.control,)), queries, chosen)
        reached = dict.fromkeys([*call.asked, "latents", *self._tensors])
        with watched(self.pipe.scheduler, call.told):
            made = self.pipe(
                list(call.state.prompts),
                **options,
                callback_on_step_end=call.step_end,
                callback_on_step_end_tensor_inputs=list(reached),
            )
        if options.get("return_dict", True):
            made.drafts = call.state.memory["drafts"]
        return made

    @property
    def _tensors(self) -> tuple[str, ...]:
        return TENSORS[type(self.pipe).__name__]

    def _refuse(self, options: dict[str, Any], known: Any) -> None:
        name = type(self.pipe).__name__
        names = [key for key, parameter in known.items() if parameter.kind is not parameter.VAR_KEYWORD]
        for key, value in options.items():
            if key not in names:
                raise ValueError(f"{name} has no option {key!r}; {nearest(key, names)}")
            if key in REFUSED and value is not None:
                raise ValueError(f"{key} cannot be given to an attached pipeline: {REFUSED[key]}")


def _out_of_reach(name: str) -> str:
    why = OUT_OF_REACH.get(name, f"only {', '.join(TENSORS)} are known to let a prompt change between steps")
    way = (
        "put it into our loop instead: sample(promptloop.from_pipeline(pipe), prompts, seeds=..., steps=..., "
        "controls=[PromptLoop(policy)])"
        if name in FAMILIES
        else "nor does promptloop.from_pipeline know it yet"
    )
    return f"the loop cannot be attached to a {name}: {why}; {way}"


def _one_prompt_an_image(
    prompt: str | Sequence[str], options: dict[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """A prompt for every image (in the pipeline's order), and the options that go with it."""
    prompts = [prompt] if isinstance(prompt, str) else [] if prompt is None else list(prompt)
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise ValueError(f"prompt is {prompt!r}; give a text or a list of texts")
    each = options.get("num_images_per_prompt")
    each = 1 if each is None else int(each)
    if each < 1:
        raise ValueError(f"num_images_per_prompt is {each}; it must be at least 1")

    def spread(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.repeat_interleave(each, dim=0)
        texts = [value] * len(prompts) if isinstance(value, str) else list(value)
        if len(texts) != len(prompts):
            raise ValueError(
                f"{len(texts)} texts as {name} for {len(prompts)} prompts; give one, or one each"
            )
        return [text for text in texts for _ in range(each)]

    told = {  # texts and embeddings, not SDXL's negative sizes
        name: spread(name, value)
        for name, value in options.items()
        if name.startswith("negative_") and value is not None and not name.endswith(("_size", "_left"))
    }
    return spread("prompt", prompts), options | told | {"num_images_per_prompt": 1}


def _seeds(seeds: Sequence[int] | None, generator: Any, size: int) -> list[int]:
    """One for each image: as given, else those of the generators; a single generator's counts upwards."""
    if seeds is not None and not isinstance(seeds, Sequence | Tensor):
        raise ValueError(f"seeds is {seeds!r}; give a list with one for each of the {size} images")
    if seeds is None and not isinstance(generator, list | tuple):
        first = torch.initial_seed() if generator is None else generator.initial_seed()
        return [(first + i) % 2**63 for i in range(size)]
    given = [one.initial_seed() % 2**63 for one in generator] if seeds is None else [*map(int, seeds)]
    if len(given) != size:
        raise ValueError(
            f"{len(given)} {'generators' if seeds is None else 'seeds'} for {size} images; one each"
        )
    if not all(0 <= seed < 2**63 for seed in given):
        raise ValueError(f"seeds {given}: give whole numbers from 0 to 2**63 - 1")
    return given
