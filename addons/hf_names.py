# SPDX-License-Identifier: Apache-2.0
"""The names and layouts under which transformers itself saves one of its own models (clause IDX-015).

transformers 5 holds some models otherwise than they are published: experts in one tensor, parts under other names.
On saving it reverts its own conversions, and other readers, transformers 4 among them, know no other form. Its own
function does it here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from .modules import ModelPart, sharded_kind, unwrapped


@dataclass(frozen=True)
class Publication:
    """How the tensors of a part become those that ``save_pretrained`` would save.

    Attributes:
        model: a model of transformers' own; None where all keep their names (any other, and with transformers 4).
        renamed: published name -> name of the tensor that is only called otherwise, sharded or not.
        changed: names of those that are split or joined, which takes the whole tensors.
    """

    model: Any
    renamed: dict[str, str]
    changed: list[str]

    @classmethod
    def of(cls, part: ModelPart, tensors: Mapping[str, torch.Tensor]) -> Publication:
        """Find it out from names and shapes: ``tensors`` are the part's, under clean native names."""
        same = cls(None, {name: name for name in tensors}, [])
        if not isinstance(part.model, transformers.PreTrainedModel):
            return same
        try:
            from transformers.core_model_loading import revert_weight_conversion
        except ImportError:  # transformers 4 has nothing to revert
            return same
        sharded = any(isinstance(module, sharded_kind()) for module in part.modules.values())
        model = _plain(part.model) if sharded else part.model
        empty = {name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors.items()}
        old_names = {id(tensor): name for name, tensor in empty.items()}
        reverted = revert_weight_conversion(model, dict(empty))
        renamed = {name: old_names[id(one)] for name, one in reverted.items() if id(one) in old_names}
        kept = set(renamed.values())
        return cls(model, renamed, [name for name in tensors if name not in kept])

    def published(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors under their published names; those in ``changed`` are plain ones."""
        found = {name: tensors[old] for name, old in self.renamed.items()}
        if not self.changed:
            return found
        from transformers.core_model_loading import revert_weight_conversion

        converted: dict[str, torch.Tensor] = revert_weight_conversion(
            self.model, {name: tensors[name] for name in self.changed}
        )
        return found | converted


def _plain(module: Any) -> Any:
    """The module and those in it, of the classes that they had before FSDP2 changed them, around the same tensors."""
    # transformers looks conversions up by the names of classes. No constructor runs: one of own code may want more.
    kind = next(base for base in type(module).__mro__ if not base.__module__.startswith("torch.distributed."))
    plain: Any = object.__new__(kind)
    children = {
        name: None if child is None else _plain(unwrapped(child)) for name, child in vars(module)["_modules"].items()
    }
    vars(plain).update(vars(module), _modules=children)
    return plain


def check_original_names(names: Iterable[str], original: str | None) -> None:
    """Refuse names that lack a part which they have in the original's weights files; without an original nothing.

    transformers 5 leaves prefixes such as CLIP's ``vision_model`` out of the names of a model that it has not read
    under them. Version 4 knows the original's names only (clause IDX-016).

    Raises:
        ValueError: the message names a tensor and what it has to be called.
    """
    ours = {_rooted(name) for name in names}
    for path in sorted(Path(original).glob("*.safetensors")) if original else ():
        with safe_open(path, "pt") as file:
            theirs = {_rooted(name) for name in file.keys()}  # noqa: SIM118 - it has no other way to list them
        for name in sorted(theirs - ours):
            parts = name.split(".")
            shorter = {".".join(parts[:at] + parts[at + 1 :]) for at in range(1, len(parts))}
            if found := sorted(shorter & ours - theirs):
                raise ValueError(
                    f"{found[0]!r} must be called {name!r}, as in {path}, for transformers 4 to read it; transformers "
                    f"{transformers.__version__} does so for models that it has read from there: load the model "
                    "from there and save that, or save without v4_compatible"
                )


def _rooted(name: str) -> str:
    # Both versions read names with and without it.
    return name.removeprefix("model.")
