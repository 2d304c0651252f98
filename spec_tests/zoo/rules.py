# SPDX-License-Identifier: Apache-2.0
"""How small a number of a configuration becomes, by the name of its attribute. Pure rules: no configuration is read.

Widths differ from each other where a model allows it, so that a tensor that was transposed or swapped with another
one has another shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import gcd
from typing import Any

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, EXPERT, VOCAB = 32, 4, 2, 8, 48, 24, 99
WIDE_HEAD_DIM = 24  # where a model lets its heads be wider than the model: no projection is square then
IMAGE, PATCH, POSITIONS, MELS, CODES, FEW = 32, 8, 64, 16, 64, 4

# Attributes that a rule must not touch, whatever their names look like.
KEPT = re.compile(
    r"(.*_)?(kernel|kernels|stride|strides|dilations?|padding|pads?|version|ratios?|rates?|factors?|scales?|eps|std"
    r"|epsilon|init_value|initializer_range|theta|base|temperature|freq|scaling|prob|dropout|layerdrop|multiplier)"
    r"|.*kernel_sizes?|.*stride_sizes?|.*dilation_sizes?|id2label|label2id|num_labels|chunk_size_feed_forward"
    r"|pretraining_tp|(num|in|input|audio|num_input)_channels|in_chans|type_vocab_sizes?|chunk_\w*context"
    r"|mask_(time|feature)_(prob|length|min_masks)|speaker_cache_update_period|.*_frequency|mscale\w*"
    r"|.*reduction_factor|spatial_merge_size|temporal_patch_size|num_feat_extract_layers|num_conv_layers"
    r"|.*_coeff?(icient)?|.*sampl(e|ing)_rate|.*merge_size|.*_positions_offset|feature_layer|.*kv_shared_layers"
    r"|.*loss.*|.*label_noise.*|num_upscale_blocks|num_convs|.*_prenet_layers|num_lstm_layers|squeeze_factor"
)
DROPPED_OUT = re.compile(r".*(dropout|pdrop|drop_path|layerdrop|drop_rate).*|.*_drop")
IDS = re.compile(
    r"(.*_)?(token_id|token_index|token_ids|id|index)|.*_token_id_\w+|begin_suppress_tokens|suppress_tokens"
)
INDICES = re.compile(
    r".*(indexes|indices|_indexs?|layer_ids|attn_idxs|layers_ids|_idx|extract_layers|feature_layers?|indices)"
    r"|moe_layers|kv_source_layers|rope_scaling_layers"
)
WIDTHS = re.compile(
    r".*(hidden_sizes|dims?|channels?\w*|sizes|widths?|embed_dim\w*|conv_dim|planes|filters|channel_list)"
)
_STAGES = re.compile(
    r"depths|layers|num_blocks|blocks_per_stage|.*(num_)?(hidden_)?layers|.*depths?|block_repeats|.*num_blocks"
)
_NESTED = re.compile(r"resnet_head|resnet_configs|(stage|block)_configs|bridge_connector|out_point_positions2D")


def _most(limit: int) -> Callable[[int], int]:
    """A rule: no more than this."""
    return lambda value: min(value, limit)


def _exactly(size: int) -> Callable[[int], int]:
    """A rule: this, whatever it was."""
    return lambda _: size


def _width(value: int) -> int:
    """A rule: the width of the model, unless it was narrow before."""
    return HIDDEN if value >= 24 else value


def _window(value: int) -> int:
    """A rule: windows over patches are two wide, windows over pixels as wide as the image."""
    return 2 if value < 64 else IMAGE


# Name -> rule, for whole numbers above zero; the first that matches the whole name counts.
_RULES: tuple[tuple[str, Callable[[int], int]], ...] = (
    (r"(.*_)?vocab_size(_per_layer_input)?|\w+_vocab_size", _exactly(VOCAB)),
    (r"vocab_offset", _exactly(VOCAB)),
    (r".*mel_bins|n_mels|mel_dim|model_in_dim|input_feat_per_channel", _exactly(MELS)),
    (r"(.*_)?(codebook_size|codevectors_per_group|bins?)|num_embeddings|num_codes|num_embeds", _exactly(CODES)),
    (r"(num_)?(key_value_heads|kv_heads|kv_n_heads|n_head_kv)", _most(KV_HEADS)),
    (r".*(num_key_value|kv)(_attention)?_heads", _most(KV_HEADS)),
    (r".*heads|n_head", _most(HEADS)),
    (r"qk_rope_head_dim|rotary_dim", _exactly(4)),
    (r"qk_nope_head_dim", _exactly(8)),
    (r"qk_head_dim", _exactly(12)),
    (r".*head_dim|.*dim_head|d_kv|.*head_size|d_head|kv_channels|.*headdim|.*d_head", _exactly(HEAD_DIM)),
    (r"kv_lora_rank", _exactly(16)),
    (r"q_lora_rank|o_lora_rank", _exactly(20)),
    (r".*_rank|.*lora.*", _exactly(8)),
    (r"(num_)?(experts_per_tok(en)?|moe_topk|moe_k)|num_experts_per_tok.*|num_selected_experts", _most(2)),
    (r"(moe_)?(top_k|topk)(_experts)?", _most(2)),
    (r"n_groups?|num_expert_groups?|.*n_group", _most(2)),
    (r"topk_group|.*_topk_group", _exactly(1)),
    (r".*shared_experts?", _most(2)),
    (r".*(num|n)_(\w+_)?experts|num_experts|moe_num_experts", _most(4)),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index|n_dense_layers", _most(1)),
    (r".*_interval|.*_period|_?sliding_window_pattern", _most(2)),
    (r".*_offset", _most(1)),
    (r".*(moe|expert)\w*(intermediate|ffn|hidden)\w*(size|dim)", _exactly(EXPERT)),
    (r".*(intermediate|ffn|feed_?forward|mlp|inner)\w*(size|dim)", _exactly(INTERMEDIATE)),
    (r"n_inner|d_ff|dff|d_inner|dim_ff|.*ffn_dim", _exactly(INTERMEDIATE)),
    (r".*image_size|.*img_size|resolution|.*canvas_size|.*spec_size|crop_size|input_size", _most(IMAGE)),
    (r".*patch_size", _most(PATCH)),
    (r"(.*_)?window_size|keep_window_size", _window),
    (r"sliding_window|.*attention_window\w*|local_attention\w*|attention_chunk_size|window", _most(8)),
    (r".*(max_\w*position\w*|n_positions|max_seq\w*|max_\w*len\w*|n_ctx)", _most(POSITIONS)),
    (r".*(context_length|max_\w*source_\w*)|num_position_embeddings", _most(POSITIONS)),
    (r".*(codebooks|quantizers)", _most(FEW)),
    (r"max_window_layers", _exactly(1)),
    (r"(num_)?(\w+_)?(layers|depth|n_layer|n_layers|num_blocks|hidden_groups)|n_layer|depth", _most(2)),
    (r"num_detection_tokens|num_query_tokens|\w*_queries|(.*_)?num_latents|\w+n_latents", _most(6)),
    (r".*(filter_size|filters)|n_filters", _exactly(8)),
    (r".*groups", _most(FEW)),
    (r"ssm_state_size|state_size|.*d_state", _exactly(16)),
    (r".*chunk_size|.*attn_chunk_len\w*", _most(8)),
    (r"time_step_rank|.*dt_rank", _exactly(4)),
    (r"image_embedding_size", _exactly(IMAGE // PATCH)),
    (r".*num_pos_feats|num_position_features", _exactly(HIDDEN // 2)),
    (r".*(hidden|embed|model|proj|channel|output|pooler|text|vision|latent|condition|feat)\w*", _width),
    (r".*(encoder|decoder|classifier|fusion|fpn|quantization|bottleneck|lru)\w*", _width),
    (r"n_embd|dim|width|emb_dim|.*_dim|.*units", _width),
)
_COMPILED = tuple((re.compile(pattern), rule) for pattern, rule in _RULES)


def number(name: str, value: int) -> int:
    """What a number above zero becomes: what the first rule for its name says."""
    for pattern, rule in _COMPILED:
        if pattern.fullmatch(name):
            return rule(value)
    return value


def stage(width: int) -> int:
    """The width of one stage: one division for all of them, so that what fitted together still does."""
    return max(4, width // 32 * 4) if width > HEAD_DIM else width


def _same(item: int) -> int:
    """A rule: as it was."""
    return item


def _of_items(name: str, value: list[int]) -> Callable[[int], int]:
    """The rule for each item of a list of whole numbers."""
    if _NESTED.fullmatch(name):
        return stage
    if "heads" in name:
        common = gcd(*value)
        return lambda item: item // common
    if re.search(r"(image|img|canvas|input|spec)_size$", name):
        return _most(IMAGE)
    if name.endswith("patch_size"):
        return _most(PATCH)
    if _STAGES.fullmatch(name):
        return _most(2)
    return stage if WIDTHS.fullmatch(name) else _same


def items(name: str, value: list[Any]) -> list[Any]:
    """What a list becomes: stages of layers, heads or widths of each stage, or something else that stays."""
    if name == "image_grid_pinpoints":
        return [[IMAGE, 2 * IMAGE], [2 * IMAGE, IMAGE]]
    if value and all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        rule = _of_items(name, value)
        return [rule(item) for item in value]
    mixed = [stage(item) if isinstance(item, int) and _NESTED.fullmatch(name) else item for item in value]
    return [items(name, item) if isinstance(item, list) else item for item in mixed]
