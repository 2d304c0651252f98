# SPDX-License-Identifier: Apache-2.0
"""The packages of the suite stand on each other in one order, and none needs one above it."""

from __future__ import annotations

import ast

import pytest

from spec_tests.harness.paths import package_dir

# From the ground up. What stands beside them (the plugin, the commands, `loading`) puts them together.
FLOORS = ("harness", "implementations", "consumers", "builders", "strategies", "mutants", "areas")


def imported(path):
    """The packages of the suite that a file imports, wherever in it; what is for type checkers alone is none."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spec_tests"):
            names = [node.module] if "." in node.module else [f"spec_tests.{alias.name}" for alias in node.names]
            yield from (name.split(".")[1] for name in names)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("spec_tests.")]
            yield from (name.split(".")[1] for name in names)


@pytest.mark.parametrize("floor", FLOORS)
def test_packages_import_what_is_below_them(floor):
    above = FLOORS[FLOORS.index(floor) + 1 :]
    files = list((package_dir() / floor).rglob("*.py"))
    assert files
    assert [(path.name, name) for path in files for name in imported(path) if name in above] == []


def test_import_at_any_place_is_seen(tmp_path):
    (tmp_path / "x.py").write_text(
        "from typing import TYPE_CHECKING\nfrom spec_tests import areas\n"
        "if TYPE_CHECKING:\n    from spec_tests.mutants import editing\n"
        "def f():\n    from spec_tests.builders.hf import llama\n    import spec_tests.harness.ranks\n"
    )
    assert sorted(imported(tmp_path / "x.py")) == ["areas", "builders", "harness"]
