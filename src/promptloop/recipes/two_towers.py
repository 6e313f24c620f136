"""A CLIP of the embedded world before it has learned anything: two towers of shipped models, which have not
met. mini-vlm's eyes see, mini-unet's text encoder reads; what brings both into one space is drawn anew.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForImageTextToText, CLIPTextModel
from transformers.models.clip.configuration_clip import CLIPConfig
from transformers.models.clip.modeling_clip import CLIPModel

from promptloop.rewards.clip import PickScore
from promptloop.rewards.words import FILE, Words
from promptloop.world import weights

SHARED = 128  # width of the space they share


def unmet(seed: int) -> PickScore:
    """A reward of PickScore's form, in float32; its two projections are a function of the seed."""
    folder = weights("mini-unet")
    eyes = AutoModelForImageTextToText.from_pretrained(weights("mini-vlm"), dtype=torch.float32)
    vision = eyes.model.vision_tower
    text = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    words = Words.load(folder / "tokenizer" / FILE, length=text.config.max_position_embeddings,
                       end="<|endoftext|>")  # fmt: skip
    config = CLIPConfig(text_config=text.config.to_dict() | {"eos_token_id": words.end},
                        vision_config=vision.config.to_dict(), projection_dim=SHARED)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CLIPModel(config)
    for tower, found in ((network.vision_model, vision), (network.text_model, text)):
        within = getattr(found, "vision_model", getattr(found, "text_model", found))
        tower.load_state_dict(within.state_dict())
    return PickScore(network.float().eval(), words)
