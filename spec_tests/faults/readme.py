# SPDX-License-Identifier: Apache-2.0
"""The counts as a table; and the README's section, made from those that are committed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from spec_tests.faults.walk import FAULTS, OUTCOMES
from spec_tests.harness.paths import fixtures_dir

BEGIN = "<!-- made by: python -m spec_tests faults --readme -->"
END = "<!-- end of what faults made -->"


def committed() -> list[dict[str, Any]]:
    """The results of this project, the reference first."""
    paths = sorted((fixtures_dir() / "faults").glob("*.json"), key=lambda path: (path.stem != "reference", path.stem))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def section() -> str:
    """The section as Markdown, between the two marks by which the README's copy is found."""
    return "\n".join([BEGIN, "", *table(committed()), "", END])


def table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a contender."""
    heads = ["who saved", "killed", "interrupted", "failed", "ranks", "slowest (s)", *OUTCOMES]
    lines = [heads, ["---"] * len(heads), *(_cells(result) for result in results)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _cells(result: Mapping[str, Any]) -> list[str]:
    points, outcomes = result["points"], result["outcomes"]
    ranks = ", ".join(map(str, result["ranks"]))
    slowest = f"{result['seconds']:.1f}" if max(result["ranks"]) > 1 else ""
    counts = [str(points[fault]) for fault in FAULTS]
    return [result["contender"], *counts, ranks, slowest, *(str(outcomes[one]) for one in OUTCOMES)]
