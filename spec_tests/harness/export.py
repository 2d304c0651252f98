"""Save with the implementation under test, through its hooks, and read back what is on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from spec_tests.implementations.base import Implementation

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
METADATA_CLAIM = "automodel_peft_config"
INDEX_MAPPING = "fqn_to_file_index_mapping.json"
_ENDINGS = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")
OPTIONAL: Mapping[str, Any] = {"tokenizer": None, "original_model_path": None, "v4_compatible": False}
"""What callers always pass, although it may be left out (HOOK-008 is about that, and no other clause)."""


@dataclass(frozen=True)
class Adapter:
    """An adapter directory, read without PEFT."""

    directory: Path

    @property
    def config(self) -> dict[str, Any]:
        """adapter_config.json."""
        return self._json("adapter_config.json")

    @property
    def metadata(self) -> dict[str, Any]:
        """automodel_peft_config.json."""
        return self._json("automodel_peft_config.json")

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """adapter_model.safetensors."""
        tensors: dict[str, torch.Tensor] = load_file(self.directory / WEIGHTS)
        return tensors

    @property
    def modules(self) -> list[str]:
        """The modules that have LoRA tensors, sorted; a key of no known form that is no head's stands for itself."""
        heads = tuple(self.config.get("modules_to_save") or ())
        return sorted({_module(key) for key in self.tensors if not (heads and _of_head(key, heads))})

    def _json(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.directory / name).read_text(encoding="utf-8"))
        return content


def hook_files(impl: Implementation) -> list[str]:
    """The files that the hooks write for an adapter without a tokenizer, sorted."""
    return ["adapter_config.json", *(["automodel_peft_config.json"] if METADATA_CLAIM in impl.claims else [])]


def run_hook(impl: Implementation, hook: str, **kwargs: Any) -> Any:
    """Call a hook of a fresh PEFT add-on with the implementation's own spelling of the keywords."""
    return getattr(impl.peft_addon(), hook)(**impl.translate(f"PeftAddon.{hook}", kwargs))


def run_consolidated(impl: Implementation, hook: str, **kwargs: Any) -> Any:
    """Call a hook of a fresh add-on for whole models, likewise."""
    if impl.consolidated_addon is None:
        raise LookupError(f"{impl.name} has no ConsolidatedHFAddon")
    return getattr(impl.consolidated_addon(), hook)(**impl.translate(f"ConsolidatedHFAddon.{hook}", kwargs))


def spelled(impl: Implementation, hook: str, keyword: str) -> str:
    """A keyword of ``"PeftAddon.pre_save"`` or another hook as the implementation spells it; errors name that."""
    mark = object()
    names = [name for name, value in impl.translate(hook, {keyword: mark}).items() if value is mark]
    return names[0] if names else keyword


def stage_metadata(impl: Implementation, model: Any, directory: Path, **kwargs: Any) -> Path:
    """Run the whole-model add-on's `pre_save` over ``model`` (a module or a list of parts); returns the directory."""
    save = {"model_state": impl.model_state(model, is_peft=False), "hf_metadata_dir": str(directory)}
    run_consolidated(impl, "pre_save", **{**OPTIONAL, **save, "fqn_to_file_index_mapping": {"weight": 1}, **kwargs})
    return directory


def bring_out(
    impl: Implementation, staged: Path, consolidated: Path | str | None, name: str = "hf_metadata_path"
) -> None:
    """Run the whole-model add-on's `post_save`; ``name`` is what the staging directory is called (POST-006)."""
    target = consolidated if not consolidated else str(consolidated)
    run_consolidated(impl, "post_save", consolidated_path=target, **{name: str(staged)})


def staged_json(
    impl: Implementation, model: Any, directory: Path, name: str = "config.json", **kwargs: Any
) -> dict[str, Any]:
    """Stage the metadata of ``model``, and read one of its files."""
    text = (stage_metadata(impl, model, directory, **kwargs) / name).read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def save_metadata(impl: Implementation, model: Any, directory: Path, peft_config: Any = None, **kwargs: Any) -> Adapter:
    """Run both hooks over ``model`` (a module or a list of parts) as a checkpointer does, without the weights.

    ``pp_group`` goes to the model state, everything else to the hooks.
    """
    pp_group = kwargs.pop("pp_group", None)
    save = {
        **OPTIONAL,
        "model_path": str(directory),
        "model_state": impl.model_state(model, is_peft=True, pp_group=pp_group),
        "peft_config": impl.peft_config(dim=4, alpha=8) if peft_config is None else peft_config,
        **kwargs,
    }
    run_hook(impl, "pre_save", **save)
    run_hook(impl, "post_save", **save)
    return Adapter(directory)


def save_adapter(impl: Implementation, model: Any, directory: Path, peft_config: Any = None, **kwargs: Any) -> Adapter:
    """As `save_metadata`, with the weights that a checkpointer would write between the hooks."""
    model_state = impl.model_state(model, is_peft=True, pp_group=kwargs.get("pp_group"))
    form = {name: kwargs[name] for name in ("v4_compatible", "legacy_paramwrapper_layout") if name in kwargs}
    tensors = impl.adapter_tensors(model_state, **form)
    written = save_metadata(impl, model, directory, peft_config, **kwargs)
    save_file({key: tensors[key].contiguous() for key in sorted(tensors)}, directory / WEIGHTS)
    return written


def indexed_weights(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a whole model, from the file that the index names for it."""
    if not (path := directory / "model.safetensors.index.json").exists():
        return dict(load_file(directory / "model.safetensors"))  # one file under its plain name needs no index
    index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    files = {name: load_file(directory / name) for name in set(index.values())}
    return {name: files[file][name] for name, file in index.items()}


def snapshot(directory: Path) -> dict[str, bytes]:
    """Every file below ``directory`` by relative path; a directory without files counts as an entry too."""
    if not directory.exists():
        return {}
    return {
        str(path.relative_to(directory)) + ("/" if path.is_dir() else ""): b"" if path.is_dir() else path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if not path.is_dir() or not any(path.iterdir())
    }


def error_of(call: Callable[[], Any]) -> Exception | None:
    """The exception that ``call`` raises, or None; for clauses on what an error says and leaves behind."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the clause decides which errors are right
        return error
    return None


REFUSED = (TypeError, ValueError, RuntimeError)
"""What a save that cannot be made ends in (NotImplementedError is a RuntimeError)."""

WRONG_VALUE = (TypeError, ValueError)
"""What a value of another kind than a hook, or a file, can take ends in."""


def refusal(
    save: Callable[[], Any],
    directory: Path,
    *,
    naming: str | Iterable[str] = (),
    kinds: type[Exception] | tuple[type[Exception], ...] = REFUSED,
) -> Exception:
    """The error of a save that has to be refused, for a look at what else it says.

    Args:
        save: the save.
        directory: what is in it has to stay as it is; mostly that is nothing.
        naming: what the error, or one of those it came from, has to name.
        kinds: one of these the error has to be.

    Raises:
        AssertionError: the save was not refused, or not so.
    """
    before = snapshot(directory)
    error = error_of(save)
    after, said, wrong = snapshot(directory), text_of(error), []
    if not isinstance(error, kinds):
        wrong.append(f"refused with {error!r}, which is not of {kinds}" if error else "not refused")
    names = [naming] if isinstance(naming, str) else naming
    wrong += [f"{name!r} is not named in {said!r}" for name in names if name not in said]
    wrong += [f"{name} has changed" for name in sorted(before.keys() | after) if before.get(name) != after.get(name)]
    if error is None or wrong:
        raise AssertionError("; ".join(wrong)) from error
    return error


def text_of(error: BaseException | None) -> str:
    """The messages of an error and of those it came from: a foreign implementation may wrap them."""
    parts = []
    while error is not None:
        parts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return "\n".join(parts)


def _of_head(key: str, heads: tuple[str, ...]) -> bool:
    # PEFT keeps every module whose name ends like a listed one.
    segments = key.removeprefix(PREFIX).split(".")
    return any(".".join(segments[:depth]).endswith(heads) for depth in range(1, len(segments)))


def _module(key: str) -> str:
    ending = next((ending for ending in _ENDINGS if key.endswith(ending)), "")
    return key.removeprefix(PREFIX).removesuffix(ending) if ending and key.startswith(PREFIX) else key


def same_numbers(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Whether two state dicts have the same keys and the same values, bit by bit."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
