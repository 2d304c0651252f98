# SPDX-License-Identifier: Apache-2.0
"""ERR: whole checkpoints that cannot be saved, and modes (spec/errors.md)."""

from __future__ import annotations

import os
import stat
import sys

import pytest

from spec_tests.builders import hf
from spec_tests.builders.catalogue import TRAINED
from spec_tests.builders.tokenizers import FailingTokenizer, tokenizer
from spec_tests.harness.export import refusal
from spec_tests.harness.ranks import run_ranks, values


@pytest.mark.clause("ERR-005", "ERR-001")
@pytest.mark.needs("save_consolidated")
def test_failed_save_leaves_the_earlier_checkpoint(impl, fresh_dir):
    parent = fresh_dir()
    impl.save_consolidated(hf.llama(seed=1), parent / "model")
    failing = FailingTokenizer()
    refusal(
        lambda: impl.save_consolidated(hf.llama(seed=2), parent / "model", tokenizer=failing), parent, kinds=Exception
    )


def save_under(rank, world, impl, directory, mask):
    os.umask(mask)
    impl.save_consolidated(hf.llama(), directory, tokenizer=tokenizer())


@pytest.mark.clause("ERR-006")
@pytest.mark.needs("save_consolidated")
@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_modes_follow_the_umask(impl, fresh_dir, mask):
    directory = fresh_dir() / "model"
    values(run_ranks(1, save_under, impl, directory, mask))
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o666 & ~mask}


@pytest.mark.clause("ERR-007")
@pytest.mark.parametrize("name", ["r" * 255, "\N{GREEK SMALL LETTER ALPHA}" * 127], ids=["ascii", "two bytes each"])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("adapter", marks=pytest.mark.needs("save_adapter")),
        pytest.param("model", marks=pytest.mark.needs("save_consolidated")),
    ],
)
def test_name_as_long_as_the_filesystem_allows(impl, fresh_dir, kind, name):
    parent = fresh_dir()
    if kind == "model":
        impl.save_consolidated(hf.llama(), parent / name)
    else:
        spec = TRAINED["llama"]
        impl.save_adapter(spec.trained(impl.adapters), parent / name, spec.peft_config(impl.peft_config))
    assert [path.name for path in parent.iterdir()] == [name]
    assert list((parent / name).glob("*config.json"))
