# SPDX-License-Identifier: Apache-2.0
"""Which tensors are saved, and under which key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .heads import heads
from .lora_sites import LoraSite, clean_named_tensors, lora_sites, unwrapped
from .ranks import gather

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
            raise TypeError(f"model is {model!r}: give a torch module, or a list of at least one")
        self.is_peft = is_peft
        self.pp_group = pp_group

    def state_dict(self) -> dict[str, Any]:
        """The tensors to save: the adapter's (`is_peft`), or the whole model's as `whole_model` gives them.

        The adapter's tensors, a trained head among them, are full, detached, on the CPU, under native names behind
        ``base_model.model.``.

        Every rank of the model has to call it, since sharded tensors are gathered; every rank gets the whole.
        DoRA's ``lora_magnitude`` is already under PEFT's name ``lora_magnitude_vector``. The state-dict
        adapter of the model is not applied: that is the caller's step (see `saved_tensors`).

        Raises:
            ValueError: as `lora_sites`; or two ranks of ``pp_group`` hold different values of one parameter.
        """
        if not self.is_peft:
            return {name: tensor for part in self.model for name, tensor in whole_model(part).items()}
        native = {f"{PEFT_PREFIX}{name}": tensor for name, tensor in heads(self.model).tensors.items()}
        for site in lora_sites(self.model):
            native |= native_tensors(site)
        local = {name: _full(tensor) for name, tensor in native.items()}
        if self.pp_group is None:
            return local
        stages = gather(lambda: local, self.pp_group)
        united: dict[str, Any] = {}
        for rank, stage in enumerate(stages):
            for name in sorted(united.keys() & stage.keys()):
                if not torch.equal(united[name], stage[name]):
                    raise ValueError(
                        f"rank {rank} of pp_group holds other values of {name!r} than a rank before it: "
                        "is pp_group really the pipeline group of this model?"
                    )
            united.update(stage)
        return united


class EncoderStateDictAdapter:
    """Conversion for encoders that a trainer wraps as ``model``: that prefix is not in the HF names.

    Keys without the prefix pass unchanged, so that nothing which was trained is lost.
    """

    def to_hf(self, state_dict: dict[str, torch.Tensor], **_kwargs: Any) -> dict[str, torch.Tensor]:
        """Strip ``model.`` from the start of each key, or from behind ``base_model.model.``."""
        return {_without_model(name): tensor for name, tensor in state_dict.items()}


def whole_model(part: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers of one part, detached, sharded as they are, under clean native names.

    Of a tied weight the alias is left out where transformers ties it again on loading; any other alias is a copy
    of its own, since weights files hold no shared memory (clause IDX-004).

    Raises:
        ValueError: the part carries trained LoRA, which a whole-model checkpoint has no place for.
    """
    if sites := lora_sites([part]):
        raise ValueError(f"module {sites[0].module!r} carries LoRA: save an adapter, or merge it into the model first")
    model = unwrapped(part)
    tied = _tied_again(model)
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in clean_named_tensors(part):
        alias = id(tensor) in seen
        seen.add(id(tensor))
        if not alias:
            tensors[name] = tensor.detach()
        elif not any(re.search(pattern, name) for pattern in tied):
            tensors[name] = tensor.detach().clone()
    return tensors


def _tied_again(model: nn.Module) -> list[str]:
    """Names or patterns of the weights that transformers ties on loading."""
    expanded = getattr(model, "all_tied_weights_keys", None)
    if expanded is not None:  # transformers 5: full names, and only if the config ties them
        return [f"^{re.escape(name)}$" for name in expanded]
    if not getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        return []
    return list(getattr(model, "_tied_weights_keys", None) or [])


def state_dict_adapter(parts: Sequence[nn.Module]) -> Any:
    """The model's own conversion to Hugging Face names (an object with ``to_hf``), or None."""
    found = (getattr(unwrapped(part), "state_dict_adapter", None) for part in parts)
    return next((adapter for adapter in found if adapter is not None), None)


def native_tensors(site: LoraSite) -> dict[str, torch.Tensor]:
    """A site's tensors under the keys that a state-dict adapter expects."""
    return {
        f"{PEFT_PREFIX}{site.module}.{'lora_magnitude_vector' if name == 'lora_magnitude' else name}": tensor
        for name, tensor in site.tensors.items()
    }


def hf_tensors(native: dict[str, torch.Tensor], parts: Sequence[nn.Module], **form: bool) -> dict[str, torch.Tensor]:
    """Native tensors (keys as `native_tensors` makes them) under the names of the HF model.

    Args:
        native: the tensors, which may be on the meta device.
        parts: the model's parts, of which one has a ``state_dict_adapter``; without one the names are the HF names.
        **form: ``v4_compatible`` and ``legacy_paramwrapper_layout``, as `MoESplitExpertsStateDictMixin` has them.
    """
    adapter = state_dict_adapter(parts)
    if adapter is None:
        return native
    # An adapter that has one form only need not know the others' keywords.
    converted: dict[str, torch.Tensor] = adapter.to_hf(dict(native), **{name: True for name, on in form.items() if on})
    return converted


def saved_tensors(native: dict[str, torch.Tensor], parts: Sequence[nn.Module], **form: bool) -> dict[str, torch.Tensor]:
    """What goes into ``adapter_model.safetensors``: HF names in sorted order, contiguous, no shared memory."""
    tensors = hf_tensors(native, parts, **form)
    # safetensors refuses tensors that share memory, as views of one combined matrix do.
    return {name: tensors[name].clone(memory_format=torch.contiguous_format) for name in sorted(tensors)}


def _full(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    return tensor.cpu()


def _without_model(name: str) -> str:
    prefix = PEFT_PREFIX if name.startswith(PEFT_PREFIX) else ""
    return prefix + name[len(prefix) :].removeprefix("model.")
