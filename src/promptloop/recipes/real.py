"""Recipes for real models: every hyper-parameter with its value and where that comes from.

PAPER is arXiv 2510.00430 as far as it can be read (docs/methods/promptloop.md), REPROMPT arXiv 2505.17540 and
its code. "ours" was chosen by us: what the embedded world showed is in docs/log.md, the rest was not tuned at
full size. No weights could be downloaded while this was written: the hub's names are from model cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from promptloop.recipes.settings import Grpo

Said = Mapping[str, tuple[Any, str]]  # hyper-parameter -> its value, where it comes from
PAPER, REPROMPT, CARD, LOG = "paper", "RePrompt", "model card", "ours, docs/log.md"
OURS, ROOM = "ours, not tuned at full size", "ours, for memory (docs/recipes.md)"
IMAGEREWARD = "imagereward:THUDM/ImageReward"

PIPELINES = {  # recipe -> the class of pipeline that its settings are for
    "sd15_imagereward": "StableDiffusionPipeline",
    "sdxl_imagereward": "StableDiffusionXLPipeline",
    "sdxl_turbo_composite": "StableDiffusionXLPipeline",
    "sd35_imagereward": "StableDiffusion3Pipeline",
    "flux_imagereward": "FluxPipeline",
}
COMMON: Said = {
    "policy": ("Qwen/Qwen2.5-VL-3B-Instruct", PAPER),
    "size": (None, "diffusers' default for the pipeline"),
    "lora": ("none", PAPER),
    "prompts": ("yuvalkirstain/pickapic_v2_no_images", "paper: the prompts of Pick-a-Pic v2"),
    "prompt_column": ("caption", "its data card"),
    "prompt_split": ("train", "its data card"),
    "prompt_chars": ((8, 400), OURS),
    "prompt_tokens": (None, "ours: what the text encoder reads to its end"),
    "gold": ("none", "ours: give one that is not trained on"),
    "seed": (0, OURS),
    "queries": (16, "ours: divides among 1, 2, 4, 8 and 16 processes"),
    "group": (8, LOG),
    "refinements": (5, PAPER),
    "window": ((0.0, 1.0), PAPER),
    "plan": ("random", PAPER),
    "loop": ("closed", PAPER),
    "delay": (0, PAPER),
    "embedded_guidance": (None, "diffusers' default for the pipeline: 3.5 for FLUX.1-dev"),
    "noise": ("shared", LOG),
    "credit": ("episode", "paper: one advantage for all drafts of an episode"),
    "first": ("none", PAPER),
    "first_alone": (0, PAPER),
    "image_dropout": (0.1, "ours: as mini"),
    "image_size": (448, "ours: 256 of Qwen2.5-VL's image tokens"),
    "temperature": (1.0, "ours: log-probs are the policy's own"),
    "refusal_cost": (0.2, LOG),
    "length_cost": (0.0, "ours: ImageReward says what length is good"),
    "draft_words": ((16, 76), "RePrompt; counts where length_cost does"),
    "lr": (1e-5, "TRL's GRPO example for this policy with a LoRA"),
    "epochs": (1, "ours: one step a batch, the ratio is 1"),
    "warmup": (10, OURS),
    "weight_decay": (0.0, "ours: as mini"),
    "max_grad_norm": (1.0, "DDPO's code"),
    "rollouts": ("none", "ours: the policy draws its own drafts"),
    "rollouts_folder": ("none", "ours: one of this machine's own"),
    "mismatch_cap": (2.0, "ours, docs/models.md"),
    "mismatch_limit": (0.1, "ours, docs/models.md"),
    "average": (0.0, "ours: as mini"),
    "train_weights": ("lora", PAPER),
    "rank": (16, OURS),
    "lora_targets": (None, "ours: every linear layer of the language model"),
    "policy_quantize": ("none", ROOM),
    "clip": (0.2, "PPO, arXiv 1707.06347"),
    "clip_high": (None, "ours: as mini"),
    "kl_weight": (0.03, LOG),
    "kl_to": ("reference", "ours: with one step a batch the old policy holds nothing"),
    "per": ("token", "paper: token-level"),
    "baseline": ("mean", PAPER),
    "scale": ("group", PAPER),
    "policy_dtype": ("bfloat16", ROOM),
    "denoiser_dtype": ("bfloat16", ROOM),
    "gradient_checkpointing": (True, ROOM),
    "micro_batch": (8, ROOM),
    "shard": (False, ROOM),
    "offload": ("none", ROOM),
    "base_every": (10, "ours: as mini"),
    "sheet_every": (20, OURS),
    "save_every": (5, OURS),
    "device": ("auto", "ours: CUDA where there is one"),
    "track": ("none", OURS),
    "push_to_hub": ("none", OURS),
}
FIXED: Said = {  # no settings: `Grpo.fixed`
    "betas": ((0.9, 0.99), "fixed; ours, of AdamW: as mini"),
    "decay_to": (0.1, "fixed; ours, the share of lr that its cosine ends at: as mini"),
    "lora_alpha": (32, "fixed; ours, twice the rank"),
    "start_tolerance": (0.25, "fixed; ours, measured in bfloat16 (docs/methods/promptloop.md)"),
}
SD15: Said = {
    "backbone": ("stable-diffusion-v1-5/stable-diffusion-v1-5", PAPER),
    "reward": (IMAGEREWARD, PAPER),
    "steps": (1000, OURS),
    "denoising_steps": (50, PAPER),
    "guidance": (7.5, CARD),
    "max_new_tokens": (96, "ours: the text encoder reads 75 tokens"),
    "max_batch": (32, ROOM),
}
SDXL: Said = {
    "backbone": ("stabilityai/stable-diffusion-xl-base-1.0", PAPER),
    "reward": (IMAGEREWARD, PAPER),
    "steps": (400, "ours: the paper's three days on 4 A100, at its 18.4 s an image"),
    "denoising_steps": (50, PAPER),
    "guidance": (5.0, "diffusers' default for this pipeline"),
    "max_new_tokens": (96, "ours: the text encoder reads 75 tokens"),
    "max_batch": (8, "paper: the batch it was timed with"),
}
TURBO: Said = {
    "backbone": ("stabilityai/sdxl-turbo", PAPER),
    "reward": (
        f"0.25*{IMAGEREWARD} + 1*judge:Qwen/Qwen2.5-VL-3B-Instruct",
        f"{REPROMPT}: 0.5 IR/2 + 0.5 (g-5)/5, g a judge's score from 0 to 10",
    ),
    "refusal_cost": (2.0, f"{REPROMPT}'s format term, 1 or -1"),
    "length_cost": (2.0, f"{REPROMPT}'s length term, 1, 0 or -1"),
    "steps": (1000, OURS),
    "denoising_steps": (4, CARD),
    "refinements": (4, "ours: the paper's five do not fit into four steps"),
    "guidance": (1.0, "model card: distilled without guidance"),
    "max_new_tokens": (96, "ours: the text encoder reads 75 tokens"),
    "max_batch": (32, ROOM),
}
SD35: Said = {
    "backbone": ("stabilityai/stable-diffusion-3.5-medium", "Flow-GRPO and RLG; the paper tests on large"),
    "reward": (IMAGEREWARD, PAPER),
    "steps": (400, OURS),
    "denoising_steps": (28, f"{REPROMPT}'s number for SD3"),
    "guidance": (4.5, CARD),
    "max_new_tokens": (128, "ours: T5 reads 256 tokens"),
    "max_batch": (8, ROOM),
}
FLUX: Said = {
    "backbone": ("black-forest-labs/FLUX.1-dev", "paper: tested on it, trained on another"),
    "reward": (IMAGEREWARD, PAPER),
    "steps": (200, OURS),
    "denoising_steps": (28, "diffusers' default for this pipeline"),
    "guidance": (1.0, "model card: guidance is distilled into it"),
    "max_new_tokens": (128, "ours: T5 reads 512 tokens"),
    "max_batch": (4, ROOM),
}


def sd15_imagereward(**given: Any) -> Grpo:
    """Stable Diffusion 1.5 and ImageReward, Pick-a-Pic's prompts: the paper's ablation (its Table 3)."""
    return of(SD15, given)


def sdxl_imagereward(**given: Any) -> Grpo:
    """Stable Diffusion XL and ImageReward, Pick-a-Pic's prompts: the paper's Table 1."""
    return of(SDXL, given)


def sdxl_turbo_composite(**given: Any) -> Grpo:
    """SDXL-Turbo in four steps and RePrompt's composite reward: the paper's Table 2."""
    return of(TURBO, given)


def sd35_imagereward(**given: Any) -> Grpo:
    """Stable Diffusion 3.5 medium and ImageReward."""
    return of(SD35, given)


def flux_imagereward(**given: Any) -> Grpo:
    """FLUX.1-dev and ImageReward."""
    return of(FLUX, given)


def of(said: Said, given: Mapping[str, Any]) -> Grpo:
    """The recipe's settings, with those `given` in their place. None is left to a default."""
    return Grpo(**{name: value for name, (value, _) in {**COMMON, **said}.items()} | dict(given))
