# SPDX-License-Identifier: Apache-2.0
"""Tokenizer files beside a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""What tokenizers of transformers write. Another tokenizer's left over beside the new one would be read with it."""


def save_tokenizer(tokenizer: Any, directory: Path) -> tuple[str, ...]:
    """Save the tokenizer, or whatever else has ``save_pretrained``; returns the names that this save replaces.

    Without a tokenizer nothing is replaced: the files that are there may have been put there by somebody else.
    """
    if tokenizer is None:
        return ()
    tokenizer.save_pretrained(str(directory))
    return TOKENIZER_FILES
