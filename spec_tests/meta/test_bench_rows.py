# SPDX-License-Identifier: Apache-2.0
"""Every kind of row once, on models that take no time: the row runs, and its contenders write the same."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from spec_tests.bench import command, hooks, models, pairing, peer, sharded, traffic, usage
from spec_tests.bench.pairing import Pairs
from spec_tests.bench.rows import BenchError, Places
from spec_tests.loading import load

if not sys.platform.startswith("linux"):
    pytest.skip("rows fork, and read /proc", allow_module_level=True)

# Four ranks and tmpfs are the same code as two ranks and the disk.
ROWS = [row for row in command.all_rows() if not row.name.endswith("-tmpfs") and "4ranks" not in row.name]
LAYERS, EXPERTS = 2, 4
TARGETS = LAYERS * (EXPERTS * 3 + len(models.ATTENTION))


@pytest.fixture
def small(monkeypatch):
    """Small models, one pair, few ranks."""
    experts, real_llama = models.experts, models.real_llama
    monkeypatch.setattr(models, "experts", lambda *_, **__: experts(LAYERS, EXPERTS))
    monkeypatch.setattr(models, "real_llama", lambda **_: real_llama(layers=2, hidden=64, inter=96, vocab=64))
    for module in (hooks, traffic):
        for name, value in {"LAYERS": LAYERS, "EXPERTS": EXPERTS, "TARGETS": TARGETS}.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(hooks, "DENSE_LAYERS", LAYERS)
    monkeypatch.setattr(pairing, "Pairs", lambda: Pairs(1, 1))
    monkeypatch.setattr(sharded, "PAIRS", Pairs(1, 1))
    monkeypatch.setattr(traffic, "WORLDS", (1, 2, 3))
    monkeypatch.setattr(usage, "SAVES", 1)
    monkeypatch.setattr("gc.collect", int)  # of all that a test process holds it takes a second


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_runs(row, tmp_path):
    # The reference stands in for the release, which is not installed here.
    figures = row.measure(Places(tmp_path, None, lambda: load("reference")))
    assert figures.ratio >= 0
    assert figures.peer > 0 or row.name == "traffic"
    assert figures.unit == ("bytes" if {"bytes", "memory", "traffic"} & set(row.name.split("-")) else "s")
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == []


def test_every_rank_is_in_the_details_of_the_traffic(small, tmp_path):
    found = traffic.traffic_row(Places(tmp_path, None, pytest.fail))
    assert {world: len(ranks) for world, ranks in found.details["received"].items()} == {"1": 1, "2": 2, "3": 3}
    assert found.details["received"]["1"] == [0]


def test_adapter_that_renames_is_one_of_its_package():
    adapter = load("reference").adapters["qwen3_moe"]()
    kind = type(adapter)
    renaming = hooks.renaming(adapter)
    assert isinstance(renaming, kind)
    assert renaming.map_peft_target_module_to_hf("a.mlp.experts.0.up_proj") == "a.block_sparse_moe.experts.0.up_proj"
    assert list(renaming.to_hf({"a.mlp.experts.b": 1, "c": 2})) == ["a.block_sparse_moe.experts.b", "c"]


def test_release_that_is_there_is_not_installed_again(tmp_path, monkeypatch):
    (tmp_path / "nemo_automodel").mkdir()
    monkeypatch.setattr(peer.subprocess, "run", pytest.fail)
    assert peer.install("0.7.0", tmp_path)


def test_release_that_cannot_be_installed_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    asked = []

    def run(arguments, **_):
        asked.append(arguments[-1])
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(peer.subprocess, "run", run)
    with pytest.raises(BenchError, match="--nemo"):
        peer.bound(tmp_path / "nothing")
    assert asked == ["nemo-automodel==0.7.0"]
