"""PEFT on a transformers model: what it makes of an adapter directory. Executed, not modelled."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spec_tests.consumers.clean_process import in_clean_process
from spec_tests.consumers.complaints import complaints


@dataclass(frozen=True)
class Reload:
    """What came of loading an adapter.

    Attributes:
        modules: names of the modules that PEFT attached LoRA to, sorted.
        missing: keys of LoRA parameters that the file has no tensor for.
        ignored: keys of the file that no parameter took.
        complaints: every warning, by `warnings` or by a logger.
        logits: [batch, length, vocab] as nested lists; the last hidden state of a model without logits.
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
    with complaints() as heard, torch.no_grad():
        model = getattr(transformers, model_class).from_pretrained(base, attn_implementation="eager").eval()
        base_logits = _outputs(model(input_ids=ids))
        loaded = peft.PeftModel.from_pretrained(model, adapter).eval()
        logits = _outputs(loaded(input_ids=ids))
        # from_pretrained keeps to itself which keys found no place; loading once more into the same adapter says it.
        result = loaded.load_adapter(adapter, "default")
    layers = peft.tuners.lora.LoraLayer
    modules = sorted(name for name, module in loaded.base_model.model.named_modules() if isinstance(module, layers))
    return Reload(modules, sorted(result.missing_keys), sorted(result.unexpected_keys), heard, logits, base_logits)


def _outputs(found: Any) -> Any:
    return (found.logits if "logits" in found else found.last_hidden_state).float().tolist()


def _read_config(adapter: str) -> tuple[dict[str, Any], list[str]]:
    import peft

    with complaints() as heard:
        config = peft.LoraConfig.from_pretrained(adapter)
    return {name: _plain(value) for name, value in config.to_dict().items()}, heard


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value
