# SPDX-License-Identifier: Apache-2.0
"""The tests over NCCL, with gloo in its place: what they ask of an implementation is seen where there is no GPU."""

from __future__ import annotations

import pytest

import addons
from spec_tests.areas import test_ranks_nccl as nccl
from spec_tests.harness import gpus
from spec_tests.harness.export import snapshot
from spec_tests.harness.ranks import run_ranks, values
from spec_tests.implementations.package import from_package

REFERENCE = from_package(addons, "reference")


@pytest.mark.parametrize(
    ("what", "kind", "name"),
    [
        ("adapter", "llama", "FSDP2"),
        ("model", "llama", "FSDP2, after a forward in bf16"),
        ("adapter", "qwen3_moe_fused", "expert parallel of one rank"),
        ("model", "qwen3_moe", "expert parallel"),
    ],
)
def test_files_are_those_of_one_process(tmp_path, what, kind, name):
    nccl.SAVES[what](REFERENCE, kind, tmp_path / "alone", lambda model: model, "cpu")
    world = {**nccl.LAID, **nccl.LAID_EXPERTS}[name].world
    said = values(run_ranks(world, nccl.save_laid, "reference", what, kind, name, tmp_path / "laid"))
    assert said == [True] * world
    assert snapshot(tmp_path / "laid") == snapshot(tmp_path / "alone")


@pytest.mark.parametrize("name", ["one rank with all", "FSDP2"])
def test_save_while_training_holds_what_was_there(tmp_path, name):
    REFERENCE.save_consolidated(nccl.wide(), tmp_path / "alone")
    arguments = ("reference", name, tmp_path / "laid")
    losses = values(run_ranks(nccl.LAID[name].world, nccl.save_while_training, *arguments))
    assert losses[0][0] > losses[0][1]
    assert snapshot(tmp_path / "laid") == snapshot(tmp_path / "alone")


def test_error_reaches_all(tmp_path):
    said = values(run_ranks(3, nccl.fail_on_one_rank, "reference", tmp_path / "out"))
    assert all(nccl.TEXT in text for text in said), said


def test_without_a_gpu_they_are_not_run_and_the_run_says_so(sample, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    sample.tests(
        more="@pytest.mark.nccl(1)\n@pytest.mark.clause('ALP-001')\ndef test_gpu():\n    assert not 'run without one'"
    )
    result = sample.run("-m", "nccl")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["NOT-RUN: 1 tests over NCCL need more GPUs than there are here (0)"])


def test_gpus_are_counted_in_another_process(monkeypatch):
    monkeypatch.setattr(gpus.sys, "executable", "/no/such/python")
    gpus.gpus.cache_clear()
    with pytest.raises(FileNotFoundError):
        gpus.gpus()
    gpus.gpus.cache_clear()
