# SPDX-License-Identifier: Apache-2.0
"""Tokenizer files beside a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .files import write_text
from .json_content import json_text

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


def save_tokenizer(tokenizer: Any, directory: Path, v4_compatible: bool) -> tuple[str, ...]:
    """Save the tokenizer, or whatever else has ``save_pretrained``; returns the names that this save replaces.

    With ``v4_compatible`` the settings are spelled as versions 4 and 5 of transformers both read them (clause TOK-005).
    Without a tokenizer nothing is replaced: the files that are there may have been put there by somebody else.
    """
    if tokenizer is None:
        return ()
    tokenizer.save_pretrained(str(directory))
    path = directory / "tokenizer_config.json"
    if v4_compatible and path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("tokenizer_class") == "TokenizersBackend":
            content["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(content.get("extra_special_tokens"), list):
            content["additional_special_tokens"] = content.pop("extra_special_tokens")
        write_text(path, json_text(content))
    return TOKENIZER_FILES


def tokenizer_files(directory: Path) -> tuple[str, ...]:
    """The names that the tokenizer in ``directory`` replaces where it is published; none when there is none."""
    return TOKENIZER_FILES if (directory / "tokenizer_config.json").exists() else ()
