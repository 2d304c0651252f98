"""PEFT on a transformers model: what it makes of an adapter directory. Executed, not modelled."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spec_tests.consumers.clean_process import in_clean_process
from spec_tests.consumers.complaints import complaints
from spec_tests.consumers.forms import FUSED_WEIGHTS, is_read
from spec_tests.consumers.outputs import computed


@dataclass(frozen=True)
class Reload:
    """What came of loading an adapter.

    Attributes:
        modules: names of the modules that PEFT attached LoRA to, sorted.
        missing: keys of LoRA parameters that the file has no tensor for.
        ignored: keys of the file that no parameter took.
        complaints: every warning, by `warnings` or by a logger.
        logits: what `computed` takes of the output, as nested lists.
        base_logits: the same before the adapter was loaded.
    """

    modules: list[str]
    missing: list[str]
    ignored: list[str]
    complaints: list[str]
    logits: Any
    base_logits: Any


def reload(base: Path, adapter: Path, inputs: Mapping[str, Any], auto_class: str = "AutoModelForCausalLM") -> Reload:
    """Load ``base`` with transformers and ``adapter`` with PEFT in a clean process and run ``inputs`` (tensors)."""
    plain = {name: tensor.tolist() for name, tensor in inputs.items()}
    return in_clean_process(_reload, str(base), str(adapter), plain, auto_class)


def expected_modules(modules: Iterable[str]) -> list[str]:
    """The names under which PEFT attaches to what the file names, sorted.

    Under transformers 5 PEFT converts what is named expert by expert on loading: a layer's experts become two
    nested wrappers of one module. Other names stay as they are, and under transformers 4 all.
    """
    if not is_read(FUSED_WEIGHTS):
        return sorted(set(modules))
    names = set()
    for module in modules:
        if expert := re.fullmatch(r"(.+\.experts)\.\d+\.(\w+)", module):
            names.add(expert[1] if expert[2] == "down_proj" else f"{expert[1]}.base_layer")
        else:
            names.add(module)
    return sorted(names)


def targeted(config: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of the names that PEFT takes for targets by a config, in whatever form that lists them; sorted."""
    import peft
    from peft.tuners.tuners_utils import check_target_module_exists

    known = {name: config.get(name) for name in ("target_modules", "exclude_modules")}
    read = peft.LoraConfig(**known)
    return sorted(name for name in names if check_target_module_exists(read, name))


def read_config(adapter: Path) -> tuple[dict[str, Any], list[str]]:
    """PEFT's own reading of adapter_config.json, and what it complained about."""
    return in_clean_process(_read_config, str(adapter))


def _reload(base: str, adapter: str, plain: dict[str, Any], auto_class: str) -> Reload:
    import peft
    import torch
    import transformers

    inputs = {name: torch.tensor(value) for name, value in plain.items()}
    with complaints() as heard, torch.no_grad():
        model = getattr(transformers, auto_class).from_pretrained(base, attn_implementation="eager").eval()
        base_logits = computed(model(**inputs)).float().tolist()
        loaded = peft.PeftModel.from_pretrained(model, adapter).eval()
        logits = computed(loaded(**inputs)).float().tolist()
        # from_pretrained keeps to itself which keys found no place; loading once more into the same adapter says it.
        result = loaded.load_adapter(adapter, "default")
    layers = peft.tuners.lora.LoraLayer
    modules = sorted(name for name, module in loaded.base_model.model.named_modules() if isinstance(module, layers))
    return Reload(modules, sorted(result.missing_keys), sorted(result.unexpected_keys), heard, logits, base_logits)


def _read_config(adapter: str) -> tuple[dict[str, Any], list[str]]:
    import peft

    with complaints() as heard:
        config = peft.LoraConfig.from_pretrained(adapter)
    return {name: _plain(value) for name, value in config.to_dict().items()}, heard


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value
