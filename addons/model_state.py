# SPDX-License-Identifier: Apache-2.0
"""Which tensors are saved, and under which name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import nn

from .experts import Form
from .gathering import united_stages
from .heads import Heads, heads
from .hf_names import Publication
from .lora_sites import LoraSite, lora_sites
from .modules import ModelPart, model_parts
from .ranks import attempt
from .whole import wholes

PEFT_PREFIX = "base_model.model."


class ModelState:
    """The training state of one model, which may be held in several parts (pipeline stages).

    Args:
        model: one module, or the list of this rank's parts.
        is_peft: save the LoRA tensors only.
        pp_group: pipeline group whose ranks hold the other parts; their adapters are united on saving.

    Attributes:
        model: list of parts, also when one module was given.

    Raises:
        TypeError: ``model`` is neither a module nor a list of modules.
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        is_peft: bool = False,
        pp_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.model = [model] if isinstance(model, nn.Module) else list(model)
        if not self.model or not all(isinstance(part, nn.Module) for part in self.model):
            raise TypeError(f"model must be a torch module or a list of at least one, got {model!r}")
        self.is_peft = is_peft
        self.pp_group = pp_group

    def state_dict(self) -> dict[str, Any]:
        """The tensors to save: the adapter's (`is_peft`), or the whole model's as `whole_model` gives them.

        The adapter's tensors, a trained head among them, are full, detached, on the CPU, under native names behind
        ``base_model.model.``.

        Every rank of the model has to call it, since sharded tensors are gathered; every rank gets the whole.
        DoRA's ``lora_magnitude`` is already under PEFT's name ``lora_magnitude_vector``. The state-dict
        adapter of the model is not applied: that is the caller's step (see `hf_tensors`).

        Raises:
            ValueError: as `lora_sites`; or two ranks of ``pp_group`` hold different values of one parameter.
        """
        parts = model_parts(self.model)
        if not self.is_peft:
            return whole_model(parts)
        local = {name: _full(tensor) for name, tensor in AdapterContent.of(parts).tensors().items()}
        return local if self.pp_group is None else united_stages(local, self.pp_group)


class EncoderStateDictAdapter:
    """Conversion for encoders that a trainer wraps as ``model``: that prefix is not in the HF names (clause TGT-015).

    Keys without the prefix pass unchanged, so that nothing which was trained is lost.
    """

    def to_hf(self, state_dict: dict[str, torch.Tensor], **_kwargs: Any) -> dict[str, torch.Tensor]:
        """Strip ``model.`` from the start of each key, or from behind ``base_model.model.``."""
        return {_without_model(name): tensor for name, tensor in state_dict.items()}


def whole_model(parts: Sequence[ModelPart]) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers of all parts, detached, sharded as they are, under clean native names.

    Scalars and counters are among them, as any other (clause LOAD-008).

    Of a tied weight the alias is left out where transformers ties it again on loading; any other alias is a copy
    of its own, since weights files hold no shared memory (clause IDX-004). What transformers never saves of a model
    (it makes it afresh) is left out too (clause IDX-015).

    Raises:
        ValueError: a part carries LoRA, which a whole-model checkpoint has no place for (clause MRG-001).
    """
    if sites := lora_sites(parts):
        raise ValueError(
            f"a whole model must be free of LoRA, got some on {sites[0].module!r}: save an adapter, or pass "
            "merge_lora=True to save_consolidated"
        )
    tensors: dict[str, torch.Tensor] = {}
    for part in parts:
        tied = _tied_again(part.model)
        if {"embedding", "head"} <= embedding_tensors(part):
            tied = []  # the saved config says so at every depth, and transformers ties nothing at all
        named: dict[int, list[str]] = {}
        for name, tensor in part.tensors():
            named.setdefault(id(tensor), []).append(name)
        aliases = {name for names in named.values() for name in _aliases(names, tied)}
        left_out = {*aliases, *(getattr(part.model, "_keys_to_ignore_on_save", None) or ())}
        for name, tensor in part.tensors():
            if name not in left_out:
                shared = named[id(tensor)][0] != name
                tensors[name] = tensor.detach().clone() if shared else tensor.detach()
    return tensors


def _aliases(names: Sequence[str], tied: Sequence[str]) -> list[str]:
    """Which names of one tensor transformers ties to the others on loading."""
    found = [name for name in names if any(re.search(pattern, name) for pattern in tied)] if len(names) > 1 else []
    return found if len(found) < len(names) else found[1:]


class PublishedModel:
    """`whole_model` under the names that readers know: by the model's own conversion, or else by transformers'.

    Made on every rank, then `gather`, then `tensors`: ranks agree in between that all have come so far.
    """

    def __init__(self, parts: Sequence[ModelPart], form: Form) -> None:
        self._parts, self._form, self._adapter = parts, form, state_dict_adapter(parts)
        self._found = [whole_model([part]) for part in parts]
        # A stage that is a plain module has the names of the model that another stage is.
        known = [part for part in parts if isinstance(part.model, transformers.PreTrainedModel)]
        models = [part if part in known else (known or [part])[0] for part in parts]
        pairs = zip(models, self._found, strict=True) if self._adapter is None else ()
        self._publications = [Publication.of(part, tensors) for part, tensors in pairs]

    def gather(self) -> None:
        """Make whole what is split or joined. Collective; raises as `wholes`."""
        splits = getattr(self._adapter, "splits", lambda _name, _form: False)
        changed = {
            (at, name): found[name]
            for at, found in enumerate(self._found)
            for name in (self._publications[at].changed if self._publications else found)
            if self._publications or splits(name, self._form)
        }
        for (at, name), tensor in wholes(changed).items():
            self._found[at][name] = tensor

    def tensors(self) -> dict[str, torch.Tensor]:
        """By published name; of sharded ones the most as they are."""
        if self._adapter is not None:
            native = {name: tensor for found in self._found for name, tensor in found.items()}
            return hf_tensors(native, self._parts, self._form)
        pairs = zip(self._publications, self._found, strict=True)
        return {name: tensor for one, found in pairs for name, tensor in one.published(found).items()}


@dataclass(frozen=True)
class AdapterContent:
    """What an adapter of some model parts holds.

    Attributes:
        parts: the model parts.
        sites: the modules that carry LoRA, sorted by name.
        heads: the heads that travel along.
    """

    parts: Sequence[ModelPart]
    sites: Sequence[LoraSite]
    heads: Heads

    @classmethod
    def of(cls, parts: Sequence[ModelPart]) -> AdapterContent:
        """Raises ValueError as `lora_sites`."""
        sites = lora_sites(parts)
        return cls(parts, sites, heads(parts, sites))

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors, sharded as they are, under the keys that a state-dict adapter expects."""
        native = {f"{PEFT_PREFIX}{name}": tensor for name, tensor in self.heads.tensors.items()}
        for site in self.sites:
            native |= native_tensors(site)
        return native


def native_tensors(site: LoraSite) -> dict[str, torch.Tensor]:
    """A site's tensors under the keys that a state-dict adapter expects."""
    return {
        f"{PEFT_PREFIX}{site.module}.{'lora_magnitude_vector' if name == 'lora_magnitude' else name}": tensor
        for name, tensor in site.tensors.items()
    }


def state_dict_adapter(parts: Sequence[ModelPart]) -> Any:
    """The model's own conversion to Hugging Face names (an object with ``to_hf``), or None.

    Raises:
        TypeError: it cannot convert (clause TGT-027).
    """
    found = (getattr(part.model, "state_dict_adapter", None) for part in parts)
    adapter = next((adapter for adapter in found if adapter is not None), None)
    if adapter is not None and not hasattr(adapter, "to_hf"):
        raise TypeError(
            f"state_dict_adapter must have a method to_hf, got {type(adapter).__name__}: add one, or set None"
        )
    return adapter


def hf_tensors(native: dict[str, torch.Tensor], parts: Sequence[ModelPart], form: Form) -> dict[str, torch.Tensor]:
    """Native tensors under the names of the HF model, as the adapter of one of the parts converts them.

    Args:
        native: the tensors, under the keys of `native_tensors` or `whole_model`; they may be on the meta device.
        parts: the model's parts; where none has a ``state_dict_adapter`` the names are the HF names.
        form: of expert LoRA.
    """
    adapter = state_dict_adapter(parts)
    if adapter is None:
        return native
    converted: dict[str, torch.Tensor] = adapter.to_hf(dict(native), **form.keywords)
    return converted


def embedding_tensors(part: ModelPart) -> frozenset[str]:
    """What a part saves of embedding and head: ``embedding``, ``head``, or ``one`` tensor for both (clause CFG-022)."""
    weights: dict[str, torch.Tensor] = {}
    if hasattr(getattr(part.model, "config", None), "decoder"):
        return frozenset()  # two models in one: the embedding is the encoder's, and the head the decoder's
    for what, get in (("embedding", "get_input_embeddings"), ("head", "get_output_embeddings")):
        module, _ = attempt(
            getattr(part.model, get, lambda: None)
        )  # a stage may lack the module that its class asks for
        weight = getattr(module, "weight", None)
        weights |= {} if weight is None else {what: weight}
    names = [name for name, parameter in part.parameters.items() if parameter is weights.get("head")]
    if len({id(weight) for weight in weights.values()}) == len(weights):
        # Where the class never ties them, the setting is about something else (T5's two embeddings).
        return frozenset(weights if not names or _may_be_tied(part, names) else ())
    return frozenset({"one"} if _aliases(names, _tied_again(part.model)) else weights)


def _may_be_tied(part: ModelPart, names: Sequence[str]) -> bool:
    models = [module for module in part.modules.values() if isinstance(module, transformers.PreTrainedModel)]
    patterns = [pattern for model in models for pattern in model._tied_weights_keys or ()]
    return not models or any(re.search(pattern, name) for pattern in patterns for name in names)


def _tied_again(model: nn.Module) -> list[str]:
    """Names or patterns of the weights that transformers ties on loading."""
    expanded = getattr(model, "all_tied_weights_keys", None)
    if expanded is not None:  # transformers 5: full names, and only if the config ties them
        return [f"^{re.escape(name)}$" for name in expanded]
    if not getattr(getattr(model, "config", None), "tie_word_embeddings", None):
        return []
    # Patterns of names or of their ends: `draft_lm_head.weight` is not `lm_head.weight` (clause IDX-004).
    return [rf"(?:^|\.)(?:{one})(?:\.|$)" for one in getattr(model, "_tied_weights_keys", None) or []]


def _full(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    return tensor.cpu()


def _without_model(name: str) -> str:
    prefix = PEFT_PREFIX if name.startswith(PEFT_PREFIX) else ""
    return prefix + name[len(prefix) :].removeprefix("model.")
