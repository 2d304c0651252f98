# SPDX-License-Identifier: Apache-2.0
"""Turn the state of a distributed PyTorch training run into a PEFT / Hugging Face checkpoint.

Vendorable under any name: relative imports only; needs torch, transformers and safetensors. The rooms, floor by floor;
each imports only from rooms that come after it:

    save, staged    whole checkpoints in one call: the hooks' files, and the weights; where they are made
    seed_helpers                            the underscored functions of NeMo AutoModel's API page
    peft_addon, hf_addon                    the hooks
    adapter_reading, adapter_config         an adapter: reading it back, and its two JSON files
    targets, target_sites                   the plan of an adapter, read off converted tensors
    hf_config, companions                   config files; tokenizer and code beside them
    weights, model_state, merging           weights files; which tensors are saved; LoRA merged into them
    hf_names, heads                         the names that transformers saves under; what travels beside LoRA
    lora_sites, experts                     modules with LoRA; layouts of experts
    whole                                   sharded tensors put together on every rank, to be split or merged
    gathering, holdings                     tensors on their way to a writer, and where they are
    modules, hooks, compat_guards           one walk over a model; keywords of hooks; guards for copied code
    attention_masks                         what such a guard puts into the code, for nobody here to import
    staging, publishing                     where a checkpoint is made; it takes its place, whole or not at all
    ranks, files, plain_json                talk between ranks; single files and directories; JSON
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
    _save_generated_hf_assets,
    _save_original_config_json,
)
from .staging import recover

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
    "_save_generated_hf_assets",
    "_save_original_config_json",
    "load_automodel_peft_config_dict",
    "paramwrapper_layout",
    "recover",
    "save_adapter",
    "save_consolidated",
]
