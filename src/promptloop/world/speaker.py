"""``mini-vlm``: a LLaVA (CLIP + Llama) chat model of some million parameters; it speaks the world's language.

It is pretrained on lessons (lessons.py) about sharp images and about denoised estimates at every noise level.
It has not seen a reward.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from promptloop.policies.message import SYSTEM
from promptloop.world import eyes
from promptloop.world.autoencoder import pixels
from promptloop.world.captions import describe, phrase
from promptloop.world.eyes import Pool
from promptloop.world.fit import fit
from promptloop.world.lessons import Lesson, lesson
from promptloop.world.scene import SIDE, Scene, random_scene
from promptloop.world.spelling import chat_tokenizer

BATCH = 24
PATCH = 16
IMAGE = "<image>" * ((SIDE // PATCH) ** 2)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sample_lessons(count: int, seed: int) -> list[Lesson]:
    rng = random.Random(f"{seed}/tokenizer")
    return [lesson(random_scene(rng) if i % 3 else None, rng.random(), rng) for i in range(count)]


def tokenizer(seed: int) -> Any:
    """The policy's tokenizer: the world's words are single tokens."""
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    texts = [t for item in sample_lessons(4000, seed) for turn in item.turns for t in turn]
    return PreTrainedTokenizerFast(
        tokenizer_object=chat_tokenizer([SYSTEM] * 3 + ["system", "user", "assistant"] * 3 + texts, special),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>"],
        padding_side="left",
    )


def blank(seed: int) -> tuple[Any, Any]:
    """The untrained network and its processor."""
    import transformers as tf
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    words = tokenizer(seed)
    vision = tf.CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=6,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=64,
    )
    text = tf.LlamaConfig(
        vocab_size=len(words),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    config = tf.LlavaConfig(  # type: ignore[call-arg]  # image_token_id is image_token_index's other name
        vision_config=vision,
        text_config=text,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    network = tf.LlavaForConditionalGeneration(config)
    network.generation_config = tf.GenerationConfig(
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id
    )
    images = LlavaImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = tf.LlavaProcessor(
        images,
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return network, processor


@torch.no_grad()
def estimates(
    pipe: Any, latents: Tensor, scenes: list[Scene], *, seed: int, steps: int = 20
) -> tuple[Tensor, Tensor]:
    """Denoised estimates uint8 [N, 3, 64, 64] of noised latents by ``mini-unet``, and their progress [N].

    The prompt is what a user or a policy may have said of the scene: the estimate mixes what the noise still
    shows with what the words make the network believe, as inside a trajectory.
    """
    from promptloop.world.backbones import tokens

    rows, when = [], []
    for first in range(0, len(latents), 64):
        rng = random.Random(f"{seed}/estimates/{first}")
        part = latents[first : first + 64].float()
        noise = torch.randn(part.shape, generator=torch.Generator().manual_seed(rng.getrandbits(60)))
        done = torch.tensor([rng.randint(1, steps - 1) for _ in part])
        t = (1000 - 1000 * (done - 1) // steps - 1).clamp(0, 999)
        abar = pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        texts = [phrase(describe(s, rng, dense=0.7)) for s in scenes[first : first + 64]]
        text = pipe.text_encoder(tokens(pipe.tokenizer, texts, "cpu"))[0]
        x = abar.sqrt() * part + (1 - abar).sqrt() * noise
        clean = (x - (1 - abar).sqrt() * pipe.unet(x, t, text).sample) / abar.sqrt()
        image = pipe.vae.decode(clean / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).sample
        rows.append(((image + 1) * 127.5).clamp(0, 255).round().byte())
        when.append(done / steps)
    return torch.cat(rows), torch.cat(when)


class Spelling:
    """Lessons to token ids and labels; the text is what the chat template makes of the same messages."""

    def __init__(self, words: Any) -> None:
        self.words = words
        self.known: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self.known:
            if len(self.known) > 50_000:
                self.known.clear()
            self.known[text] = self.words(text, add_special_tokens=False).input_ids
        return self.known[text]

    def spell(self, item: Lesson) -> tuple[list[int], list[int]]:
        ids = list(self.ids(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"))
        labels = [-100] * len(ids)
        for k, (says, answer) in enumerate(item.turns):
            picture = IMAGE if item.sees and k == 0 else ""
            asked = self.ids(f"<|im_start|>user\n{picture}{says}<|im_end|>\n<|im_start|>assistant\n")
            told = self.ids(f"{answer}<|im_end|>")
            end = self.ids("\n")
            ids = ids + asked + told + end
            labels = labels + [-100] * len(asked) + told + [-100] * len(end)
        return ids, labels

    def batch(self, items: list[Lesson]) -> tuple[Tensor, Tensor, Tensor]:
        rows = [self.spell(item) for item in items]
        width = max(len(ids) for ids, _ in rows)
        pad = self.words.pad_token_id
        ids = torch.tensor([r + [pad] * (width - len(r)) for r, _ in rows])
        labels = torch.tensor([r + [-100] * (width - len(r)) for _, r in rows])
        lengths = torch.tensor([len(r) for r, _ in rows])
        return ids, labels, (torch.arange(width) < lengths[:, None]).long()


def draw(pool: Pool, seed: int, step: int | str, *, held_out: bool = False) -> tuple[list[Lesson], Tensor]:
    """Lessons and the images [M, 3, 64, 64] in [-1, 1] of those that see, in order.

    Four batches are drawn together and parted by length, so that little is spent on padding.
    """
    images, when, scenes = pool
    held = len(scenes) - 256  # the scenes of checks
    rng = random.Random(f"{seed}/speaker/{step // 4 if isinstance(step, int) else step}")
    drawn: list[tuple[Lesson, Scene | int | None]] = []
    for _ in range(4 * BATCH):
        kind = rng.random()
        if kind < 0.2:
            drawn.append((lesson(None, rng.random(), rng), None))
        elif kind < 0.5:
            scene = random_scene(rng)
            drawn.append((lesson(scene, 1.0 if rng.random() < 0.3 else rng.random(), rng), scene))
        else:
            i = rng.randrange(held, len(scenes)) if held_out else rng.randrange(held)
            drawn.append((lesson(scenes[i], float(when[i]), rng), i))
    drawn.sort(key=lambda row: sum(len(text) for turn in row[0].turns for text in turn))
    order = rng.sample(range(4), 4)
    part = order[step % 4 if isinstance(step, int) else 0] * BATCH
    rows = drawn[part : part + BATCH]
    sharp = iter(pixels([s for _, s in rows if isinstance(s, Scene)] or [random_scene(rng)]))
    shown = [
        next(sharp) if isinstance(s, Scene) else images[s].float() / 127.5 - 1
        for _, s in rows
        if s is not None
    ]
    return [item for item, _ in rows], torch.stack(shown or [torch.zeros(3, SIDE, SIDE)])


def train(
    folder: Path,
    pool: Pool,
    *,
    steps: int,
    eye_steps: int,
    seed: int,
    lr: float = 1.5e-3,
    device: str = "cpu",
) -> None:
    """Trains the eyes, then all of it on lessons about ``pool`` and sharp images; saves ``folder/model``."""
    torch.manual_seed(seed)
    network, processor = blank(seed)
    eyes.train(network.model.vision_tower, folder / "eyes", pool, steps=eye_steps, seed=seed, device=device)
    network.to(device).train()
    spelling = Spelling(processor.tokenizer)

    def loss_of(items: list[Lesson], shown: Tensor) -> Tensor:
        ids, labels, mask = (t.to(device) for t in spelling.batch(items))
        pictures = shown.to(device) if any(item.sees for item in items) else None
        out = network(input_ids=ids, attention_mask=mask, pixel_values=pictures, use_cache=False).logits
        return F.cross_entropy(out[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    def loss_at(step: int) -> Tensor:
        return loss_of(*draw(pool, seed, step))

    def check(step: int) -> dict[str, float]:
        network.eval()
        network.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
        losses = [loss_of(*draw(pool, seed, f"check/{i}", held_out=True)).item() for i in range(6)]
        network.train()
        return {"held_out_loss": round(sum(losses) / len(losses), 4)}

    fit(
        network,
        loss_at,
        steps=steps,
        seed=seed,
        lr=lr,
        folder=folder,
        average=0.999,
        check=check,
        check_every=500,
    )
    network.eval()
    network.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
