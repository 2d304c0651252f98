# SPDX-License-Identifier: Apache-2.0
"""torchtune's own models, saved by its `FullModelHFCheckpointer` as its recipes for a single device do."""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torchtune import training
from torchtune.models import convert_weights, llama3, llama3_2, qwen2
from torchtune.modules import peft

case, result = Path(sys.argv[1]), Path(sys.argv[2])
spec, config = (json.loads((case / name).read_text()) for name in ("case.json", "base/config.json"))
lora, dim, layers = spec["lora"], config["hidden_size"], config["num_hidden_layers"]
heads = [config.get(f"num_{name}_heads") for name in ("attention", "key_value")]
kind, builder, more = {  # the tied Llama is 3.2; with a scale_factor of 1 its rotary embedding is the plain one
    ("llama", False): ("LLAMA3", llama3.lora_llama3 if lora else llama3.llama3, {}),
    ("llama", True): ("LLAMA3_2", llama3_2.lora_llama3_2 if lora else llama3_2.llama3_2, {"scale_factor": 1}),
    ("qwen2", False): ("QWEN2", qwen2.lora_qwen2 if lora else qwen2.qwen2, {}),
}.get((config["model_type"], config.get("tie_word_embeddings")), ("", None, {}))
ends = {name.rsplit(".", 1)[1] for name in spec["modules"]}
odd = [] if kind else [config["model_type"].replace("phi3", "LoRA in combined projections")]
odd += sorted(lora.keys() - {"r", "lora_alpha", "target_modules", "task_type", "use_dora"})
odd += ["LoRA in some layers alone"] if len(spec["modules"]) != layers * len(ends) else []
if odd or spec["ranks"] > 1:
    print(f"torchtune's recipes for a single device have no {[*odd, 'ranks'][0]}")
    sys.exit(3)
more |= {"vocab_size": config["vocab_size"], "num_layers": layers, "num_heads": heads[0], "num_kv_heads": heads[1]}
more |= {"embed_dim": dim, "intermediate_dim": config["intermediate_size"], "norm_eps": config["rms_norm_eps"]}
more |= {"max_seq_len": config["max_position_embeddings"], "rope_base": config["rope_parameters"]["rope_theta"]}
names = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "output_proj"}
targets = {"lora_attn_modules": [names[end] for end in names if end in ends], "apply_lora_to_mlp": "up_proj" in ends}
more |= lora and {**targets, "lora_rank": lora["r"], "lora_alpha": lora["lora_alpha"], "use_dora": "use_dora" in lora}
with training.set_default_dtype(getattr(torch, spec["dtype"])):
    model = builder(**more).eval()
checkpointer = training.FullModelHFCheckpointer(case / "base", ["model.safetensors"], kind, result / "run")
model.load_state_dict(checkpointer.load_checkpoint()[training.MODEL_KEY], strict=not lora)
values, spelled = load_file(case / "delta.safetensors"), {"A": "lora_a.weight", "B": "lora_b.weight", "e": "magnitude"}
to_tune = qwen2.qwen2_hf_to_tune if kind == "QWEN2" else convert_weights.hf_to_tune  # reorders q's and k's rows
tuned = {} if lora else to_tune(values, *heads, dim)
for name, value in values.items() if lora else ():
    weight, rows = name.rpartition(".")[0] + ".weight", value.reshape(len(value), -1)
    own = convert_weights.get_mapped_key(weight, convert_weights._FROM_HF)
    rows = rows if name.endswith("lora_A") else to_tune({weight: rows}, *heads, rows.shape[1], dim // heads[0])[own]
    tuned[own.removesuffix("weight") + spelled[name[-1]]] = rows.reshape(value.shape)
model.load_state_dict({**model.state_dict(), **tuned})
logits = model(load_file(case / "inputs.safetensors")["input_ids"]).detach()
save_file({"logits": logits}, result / "observed.safetensors")
saved = {training.MODEL_KEY: model.state_dict()}
if lora:  # as in save_checkpoint of lora_finetune_single_device, whose save_adapter_weights_only is False by default
    saved[training.ADAPTER_KEY] = peft.get_adapter_state_dict(saved[training.MODEL_KEY])
    saved[training.MODEL_KEY] = peft.get_merged_lora_ckpt(saved[training.MODEL_KEY], lora["r"], lora["lora_alpha"])
    more = {"target_modules": peft.get_lora_module_names(*targets.values(), False), "peft_type": "LORA"}
    saved[training.ADAPTER_CONFIG] = {"r": lora["r"], "lora_alpha": lora["lora_alpha"], **more}
checkpointer.save_checkpoint(saved, epoch=0)
left_out = shutil.ignore_patterns("adapter_*") if spec["kind"] == "merged" else None  # as its tutorial does for vLLM
shutil.copytree(result / "run/epoch_0", result / "export", ignore=left_out)
