# SPDX-License-Identifier: Apache-2.0
"""What an import and a save cost, by counts that are the same on every machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import addons
from spec_tests.builders import hf, lora
from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.families import MODELS
from spec_tests.builders.stages import stages
from spec_tests.builders.tokenizers import tokenizer
from spec_tests.builders.trained import ATTENTION
from spec_tests.builders.wrappers import wrap
from spec_tests.implementations.base import TrainerPeftConfig, trainer_peft_config
from spec_tests.implementations.package import from_package
from spec_tests.strategies.trees import Leaf, TreeSpec

IMPLEMENTATION = from_package(addons, "bundled")

COSTLY = ("torch.distributed.checkpoint", "transformers.dynamic_module_utils", "transformers.models.auto.modeling_auto")
"""Slow to import, and needed by some saves only, or by none."""

WALKED = ("_modules", "_parameters")
"""What every walk reads of a module, whoever walks; a module finds its own attributes without."""


def test_import_of_addons_adds_nothing_costly():
    code = (
        "import sys, torch, transformers; before = set(sys.modules); import addons\n"
        "print(*(set(sys.modules) - before), sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(addons.__file__).parent.parent)}
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=os.sep, env=environment, capture_output=True, text=True, check=True
    )
    added = set(child.stdout.split())
    assert "addons.save" in added
    assert added.isdisjoint(COSTLY)


def test_save_asks_of_fsdp_where_nobody_has_imported_it(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch.distributed.fsdp", raising=False)
    addons.save_adapter(TreeSpec((Leaf("q"),)).build(), tmp_path / "out", TrainerPeftConfig(dim=4, alpha=8))
    assert (tmp_path / "out" / "adapter_config.json").exists()


def watched(*models):
    """(Module, attribute) -> how often a walk has read it from now on, of all modules without children.

    Those with children are read to find wrappers, too, and `get_input_embeddings` of transformers goes down a path of
    them; both end above the last level, which a walk alone comes to.
    """
    reads: Counter[tuple[int, str]] = Counter()
    kinds = {}
    for module in [one for model in models for one in model.modules() if not one._modules]:
        if type(module) not in kinds:
            kinds[type(module)] = _counting(type(module), reads)
        module.__class__ = kinds[type(module)]
    reads.clear()
    return reads


def _counting(kind, reads):
    def read(self, name):
        if name in WALKED and not _by_transformers(sys._getframe(1)):
            reads[id(self), name] += 1
        return kind.__getattribute__(self, name)

    return type(kind.__name__, (kind,), {"__getattribute__": read})


def _by_transformers(frame):
    """Whether it is transformers that walks, to look its conversions up: it does so itself for IDX-015."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "transformers.conversion_mapping":
            return True
        frame = frame.f_back
    return False


def once_each(reads):
    return len(reads) > 10 and set(reads.values()) == {1}


def test_counted_reads_tell_one_walk_from_two():
    model = hf.llama()
    reads = watched(model)
    assert not once_each(reads)
    model.get_input_embeddings(), model.lm_head.weight, model.config
    assert not reads
    names = [name for name, _ in model.named_parameters()]
    assert names
    assert set(reads.values()) == {1}
    model.state_dict()
    assert max(reads.values()) > 1


@pytest.mark.parametrize(
    "kind",
    [
        "bert_classifier",
        "encoder",
        "llama",
        "llama_combined",
        "llama_dora",
        "llama_injected",
        "llama_tied",
        "llama_wrapped",
        "qwen3_moe_fused",
        "qwen3_moe_v4",
    ],
)
def test_saved_adapter_walks_the_model_once(tmp_path, kind):
    trained = TRAINED[kind]
    model, config = trained.trained(IMPLEMENTATION.adapters), trained.peft_config(IMPLEMENTATION.peft_config)
    reads = watched(model)
    addons.save_adapter(model, tmp_path / "saved", config, tokenizer=tokenizer(), **trained.save)
    assert once_each(reads)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("family", ["bert_classifier", "llama", "llama_tied", "qwen3_moe", "t5", "vlm"])
def test_saved_model_walks_the_model_once(tmp_path, family, asynchronous):
    model = MODELS[family].build()
    reads = watched(model)
    pending = addons.save_consolidated(model, tmp_path / "saved", tokenizer=tokenizer(), asynchronous=asynchronous)
    if pending is not None:
        pending.result()
    assert once_each(reads)


@pytest.mark.parametrize("kind", ["compile", "checkpoint"])
def test_wrapped_model_is_walked_once(tmp_path, kind):
    model = hf.llama()
    reads = watched(model)
    addons.save_consolidated(wrap(model, "", kind), tmp_path / "saved")
    assert once_each(reads)


def test_every_part_is_walked_once(tmp_path):
    parts = stages(hf.llama())
    reads = watched(*parts)
    addons.save_consolidated(parts, tmp_path / "whole")
    assert once_each(reads)
    model = hf.llama()
    lora.apply_dense_lora(model, ATTENTION, dim=4, alpha=8)
    parts = stages(model)
    reads = watched(*parts)
    addons.save_adapter(parts, tmp_path / "adapter", trainer_peft_config(dim=4, alpha=8))
    assert once_each(reads)
