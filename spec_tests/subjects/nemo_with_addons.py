# SPDX-License-Identifier: Apache-2.0
"""NeMo AutoModel's `Checkpointer` with this project's ``addons`` in place of its own module: a drop-in, or not."""

import runpy
import sys
from pathlib import Path

import addons

sys.modules["nemo_automodel.components.checkpoint.addons"] = addons
runpy.run_path(str(Path(__file__).with_name("nemo_checkpointer.py")), run_name="__main__")
