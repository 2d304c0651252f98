# SPDX-License-Identifier: Apache-2.0
"""What the general rules do not serve: settings of single families, and the families that cannot be built.

``OVERRIDES`` holds no more than a family's own code asks for; a path goes through the configurations inside a
configuration.
"""

from __future__ import annotations

from typing import Any

# As a value: leave this attribute to the configuration class.
DROP = "<leave it to the class>"

# The usual backbones of detectors come from the timm package; these detectors take one of transformers as well.
_RESNET = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16, 24, 40, 56], "depths": [1, 1, 2, 1],
    "layer_type": "basic",
}  # fmt: skip
_DETECTOR = {
    "backbone": None, "backbone_kwargs": DROP, "use_timm_backbone": False, "use_pretrained_backbone": False,
    "backbone_config": _RESNET | {"out_features": ["stage4"]},
}  # fmt: skip
_MROPE = {"rope_parameters.mrope_section": [2, 1, 1]}
_MROPE_TEXT = {"text_config.rope_parameters.mrope_section": [2, 1, 1]}
_SERIES = {"prediction_length": 4, "num_time_features": 1, "feature_size": 10}
_DAC = {"encoder_hidden_size": 4, "decoder_hidden_size": 64, "hidden_size": 64}
_DEPTH = {
    "backbone_config.out_indices": [1, 2, 3, 4], "backbone_config.num_hidden_layers": 4,
    "backbone_config.reshape_hidden_states": False, "reassemble_hidden_size": 32,
}  # fmt: skip

_EFFICIENT = [32, 16, 24, 40, 80, 112, 192, 320]
_ZAMBA = {"use_mamba_kernels": False, "num_hidden_layers": 4, "attention_hidden_size": 64, "attention_head_dim": 16,
          "layers_block_type": ["linear_attention", "hybrid"] * 2}  # fmt: skip
_SAM2 = {"global_attention_blocks": [4], "image_size": [64, 64], "window_size_per_stage": [4, 2, 2, 2],
         "window_positional_embedding_background_size": [4, 4]}  # fmt: skip
_SAM2_SIZES = [[16, 16], [8, 8], [4, 4]]
_SAM2_PROMPT = {"prompt_encoder_config.image_size": 64, "prompt_encoder_config.patch_size": 16}
_QSA = {"indexer_budget": 8, "indexer_compress_ratio": 2, "indexer_head_dim": 24, "indexer_kv_heads": 1,
        "indexer_n_heads": 2}  # fmt: skip


def _under(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The same settings, for a configuration inside another one."""
    return {f"{path}.{name}": value for name, value in settings.items()}


def _letters(code: int) -> str:
    """A number in letters, as the names of image tokens have it: A for 0, B for 1, BA for 10."""
    return "".join(chr(ord("A") + int(digit)) for digit in str(code))


def _for(settings: dict[str, Any], *families: str) -> dict[str, dict[str, Any]]:
    """The same settings for several families."""
    return {family: dict(settings) for family in families}


OVERRIDES: dict[str, dict[str, Any]] = {
    "align": {"vision_config.depth_coefficient": 0.3, "vision_config.width_coefficient": 0.25,
              "vision_config.in_channels": _EFFICIENT[:-1], "vision_config.out_channels": _EFFICIENT[1:],
              "vision_config.hidden_dim": 320, "projection_dim": 80},
    "autoformer": _SERIES | {"label_length": 2},
    "bamba": {"attn_layer_indices": [1]},
    "blip-2": {"image_token_index": 95},
    "blt": {
        "use_cache": False,
        **{f"{part}_config.head_dim": 8 for part in ("patcher", "encoder", "decoder", "global")},
    },
    "bridgetower": {"hidden_size": 64, "text_config.hidden_size": 64, "vision_config.hidden_size": 64},
    "bros": {"dim_bbox_projection": 8},
    "chameleon": {"vocabulary_map": {"<image>": 98} | {f"IMGIMG{_letters(code)}Z": code for code in range(64)},
                  "image_token_id": 98},
    "clap": {"audio_config.spec_size": 128, "audio_config.num_mel_bins": 32,
             "audio_config.hidden_size": 256},
    "clvp": {"text_config.hidden_size": 64, "text_config.num_attention_heads": 2, "speech_config.hidden_size": 64,
             "speech_config.num_attention_heads": 2, "text_config.projection_dim": 64,
             "speech_config.projection_dim": 64},
    "conditional_detr": _DETECTOR,
    "cvt": {"depth": [1, 2, 3]},
    "dab-detr": _DETECTOR,
    "dac": _DAC,
    "dbrx": {"attn_config.rope_theta": 10000.0, "attn_config.clip_qkv": 8.0},
    "deepseek_ocr2": {"text_config.mlp_layer_types": ["dense", "sparse"], "text_config.num_experts_per_tok": 2,
                      "vision_config.sam_config.downsample_channels": [64, 32]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deformable_detr": _DETECTOR | {"backbone_config": _RESNET | {"out_features": ["stage2", "stage3", "stage4"]}},
    "depth_anything": _DEPTH,
    "depth_pro": {"patch_size": 32, "intermediate_hook_ids": [1, 0]},
    "detr": _DETECTOR,
    "diffusion_gemma": {"text_config.num_experts": 4, "text_config.top_k_experts": 2,
                        "text_config.moe_intermediate_size": 24},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {"text_config.head_dim": 12, "audio_config.adapter_input_size": 32},
    "dots3_note_text": {"head_dim": 12},
    "efficientnet": {"depth_coefficient": 0.3, "width_coefficient": 0.25, "in_channels": _EFFICIENT[:-1],
                     "out_channels": _EFFICIENT[1:], "hidden_dim": 320},
    "emu3": {"vocabulary_map": {"<|extra_200|>": 97, "<image>": 98}
             | {f"<|visual token {code:06}|>": code for code in range(64)}, "vq_config.hidden_size": 128,
             "vq_config.num_res_blocks": 1, "image_token_id": 98},
    "esm": {"vocab_size": 99, "pad_token_id": 1, "mask_token_id": 32},
    "esmc": {"num_key_value_heads": 4, "head_dim": 8},
    "falcon_h1": {"mamba_d_ssm": 64},
    "fun_asr_nano": {"adaptor_config.intermediate_size": 8},
    "gemma3n_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "intermediate_size": 48,
                     "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
                     "layer_types": ["sliding_attention", "full_attention"] * 2},
    "granite_speech5_ctc": {"encoder_config.num_key_value_heads": 4},
    "granite_speech5_encoder": {"num_key_value_heads": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hrm_text": {"use_cache": False},
    "informer": _SERIES,
    "instructblip": {"image_token_index": 95},
    "instructblipvideo": {"video_token_index": 95},
    "janus": {"vq_config.channel_multiplier": [1, 1]},
    "kosmos-2": {"latent_query_num": 6},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 48, "intermediate_size": 64},
    "markuplm": {"max_xpath_tag_unit_embeddings": 128, "max_xpath_subs_unit_embeddings": 128},
    "nemotron": {"num_key_value_heads": 2},
    "pe_audio": _under("audio_config.dac_config", _DAC),
    "pe_audio_encoder": _under("dac_config", _DAC),
    "prompt_depth_anything": _DEPTH,
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [12, 20], "is_decoder": False},
    "t5gemma2_encoder": {"text_config.dropout_rate": 0.0, "mm_tokens_per_image": 4},
    "table-transformer": _DETECTOR,
    "time_series_transformer": _SERIES,
    "wav2vec2-bert": {"vocab_size": 99},
    "wav2vec2-conformer": {"vocab_size": 99},
    "zaya": {"num_experts_per_tok": 1},
    **_for({"head_dim": 8}, "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"),
    "hunyuan_vl": {"text_config.head_dim": 8, "text_config.rope_parameters.mrope_section": [1, 1, 1, 1]},
    **_for(_MROPE_TEXT, "qwen2_vl", "qwen2_5_vl", "glm46v", "glm4v", "glm_image", "glm_ocr", "glmga"),
    **_for({"text_config.rope_parameters.mrope_section": [4, 4, 4]}, "qwen3_vl", "qwen3_vl_moe"),
    **_for({"rope_parameters.mrope_section": [4, 4, 4]}, "qwen3_vl_text", "qwen3_vl_moe_text"),
    "paddleocr_vl": {"text_config.rope_parameters.mrope_section": [4, 4, 4]},
    **_for(_MROPE, "qwen2_vl_text", "qwen2_5_vl_text", "glm4v_text", "glm_image_text", "glm_ocr_text"),
    "qwen2_5_omni_thinker": _MROPE_TEXT | {"vision_start_token_id": 90},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 90},
    **_for({"mm_tokens_per_image": 4}, "gemma3", "shieldgemma2"),
    "t5gemma2": {"encoder.mm_tokens_per_image": 4},
    "voxtral": {"audio_config.intermediate_size": 128, "audio_token_id": 97},
    "glmasr": {"audio_config.intermediate_size": 128},
    "florence2": {"vision_config.projection_dim": 32},
    **_for({"out_hidden_size": 128}, "muse_glimmer", "muse_spark"),
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "mllama": {"vision_config.vision_output_dim": 160},
    "llama4": {"vision_config.intermediate_size": 128},
    "unlimited_ocr": {"vision_config.sam_config.downsample_channels": [64, 32]},
    "vipllava": {"vision_feature_layers": [-2, -1]},
    "colqwen2": {"vlm_config.text_config.rope_parameters.mrope_section": [2, 1, 1]},
    "glm4v_moe": {"text_config.rope_parameters.mrope_section": [1, 1, 0]},
    "hunyuan_vl_text": {"head_dim": 8, "rope_parameters.mrope_section": [1, 1, 1, 1]},
    "cohere_compass": {"text_config.rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "edgetam_video": _under("vision_config.backbone_config", _SAM2) | _SAM2_PROMPT
    | {"vision_config.backbone_feature_sizes": _SAM2_SIZES},
    "efficientloftr": {"out_features": [8, 8, 16, 32], "num_attention_heads": 8, "num_key_value_heads": 8,
                      "fine_matching_slice_dim": 4},
    "ernie4_5_vl_moe": {"text_config.rope_parameters.mrope_section": [1, 1, 2],
                        "text_config.moe_intermediate_size": [24, 16]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": DROP},
    "jamba": {"use_mamba_kernels": False},
    "granite4_vision": {"deepstack_layer_map": [[0, 0], [1, 1]], "downsample_rate": "1/2",
                        "vision_config.hidden_size": 64, "qformer_config.hidden_size": 64,
                        "qformer_config.num_attention_heads": 4},
    "grounding-dino": {"max_text_len": 12},
    "mm-grounding-dino": {"max_text_len": 12},
    "lightglue": {"keypoint_detector_config.keypoint_decoder_dim": 65},
    "lw_detr": _under("backbone_config", {"image_size": 64, "num_windows": 4, "num_windows_side": 2})
    | {"projector_scale_factors": [1.0], "num_feature_levels": 1, "projector_in_channels": [32]},
    "lw_detr_vit": {"image_size": 64, "num_windows": 4, "num_windows_side": 2},
    "mistral4": {"qk_nope_head_dim": 4, "qk_head_dim": 8, "head_dim": 8},
    "molmo2": {"adapter_config.vision_feature_layer": [1, 0]},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "neomme": {"hidden_size": 64, "head_dim": 16},
    "neucodec": {"encoder_hidden_size": 4, "num_key_value_heads": 4, "quantization_dim": 64},
    "xcodec": {"codebook_dim": 64},
    "xcodec2": {"encoder_hidden_size": 4, "num_key_value_heads": 4, "quantization_dim": 64},
    "oneformer": {"text_encoder_vocab_size": 99},
    "qwen4_exp": _under("text_config", _QSA),
    "qwen4_exp_text": _QSA,
    "recurrent_gemma": {"num_hidden_layers": 3, "head_dim": 8},
    "sam2": _under("vision_config.backbone_config", _SAM2) | _SAM2_PROMPT
    | {"vision_config.backbone_feature_sizes": _SAM2_SIZES},
    "sam2_video": _under("vision_config.backbone_config", _SAM2) | _SAM2_PROMPT
    | {"vision_config.backbone_feature_sizes": _SAM2_SIZES},
    "sam2_hiera_det_model": _SAM2,
    "sam2_vision_model": _under("backbone_config", _SAM2) | {"backbone_feature_sizes": _SAM2_SIZES},
    "sam3_tracker": {"vision_config.backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
    "seggpt": {"image_size": [64, 32], "merge_index": 0},
    "step3p7": {"text_config.layer_types": ["full_attention", "sliding_attention"], "text_config.sliding_window": 8},
    "superglue": {"keypoint_detector_config.keypoint_decoder_dim": 65},
    "superpoint": {"keypoint_decoder_dim": 65},
    "tvp": {"visual_prompt_size": 8, "num_frames": 2, "max_img_size": 128},
    "muse_spark": {"audio_config.num_hidden_layers": 4},
    "muse_spark_audio": {"num_hidden_layers": 4},
    "pp_doclayout_v2": {"class_thresholds": [0.5, 0.5], "class_order": [0, 1]},
    "pp_doclayout_v3": {"x4_feat_dim": 16},
    "pp_lcnet": {"block_configs": DROP, "scale": 0.25},
    "pp_lcnet_v3": {"block_configs": DROP, "scale": 0.25},
    "pp_ocrv5_mobile_det": {"backbone_config.block_configs": DROP, "backbone_config.scale": 0.25},
    "slanet": {"backbone_config.block_configs": DROP, "backbone_config.scale": 0.25},
    "sapiens2": {"num_key_value_heads_per_layer": [4, 2]},
    "uvdoc": {"backbone_config.depths": DROP, "backbone_config.out_indices": [1, 2, 3, 4, 5, 6]},
    "vitmatte": {"backbone_config.patch_size": 16, "backbone_config.image_size": 64},
    "univnet": {"model_hidden_channels": 8, "model_in_channels": 8, "kernel_predictor_hidden_channels": 8},
    "vibevoice_acoustic_tokenizer": {"num_filters": 2},
    "vibevoice_acoustic_tokenizer_decoder": {"num_filters": 2},
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 2},
    "vibevoice": {"audio_config.num_filters": 2, "semantic_model_config.num_filters": 2},
    "vibevoice_asr": {"acoustic_tokenizer_encoder_config.num_filters": 2, "acoustic_tokenizer_chunk_size": 3200,
                      "semantic_tokenizer_encoder_config.num_filters": 2},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": _ZAMBA,
    "zamba2": _ZAMBA | {"hybrid_layer_ids": [1, 3]},
    "glm4v_moe_text": {"rope_parameters.mrope_section": [1, 1, 0]},
}  # fmt: skip

# Where a family's usual class cannot be built, but another one can.
MAIN: dict[str, str] = {
    "mask2former": "Mask2FormerModel",
    "maskformer": "MaskFormerModel",
    "oneformer": "OneFormerModel",
    "sapiens2": "Sapiens2Model",
}

_TIMM = "needs the timm package"
_SCIPY = "needs the scipy package"
CANNOT: dict[str, str] = {
    **dict.fromkeys(("edgetam", "edgetam_vision_model", "fast_vlm", "gemma3n", "gemma3n_vision", "pe_audio_video",
                     "pe_audio_video_encoder", "pe_video", "pe_video_encoder", "perception_lm", "timm_backbone",
                     "timm_wrapper", "omdet-turbo"), _TIMM),
    **dict.fromkeys(("eomt", "eomt_dinov3", "inkling_mm_model", "videomt"), _SCIPY),
    **dict.fromkeys(("bark", "glm_image_vqmodel", "qwen2_5_omni", "qwen3_omni_moe"),
                    "the whole model has no forward, only its parts do"),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"),
                    "all its layers read keys and values that another model has computed"),
    **dict.fromkeys(("pp_ocrv5_server_det", "pp_ocrv6_medium_det"),
                    "the default configuration leaves out blocks that the model needs"),
    "pp_ocrv6_small_det": "the default neck does not fit the default backbone",
    "sam3_tracker_video": "the forward takes a session of a video, not tensors",
    "dinat": "needs the natten package",
    "higgs_audio_v2_tokenizer": "needs the torchaudio package",
    "layoutlmv2": "needs the detectron2 package",
}  # fmt: skip
