"""A server on loopback that speaks as much of vLLM's protocol as the rollouts use, with a real tiny model.

It has its own copy of the base weights, its own reading of the messages and its own distribution: what a
request does not say comes from the model's generation_config, as with vLLM. Drafts are drawn by inverting
the distribution function at numbers from the request's seed, as the package does, so that an exact server
draws the package's own drafts.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image

from promptloop.policies.decoding import Inputs, decode, positions, prefill
from promptloop.policies.mllm import Mllm

DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "min_p": 0.0}
KNOWN = {  # fields of vLLM's ChatCompletionRequest
    *DEFAULTS, "model", "messages", "max_completion_tokens", "stop_token_ids", "logit_bias", "n", "seed",
    "add_special_tokens", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs",
    "return_token_ids", "skip_special_tokens",
}  # fmt: skip


class Refused(Exception):
    """An answer that is an error: status and message."""


class Engine:
    """The model behind the server. `scale` multiplies its logits: 1 is exact, anything else another engine.

    `raw`: log-probs of the logits as they are, before temperature and logit_bias (vLLM's default mode).
    """

    def __init__(self, folder: Path, *, scale: float = 1.0, raw: bool = False, loras: bool = True) -> None:
        base = Mllm.load(folder)
        self.network, self.processor = base.network, base.processor
        self.scale, self.raw, self.loras = scale, raw, loras
        self.loaded: dict[str, str] = {}
        self.history: list[tuple[str, dict[str, Any]]] = []
        self.failures: list[int] = []
        self.lock = threading.Lock()

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any] | str:
        with self.lock, torch.no_grad():
            self.history.append((path, body))
            if self.failures:
                raise Refused(self.failures.pop(0), "told to fail")
            if path == "/v1/chat/completions":
                return self.chat(body)
            if path == "/v1/load_lora_adapter" and self.loras:
                return self.load(body["lora_name"], body["lora_path"])
            if path == "/v1/unload_lora_adapter" and self.loras:
                return self.unload(body["lora_name"])
        raise Refused(404, "Not Found")

    def load(self, name: str, path: str) -> str:
        if name in self.loaded:
            raise Refused(400, f"The lora adapter '{name}' has already been loaded.")
        if isinstance(self.network, PeftModel):
            self.network.load_adapter(path, name)
        else:
            self.network = PeftModel.from_pretrained(self.network, path, adapter_name=name)
        self.network.eval()
        self.loaded[name] = path
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, name: str) -> str:
        if self.loaded.pop(name, None) is None:
            raise Refused(404, f"The lora adapter '{name}' cannot be found.")
        if self.loaded:
            self.network.set_adapter(next(iter(self.loaded)))
        self.network.delete_adapter(name)
        return f"Success: LoRA adapter '{name}' removed successfully."

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["model"] not in self.loaded:
            raise Refused(404, f"The model `{body['model']}` does not exist.")
        if unknown := set(body) - KNOWN:
            raise Refused(400, f"unknown fields {unknown}")
        self.network.set_adapter(body["model"])
        inputs, limit = self.read(body), body["max_completion_tokens"]
        says, temperature = self.network.generation_config, body.get("temperature")
        temperature = temperature if temperature is not None else says.temperature
        top_k = body.get("top_k", says.top_k)
        bias = torch.zeros(self.network.get_output_embeddings().weight.shape[0])
        for token, value in body.get("logit_bias", {}).items():
            bias[int(token)] = value

        def log_softmax(logits: torch.Tensor) -> torch.Tensor:
            logits = (logits.float() * self.scale + bias) / (temperature or 1.0)
            if top_k:
                logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
            return logits.log_softmax(-1)

        uniforms = None
        if temperature:
            rng = torch.Generator().manual_seed(body["seed"])
            uniforms = torch.rand(limit, generator=rng)[None]
        read = prefill(self.network, inputs, image_token=None, reuse=False)
        stop = torch.tensor(body["stop_token_ids"])
        kept: list[torch.Tensor] = []

        def told(logits: torch.Tensor, place: int) -> torch.Tensor:
            kept.append(logits.float().log_softmax(-1)[0])
            return log_softmax(logits)

        (tokens,), (log_probs,) = decode(
            self.network, read, log_softmax=told, uniforms=uniforms, stop=stop, limit=limit
        )
        if self.raw:
            log_probs = torch.stack(kept)[: len(tokens)].gather(1, tokens[:, None])[:, 0]
        return self.said(body, inputs, tokens.tolist(), log_probs.tolist())

    def said(self, body: dict[str, Any], inputs: Inputs, tokens: list[int], log_probs: list[float]) -> dict:
        words = self.processor.tokenizer
        ended = tokens[-1] in body["stop_token_ids"]
        text = words.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
        content = [{"token": words.decode([i]), "logprob": p} for i, p in zip(tokens, log_probs, strict=True)]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "logprobs": {"content": content} if body.get("logprobs") else None,
            "finish_reason": "stop" if ended else "length",
            "token_ids": tokens if body.get("return_token_ids") else None,
        }
        prompt = inputs.ids[0].tolist() if body.get("return_token_ids") else None
        return {"object": "chat.completion", "choices": [choice], "prompt_token_ids": prompt}

    def read(self, body: dict[str, Any]) -> Inputs:
        """The messages through the model's own chat template and processor."""
        pictures: list[Image.Image] = []
        turns = []
        for turn in body["messages"]:
            parts = []
            for part in turn["content"]:
                if part["type"] == "image_url":
                    coded = part["image_url"]["url"].removeprefix("data:image/png;base64,")
                    pictures.append(Image.open(io.BytesIO(base64.b64decode(coded))).convert("RGB"))
                    part = {"type": "image"}
                parts.append(part)
            turns.append({"role": turn["role"], "content": parts})
        text = self.processor.apply_chat_template(turns, add_generation_prompt=True)
        encoded = self.processor(
            text=[text], images=[pictures] if pictures else None, return_tensors="pt",
            add_special_tokens=body.get("add_special_tokens", False),
        )  # fmt: skip
        tensors = dict(encoded.items())
        places = positions(self.network, tensors)
        return Inputs(tensors.pop("input_ids"), tensors.pop("attention_mask"), places, tensors)


@contextmanager
def stand_in(folder: Path | str, **settings: Any) -> Iterator[tuple[str, Engine]]:
    """The address (ending in /v1) and the engine of a server that runs as long as the context."""
    engine = Engine(Path(folder), **settings)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                status, said = 200, engine.answer(self.path, body)
            except Refused as refused:
                status, why = refused.args
                said = {"error": {"message": why, "code": status}}
            text = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", engine
    finally:
        server.shutdown()
        server.server_close()
