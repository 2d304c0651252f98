# SPDX-License-Identifier: Apache-2.0
"""What the readers complain about, by `warnings` or by a logger, minus what they say to each other."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator

# What the libraries say to each other, whatever the checkpoint. Each is told by its whole text.
_NOISE = (
    # transformers 5.20 deprecates a property that PEFT 0.21 still asks for.
    r"FutureWarning: `is_gradient_checkpointing` is deprecated .*",
    # transformers 5.18 deprecates a property that PEFT 0.20 still asks for, with every head of its own.
    r"transformers\.configuration_utils: `use_return_dict` is deprecated! Use `return_dict` instead!",
    # transformers 5.0 says so of the rope parameters of every Gemma 3, which it writes itself.
    r"transformers\.modeling_rope_utils: Unrecognized keys in `rope_parameters` for .*'(full|sliding)_attention'.*",
    # PEFT 0.18 says so of every module whose parameters it wraps.
    r"UserWarning: Unsupported layer type '<class '[\w.]+Experts'>' encountered, proceed at your own risk\.",
    # PEFT 0.18 says so of every head that is trained whole, of models too whose config ties nothing.
    r"UserWarning: Model has `tie_word_embeddings=True` and a tied layer is part of the adapter, .*",
    # PEFT 0.19+ looks for the patterns of parameters among modules, and applies them all the same: those by which it
    # doubles gate_up's rank while it converts per-expert LoRA, and those of dense weights.
    r"RuntimeWarning: The following \w+_pattern keys did not match any targeted module .*(gate_up_proj|\.weight)'\]\.",
)


class _Recorder(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.name}: {record.getMessage()}")


@contextlib.contextmanager
def complaints() -> Iterator[list[str]]:
    """Every warning while the block runs, as texts; complete when the block has ended."""
    found: list[str] = []
    recorder = _Recorder(found)
    # transformers keeps its records from the root logger; those of PEFT and of a model's own code arrive there.
    loggers = [logging.getLogger(), logging.getLogger("transformers")]
    for logger in loggers:
        logger.addHandler(recorder)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
            found += [f"{one.category.__name__}: {one.message}" for one in caught]
    finally:
        for logger in loggers:
            logger.removeHandler(recorder)
    found[:] = [text for text in found if not any(re.fullmatch(noise, text) for noise in _NOISE)]
