"""Descriptions of module trees with dense LoRA, wrappers and near misses.

The expected names are computed from the description alone: the oracle never walks the module it checks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import transformers
from hypothesis import strategies as st
from torch import nn

from spec_tests.builders.lora import LoRALinear
from spec_tests.builders.randomness import generator
from spec_tests.builders.wrappers import Kind, wrap

Lora = Literal["trained", "frozen", "b_only", "none"]

# Names that a test by substring or by prefix takes for LoRA, for a wrapper, or for a prefix to strip.
NEAR_MISSES = (
    "lora_cache",
    "exploration_head",
    "flora",
    "lora",
    "lora_a",
    "my_orig_mod",
    "_orig_mod_2",
    "checkpoint_wrapped_module",
    "module",
    "base_model",
    "model",
    "0",
    "10",
)
_RESERVED = {name for name in dir(nn.Module()) if not name.startswith("__")}
_COMBINED = {"qkv_proj", "gate_up_proj"}


@dataclass(frozen=True)
class Leaf:
    """One Linear: its dotted path, and what LoRA it carries."""

    path: str
    lora: Lora = "trained"


@dataclass(frozen=True)
class TreeSpec:
    """A model: its leaves in order of registration, its wrappers (path, kind) from inner to outer, rank and alpha."""

    leaves: tuple[Leaf, ...]
    wrappers: tuple[tuple[str, Kind], ...] = ()
    rank: int = 4
    alpha: float = 8
    architecture: str = "LlamaForCausalLM"
    base: str = "org/base"

    def build(self) -> nn.Module:
        """The model; every tensor has its own random numbers, the same at every call."""
        root = nn.Module()
        source = generator(len(self.leaves))
        for number, leaf in enumerate(self.leaves):
            _add(root, leaf, (self.rank, self.alpha), 8 * (1 + number % 3), source)
        root.config = transformers.PretrainedConfig(architectures=[self.architecture], name_or_path=self.base)
        for path, kind in self.wrappers:
            root = wrap(root, path, kind)
        return root

    def expected_targets(self) -> list[str]:
        """The modules whose LoRA belongs to the adapter: all that the forward adds, frozen or not."""
        return sorted(leaf.path for leaf in self.leaves if leaf.lora != "none")

    def renamed(self, old: str, new: str) -> TreeSpec:
        """The same model with the first segment ``old`` of every path called ``new``."""

        def path(one: str) -> str:
            head, dot, tail = one.partition(".")
            return (new if head == old else head) + dot + tail

        return replace(self, leaves=tuple(Leaf(path(leaf.path), leaf.lora) for leaf in self.leaves))


def names() -> st.SearchStrategy[str]:
    """Identifiers and indices as modules are called, none of which contains ``lora`` or a wrapper's name."""
    words = st.from_regex(r"[a-z][a-z0-9_]{0,7}", fullmatch=True)
    return st.one_of(words, st.sampled_from(["model", "layers", "q_proj", "0", "1", "11"])).filter(_plain)


def trees(
    segment: st.SearchStrategy[str] | None = None, lora: st.SearchStrategy[Lora] | None = None
) -> st.SearchStrategy[TreeSpec]:
    """Trees with at least one trained LoRA; ``segment`` draws the names, ``lora`` what each leaf carries."""
    path = st.lists(names() if segment is None else segment, min_size=1, max_size=4).map(".".join)
    paths = st.lists(path, min_size=1, max_size=6, unique=True).map(_prefix_free)
    carried: st.SearchStrategy[Lora] = st.sampled_from(["trained", "trained", "none"]) if lora is None else lora

    def with_lora(chosen: list[str]) -> st.SearchStrategy[TreeSpec]:
        kinds = st.lists(carried, min_size=len(chosen), max_size=len(chosen))
        drawn_trees = kinds.map(lambda drawn: TreeSpec(tuple(map(Leaf, chosen, drawn))))
        return drawn_trees.filter(TreeSpec.expected_targets).filter(_can_be_told)

    return paths.flatmap(with_lora)


def wrapped(tree: TreeSpec) -> st.SearchStrategy[TreeSpec]:
    """The tree with up to four real wrappers around any of its modules, the root and the leaves included."""
    inside = {""}
    for leaf in tree.leaves:
        segments = leaf.path.split(".")
        inside |= {".".join(segments[:depth]) for depth in range(1, len(segments) + 1)}
    kinds: st.SearchStrategy[Kind] = st.sampled_from(["compile", "checkpoint"])
    # torch.compile of a compiled module is no module any more, so no wrapper stands twice in one place.
    drawn = st.lists(st.tuples(st.sampled_from(sorted(inside)), kinds), min_size=1, max_size=4, unique=True)
    # The root last: a wrapper around it is a new root, and the others are put inside it first.
    return drawn.map(lambda wraps: replace(tree, wrappers=tuple(sorted(wraps, key=lambda one: one[0] == ""))))


def near_misses() -> st.SearchStrategy[str]:
    """Plain names mixed with near misses."""
    return st.one_of(st.sampled_from(NEAR_MISSES), names())


def _can_be_told(tree: TreeSpec) -> bool:
    """Whether PEFT can be told each module: none without LoRA is between two with it, as ``b.q`` of ``q, b.q, a.b.q``.

    It would have to be excluded for the shorter name, and the longer one with it (LOAD-009: that may be refused).
    """
    trained = set(tree.expected_targets())
    paths = [leaf.path.split(".") for leaf in tree.leaves]
    others = {".".join(path[:depth]) for path in paths for depth in range(1, len(path) + 1)} - trained

    def ends(longer: str, end: str) -> bool:
        return longer.endswith(f".{end}")

    return not any(
        any(ends(other, one) for one in trained) and any(ends(one, other) for one in trained) for other in others
    )


def _plain(name: str) -> bool:
    taken = name in _RESERVED or name in _COMBINED or name == "config"
    return not (taken or "lora" in name or "_orig_mod" in name)


def _prefix_free(paths: list[str]) -> list[str]:
    """Drop paths that run through another one's module: a Linear has no drawn children."""
    return [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]


def _add(root: nn.Module, leaf: Leaf, rank_and_alpha: tuple[int, float], width: int, source: torch.Generator) -> None:
    *parents, name = leaf.path.split(".")
    parent = root
    for segment in parents:
        if segment not in dict(parent.named_children()):
            parent.add_module(segment, nn.Module())
        parent = parent.get_submodule(segment)
    linear = nn.Linear(width, width + 8, bias=False)
    linear.requires_grad_(False)
    if leaf.lora != "none":
        linear = LoRALinear(linear, *rank_and_alpha, source=source)
        linear.randomise(source, std=0.5)
        linear.lora_A.requires_grad_(leaf.lora == "trained")
        linear.lora_B.requires_grad_(leaf.lora != "frozen")
    parent.add_module(name, linear)
