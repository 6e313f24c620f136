"""The rewards that have a name: what makes each, and what a user should know before asking for it.

Texts only: nothing of a reward is imported before it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Known:
    """One reward by its name.

    made: "module:name"; what takes a folder or id (`where`) has `load(where or None, device=)`, anything
        else is called without arguments.
    title: what it is, in a few words. scale: its raw values. licence: of the weights.
    where: what may follow the name, as NAME:WHERE ("" where nothing may).
    hub: where the released weights are ("": none of their own).
    extra: what of promptloop[...] it needs. differentiable: gradients flow to the images.
    """

    made: str
    title: str
    scale: str
    licence: str = ""
    where: str = ""
    hub: str = ""
    extra: str = ""
    differentiable: bool = False


CLIPS = ("pickscore", "hpsv2", "hpsv2.1", "clip-cosine")  # that compare two points with a slope everywhere

KNOWN: dict[str, Known] = {
    "oracle": Known("promptloop.world.oracle:OracleReward", "the embedded world's exact grade", "0 to 1"),
    "oracle-strict": Known("promptloop.world.oracle:strict", "the same, all or nothing", "0 or 1"),
    "oracle-attributes": Known(
        "promptloop.world.oracle:attributes", "its clauses on what things look like alone", "0 to 1"
    ),
    "oracle-spatial": Known("promptloop.world.oracle:spatial", "its clauses on where things are", "0 to 1"),
    "oracle-count": Known("promptloop.world.oracle:count", "its clauses on how many there are", "0 to 1"),
    "preference": Known(
        "promptloop.world.judge:JudgeReward",
        "the embedded world's learned preference (mini-judge)",
        "about -5 to 6",
        differentiable=True,
    ),
    "mini-clip": Known(
        "promptloop.world.clip:mini_clip",
        "the embedded world's CLIP, taught by contrast alone",
        "about -3 to 19",
        differentiable=True,
    ),
    "imagereward": Known(
        "promptloop.rewards.imagereward:ImageReward",
        "ImageReward v1.0: what people prefer",
        "about -2 to 2",
        "Apache-2.0",
        "DIR|ID",
        "THUDM/ImageReward",
        differentiable=True,
    ),
    "pickscore": Known(
        "promptloop.rewards.clip:PickScore",
        "PickScore v1: what people pick of two",
        "about 15 to 26",
        "MIT (code)",
        "DIR|ID",
        "yuvalkirstain/PickScore_v1",
        differentiable=True,
    ),
    "hpsv2": Known(
        "promptloop.rewards.clip:HPSv2",
        "HPS v2: what people prefer",
        "about 0.2 to 0.35",
        "Apache-2.0",
        "DIR|ID",
        "xswu/HPSv2",
        differentiable=True,
    ),
    "hpsv2.1": Known(
        "promptloop.rewards.clip:HPSv21",
        "HPS v2.1: what people prefer",
        "about 0.15 to 0.4",
        "Apache-2.0",
        "DIR|ID",
        "xswu/HPSv2",
        differentiable=True,
    ),
    "clipscore": Known(
        "promptloop.rewards.clip:CLIPScore",
        "CLIPScore (ViT-B/32): does the text fit",
        "0 to 2.5, about 0.5 to 1",
        "MIT",
        "DIR|ID",
        "openai/clip-vit-base-patch32",
        differentiable=True,
    ),
    "clip-cosine": Known(
        "promptloop.rewards.clip:ClipCosine",
        "cosine of CLIP ViT-L/14",
        "about 0.1 to 0.4",
        "MIT",
        "DIR|ID",
        "openai/clip-vit-large-patch14",
        differentiable=True,
    ),
    "d2-align": Known(
        "promptloop.rewards.directional:Directional",
        "a CLIP reward, corrected along one learned direction",
        "that reward's",
        "that reward's",
        "DIR",
        differentiable=True,
    ),
    "siglip": Known(
        "promptloop.rewards.siglip:SigLIP",
        "SigLIP: log-odds that the text fits",
        "about -15 to 5",
        "Apache-2.0",
        "DIR|ID",
        "google/siglip-so400m-patch14-384",
        differentiable=True,
    ),
    "aesthetic": Known(
        "promptloop.rewards.aesthetics:Aesthetic",
        "LAION aesthetics v2 (MLP); reads no text",
        "1 to 10, most 4.5 to 6.5",
        "Apache-2.0",
        "DIR|ID",
        "trl-lib/ddpo-aesthetic-predictor",
        differentiable=True,
    ),
    "aesthetic-linear": Known(
        "promptloop.rewards.aesthetics:AestheticLinear",
        "LAION aesthetics v1 (linear); reads no text",
        "1 to 10",
        "MIT",
        "DIR|ID",
        differentiable=True,
    ),
    "mps": Known(
        "promptloop.rewards.mps:MPS",
        "MPS: overall preference",
        "about 0 to 20",
        "none stated",
        "DIR|ID",
        "RE-N-Y/mpsv1",
        differentiable=True,
    ),
    "hpsv3": Known(
        "promptloop.rewards.hpsv3:HPSv3",
        "HPSv3: what people prefer (Qwen2-VL 7B)",
        "about -5 to 15",
        "MIT",
        "DIR",
        "MizzenAI/HPSv3",
        differentiable=True,
    ),
    "judge": Known(
        "promptloop.rewards.judge:Judge",
        "P(yes) of any chat model that sees (VQAScore)",
        "0 to 1",
        "the model's",
        "DIR|ID",
    ),
    "rating": Known(
        "promptloop.rewards.rating:Rating",
        "a chat model's rating (MLLM score)",
        "0 to 10",
        "the model's",
        "DIR|ID|http://HOST:PORT/v1#MODEL",
    ),
    "unifiedreward": Known(
        "promptloop.rewards.rating:Unified",
        "UnifiedReward: alignment and quality, explained",
        "1 to 5",
        "MIT",
        "DIR|ID|http://HOST:PORT/v1#MODEL",
        "CodeGoat24/UnifiedReward-qwen-7b",
    ),
    "compressibility": Known("promptloop.rewards.measured:compressibility", "minus the JPEG's kB", "below 0"),
    "incompressibility": Known("promptloop.rewards.measured:incompressibility", "the JPEG's kB", "above 0"),
    "sharpness": Known(
        "promptloop.rewards.measured:Sharpness",
        "variance of the Laplacian",
        "0 to about 5000",
        differentiable=True,
    ),
    "colourfulness": Known(
        "promptloop.rewards.measured:Colourfulness",
        "Hasler and Suesstrunk's colourfulness",
        "0 to about 150",
        differentiable=True,
    ),
    "vendi": Known(
        "promptloop.rewards.sets:diversity",
        "what an image adds to the diversity of its query's images (embedded world)",
        "about -1 to 1",
    ),
    "frechet": Known(
        "promptloop.rewards.sets:likeness",
        "what an image takes off its batch's distance from the embedded world's scenes",
        "about -1 to 1",
    ),
    "ocr": Known(
        "promptloop.rewards.ocr:OCR",
        'text that the query has in "double quotes", read off the image',
        "0 to 1",
        "Apache-2.0",
        extra="ocr",
    ),
    "safety": Known(
        "promptloop.rewards.safety:SafetyChecker",
        "Stable Diffusion's safety checker, as a penalty",
        "-1 or 0",
        "CreativeML OpenRAIL-M",
        "DIR|ID",
        "CompVis/stable-diffusion-safety-checker",
    ),
    "nudenet": Known(
        "promptloop.rewards.safety:NudeNet",
        "NudeNet's detector of nude parts, as a penalty",
        "-1 to 0",
        "MIT",
        extra="safety",
    ),
}
