"""What is trained: a LoRA or all weights of a network; and the networks beside it, reference and average."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from promptloop.denoisers.loras import switched
from promptloop.names import LORA_PREFIX
from promptloop.policies.mllm import Mllm
from promptloop.policies.saved import in_order
from promptloop.swap import exchanged

LANGUAGE = "language"
EYES = r".*(vision|visual|image|projector|connector|merger).*"  # what the chat model families call them


@final
@dataclass(frozen=True)
class LoRA:
    """Low-rank updates (arXiv 2106.09685) of the linear layers whose names end in one of `targets`.

    `targets`, for a policy: "language" means every linear layer of the language model, so that the eyes
    (vision tower, projector) stay as they are and need no gradient; "all-linear" every one but the output
    head, as peft has it. For a denoiser both mean its attention layers. Any other string is a regular
    expression, which a layer's whole name must match.
    """

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] | str = LANGUAGE

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise ValueError(f"rank is {self.rank}, alpha {self.alpha}; both must be at least 1")
        if isinstance(self.targets, str):
            try:
                re.compile(self.targets)
            except re.error as error:
                raise ValueError(f"lora_targets {self.targets!r} is no regular expression: {error}") from None

    def found_in(self, network: nn.Module) -> tuple[str, ...] | str:
        """The targets; ValueError, naming some layers, where they are a regular expression for none."""
        wanted, linear = self.targets, [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]
        named = not isinstance(wanted, str) or wanted in (LANGUAGE, "all-linear")
        if not named and not any(re.fullmatch(str(wanted), name) for name in linear):
            some = ", ".join(sorted({re.sub(r"\d+", "0", name) for name in linear})[:6])
            raise ValueError(
                f"lora_targets {wanted!r} matches no linear layer; it must match whole names, such as {some}"
            )
        return wanted


def with_lora(policy: Mllm, settings: LoRA, *, seed: int, base: str | None = None) -> Mllm:
    """The policy with a LoRA, which alone is trained: its own, or else a fresh one that changes nothing yet.

    `base` is written into a fresh LoRA's config as the weights it belongs to. ValueError where the policy's
    own LoRA is of another size, and for four-bit weights on the CPU: having once run without gradients there,
    bitsandbytes' layers pass none on (0.50, AVX512), and say nothing.
    """
    if getattr(policy.network, "is_loaded_in_4bit", False) and policy.network.device.type == "cpu":
        raise ValueError("four-bit weights on the CPU can be sampled from, not trained beside; use a GPU")
    from peft import LoraConfig, PeftModel, get_peft_model

    if isinstance(policy.network, PeftModel):  # a LoRA that was loaded is trained on
        there: Any = policy.network.peft_config["default"]
        if (there.r, there.lora_alpha) != (settings.rank, settings.alpha):
            raise ValueError(f"the policy has a LoRA of rank {there.r}, alpha {there.lora_alpha}; it cannot "
                             f"be trained on with rank {settings.rank}, alpha {settings.alpha}")  # fmt: skip
        if settings.targets != LANGUAGE:
            raise ValueError(f"the policy has a LoRA already, on its own layers: lora_targets "
                             f"{settings.targets!r} has no place beside it")  # fmt: skip
        return policy
    language = settings.targets == LANGUAGE
    named = "all-linear" if language else settings.found_in(policy.network)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=named if isinstance(named, str) else list(named),
        exclude_modules=EYES if language else None,
        lora_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = get_peft_model(policy.network, config)
    if base is not None:
        network.peft_config["default"].base_model_name_or_path = base
    return replace(policy, network=network)


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def lora_on(denoiser: Any, settings: LoRA, *, seed: int) -> None:
    """Gives the denoiser's network a fresh LoRA on its attention layers, which alone is trained."""
    from peft import LoraConfig, inject_adapter_in_model

    named = ATTENTION if settings.targets in (LANGUAGE, "all-linear") else settings.found_in(denoiser.network)
    wanted = named if isinstance(named, str) else list(named)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=wanted)
    denoiser.network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hasattr(denoiser.network, "add_adapter"):
            denoiser.network.add_adapter(config)
        else:  # PixArt's
            inject_adapter_in_model(config, denoiser.network)


def save_lora(denoiser: Any, folder: Path, *, base: str) -> None:
    """The denoiser's LoRA in the peft layout; `base` is the name of the weights it belongs to."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    found = get_peft_model_state_dict(denoiser.network)
    tensors = {f"{LORA_PREFIX}{name}": t.detach().cpu().contiguous() for name, t in found.items()}
    config = denoiser.network.peft_config["default"]
    config.base_model_name_or_path = base
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    in_order(folder)
    save_file(tensors, folder / "adapter_model.safetensors")


def fully(policy: Mllm) -> Mllm:
    """The policy with all its weights trained."""
    policy.network.requires_grad_(True)
    return policy


def saving_memory(policy: Mllm) -> None:
    """Activations are computed again in the backward pass instead of kept (Chen et al., arXiv 1604.06174)."""
    policy.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy.network.train()  # transformers keeps them in eval mode


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of what is trained; ValueError where nothing is."""
    found = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError("nothing is trained: every weight is frozen; give a LoRA or train all weights")
    return found


def has_reference(network: Any) -> bool:
    """Whether `network` can be turned into what it was before training: it has a LoRA."""
    return hasattr(network, "disable_adapter") or bool(getattr(network, "peft_config", None))


@contextmanager
def reference(network: Any) -> Iterator[None]:
    """Inside, `network` is what it was before training: its LoRA off. ValueError where it has none."""
    if hasattr(network, "disable_adapter"):
        with network.disable_adapter():
            yield
        return
    if not getattr(network, "peft_config", None):
        raise ValueError("a fully trained network has no reference beside it; train a LoRA")
    with switched([network], {}):  # a diffusers network that has LoRAs
        yield


@final
class Averaged:
    """An exponential moving average of trained parameters, warmed up so that early weights do not linger."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the average's decay is {decay}; give 0 <= decay < 1")
        self.parameters, self.decay, self.updates = parameters, decay, 0
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in parameters.items()}

    def in_place(self) -> AbstractContextManager[None]:
        """Inside, the parameters are the average (and `weights` what they were)."""
        return exchanged(self.parameters, self.weights)

    @torch.no_grad()
    def update(self) -> None:
        """Takes the present weights in."""
        self.updates += 1
        keep = min(self.decay, self.updates / (self.updates + 9))
        for name, p in self.parameters.items():
            self.weights[name].lerp_(p.detach().to(self.weights[name]), 1 - keep)
