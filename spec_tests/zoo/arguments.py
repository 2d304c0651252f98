# SPDX-License-Identifier: Apache-2.0
"""Arguments of a forward that the general rules do not find, by family. Pure data.

An argument is a literal, or a kind and a shape: "normal 1 3 32 32", "ones 1 12", "whole<60 1 4", "ids 12"; nothing is
to be given where it is ``None``.
"""

from __future__ import annotations

from typing import Any

_SERIES_INPUTS = {
    "past_values": "normal 1 11", "past_time_features": "normal 1 11 1", "past_observed_mask": "ones 1 11",
    "future_values": "normal 1 4", "future_time_features": "normal 1 4 1",
}  # fmt: skip

INPUTS: dict[str, dict[str, Any]] = {
    "autoformer": _SERIES_INPUTS,
    "blip_2_qformer": {"query_embeds": "normal 1 6 32", "encoder_hidden_states": "normal 1 5 32"},
    "clap": {"input_features": "normal 1 1 64 32"},
    "colqwen2": {"pixel_values": "normal 1 16 384"},
    "decision_transformer": {"states": "normal 1 4 17", "actions": "normal 1 4 4", "rewards": "normal 1 4 1",
                             "returns_to_go": "normal 1 4 1", "timesteps": "whole<60 1 4",
                             "attention_mask": "ones 1 4"},
    "depth_pro": {"pixel_values": "normal 1 3 128 128"},
    "fun_asr_nano_encoder": {"input_features": "normal 1 20 112", "input_features_mask": "ones 1 20"},
    "jev": {"marks": [[3, 6]], "num_options": [[2, 1]], "question_type_ids": [[0, 1]]},
    "lightglue": {"pixel_values": "normal 1 2 3 64 64"},
    "mimi_decoder": {"latents": "normal 1 32 4"},
    "pocket_tts_audio_tokenizer_decoder": {"latents": "normal 1 32 4"},
    "minicpm_ocr_vision": {"pixel_values": "normal 1 3 8 128", "target_sizes": [[4, 4]]},
    "minicpmv4_7_vision": {"pixel_values": "normal 1 3 8 128", "target_sizes": [[4, 4]]},
    "neucodec": {"input_features": "normal 1 10 32", "input_values": "normal 1 1 3200", "input_features_mask": None},
    "xcodec2": {"input_features": "normal 1 10 32", "input_values": "normal 1 1 3200", "input_features_mask": None},
    "univnet": {"input_features": "normal 1 20 16"},
    "muse_glimmer_assistant": {"noise_embeds": "normal 1 4 32", "context_hidden_states": "normal 1 6 96"},
    "muse_spark_audio": {"input_values": "normal 1 3840"},
    "efficientloftr": {"pixel_values": "normal 1 2 3 64 64"},
    "vibevoice_acoustic_tokenizer_decoder": {"hidden_states": "normal 1 32 4"},
    "vibevoice_acoustic_tokenizer_encoder": {"hidden_states": "normal 1 1 3200"},
    "musicgen": {"decoder_input_ids": "whole<60 4 8"},
    "musicgen_melody": {"decoder_input_ids": "whole<60 4 8"},
    "nemotron3_5_transcribe_word_timestamp": {"inputs_embeds": "normal 1 12 32"},
    "oneformer": {"task_inputs": "whole<60 1 77"},
    "pi0": {"state": "normal 1 32", "pixel_values": "normal 1 1 3 32 32", "pixel_attention_mask": "true 1 1"},
    "pix2struct": {"flattened_patches": "normal 1 16 34"},
    "qwen3_asr_encoder": {"input_features": "normal 1 16 100", "input_features_mask": "ones 1 100"},
    "seggpt": {"pixel_values": "normal 1 3 32 32", "prompt_pixel_values": "normal 1 3 32 32",
               "prompt_masks": "normal 1 3 32 32"},
    "speech-encoder-decoder": {"input_features": None},
    "superglue": {"pixel_values": "normal 1 2 3 64 64"},
    "timesfm": {"past_values": "normal 1 64"},
    "timesfm2_5": {"past_values": "normal 1 64"},
    "tvp": {"pixel_values": "normal 1 2 3 128 128"},
    "video_llama_3_vision": {"merge_sizes": [2]},
    "voxtral_realtime": {"input_ids": "ids 8", "attention_mask": "ones 1 8"},
    "voxtral_realtime_text": {"t_cond": "normal 1 1 32"},
    "gemma3n_audio": {"audio_mel": "normal 1 64 16", "audio_mel_mask": "false 1 64"},
    "gemma4_vision": {"pixel_values": "normal 1 16 192", "pixel_position_ids": "whole<4 1 16 2"},
    "grounding-dino": {"pixel_values": "normal 1 3 128 128"},
    "idefics": {"pixel_values": "normal 1 1 3 32 32", "image_attention_mask": "ones 1 12 1"},
    "informer": _SERIES_INPUTS,
    "inkling2_vision": {"pixel_values": "normal 16 16 16 3"},
    "instructblip": {"qformer_input_ids": "ids 5"},
    "instructblipvideo": {"qformer_input_ids": "ids 5", "pixel_values": "normal 1 1 3 32 32"},
    "kosmos-2": {"image_embeds_position_mask": [[0] + [1] * 6 + [0] * 5]},
    "kyutai_speech_to_text": {"input_ids": "whole<60 1 12 5"},
    "lxmert": {"visual_feats": "normal 1 4 32", "visual_pos": "normal 1 4 4"},
    "mm-grounding-dino": {"pixel_values": "normal 1 3 128 128"},
    "time_series_transformer": _SERIES_INPUTS,
    "deepseek_vl_hybrid": {"high_res_pixel_values": "normal 1 3 32 32"},
    "fun_asr_nano": {"input_features": "normal 1 20 112", "input_features_mask": "ones 1 20"},
    "inkling2": {"pixel_values": "normal 16 16 16 3"},
    "mllama": {"pixel_values": "normal 1 1 4 3 32 32", "aspect_ratio_ids": [[1]], "aspect_ratio_mask": "ones 1 1 4"},
    "muse_spark": {"input_values": "normal 1 3840"},
    "qwen3_asr": {"input_features": "normal 1 16 100", "input_features_mask": "ones 1 100"},
    "vibevoice": {"input_values": "normal 1 1 3200", "padding_mask": "true 1 3200"},
    "video_llama_3": {"image_merge_sizes": [2]},
    "granite_docling": {"pixel_values": "normal 1 1 3 32 32", "pixel_attention_mask": "true 1 1"},
}  # fmt: skip
