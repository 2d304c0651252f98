# SPDX-License-Identifier: Apache-2.0
"""Turn the state of a distributed PyTorch training run into a PEFT / Hugging Face checkpoint.

Vendorable under any name: relative imports only; needs torch, transformers and safetensors.
"""

from .adapter_reading import load_automodel_peft_config_dict, paramwrapper_layout
from .experts import MoESplitExpertsStateDictMixin, Qwen3MoeStateDictAdapter, _is_qwen3_moe
from .hf_addon import ConsolidatedHFAddon
from .hooks import CheckpointAddon
from .model_state import EncoderStateDictAdapter, ModelState
from .peft_addon import PeftAddon
from .ranks import PeerError
from .save import PendingSave, save_adapter, save_consolidated
from .seed_helpers import (
    _config_exists,
    _extract_target_modules,
    _extract_target_parameters,
    _get_automodel_peft_metadata,
    _get_hf_peft_config,
    _maybe_save_custom_model_code,
    _maybe_strip_quantization_config,
    _save_original_config_json,
)

__version__ = "1.0.0"
__spec_version__ = "1.0"

__all__ = [
    "CheckpointAddon",
    "ConsolidatedHFAddon",
    "EncoderStateDictAdapter",
    "MoESplitExpertsStateDictMixin",
    "ModelState",
    "PeerError",
    "PeftAddon",
    "PendingSave",
    "Qwen3MoeStateDictAdapter",
    "_config_exists",
    "_extract_target_modules",
    "_extract_target_parameters",
    "_get_automodel_peft_metadata",
    "_get_hf_peft_config",
    "_is_qwen3_moe",
    "_maybe_save_custom_model_code",
    "_maybe_strip_quantization_config",
    "_save_original_config_json",
    "load_automodel_peft_config_dict",
    "paramwrapper_layout",
    "save_adapter",
    "save_consolidated",
]
