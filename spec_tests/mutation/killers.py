# SPDX-License-Identifier: Apache-2.0
"""Which test noticed each edit last: killers.txt, in the form of `spec_tests.mutants.killers`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from spec_tests.mutation.edits import Edit

FILE = Path(__file__).with_name("killers.txt")


def key(edit: Edit) -> str:
    """The name of an edit; it stays while its statement does, whatever changes around it."""
    words = (edit.file, edit.function, edit.before, edit.after)
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:10]
