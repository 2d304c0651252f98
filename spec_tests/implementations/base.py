# SPDX-License-Identifier: Apache-2.0
"""What the suite needs from an implementation: one frozen dataclass, and the trainer's PEFT config.

A binding for a trainer is one module with an `Implementation` named ``IMPLEMENTATION``. Tests use this
object and the two hooks, and patch nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from spec_tests.harness.known_failures import KnownFailure

if TYPE_CHECKING:
    from torch import Tensor

ADDONS = {
    "consolidated": "consolidated_addon",
    "recover": "recover",
    "save_adapter": "save_adapter",
    "save_consolidated": "save_consolidated",
}
"""Parts of an implementation that it may lack, by the name of the claim: the fields that hold them."""


def adapter_claim(name: str) -> str:
    """What an implementation claims by having that state-dict adapter."""
    return f"{name}_adapter"


# The seed's underscored functions, and what later releases added to them.
HELPERS = (
    "_config_exists",
    "_extract_target_modules",
    "_extract_target_parameters",
    "_get_automodel_peft_metadata",
    "_get_hf_peft_config",
    "_is_qwen3_moe",
    "_maybe_save_custom_model_code",
    "_maybe_strip_quantization_config",
    "_save_generated_hf_assets",
    "_save_original_config_json",
    "load_automodel_peft_config_dict",
    "paramwrapper_layout",
)
PARTS = frozenset({*ADDONS, *HELPERS, *(adapter_claim(name) for name in ("encoder", "moe", "qwen3_moe"))})
"""The claims that are the presence of something; any other is a matter of behaviour."""


def unchanged(hook: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The kwargs as the suite passes them: for implementations that spell them as the contract does."""
    del hook
    return kwargs


@dataclass(frozen=True, repr=False)
class Implementation:
    """One implementation of the hooks, and what belongs to it.

    Attributes:
        name: what ``--impl`` and the reports call it.
        version: its release.
        origin: where it comes from, in words; no path of a machine.
        peft_addon: makes the adapter hook.
        consolidated_addon: makes the full-checkpoint hook; None where there is none.
        model_state: ``model_state(model_or_parts, *, is_peft=True, pp_group=None)``.
        peft_config: ``peft_config(dim=8, alpha=16, use_dora=False, **more)``: read by attribute, ``to_dict()``.
        adapters: state-dict adapters, which are instances of the implementation's own types:
            ``"qwen3_moe": (config)``, ``"encoder": ()``, ``"moe": (gated, parameters)`` with the fused parameters that
            it declares.
        helpers: the seed's underscored functions, by name.
        adapter_tensors: ``adapter_tensors(model_state, v4_compatible=False)``: what its checkpointer writes; with
            the capability ``paramwrapper_layout`` also ``legacy_paramwrapper_layout``.
        save_adapter: hooks and IO in one call; None where there is none.
        capabilities: what it claims to do, by the names that clauses need; what it has it claims anyway (`claims`).
        translate: ``(hook name, kwargs) -> kwargs`` as this implementation spells them; of any selection of keywords.
        known_failures: what it is known to fail, with reasons.
        save_consolidated: as ``save_adapter``, for a whole model.
        adapter_base: the class that its state-dict adapters derive from, where it asks for that.
        recover: ``recover(directory)``: settles what a killed save has left; None where there is none.
    """

    name: str
    version: str
    origin: str
    peft_addon: Callable[[], Any]
    consolidated_addon: Callable[[], Any] | None
    model_state: Callable[..., Any]
    peft_config: Callable[..., Any]
    adapters: Mapping[str, Callable[..., Any]]
    helpers: Mapping[str, Callable[..., Any]]
    adapter_tensors: Callable[..., dict[str, Tensor]]
    save_adapter: Callable[..., Any] | None
    capabilities: frozenset[str]
    translate: Callable[[str, dict[str, Any]], dict[str, Any]] = unchanged
    known_failures: tuple[KnownFailure, ...] = ()
    save_consolidated: Callable[..., Any] | None = None
    adapter_base: type = object
    recover: Callable[..., Any] | None = None

    @property
    def claims(self) -> frozenset[str]:
        """Its capabilities, and the parts that it has: what clauses and tests may need."""
        parts = {name for name, field in ADDONS.items() if getattr(self, field) is not None}
        return self.capabilities | parts | set(self.helpers) | {adapter_claim(name) for name in self.adapters}

    def __repr__(self) -> str:
        # Short: it stands among the arguments of every failing example.
        return f"<{self.name} {self.version}>"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(repr(self))  # Hypothesis's printer looks into dataclasses otherwise


@dataclass
class TrainerPeftConfig:
    """A PEFT config as a trainer keeps it: read by attribute, turned into plain data by `to_dict`.

    Attributes:
        extra: further settings of a trainer, which are attributes and entries of `to_dict` like the others.
    """

    dim: int = 8
    alpha: int = 16
    use_dora: bool = False
    target_modules: list[str] = field(default_factory=list)
    exclude_modules: list[str] = field(default_factory=list)
    match_all_linear: bool = False
    dropout: float = 0.0
    dropout_position: str = "post"
    lora_A_init: str = "xavier"  # noqa: N815  (the trainer's spelling)
    lora_dtype: Any = None
    moe_rank_scaling: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        # Reached only for what is no field. During copying and unpickling there is no `extra` yet.
        extra = self.__dict__.get("extra", {})
        if name in extra:
            return extra[name]
        raise AttributeError(f"{type(self).__name__} has no setting {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """Every setting by its name."""
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "extra"}
        return {**own, **self.extra}


def trainer_peft_config(dim: int = 8, alpha: int = 16, use_dora: bool = False, **more: Any) -> TrainerPeftConfig:
    """The default `Implementation.peft_config`; settings that a `TrainerPeftConfig` lacks become its extras."""
    names = {item.name for item in fields(TrainerPeftConfig)} - {"extra"}
    own = {name: value for name, value in more.items() if name in names}
    extra = {name: value for name, value in more.items() if name not in names}
    return TrainerPeftConfig(dim=dim, alpha=alpha, use_dora=use_dora, extra=extra, **own)
