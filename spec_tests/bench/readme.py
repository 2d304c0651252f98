# SPDX-License-Identifier: Apache-2.0
"""The README's section about cost, made from a result that is committed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spec_tests.bench.report import OK, OVER, amount, limit
from spec_tests.harness.paths import fixtures_dir

BEGIN = "<!-- made by: python -m spec_tests bench --readme fixtures/bench/reference.json -->"
END = "<!-- end of what bench made -->"
FAR = (1024, 16_384)
"""The numbers of ranks to which is extrapolated."""
_VERDICTS = {OK: "", OVER: " **over**"}


def committed() -> Path:
    """The file with the result that the README shows.

    Not below ``results/``, where every file is what a run of the suite found, clause by clause.
    """
    return fixtures_dir() / "bench" / "reference.json"


def section(result: Mapping[str, Any]) -> str:
    """The section as Markdown, between the two marks by which the README's copy is found."""
    far = extrapolated(result)
    parts = [BEGIN, measured_on(result["machine"]), table(result["rows"]), *([far] if far else []), END]
    return "\n\n".join(parts)


def read(path: Path) -> dict[str, Any]:
    """A result that ``--json`` wrote."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def measured_on(machine: Mapping[str, Any]) -> str:
    """A sentence that says on what a result was measured."""
    places = ", ".join(f"{name} is {kind}" for name, kind in machine["filesystems"].items() if name != kind)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Measured on {machine['cores']} cores ({machine['processor']}, {machine['gib']} GiB, {machine['system']}; "
        f"{places}) with {versions}.\nRatios are the median of the pairs' ratios."
    )


def table(rows: list[Mapping[str, Any]]) -> str:
    """A line a row: medians, ratio and limit."""
    heads = ["row", "what", "beside", "here", "there", "ratio", "limit"]
    lines = [heads, ["---"] * len(heads), *(_cells(row) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def extrapolated(result: Mapping[str, Any]) -> str:
    """What ranks receive and hold at numbers of ranks that no test machine has; empty where it was not counted."""
    rows = {row["name"]: row for row in result["rows"]}
    traffic = rows.get("traffic", {}).get("details", {}).get("received")
    peaks = [row for name, row in rows.items() if name.startswith("save_consolidated-memory") and "ratio" in row]
    if not traffic or not peaks:
        return ""
    counted = {int(world): ranks for world, ranks in traffic.items() if int(world) > 1}
    first = {world: ranks[0] for world, ranks in counted.items()}
    others = {world: max(ranks[1:]) for world, ranks in counted.items()}
    peak, largest = max(peaks, key=lambda row: row["ratio"]), peaks[0]["peer"]
    targets = rows["traffic"]["details"]["targets"]
    of_first, of_others = ([*kind.values(), *(at(ranks, kind) for ranks in FAR)] for kind in (first, others))
    lines = {
        "rank 0 receives in `pre_save`": of_first,
        "every other rank receives": of_others,
        "a rank's memory, over what it held": [
            peak["ratio"] * largest + max(both) for both in zip(of_first, of_others, strict=True)
        ],
    }
    cells = [
        ["", *(f"{world:,} ranks" for world in (*counted, *FAR))],
        ["---"] * (len(counted) + len(FAR) + 1),
        *([what, *(amount(value, "bytes") for value in values)] for what, values in lines.items()),
    ]
    words = (
        f"What this comes to at sizes that were not run: {', '.join(map(str, counted))} ranks were counted "
        f"({targets:,} targets), the other columns are the straight line through the last two.\n"
        f"Memory is the highest peak that was measured in `save_consolidated` ({peak['ratio']:.2f} times its weights "
        f"file of {amount(largest, 'bytes')}), and what a rank receives in `pre_save` on top, as if it kept all of it."
    )
    return "\n".join([words, "", *(f"| {' | '.join(line)} |" for line in cells)])


def at(ranks: int, counted: Mapping[int, float]) -> float:
    """The value at a number of ranks, on the straight line through the last two that were counted."""
    before, last = sorted(counted)[-2:]
    slope = (counted[last] - counted[before]) / (last - before)
    return counted[last] + slope * (ranks - last)


def _cells(row: Mapping[str, Any]) -> list[str]:
    about = [f"`{row['name']}`", row["work"], row["beside"]]
    if "reason" in row:
        return [*about, "-", "-", f"{row['status']}: {row['reason']}", limit(row)]
    both = [amount(row[which], row["unit"]) for which in ("subject", "peer")]
    return [*about, *both, f"{row['ratio']:.2f}{_VERDICTS[row['status']]}", limit(row)]
