# SPDX-License-Identifier: Apache-2.0
"""`PeftAddon`: what it takes, what its ranks agree on, and what it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from .adapter_config import (
    ADAPTER_CONFIG,
    AUTOMODEL_PEFT_CONFIG,
    LAYOUTS,
    PARAMWRAPPER_LAYOUT,
    adapter_config,
    automodel_peft_metadata,
    rank_and_alpha,
)
from .companions import replaced_tokenizer, write_metadata
from .experts import Form
from .heads import check_kept
from .holdings import holdings
from .hooks import check_alike, checked, process_group
from .model_state import AdapterContent
from .modules import model_parts, unwrapped
from .publishing import publish
from .ranks import agree, group_ranks, is_member, on_rank_zero
from .staging import staging
from .targets import Adapter, adapter_of, united

# What `adapter_config` takes from the PEFT config of rank 0 besides rank and alpha.
_DECIDING = ("task_type", "use_dora")


@dataclass(frozen=True)
class AdapterSave:
    """The keywords of `PeftAddon.pre_save`, checked."""

    model_path: Path
    model_state: Any
    peft_config: Any
    tokenizer: Any
    original_model_path: str | None
    v4_compatible: bool
    legacy_paramwrapper_layout: bool

    @property
    def form(self) -> Form:
        """Of expert LoRA."""
        return Form.of(self.v4_compatible, self.legacy_paramwrapper_layout)


@dataclass(frozen=True)
class AdapterView:
    """What one rank says of the adapter.

    Attributes:
        plan: of its own parts of the model.
        pipeline: whether other ranks hold further parts.
        settings: what has to be the same on all ranks, by name.
    """

    plan: Adapter
    pipeline: bool
    settings: tuple[tuple[str, Any], ...]


class PeftAddon:
    """Writes what makes a directory with adapter weights a PEFT checkpoint."""

    def pre_save(self, **kwargs: Any) -> None:
        """Write adapter_config.json, automodel_peft_config.json, tokenizer files and custom model code.

        No weights: those are the checkpoint backend's (clause HOOK-002).

        Collective over ``process_group``; its rank 0 writes, every rank returns after that or raises.

        Args:
            **kwargs: ``model_path`` (directory), ``model_state`` (`ModelState`), ``peft_config``; optional
                ``tokenizer``, ``original_model_path``, ``v4_compatible``, ``legacy_paramwrapper_layout``,
                ``process_group``.

        Raises:
            TypeError: a keyword is missing or of the wrong type; the PEFT config cannot be written as JSON.
            ValueError: the model's LoRA cannot be expressed as a PEFT checkpoint; the message says why.
            OSError: the directory cannot be written.
            PeerError: another rank failed.
        """
        group = process_group(kwargs)
        if is_member(group):
            save, views = agree(group, _prepare, kwargs, group)
            on_rank_zero(group, _write, save, views)

    def post_save(self, **kwargs: Any) -> None:
        """Nothing is left to do once the weights are written (clause HOOK-006)."""


def adapter_save(kwargs: Mapping[str, Any]) -> AdapterSave:
    """The keywords of `PeftAddon.pre_save`; raises TypeError as `checked`."""
    optional = ("tokenizer", "original_model_path", "v4_compatible", "legacy_paramwrapper_layout")
    return AdapterSave(**checked(kwargs, ("model_path", "model_state", "peft_config"), optional))


def adapter_view(
    save: AdapterSave, content: AdapterContent, group: dist.ProcessGroup | None, **settings: Any
) -> AdapterView:
    """This rank's view; raises for everything that is wrong with its arguments or its part of the model."""
    pp_group = getattr(save.model_state, "pp_group", None)
    if pp_group is not None:
        _check_reached(pp_group, group)
    check_kept(getattr(save.peft_config, "modules_to_save", None) or (), content.parts, content.heads)
    plan = adapter_of(content, save.form)
    automodel_peft_metadata(save.peft_config)
    rank, alpha = rank_and_alpha(save.peft_config)
    own = {
        "v4_compatible": bool(save.v4_compatible),
        "legacy_paramwrapper_layout": bool(save.legacy_paramwrapper_layout),
        "the rank of peft_config": rank,
        "the alpha of peft_config": alpha,
        **{f"{name} of peft_config": str(getattr(save.peft_config, name, None) or None) for name in _DECIDING},
        "whether there is a pp_group": pp_group is not None,
    }
    return AdapterView(plan, pp_group is not None, tuple({**own, **settings}.items()))


def agreed_adapter(views: Sequence[tuple[Sequence[int], AdapterView]]) -> Adapter:
    """The plan of the whole model, the union over ranks (clause RANK-004), which hold the same LoRA without a pipeline.

    Raises:
        ValueError: ranks disagree about what they save, so that the file would be right for one of them only
            (clause RANK-005).
    """
    check_alike((ranks, dict(view.settings)) for ranks, view in views)
    first_ranks, first = views[0]
    for ranks, view in views[1:]:
        if not first.pipeline and view.plan != first.plan:
            differing: list[Any] = sorted(first.plan.shapes().items() ^ view.plan.shapes().items())
            differing = differing or sorted({one.names[0] for one in {*first.plan.targets} ^ {*view.plan.targets}})
            raise ValueError(
                "ranks without a pp_group must hold the same LoRA, got other modules, ranks or scales on rank "
                f"{ranks[0]} than on rank {first_ranks[0]} ({differing[:1]}...): the adapter would lack what one of "
                "them trained"
            )
    return united(view.plan for _, view in views)


def write_files(save: AdapterSave, plan: Adapter, directory: Path) -> None:
    """Write all files but the weights into an empty directory."""
    model = unwrapped(save.model_state.model[0])
    metadata = automodel_peft_metadata(save.peft_config)
    metadata.pop(PARAMWRAPPER_LAYOUT, None)  # what an earlier save said, where the config was read back from one
    if plan.declared:
        metadata[PARAMWRAPPER_LAYOUT] = LAYOUTS[0 if save.form is Form.FUSED_LEGACY else 1]
    files = {ADAPTER_CONFIG: adapter_config(save.peft_config, model, plan), AUTOMODEL_PEFT_CONFIG: metadata}
    write_metadata(directory, files, model, save.tokenizer, save.original_model_path, save.v4_compatible)


def _prepare(kwargs: Mapping[str, Any], group: dist.ProcessGroup | None) -> tuple[AdapterSave, AdapterView]:
    save = adapter_save(kwargs)
    content = AdapterContent.of(model_parts(save.model_state.model))
    if dist.is_available() and dist.is_initialized():
        holdings(content.tensors(), group)  # which refuses a group that lacks a rank of the model
    return save, adapter_view(save, content, group)


def _write(save: AdapterSave, views: Sequence[tuple[Sequence[int], AdapterView]]) -> None:
    plan = agreed_adapter(views)
    with staging(save.model_path) as place:
        write_files(save, plan, place)
        publish(place, save.model_path, marker=ADAPTER_CONFIG, replaces=replaced_tokenizer(place))


def _check_reached(pp_group: dist.ProcessGroup, group: dist.ProcessGroup | None) -> None:
    if outside := set(group_ranks(pp_group)) - set(group_ranks(group)):
        raise ValueError(
            f"process_group must hold the whole model, got one without rank {min(outside)} of pp_group: pass a "
            "larger one"
        )
