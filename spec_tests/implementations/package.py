# SPDX-License-Identifier: Apache-2.0
"""An implementation from any package that has the names of ``addons``: the reference, a copy, a trainer's own.

A name that the package lacks is a claim less, never an import error.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from types import ModuleType
from typing import Any

from packaging.version import Version

from spec_tests.harness.clauses import load_clauses
from spec_tests.implementations.base import HELPERS, PARTS, Implementation, trainer_peft_config


def from_package(package: ModuleType, name: str, origin: str | None = None) -> Implementation:
    """The implementation that a package with the names of ``addons`` is."""
    return Implementation(
        name=name,
        version=version_of(package),
        origin=origin or f"package {package.__name__}",
        peft_addon=package.PeftAddon,
        consolidated_addon=getattr(package, "ConsolidatedHFAddon", None),
        model_state=model_state_factory(package),
        peft_config=trainer_peft_config,
        adapters=_adapters(package),
        helpers={helper: getattr(package, helper) for helper in HELPERS if hasattr(package, helper)},
        adapter_tensors=adapter_tensors,
        save_adapter=getattr(package, "save_adapter", None),
        save_consolidated=getattr(package, "save_consolidated", None),
        recover=getattr(package, "recover", None),
        capabilities=claimed_capabilities(package),
    )


def claimed_capabilities(package: ModuleType) -> frozenset[str]:
    """What a package claims.

    A copy of ``addons`` claims whatever the specification knew at its ``__spec_version__``; another package
    claims what its ``SPEC_CAPABILITIES`` lists. Neither says anything about parts: those are there or not.
    """
    spec_version = getattr(package, "__spec_version__", None)
    if spec_version is None:
        return frozenset(getattr(package, "SPEC_CAPABILITIES", ()))
    known = [clause for clause in load_clauses().values() if Version(clause.since) <= Version(spec_version)]
    return frozenset({need for clause in known for need in clause.needs} - PARTS)


def adapter_tensors(model_state: Any, **form: bool) -> dict[str, Any]:
    """What a trainer's checkpointer writes: the state dict, through the model's own conversion to HF names.

    ``form`` holds ``v4_compatible`` and ``legacy_paramwrapper_layout``, where they were asked for.
    """
    state: dict[str, Any] = model_state.state_dict()
    adapter = getattr(model_state.model[0], "state_dict_adapter", None)
    tensors = state if adapter is None else adapter.to_hf(state, **form)
    # A checkpointer writes each tensor by itself; safetensors.torch.save_file refuses those that share memory.
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def version_of(package: ModuleType) -> str:
    """What a package says its version is, else what its distribution says."""
    own = getattr(package, "__version__", None)
    if own is not None:
        return str(own)
    top = package.__name__.partition(".")[0]
    distributions = metadata.packages_distributions().get(top, [])
    return metadata.version(distributions[0]) if distributions else "unknown"


def model_state_factory(package: Any) -> Callable[..., Any]:
    """`Implementation.model_state`, from what has a ``ModelState``."""

    def model_state(model_or_parts: Any, *, is_peft: bool = True, pp_group: Any = None) -> Any:
        # Implementations without pipeline groups have no such parameter.
        more = {} if pp_group is None else {"pp_group": pp_group}
        return package.ModelState(model_or_parts, is_peft=is_peft, **more)

    return model_state


def _adapters(package: ModuleType) -> dict[str, Callable[..., Any]]:
    adapters: dict[str, Callable[..., Any]] = {}
    if hasattr(package, "Qwen3MoeStateDictAdapter"):
        adapters["qwen3_moe"] = _qwen3_moe_factory(package)
    if hasattr(package, "MoESplitExpertsStateDictMixin"):
        adapters["moe"] = _moe_factory(package)
    if hasattr(package, "EncoderStateDictAdapter"):
        adapters["encoder"] = package.EncoderStateDictAdapter
    return adapters


def _qwen3_moe_factory(package: ModuleType) -> Callable[..., Any]:
    def qwen3_moe(config: Any = None) -> Any:
        return package.Qwen3MoeStateDictAdapter(config)

    return qwen3_moe


def _moe_factory(package: ModuleType) -> Callable[..., Any]:
    def moe(gated: bool = True, parameters: tuple[str, ...] = ()) -> Any:
        # Only what differs is overridden, so that what the package says of itself is tested; by properties, as
        # trainers do: the class may be asked before there is a config.
        body: dict[str, Any] = {}
        if not gated:
            body["_is_gated_moe"] = property(lambda _self: False)
        if parameters:
            body["_v5_peft_target_parameters"] = property(lambda _self: parameters)
        return type("SplitExpertsAdapter", (package.MoESplitExpertsStateDictMixin,), body)()

    return moe
