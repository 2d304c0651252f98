# SPDX-License-Identifier: Apache-2.0
"""NeMo AutoModel's bi- and cross-encoders, saved by its `Checkpointer` with ``addons`` in place of its own module.

Their exporters ask the module for `_save_generated_hf_assets`. sentence-transformers is the reader:
``python nemo_encoders.py DIRECTORY`` ends with 1 where it computes other numbers than the model that was saved.
"""

import sys
from pathlib import Path

import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers

import addons

sys.modules["nemo_automodel.components.checkpoint.addons"] = addons

from nemo_automodel._transformers.retrieval import BiEncoderModel, CrossEncoderModel  # noqa: E402 - it imports addons
from nemo_automodel.components.checkpoint.config import CheckpointingConfig  # noqa: E402

TEXTS = ["where is the adapter", "here"]
PAIRS = [("where is the adapter", "here"), ("the adapter", "is here")]
words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "where": 2, "adapter": 3, "here": 4}, "[UNK]"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
torch.manual_seed(0)


def saved(target: Path, architecture: str, build: type, **settings: object) -> tuple[torch.nn.Module, Path]:
    """A tiny encoder, and where it was saved."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**sizes, vocab_size=5, max_position_embeddings=32, pad_token_id=0, num_labels=1)
    base = str(target / "base")
    getattr(transformers, architecture)(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    encoder = build.build(base, is_causal=False, **settings).eval()
    settings = {"checkpoint_dir": target, "model_repo_id": base, "save_consolidated": True, "is_peft": False}
    checkpointer = CheckpointingConfig(**settings).build(dp_rank=0, tp_rank=0, pp_rank=0)
    checkpointer.save_model(encoder, str(target), tokenizer=tokenizer)
    checkpointer.close()
    return encoder, target / "model" / "consolidated"


encoder, directory = saved(Path(sys.argv[1]) / "bi", "LlamaModel", BiEncoderModel, task="embedding", pooling="avg")
reader = SentenceTransformer(str(directory), device="cpu", trust_remote_code=True)
with torch.no_grad():
    live = encoder.encode(dict(tokenizer(TEXTS, padding=True, return_tensors="pt")))
bi = (live - reader.encode(TEXTS, convert_to_tensor=True)).abs().max().item()

encoder, directory = saved(Path(sys.argv[1]) / "cross", "LlamaForSequenceClassification", CrossEncoderModel)
reader = CrossEncoder(str(directory), device="cpu", trust_remote_code=True)
with torch.no_grad():
    live = encoder(dict(tokenizer(PAIRS, padding=True, return_tensors="pt"))).logits.flatten()
cross = (live - reader.predict(PAIRS, convert_to_tensor=True).flatten()).abs().max().item()
print(f"bi-encoder: {bi:.1e} off, cross-encoder: {cross:.1e} off")
sys.exit(int(not max(bi, cross) <= 1e-5))
