# SPDX-License-Identifier: Apache-2.0
"""A model that brings its own code, loaded by transformers with ``trust_remote_code``."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import transformers

from spec_tests.builders.hf import randomise
from spec_tests.harness.modules_cache import use_modules_cache
from spec_tests.harness.paths import fixtures_dir

AUTO_CLASS = "AutoModelForCausalLM"
# All in one folder: transformers looks for whatever a module imports beside the module that auto_map names.
CODE_FILES = (
    "activation_tinyremote.py",
    "configuration_tinyremote.py",
    "layers_tinyremote.py",
    "modeling_tinyremote.py",
)


def remote_code_snapshot() -> Path:
    """The directory with config.json and the code, without weights; not to be written to."""
    return fixtures_dir() / "checkpoints" / "remote_code"


def remote_code_model(directory: str | Path, *, seed: int = 0) -> transformers.PreTrainedModel:
    """Copy the snapshot to ``directory`` and build its model from there, with random weights, in eval mode.

    The model's class lives in ``transformers_modules``; nothing but the snapshot is written to ``directory``.
    """
    _own_modules_cache()
    shutil.copytree(remote_code_snapshot(), directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    config = transformers.AutoConfig.from_pretrained(str(directory), trust_remote_code=True)
    model = getattr(transformers, AUTO_CLASS).from_config(config, trust_remote_code=True)
    randomise(model, seed)
    return model.eval()


@functools.cache
def _own_modules_cache() -> None:
    """Keep the code that this process loads out of the user's home, where the next run would find it."""
    cache = tempfile.mkdtemp(prefix="hf-modules-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    use_modules_cache(cache)
