# SPDX-License-Identifier: Apache-2.0
"""transformers' own `save_pretrained`, in one process, and `Trainer`'s save under FSDP2 on two ranks."""

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
if spec["kind"] != "model":
    print("LoRA is PEFT's")
    sys.exit(3)
model = getattr(transformers, spec["auto_class"]).from_pretrained(case / "base", dtype="auto").eval()
put_in(model, load_file(case / "delta.safetensors"))
if spec["ranks"] == 1:
    with torch.no_grad():
        save_file({"logits": model(**load_file(case / "inputs.safetensors")).logits}, result / "observed.safetensors")
    model.save_pretrained(result / "export")
else:
    fsdp = {
        "fsdp_version": 2,
        "state_dict_type": "FULL_STATE_DICT",
        "transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
    }
    arguments = transformers.TrainingArguments(
        result / "run",
        use_cpu=True,
        fsdp="full_shard auto_wrap",
        fsdp_config=fsdp,
        report_to=[],
        max_steps=1,
        learning_rate=0.0,
        weight_decay=0.0,
        per_device_train_batch_size=1,
        save_strategy="no",
    )
    inputs = load_file(case / "inputs.safetensors")["input_ids"]
    rows = [{"input_ids": row, "labels": row} for row in inputs] * 2
    trainer = transformers.Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model(str(result / "export"))
sys.stdout.flush()
os._exit(0)  # torch 2.13 aborts now and then while it frees a model that FSDP2 has sharded
