# SPDX-License-Identifier: Apache-2.0
"""How hard Hypothesis looks, by name; chosen with the environment variable ``HYPOTHESIS_PROFILE``.

Nothing has a deadline: the first example pays for imports, and machines differ. Profiles that must give the
same answer twice draw the same examples each time and remember none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

ENVIRONMENT = "HYPOTHESIS_PROFILE"
CONFORMANCE = "conformance"


def activate(*, conformance: bool, seed: int | None) -> str | None:
    """Register the profiles and load one.

    Args:
        conformance: the profile ``conformance`` is the default, not ``dev``, as it is on CI.
        seed: draws follow from this seed; None leaves it to the profile.

    Returns:
        The profile's name; None where Hypothesis is not installed.
    """
    try:
        from hypothesis import HealthCheck, Phase, settings
    except ImportError:
        return None
    # A slow or loaded machine is no fault of the implementation, nor is a fixture that holds no state.
    base = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    no_shrinking = _no_shrinking(Phase)
    profiles = {
        "dev": settings(base, max_examples=15),
        "ci": settings(base, max_examples=200, derandomize=True, database=None),
        "nightly": settings(base, max_examples=2000),
        "mutants": settings(base, max_examples=25, derandomize=True, database=None, phases=no_shrinking),
        CONFORMANCE: settings(base, max_examples=50, derandomize=True, database=None),
    }
    for name, profile in profiles.items():
        # Hypothesis ignores a seed for tests that are derandomised, so a seed takes the place of that.
        fixed = settings(profile, derandomize=False, database=None) if seed is not None else profile
        settings.register_profile(name, fixed)
    # On CI a change is judged, not searched for new examples: the same examples each time, as in a conformance run.
    repeatable = conformance or os.environ.get("CI")
    chosen = os.environ.get(ENVIRONMENT) or (CONFORMANCE if repeatable else "dev")
    settings.load_profile(chosen)
    return chosen


def spare_shrinking(test: Callable[..., Any]) -> None:
    """Let a property that is known to fail stop at the first failing example: nobody looks for a smaller one."""
    settings_of = sys.modules.get("hypothesis")
    if settings_of is not None and getattr(test, "is_hypothesis_test", False):
        settings_of.settings(phases=_no_shrinking(settings_of.Phase))(test)


def _no_shrinking(phases: Any) -> list[Any]:
    return [phase for phase in phases if phase not in {phases.shrink, phases.explain}]
