"""Four-bit weights for the policy: QLoRA's NF4 (arXiv 2305.14314) through bitsandbytes, an optional extra."""

from __future__ import annotations

from typing import Any, Literal

import torch

from promptloop.names import one_of

Quantize = Literal["none", "4bit"]


def quantized(quantize: Quantize, dtype: torch.dtype, device: str | torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told beside the rest; {} for "none".

    The language model's and the eyes' linear layers are kept in four bits and multiplied in `dtype`; the
    output head stays as it is. ValueError where bitsandbytes is not installed or does not know the device.
    """
    one_of(quantize, ("none", "4bit"), "quantize")
    if quantize == "none":
        return {}
    try:
        import bitsandbytes
    except ImportError as error:
        raise ValueError("quantize 4bit needs bitsandbytes: pip install 'promptloop[4bit]'") from error
    from transformers import BitsAndBytesConfig

    kind = torch.device(device).type
    known = sorted(bitsandbytes.supported_torch_devices)
    if kind not in known:
        raise ValueError(
            f"quantize 4bit does not work on {kind}: bitsandbytes {bitsandbytes.__version__} knows "
            f"{', '.join(known)}; load the policy without it"
        )
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}
