# SPDX-License-Identifier: Apache-2.0
"""How hard Hypothesis looks, by name; chosen with the environment variable ``HYPOTHESIS_PROFILE``.

Nothing has a deadline: the first example pays for imports, and machines differ. Profiles that must give the
same answer twice draw the same examples each time and remember none.
"""

from __future__ import annotations

import os

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
    no_shrinking = [phase for phase in Phase if phase not in {Phase.shrink, Phase.explain}]
    profiles = {
        "dev": settings(base, max_examples=25),
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
