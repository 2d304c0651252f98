# SPDX-License-Identifier: Apache-2.0
"""torchtitan's own Llama with its `LoRAConverter`, saved by `examples/export_for_torchtitan.py`."""

import json
import re
import sys
from pathlib import Path

import torch
import transformers
from export_for_torchtitan import LoraSettings, save_lora
from safetensors.torch import load_file, save_file
from torchtitan.components.lora import LoRAConverter
from torchtitan.models import llama3
from torchtitan.models.common.attention import ScaledDotProductAttention as Sdpa

case, result = Path(sys.argv[1]), Path(sys.argv[2])
spec, base = json.loads((case / "case.json").read_text()), str(case / "base")
lora, config = spec["lora"], transformers.AutoConfig.from_pretrained(base)
names = {"q_proj": "wq", "k_proj": "wkv", "v_proj": "wkv", "o_proj": "wo"}
names |= {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
ends = {name.rpartition(".")[2] for name in spec["modules"]}
layers, dim, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
odd = [] if config.model_type == "llama" and spec["kind"] == "adapter" else [f"{config.model_type}, {spec['kind']}"]
odd += sorted((lora or {}).keys() - {"r", "lora_alpha", "target_modules", "task_type"})
odd += ["LoRA in wk or wv alone"] if len(ends & {"k_proj", "v_proj"}) == 1 else []
odd += [] if len(spec["modules"]) == layers * len(ends) and ends <= names.keys() else ["LoRA in some layers alone"]
if odd or spec["ranks"] > 1 or config.tie_word_embeddings or spec["dtype"] != "float32":
    print(f"torchtitan's LoRAConverter, by itself, has no {[*odd, 'ranks, ties or other dtypes'][0]}")
    sys.exit(3)
rope = llama3.ComplexRoPE.Config(dim=dim // heads, max_seq_len=64, theta=10000.0, scaling="none")
more = {"n_kv_heads": config.num_key_value_heads, "hidden_dim": config.intermediate_size, "fuse_qkv": False}
settings = llama3.Llama3Model.Config(
    dim=dim,
    vocab_size=config.vocab_size,
    tok_embeddings=llama3.Embedding.Config(num_embeddings=config.vocab_size, embedding_dim=dim),
    norm=llama3.RMSNorm.Config(normalized_shape=dim, eps=config.rms_norm_eps),
    lm_head=llama3.Linear.Config(in_features=dim, out_features=config.vocab_size),
    layers=llama3._build_llama3_layers(dim=dim, n_layers=layers, n_heads=heads, rope=rope, attn_backend="flex", **more),
)
for block in settings.layers:
    block.attention_norm.eps = block.ffn_norm.eps = config.rms_norm_eps
adapter = llama3.Llama3StateDictAdapter(settings, None)
own = {hf: name for hf, name in adapter.from_hf_map.items() if name}
converter = LoRAConverter.Config(rank=lora["r"], alpha=lora["lora_alpha"], target_modules=[names[end] for end in ends])
model = converter.build().convert(settings).build().eval()
model.load_state_dict(adapter.from_hf(load_file(case / "base" / "model.safetensors")), strict=False)
for name, value in load_file(case / "delta.safetensors").items():
    module, _, matrix = name.rpartition(".")
    native = own[re.sub(r"\d+", "{}", module, count=1) + ".weight"].removesuffix(".weight")
    rows = {"q_proj": heads, "k_proj": config.num_key_value_heads}.get(module.rpartition(".")[2])
    turned = adapter._reverse_permute(value, rows, *value.shape) if rows and matrix == "lora_B" else value
    model.get_parameter(native.format(*re.findall(r"\d+", module)) + f".{matrix.lower()}.weight").data.copy_(turned)
ids = load_file(case / "inputs.safetensors")["input_ids"]
for block in model.layers.values():  # its FlexAttention computes other numbers on this CPU
    block.attention.inner_attention = Sdpa(Sdpa.Config())
    block.attention.inner_attention.sdpa_backends = [torch.nn.attention.SDPBackend.MATH]
places = torch.arange(ids.shape[1]).expand(ids.shape)
save_file({"logits": model(ids, positions=places).detach()}, result / "observed.safetensors")
save_lora(model, adapter, str(result / "export"), LoraSettings(lora["r"], lora["lora_alpha"]), base)
