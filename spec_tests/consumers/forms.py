# SPDX-License-Identifier: Apache-2.0
"""Which forms the installed readers take: the one place where a test depends on their versions.

The files are the same whatever is installed; who loads them is not. Executed on the rows of the version matrix
(tox.ini).
"""

from __future__ import annotations

from collections.abc import Mapping

from spec_tests.harness import environment
from spec_tests.harness.clauses import Applies

FUSED_WEIGHTS = "weights: two 3-D parameters a layer"
FUSED_LORA = "LoRA: nested pairs on the 3-D parameters, in the layout of `installed_form`"
LORA_ONE_BY_ONE = "LoRA: a pair an expert and projection"
SEQ_TO_SEQ_LORA = "LoRA: on a sequence-to-sequence model"

READERS: Mapping[str, tuple[tuple[Applies, ...], ...]] = {
    # transformers 4 holds an expert as a module of its own.
    FUSED_WEIGHTS: ((Applies("transformers", ">=5"),),),
    FUSED_LORA: ((Applies("transformers", ">=5"),),),
    # Under transformers 5 there are no such modules, and PEFT has to convert; 0.18 ignores the tensors.
    LORA_ONE_BY_ONE: ((Applies("transformers", "<5"),), (Applies("peft", ">=0.19.1"),)),
    # PEFT 0.20 asks such a model for `_prepare_encoder_decoder_kwargs_for_generation`, which transformers 5.18 has
    # not (5.0 has). What lies between the rows was not tried.
    SEQ_TO_SEQ_LORA: ((Applies("transformers", "<5.18"),), (Applies("peft", ">=0.21"),)),
}
"""Form -> the alternatives under which it is read; each is a list of conditions that hold together."""
_MODERN_LAYOUT = Applies("peft", ">=0.19.1")


def is_read(form: str, versions: Mapping[str, str | None] | None = None) -> bool:
    """Whether readers of these versions, by default the installed ones, take this form."""
    found = environment.versions() if versions is None else versions
    return any(all(one.met_by(found[one.package]) for one in together) for together in READERS[form])


def installed_form() -> dict[str, bool]:
    """The keywords of a save whose fused expert LoRA the installed PEFT reads (huggingface/peft#3165)."""
    return {} if _MODERN_LAYOUT.met_by(environment.versions()["peft"]) else {"legacy_paramwrapper_layout": True}
