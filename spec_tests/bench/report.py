# SPDX-License-Identifier: Apache-2.0
"""The result of a bench: as plain data, and as a line a row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from spec_tests.bench.rows import Figures, Row

OK, OVER, NOT_HERE, FAILED = "ok", "over", "not here", "failed"
_SECONDS = ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (0.0, 1e6, "us"))
_BYTES = ((1e9, 1e-9, "GB"), (1e6, 1e-6, "MB"), (1e3, 1e-3, "kB"), (0.0, 1.0, "B"))


def measured(row: Row, figures: Figures) -> dict[str, Any]:
    """A row that was measured."""
    return {
        **_about(row),
        "status": OVER if row.is_over(figures) else OK,
        "unit": figures.unit,
        "subject": figures.subject,
        "peer": figures.peer,
        "ratio": figures.ratio,
        "ratios": list(figures.ratios),
        "details": dict(figures.details),
    }


def unmeasured(row: Row, status: str, reason: str) -> dict[str, Any]:
    """A row that was not measured, and why."""
    return {**_about(row), "status": status, "reason": reason}


def line(found: Mapping[str, Any]) -> str:
    """What a row came to, on one line."""
    if "reason" in found:
        return f"{found['name']}: {found['status']}: {found['reason']}"
    unit, ratios = found["unit"], found["ratios"]
    spread = f", {min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} pairs" if len(ratios) > 1 else ""
    both = f"{amount(found['subject'], unit)} beside {amount(found['peer'], unit)}"
    verdict = "  over" if found["status"] == OVER else ""
    return f"{found['name']}: {both}, ratio {found['ratio']:.2f} (limit {limit(found)}{spread}){verdict}"


def limit(found: Mapping[str, Any]) -> str:
    """The limit of a row, in words."""
    enough = found["enough"]
    return f"{found['limit']:g}" + (f", or {amount(enough, found.get('unit', 's'))}" if enough is not None else "")


def amount(value: float, unit: str) -> str:
    """Seconds or bytes with three digits and a unit that suits them."""
    if not value:
        return "0"
    _, factor, name = next(scale for scale in (_SECONDS if unit == "s" else _BYTES) if value >= scale[0])
    digits = max(0, 2 - math.floor(math.log10(abs(value * factor))))
    return f"{value * factor:.{digits}f} {name}"


def exit_code(rows: list[dict[str, Any]]) -> int:
    """2 when a row failed, 1 when one is over its limit, else 0."""
    statuses = {row["status"] for row in rows}
    return 2 if FAILED in statuses else int(OVER in statuses)


def summary(rows: list[dict[str, Any]]) -> str:
    """The last line of a run."""
    counted = {status: [row for row in rows if row["status"] == status] for status in (OK, OVER, NOT_HERE, FAILED)}
    words = {OK: "at or under their limit", OVER: "over", NOT_HERE: "not measured here", FAILED: "failed"}
    parts = [f"{len(some)} {words[status]}" for status, some in counted.items() if some]
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    return f"{len(rows)} rows: {', '.join(parts)}" + (f"; median ratio {median(ratios):.2f}" if ratios else "")


def _about(row: Row) -> dict[str, Any]:
    return {"name": row.name, "work": row.work, "beside": row.beside, "limit": row.limit, "enough": row.enough}
