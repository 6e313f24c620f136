"""Tokenizers of the embedded models: each of the world's words is one token, in every build the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from promptloop.world.words import NUMBERS, PLACES, SYNONYMS, plural

WINDOW = 20  # tokens the text encoders read, begin and end included


def vocabulary() -> list[str]:
    """Every word the backbones' tokenizer knows as one token."""
    words = {w for meaning, others in SYNONYMS.items() for text in (meaning, *others) for w in text.split()}
    words |= {plural(w) for w in words}
    words |= {w for text in (*NUMBERS.values(), *PLACES.values()) for w in text.split()}
    words |= {"a", "an", "and", "at", "the", "of", "on", "in", "to", "with"}
    words |= {"picture", "photo", "background", "shape", "shapes", ","}
    return sorted(words)


def merges(spelled: list[list[str]]) -> list[tuple[str, str]]:
    """Byte-pair merges that make one token of each word: the commonest pair first, ties by the alphabet.

    The tokenizers library breaks ties differently in every process; a rebuild must give the same ids.
    """
    learned: list[tuple[str, str]] = []
    while any(len(parts) > 1 for parts in spelled):
        counts = Counter(pair for parts in spelled for pair in pairwise(parts))
        pair = min(counts, key=lambda p: (-counts[p], p))
        learned.append(pair)
        spelled = [joined(parts, pair) for parts in spelled]
    return learned


def joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """``parts`` with every occurrence of ``pair`` put together, from the left."""
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def tokenizer() -> Any:
    """A CLIP tokenizer that reads each word of ``vocabulary`` as one token."""
    from transformers import CLIPTokenizer

    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789,.")
    learned: Any = merges([[*word[:-1], word[-1] + "</w>"] for word in vocabulary()])
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(pair) for pair in learned]
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={t: i for i, t in enumerate(tokens)},
        merges=learned,
        model_max_length=WINDOW,
        pad_token="<|endoftext|>",
    )


def t5_tokenizer() -> Any:
    """A T5 (unigram) tokenizer over the same words."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -100.0), ("\u2581", -8.0)]
    pieces += [("\u2581" + word, -1.0) for word in vocabulary()] + [
        (c, -10.0) for c in "abcdefghijklmnopqrstuvwxyz0123456789,."
    ]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=WINDOW)


def chat_tokenizer(texts: Iterable[str], special: list[str]) -> Any:
    """A byte-level BPE in which the words of ``texts`` are single tokens (those seen three times or more)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    seen = Counter(piece for text in texts for piece, _ in split.pre_tokenize_str(text))
    words = sorted(w for w, times in seen.items() if times >= 3 and any(c.isalpha() for c in w))
    learned = merges([list(word) for word in words])
    tokens = [*special, *sorted(split.alphabet()), *("".join(pair) for pair in learned)]
    vocab = {t: i for i, t in enumerate(dict.fromkeys(tokens))}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=learned))
    bpe.add_special_tokens(special)
    bpe.pre_tokenizer = split
    bpe.decoder = decoders.ByteLevel()
    return bpe
