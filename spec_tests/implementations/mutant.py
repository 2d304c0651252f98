# SPDX-License-Identifier: Apache-2.0
"""``--impl mutant:NAME``: a deliberately broken implementation, to look at one by hand."""

from __future__ import annotations

from spec_tests.implementations.base import Implementation


def __getattr__(name: str) -> Implementation:
    """The mutant of that name."""
    # Only now: the list of mutants imports torch, and this package is imported by every run.
    from spec_tests.mutants import registry

    if name not in registry.mutants():
        raise AttributeError(f"no mutant is called {name!r}")
    return registry.implementation(registry.mutants()[name])
