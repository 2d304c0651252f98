# SPDX-License-Identifier: Apache-2.0
"""NeMo AutoModel's own LoRA, its `Checkpointer` under FSDP2, and its `export_merged_peft_checkpoint`.

The models are those of transformers (its ``force_hf``), and the settings are those with which its recipes save.
"""

import json
import os
import sys
from pathlib import Path

import torch
import transformers
from put_in import put_in
from safetensors.torch import load_file, save_file

case, result = Path(sys.argv[1]), Path(sys.argv[2])
spec = json.loads((case / "case.json").read_text())
lora, base = spec["lora"], str(case / "base")
if more := sorted(lora.keys() - {"r", "lora_alpha", "use_dora", "target_modules", "task_type"}):
    print(f"NeMo AutoModel's PeftConfig has no setting for {', '.join(more)}")
    sys.exit(3)

from nemo_automodel import export_merged_peft_checkpoint  # noqa: E402 - these imports are slow
from nemo_automodel.components._peft.lora import PeftConfig, apply_lora_to_linear_modules  # noqa: E402
from nemo_automodel.components.checkpoint.checkpointing import CheckpointingConfig  # noqa: E402


def untrained(peft_config: PeftConfig | None) -> torch.nn.Module:
    """The base, with LoRA where there is a configuration of it."""
    model = getattr(transformers, spec["auto_class"]).from_pretrained(base, dtype="auto").eval()
    if peft_config:
        apply_lora_to_linear_modules(model, peft_config)
    return model


named = lora and {"dim": lora["r"], "alpha": int(lora["lora_alpha"]), "use_dora": lora.get("use_dora", False)}
peft_config = PeftConfig(target_modules=lora["target_modules"], **named) if lora else None
model = untrained(peft_config)
put_in(model, load_file(case / "delta.safetensors"))
rank = int(os.environ.get("RANK", "0"))
if rank == 0:
    with torch.no_grad():
        save_file({"logits": model(**load_file(case / "inputs.safetensors")).logits}, result / "observed.safetensors")
if spec["ranks"] > 1:
    mesh = torch.distributed.init_device_mesh("cpu", (spec["ranks"],))
    for module in (*model.model.layers, model):
        torch.distributed.fsdp.fully_shard(module, mesh=mesh)
config = CheckpointingConfig(checkpoint_dir=result, model_repo_id=base, save_consolidated=True, is_peft=bool(lora))
checkpointer = config.build(dp_rank=rank, tp_rank=0, pp_rank=0)
tokenizer = transformers.AutoTokenizer.from_pretrained(base)
checkpointer.save_model(model, str(result / "saved"), peft_config=peft_config, tokenizer=tokenizer)
checkpointer.close()
if spec["kind"] == "merged":
    places = {"adapter_path": result / "saved" / "model", "output_dir": result / "export"}
    export_merged_peft_checkpoint(untrained(peft_config), **places)
elif rank == 0:
    (result / "saved" / "model" / ("" if lora else "consolidated")).rename(result / "export")
sys.stdout.flush()
os._exit(0)  # as in `verl_merge`: torch 2.13 aborts now and then while it frees what FSDP2 has sharded
