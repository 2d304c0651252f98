"""A tokenizer built in memory, and doubles that fail, take their time or keep count when they are saved."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"


def tokenizer(vocab: int = 64) -> transformers.PreTrainedTokenizerFast:
    """A word-level tokenizer of ``vocab`` words: pad 0, bos 1, eos 2, unk 3, then w0, w1, ..."""
    words = [*SPECIAL, *(f"w{index}" for index in range(vocab - len(SPECIAL)))]
    numbers = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    made.chat_template = CHAT_TEMPLATE
    return made


class FailingTokenizer:
    """save_pretrained writes part of one file, then raises ``error``: a full disk, seen from outside."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error or OSError(28, "No space left on device (injected)")

    def save_pretrained(self, save_directory: str | Path, **_kwargs: Any) -> tuple[str, ...]:
        """Leave a truncated tokenizer_config.json behind and raise."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        (Path(save_directory) / "tokenizer_config.json").write_text('{"chat_template": "')
        raise self.error


class SlowTokenizer:
    """Takes its time to save one file, so that a rank that does not wait is seen."""

    def save_pretrained(self, save_directory: str | Path, **_kwargs: Any) -> None:
        """Sleep half a second, then save."""
        time.sleep(0.5)
        (Path(save_directory) / "tokenizer.json").write_text("{}")


class RecordingTokenizer:
    """Saves like the tokenizer it holds; ``saved_to`` lists every directory it was asked to save to."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner if inner is not None else tokenizer()
        self.saved_to: list[str] = []

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> tuple[str, ...]:
        """Record, then save; returns the names of the files as the held tokenizer does."""
        self.saved_to.append(str(save_directory))
        return self.inner.save_pretrained(str(save_directory), **kwargs)
