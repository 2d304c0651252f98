# SPDX-License-Identifier: Apache-2.0
"""``--impl nemo_automodel``: the installed release of NeMo AutoModel, from 0.2.0 on.

One binding for all releases: what a release claims is read off its names and signatures. Importing it imports
the release, and a release that does not import here (0.1.0 has no such module) is a usage error.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from packaging.version import Version

from spec_tests.harness.known_failures import read_known_failures
from spec_tests.implementations.base import HELPERS, Implementation, trainer_peft_config
from spec_tests.implementations.package import model_state_factory, version_of

KNOWN_FAILURES = Path(__file__).parent / "known_failures" / "nemo_automodel.toml"


# Branches of the hooks, which take any keyword: the release has them where its source speaks of them.
_MENTIONED = {
    "compat_guards": "_apply_transformers_compat_guards",
    "fqn_to_dtype_mapping": "fqn_to_dtype_mapping",
    "full_config": "use_diff=False",
    "hub_code": "transformers_modules",
    "keeps_metadata": "shutil.copytree",
    "metadata_exporter": "metadata_exporter",
    "renamed_targets": "map_peft_target_module_to_hf",
    "stock_export": "_export_as_stock_model",
    "trained_experts_only": "_has_trainable_moe_lora_parameters",
}


def installed() -> Implementation:
    """The implementation that the installed release is.

    Raises:
        ImportError: there is none, or it does not import here.
    """
    # Without the commit that it adds, which is that of whatever checkout it is installed in.
    version = Version(version_of(importlib.import_module("nemo_automodel"))).public
    addons, wrappers, checkpointing = (
        _component(f"checkpoint.{name}") for name in ("addons", "stateful_wrappers", "checkpointing")
    )
    adapters = _adapters()
    helpers = {name: getattr(addons, name) for name in HELPERS if hasattr(addons, name)}
    if hasattr(checkpointing, "_read_paramwrapper_layout_metadata"):
        helpers["paramwrapper_layout"] = checkpointing._read_paramwrapper_layout_metadata
    return Implementation(
        name="nemo_automodel",
        version=version,
        origin="the installed release of NeMo AutoModel",
        peft_addon=addons.PeftAddon,
        consolidated_addon=addons.ConsolidatedHFAddon,
        model_state=model_state_factory(wrappers),
        # Read by attribute and by `to_dict` in every release.
        peft_config=trainer_peft_config,
        adapters=adapters,
        helpers=helpers,
        adapter_tensors=_adapter_tensors(checkpointing),
        # Its checkpointer saves in one call, but decides itself on the directories below a training step's.
        save_adapter=None,
        capabilities=frozenset(_capabilities(version, addons, wrappers)),
        known_failures=read_known_failures(KNOWN_FAILURES),
        adapter_base=_adapter_base(),
    )


def _component(name: str) -> ModuleType:
    return importlib.import_module(f"nemo_automodel.components.{name}")


def _capabilities(version: str, addons: ModuleType, wrappers: ModuleType) -> Iterator[str]:
    yield "automodel_peft_config"
    # The helper got the pipeline's group in the release in which it began to walk several parts.
    if "pp_group" in inspect.signature(addons._extract_target_modules).parameters:
        yield "model_parts"
    if "pp_group" in inspect.signature(wrappers.ModelState).parameters:
        yield "pp_group"
    # The hooks take any keyword, so that their signatures say nothing about groups.
    if hasattr(addons, "_is_group_rank_0"):
        yield "process_group"
    if hasattr(_component("moe.state_dict_mixin").MoESplitExpertsStateDictMixin, "_is_gated_moe"):
        yield "non_gated_experts"
    source = inspect.getsource(addons)
    yield from (capability for capability, mark in _MENTIONED.items() if mark in source)
    # A branch in the middle of a hook, which nothing shows from outside.
    if Version(version) >= Version("0.4.0"):
        yield "dict_config"


def _adapter_tensors(checkpointing: ModuleType) -> Callable[..., dict[str, torch.Tensor]]:
    convert = checkpointing._maybe_adapt_state_dict_to_hf
    takes_more = any(one.kind is one.VAR_KEYWORD for one in inspect.signature(convert).parameters.values())

    def adapter_tensors(model_state: Any, **form: bool) -> dict[str, torch.Tensor]:
        """What its checkpointer hands to safetensors between the hooks; on other ranks than 0 that may be nothing."""
        more: dict[str, Any] = {"device_mesh": None, **form} if takes_more else {}
        tensors: dict[str, torch.Tensor] = convert(
            model_state.model[0], model_state.state_dict(), quantization=False, **more
        )
        return {name: tensor for name, tensor in tensors.items() if not name.endswith("_extra_state")}

    return adapter_tensors


def _adapter_base() -> type:
    release: Any = _component("checkpoint.state_dict_adapter").StateDictAdapter

    class Adapter(release):  # type: ignore[misc]
        """The release's class, with what it asks for and saving an adapter does not use."""

        def from_hf(self, *_args: Any, **_kwargs: Any) -> Any:
            raise NotImplementedError

        def convert_single_tensor_to_hf(self, *_args: Any, **_kwargs: Any) -> Any:
            raise NotImplementedError

    return Adapter


def _adapters() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {"qwen3_moe": _qwen3_moe_factory(), "moe": _moe_factory()}
    # 0.2.0 has none, and that of 0.3.0 is about another prefix than the seed's.
    with contextlib.suppress(ModuleNotFoundError):
        found["encoder"] = _component("models.common.bidirectional").EncoderStateDictAdapter
    return found


# What the adapters ask of the release's backend config; expert LoRA does not depend on the answers.
_BACKEND = SimpleNamespace(dispatcher="torch", experts="torch")


def _sizes(gated: bool = True) -> Any:
    """What the adapters read of the release's expert config."""
    activation = "swiglu" if gated else "relu2"
    return SimpleNamespace(n_routed_experts=0, moe_inter_dim=0, expert_activation=activation, expert_bias=False)


def _measure(sizes: Any, state: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Fill in the sizes of the experts in a state dict: in training they come from the model's config."""
    for name, tensor in state:
        kind = name.rpartition(".")[2]
        if kind in ("lora_down_A", "down_projs"):
            sizes.n_routed_experts, sizes.moe_inter_dim = tensor.shape[0], tensor.shape[1]
        elif kind in ("lora_gate_and_up_B", "gate_and_up_projs"):
            halves = 2 if sizes.expert_activation == "swiglu" else 1
            sizes.n_routed_experts, sizes.moe_inter_dim = tensor.shape[0], tensor.shape[2] // halves


def _qwen3_moe_factory() -> Callable[..., Any]:
    release: Any = _component("models.qwen3_moe.state_dict_adapter").Qwen3MoeStateDictAdapter

    class MeasuringQwen3MoeAdapter(release):  # type: ignore[misc]
        def to_hf(self, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            _measure(self.moe_config, state_dict.items())
            return super().to_hf(state_dict, *args, **kwargs)

    def qwen3_moe(config: Any = None) -> Any:
        return MeasuringQwen3MoeAdapter(config, moe_config=_sizes(), backend=_BACKEND)

    return qwen3_moe


def _moe_factory() -> Callable[..., Any]:
    mixin: Any = _component("moe.state_dict_mixin").MoESplitExpertsStateDictMixin

    class SplitExpertsAdapter(mixin):  # type: ignore[misc]
        """A model family's adapter, as the release's own are written."""

        _uses_model_prefix = True
        backend = _BACKEND

        def __init__(self, gated: bool, parameters: tuple[str, ...]) -> None:
            self.moe_config, self.parameters = _sizes(gated), parameters

        @property
        def _v5_peft_target_parameters(self) -> tuple[str, ...]:
            return self.parameters

        @property
        def _expert_path_segment(self) -> str:
            return self.parameters[0].rpartition(".")[0] if self.parameters else "mlp.experts"

        def to_hf(self, state_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            _measure(self.moe_config, state_dict.items())
            converted: dict[str, Any] = {}
            for name, tensor in state_dict.items():
                pairs = self._convert_single_merged_expert_to_hf_split_experts(name, tensor, **kwargs)
                converted.update([(name, tensor)] if pairs is None else pairs)
            return converted

    def moe(gated: bool = True, parameters: tuple[str, ...] = ()) -> Any:
        return SplitExpertsAdapter(gated, parameters)

    return moe


IMPLEMENTATION = installed()
