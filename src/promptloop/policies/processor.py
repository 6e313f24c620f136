"""The processor of a vision-language model, with or without torchvision.

Chat models that also take video (Qwen-VL, SmolVLM, LLaVA-OneVision) have a video processor which transformers
cannot build without torchvision, although a policy only shows them images. They are loaded here with
everything but the video part, on every machine alike. Which backend prepares the images is transformers' own
choice: torchvision where it is installed, else PIL, whose pixels are within 0.015 of torchvision's, so that
the two may draw different prompts from the same seed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoConfig, AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.processing_utils import ProcessorMixin

from promptloop.names import first_line
from promptloop.policies.contract import Request
from promptloop.policies.message import messages


class _NoVideo(ProcessorMixin):  # type: ignore[misc]
    """Stands between a family's processor and ProcessorMixin and drops the video processor on the way up."""

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        video_processor: Any = None,
        chat_template: Any = None,
        **_: Any,
    ) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **_: Any) -> Any:
        """The parts and the settings saved beside them (ProcessorMixin's would not see our signature)."""
        names = set(inspect.signature(cls.__init__).parameters) - set(cls.get_attributes())
        return cls(*args, **{name: processor_dict[name] for name in names if name in processor_dict})


def image_only(family: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The family's processor class without its video part; saves and loads like the family's own.

    `ProcessorMixin` reads the parts and settings of a processor from the signature of `__init__`, so a
    signature without `video_processor` is all it takes. The name is the family's: `save_pretrained` writes it
    down. SmolVLM's own `apply_chat_template` would ask for the video processor too.
    """
    known = inspect.signature(family.__init__)

    def init(self: Any, *parts: Any, **settings: Any) -> None:
        names = [name for name in known.parameters if name not in ("self", "video_processor")]
        given = dict(zip(names, parts, strict=False)) | settings
        with _naming_frames(family):
            family.__init__(self, **given, video_processor=None)

    parameters = [p for name, p in known.parameters.items() if name != "video_processor"]
    init.__signature__ = known.replace(parameters=parameters)  # type: ignore[attr-defined]
    body = {
        "__init__": init,
        "__module__": __name__,
        "apply_chat_template": ProcessorMixin.apply_chat_template,
    }
    return type(family.__name__, (family, _NoVideo), body)


@contextmanager
def _naming_frames(family: type[ProcessorMixin]) -> Iterator[None]:
    """Inside, SmolVLM's processor does not insist on num2words, with which it names the frames of a video."""
    module: Any = sys.modules[family.__module__]
    lacking = getattr(module, "num2words", str) is None
    if lacking:
        module.num2words = str
    try:
        yield
    finally:
        if lacking:
            module.num2words = None


def load_processor(path: str) -> Any:
    """`AutoProcessor`, or the family's image-only form where it would build a video processor too."""
    family: Any = PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(path)), None)
    if family is not None and "video_processor" in inspect.signature(family).parameters:
        processor = image_only(family).from_pretrained(path)
    else:
        processor = AutoProcessor.from_pretrained(path)
    if processor.chat_template or processor.tokenizer.chat_template:
        speaks(processor, path)
    return processor


def speaks(processor: Any, path: str) -> None:
    """ValueError unless the chat template passes the user's words on: a damaged one would drop them."""
    said = "a red fox in the snow"
    try:
        text = processor.apply_chat_template(messages(Request(said, said)), add_generation_prompt=True)
    except Exception as error:  # whatever a template, which is a program, may raise
        raise ValueError(f"the chat template of {path} cannot be used: {first_line(error)}") from error
    if said not in text:
        raise ValueError(
            f"the chat template of {path} leaves out what the user says; copy or download it again"
        )
