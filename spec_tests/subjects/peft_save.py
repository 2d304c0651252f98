# SPDX-License-Identifier: Apache-2.0
"""PEFT's own `save_pretrained`, of models into which PEFT put the LoRA."""

import json
import sys
from pathlib import Path

import peft
import torch
import transformers
from put_in import put_in
from safetensors.torch import load_file, save_file

case, result = Path(sys.argv[1]), Path(sys.argv[2])
spec = json.loads((case / "case.json").read_text())
if spec["kind"] == "model" or spec["ranks"] > 1:
    print("PEFT saves adapters and merges them, in one process")
    sys.exit(3)
base = getattr(transformers, spec["auto_class"]).from_pretrained(case / "base", dtype=torch.float32)
model = peft.get_peft_model(base, peft.LoraConfig(**spec["lora"])).eval()
put_in(model, load_file(case / "delta.safetensors"))
with torch.no_grad():
    logits = model(**load_file(case / "inputs.safetensors")).logits
save_file({"logits": logits}, result / "observed.safetensors")
if spec["kind"] == "merged":
    model = model.merge_and_unload()
model.save_pretrained(result / "export")
