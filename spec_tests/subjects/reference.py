# SPDX-License-Identifier: Apache-2.0
"""The bundled reference: LoRA by PEFT, saved by ``addons``; FSDP2 on two ranks."""

import json
import os
import sys
from pathlib import Path

import torch
import transformers
from put_in import put_in
from safetensors.torch import load_file, save_file

import addons

case, result = Path(sys.argv[1]), Path(sys.argv[2])
spec = json.loads((case / "case.json").read_text())
model = getattr(transformers, spec["auto_class"]).from_pretrained(case / "base", dtype="auto").eval()
if spec["kind"] != "model":
    import peft

    model = peft.get_peft_model(model, peft.LoraConfig(**spec["lora"])).eval()
put_in(model, load_file(case / "delta.safetensors"))
if spec["ranks"] > 1:
    torch.distributed.init_process_group("gloo")
    torch.distributed.fsdp.fully_shard(model)
else:
    with torch.no_grad():
        save_file({"logits": model(**load_file(case / "inputs.safetensors")).logits}, result / "observed.safetensors")
if spec["kind"] == "adapter":
    addons.save_adapter(model, result / "export", model.peft_config["default"])
else:
    addons.save_consolidated(model, result / "export", merge_lora=spec["kind"] == "merged")
sys.stdout.flush()
os._exit(0)  # torch 2.13 aborts now and then while it frees a model that FSDP2 has sharded
