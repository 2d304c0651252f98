# SPDX-License-Identifier: Apache-2.0
"""verl's `FSDPCheckpointManager` under FSDP2, then its documented ``python -m verl.model_merger merge``.

verl makes LoRA of a rank, an alpha and targets alone; adapters with more come in by its ``lora_adapter_path``, through
PEFT, and train as they are. Either way the checkpoint is that of the model that PEFT makes here.
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
if spec["kind"] == "merged":
    print("verl saves LoRA beside the base's weights, and does not merge it into them")
    sys.exit(3)

from verl.model_merger.__main__ import main as merger  # noqa: E402 - the imports of verl are slow
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager  # noqa: E402
from verl.utils.fsdp_utils import apply_fsdp2  # noqa: E402

auto_class = getattr(transformers, spec["auto_class"])
model = auto_class.from_pretrained(case / "base", dtype=getattr(torch, spec["dtype"])).eval()
if spec["kind"] == "adapter":
    import peft

    model = peft.get_peft_model(model, peft.LoraConfig(**spec["lora"])).eval()
put_in(model, load_file(case / "delta.safetensors"))
rank = int(os.environ.get("RANK", "0"))
if rank == 0:
    with torch.no_grad():
        save_file({"logits": model(**load_file(case / "inputs.safetensors")).logits}, result / "observed.safetensors")
if spec["ranks"] > 1:
    torch.distributed.init_process_group("gloo")
else:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
mesh = torch.distributed.init_device_mesh("cpu", (spec["ranks"],), mesh_dim_names=("fsdp",))
apply_fsdp2(model, {"mesh": mesh}, {})
tokenizer = transformers.AutoTokenizer.from_pretrained(case / "base")
manager = FSDPCheckpointManager(model, processing_class=tokenizer, checkpoint_config={"save_contents": ["model"]})
manager.save_checkpoint(str(result / "checkpoint"))
if rank == 0:
    sys.argv[1:] = ["merge", "--backend", "fsdp", "--local_dir", str(result / "checkpoint")]
    sys.argv += ["--target_dir", str(result / "target")]
    merger()
    (result / "target" / ("lora_adapter" if spec["kind"] == "adapter" else "")).rename(result / "export")
sys.stdout.flush()
os._exit(0)  # torch 2.13 aborts now and then while it frees a model that FSDP2 has sharded
