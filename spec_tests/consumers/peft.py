"""PEFT on a transformers model: what it makes of an adapter directory. Executed, not modelled."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spec_tests.consumers.clean_process import in_clean_process


@dataclass(frozen=True)
class Reload:
    """What came of loading an adapter.

    Attributes:
        modules: names of the modules that PEFT attached LoRA to, sorted.
        missing: keys of LoRA parameters that the file has no tensor for.
        ignored: keys of the file that no parameter took.
        complaints: every warning, by `warnings` or by a logger.
        logits: [batch, length, vocab] as nested lists.
        base_logits: the same before the adapter was loaded.
    """

    modules: list[str]
    missing: list[str]
    ignored: list[str]
    complaints: list[str]
    logits: Any
    base_logits: Any


def reload(base: Path, adapter: Path, input_ids: Any, model_class: str = "AutoModelForCausalLM") -> Reload:
    """Load ``base`` with transformers and ``adapter`` with PEFT in a clean process and run ``input_ids``."""
    return in_clean_process(_reload, str(base), str(adapter), input_ids.tolist(), model_class)


def expected_modules(modules: Iterable[str]) -> list[str]:
    """The names under which PEFT on transformers 5 attaches to what the file names expert by expert, sorted.

    PEFT converts such adapters on loading: a layer's experts become two nested wrappers of one module. Other
    names stay as they are.
    """
    names = set()
    for module in modules:
        if expert := re.fullmatch(r"(.+\.experts)\.\d+\.(\w+)", module):
            names.add(expert[1] if expert[2] == "down_proj" else f"{expert[1]}.base_layer")
        else:
            names.add(module)
    return sorted(names)


def read_config(adapter: Path) -> tuple[dict[str, Any], list[str]]:
    """PEFT's own reading of adapter_config.json, and what it complained about."""
    return in_clean_process(_read_config, str(adapter))


def _reload(base: str, adapter: str, input_ids: list[list[int]], model_class: str) -> Reload:
    import peft
    import torch
    import transformers

    ids = torch.tensor(input_ids)
    with _complaints() as complaints, torch.no_grad():
        model = getattr(transformers, model_class).from_pretrained(base, attn_implementation="eager").eval()
        base_logits = model(input_ids=ids).logits.float().tolist()
        loaded = peft.PeftModel.from_pretrained(model, adapter).eval()
        logits = loaded(input_ids=ids).logits.float().tolist()
        # from_pretrained keeps to itself which keys found no place; loading once more into the same adapter says it.
        result = loaded.load_adapter(adapter, "default")
    layers = peft.tuners.lora.LoraLayer
    modules = sorted(name for name, module in loaded.base_model.model.named_modules() if isinstance(module, layers))
    return Reload(modules, sorted(result.missing_keys), sorted(result.unexpected_keys), complaints, logits, base_logits)


def _read_config(adapter: str) -> tuple[dict[str, Any], list[str]]:
    import peft

    with _complaints() as complaints:
        config = peft.LoraConfig.from_pretrained(adapter)
    return {name: _plain(value) for name, value in config.to_dict().items()}, complaints


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value


# What the libraries say to each other, whatever the adapter. Each is told by its whole text.
_NOISE = (
    # transformers 5.20 deprecates a property that PEFT 0.21 still asks for.
    r"FutureWarning: `is_gradient_checkpointing` is deprecated .*",
    # PEFT 0.19+ doubles gate_up's rank through patterns while it converts per-expert LoRA, and looks for them
    # among modules although they are for parameters.
    r"RuntimeWarning: The following (rank|alpha)_pattern keys did not match any targeted module .*gate_up_proj'\]\.",
)


class _Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.name}: {record.getMessage()}")


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """Every warning while the block runs, as texts."""
    found: list[str] = []
    recorder = _Recorder()
    recorder.messages = found
    loggers = [logging.getLogger(), logging.getLogger("transformers"), logging.getLogger("peft")]
    for logger in loggers:
        logger.addHandler(recorder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
        found += [f"{one.category.__name__}: {one.message}" for one in caught]
    for logger in loggers:
        logger.removeHandler(recorder)
    found[:] = [text for text in found if not any(re.fullmatch(noise, text) for noise in _NOISE)]
