# SPDX-License-Identifier: Apache-2.0
"""The directory of an original model as transformers 4 wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spec_tests.builders import hf

ORIGINAL = {
    **hf.SIZES,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rope_theta": 500000.0,
    "torch_dtype": "float32",
    "quantization_config": {"quant_method": "mxfp4"},
    "an_old_setting": [1, {"deep": None}],
}


def original(directory: Path, **files: Any) -> str:
    """Write config.json, which is `ORIGINAL`, and ``files`` by their names without ".json"; returns the directory."""
    directory.mkdir(exist_ok=True)
    for name, content in {"config": ORIGINAL, **files}.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return str(directory)
