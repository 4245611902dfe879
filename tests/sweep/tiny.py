"""A tiny random model of any type that transformers can build: its default configuration, with small numbers."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

LAYERS = 4  # as many as show each kind of a hybrid's layers
SIZES: dict[str, int] = {
    name: size
    for size, names in {
        64: """
            hidden_size n_embd d_model dim embed_dim word_embed_proj_dim embedding_size hidden_dim
            out_hidden_size text_hidden_size vision_hidden_size hidden_size_global emb_dim embedding_dim
            projection_dim image_token_embed_dim vision_output_dim projector_input_dim projector_output_dim
            input_embedding_size output_embedding_size adapter_in_dim adapter_out_dim output_dim
            position_bias_max_distance ngram_vocab_size_base num_position_embeddings num_embeddings
            attention_hidden_size lru_width adapter_input_size
        """,
        128: """
            intermediate_size ffn_dim n_inner d_ff ffn_hidden_size encoder_ffn_dim decoder_ffn_dim
            mlp_hidden_size feed_forward_size dff mlp_dim intermediate_size_mlp dim_ff dense_intermediate_size
            alignment_intermediate_size projector_hidden_size d_inner mamba_d_ssm
        """,
        4: """
            num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers depth
            num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads
            linear_num_value_heads linear_num_heads swa_num_attention_heads time_step_rank mamba_dt_rank
        """,
        2: """
            num_key_value_heads num_kv_heads attention_heads_kv linear_num_key_heads swa_num_key_value_heads
            num_experts_per_tok num_experts_per_token moe_top_k moe_k moe_topk top_k_experts
            num_kv_shared_layers
        """,
        16: """
            head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim kv_channels linear_key_head_dim
            linear_value_head_dim linear_head_dim d_kv attention_head_dim global_head_dim index_head_dim
            qk_head_dim q_lora_rank kv_lora_rank o_lora_rank sliding_window attention_chunk_size
            attention_window_size window_size
            chunk_size mamba_chunk_size mamba_head_dim mamba_d_head d_head attention_head_size
            query_pre_attn_scalar index_topk
        """,
        8: """
            num_experts num_local_experts n_routed_experts moe_num_experts num_routed_experts state_size
            mamba_d_state ssm_state_size mamba_num_heads mamba_n_heads n_mamba_heads rotary_dim
            hidden_size_per_layer_input laurel_rank
        """,
        1: """
            n_group num_expert_group topk_group n_groups mamba_n_groups n_shared_experts
        """,
        32: """
            moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size expert_ffn_size
            moe_shared_expert_intermediate_size shared_intermediate_size
        """,
        512: """
            max_position_embeddings n_positions n_ctx max_seq_len seq_length context_length max_sequence_length
            shape_vocab_size pronunciation_vocab_size encoder_hash_byte_group_vocab
        """,
        28: """
            image_size
        """,
        14: """
            patch_size
        """,
    }.items()
    for name in names.split()
}
VOCABULARIES = ("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size", "unpadded_vocab_size")
UNSET = {
    "head_dim": 16,
    "num_key_value_heads": 2,
    "n_routed_experts": 8,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}  # where the default is None
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_ASSISTED = {  # an assistant's own layers only read what its target model has computed
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "enable_moe_block": False,
    "use_double_wide_mlp": False,
    "num_kv_shared_layers": LAYERS,
}
_INDEXED = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
# What a type has no default for, or what must suit its other numbers.
OVERRIDES: dict[str, dict[str, Any]] = {
    "chameleon": {"vocabulary_map": {"<image>": 5, "IMGIMGAAZ": 6, "IMGIMGABZ": 7}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": _ROPE}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2}, "ffn_config": {"hidden_size": 64}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}},
    "diffusion_gemma": {"text_config": {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 32}},
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {"text_config": {"head_dim": 32}},
    "dots3_note_text": {"head_dim": 32},
    "gemma4_assistant": {"text_config": _ASSISTED, "backbone_hidden_size": 64, "num_centroids": 8},
    "gemma4_unified_assistant": {"text_config": _ASSISTED, "backbone_hidden_size": 64, "num_centroids": 8},
    "granite4_vision": {
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-1, 0], [-2, 2]],
        "spatial_target_layers": [1, 3],
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "molmo2": {"adapter_config": {"vision_feature_layer": [3, 1]}, "vit_layers": [3, 1]},
    "qwen4_exp": {"text_config": _INDEXED},
    "qwen4_exp_text": _INDEXED,
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_ssm": 128},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "reformer": {"is_decoder": True, "axial_pos_shape": [16, 32], "axial_pos_embds_dim": [32, 32]},
    "zamba": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "mamba_headdim": 16,
        "kv_channels": 16,
        "num_query_groups": 4,
        "hybrid_layer_ids": [1, 3],
    },
}


# Types whose default configuration is refused by the class itself: the parts to begin with instead.
BEGINNINGS: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {"text_config": {"model_type": "gemma4_text"} | _ASSISTED | {"num_kv_shared_layers": 30}},
}


# Of those that the installed transformers can't build at all: why, as found out with their default configurations.
REASONS = {
    "evolla": "its model reads proteins, and no auto class of those that train on text knows its configuration",
    "fast_vlm": "its vision tower needs the package timm",
    "gemma3n": "its vision tower needs the package timm; gemma3n_text is built",
    "gemma4_assistant": "all its layers must share keys and values, and its configuration refuses that",
    "gemma4_unified_assistant": "as gemma4_assistant: its configuration refuses what it asks for",
    "musicgen": "AutoModelForCausalLM gives its decoder the whole configuration, which that can't read",
    "musicgen_melody": "as musicgen",
    "perception_lm": "its vision tower needs the package timm",
}


def list_types() -> list[str]:
    """Every model type that can be trained on text by its name: causal models, and those that take images too."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES})


def build_model(model_type: str, vocabulary: int, ids: dict[str, int | None]) -> PreTrainedModel:
    """A random model of this type; what can't be built raises whatever transformers raises."""
    config = build_config(model_type, vocabulary, ids)
    is_causal = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    factory = AutoModelForCausalLM if is_causal else AutoModelForImageTextToText
    torch.manual_seed(0)
    model: PreTrainedModel = factory.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():  # as trained ones, none is 0, which would keep gradients from others
            if not weight.any():
                weight.normal_(std=0.02)
    return model


def build_config(model_type: str, vocabulary: int, ids: dict[str, int | None]) -> PreTrainedConfig:
    """The type's default configuration, made small."""
    config_class = CONFIG_MAPPING[model_type]
    whole = config_class(**copy.deepcopy(BEGINNINGS.get(model_type, {}))).to_dict()
    values = _merge(_shrink(whole, vocabulary, ids), OVERRIDES.get(model_type, {}))
    config: PreTrainedConfig = config_class(**values)
    return config


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The values with these changes, parts within parts included."""
    merged = dict(values)
    for name, change in changes.items():
        old = merged.get(name)
        is_part = isinstance(change, dict) and isinstance(old, dict) and "model_type" in old
        merged[name] = _merge(old, change) if is_part else change
    return merged


def _shrink(values: dict[str, Any], vocabulary: int, ids: dict[str, int | None]) -> dict[str, Any]:
    kept = _pick_layers(values)
    special = iter(range(vocabulary - 1, 0, -1))
    small: dict[str, Any] = {}
    keys_of_all = values.get("num_key_value_heads") == values.get("num_attention_heads")  # as MLA has them
    for name, value in values.items():
        if name in ("architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype"):
            continue
        if name in ids:
            small[name] = ids[name]
        elif isinstance(value, dict) and "model_type" in value:
            small[name] = _shrink(value, vocabulary, ids)
        elif isinstance(value, list) and kept and len(value) == kept[0]:
            small[name] = [value[index] for index in kept[1]]
        elif isinstance(value, dict) and _is_by_layer(values, value):
            places = dict(enumerate(kept[1])) if kept else {index: index for index in range(LAYERS)}
            by_index = {int(key): part for key, part in value.items()}
            small[name] = {
                str(place): _shrink_part(by_index[index], vocabulary, ids)
                for place, index in places.items()
                if index in by_index
            }
        elif name == "rope_parameters" and isinstance(value, dict) and _has_sections(values, value):
            half = int(8 * value.get("partial_rotary_factor", 1.0))
            small[name] = value | {"mrope_section": [half // 4, half // 4 + half % 2, half // 2]}
        elif value is None and name in UNSET:
            small[name] = UNSET[name]
        elif isinstance(value, int) and not isinstance(value, bool) and name.endswith(("token_id", "token_index")):
            small[name] = next(special)
        elif isinstance(value, int) and not isinstance(value, bool) and name in VOCABULARIES:
            small[name] = vocabulary
        elif name == "num_key_value_heads" and keys_of_all:
            small[name] = SIZES["num_attention_heads"]
        elif isinstance(value, int) and not isinstance(value, bool) and name in SIZES:
            small[name] = min(SIZES[name], value) if value > 0 else value
        else:
            small[name] = value
    return small


def _has_sections(values: dict[str, Any], rope: dict[str, Any]) -> bool:
    """Whether positions have a part for time, height and width each, as where images are looked at."""
    looks = any(part in values.get("model_type", "") for part in ("vl", "4v", "46v", "ocr", "omni", "glmga"))
    return looks or "mrope_section" in rope


def _shrink_part(part: Any, vocabulary: int, ids: dict[str, int | None]) -> Any:
    return _shrink(part, vocabulary, ids) if isinstance(part, dict) else part


def _is_by_layer(values: dict[str, Any], part: dict[str, Any]) -> bool:
    """Whether the keys are numbers of layers."""
    return bool(part) and all(str(key).isdigit() and int(key) < _count_layers(values) for key in part)


def _count_layers(values: dict[str, Any]) -> int:
    names = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    return next((values[name] for name in names if isinstance(values.get(name), int)), 0)


def _pick_layers(values: dict[str, Any]) -> tuple[int, list[int]] | None:
    """The number of layers, and those to keep: the first of each kind, and of the rest as many as LAYERS has room."""
    count = _count_layers(values)
    lists = [value for value in values.values() if isinstance(value, list) and len(value) == count]
    if count <= LAYERS or not lists:
        return None
    kinds = list(zip(*lists, strict=True))
    first = sorted({str(kind): index for index, kind in reversed(list(enumerate(kinds)))}.values())[:LAYERS]
    rest = [index for index in range(count) if index not in first]
    return count, sorted(first + rest[: LAYERS - len(first)])


def find_leftover(values: dict[str, Any], largest: int = 1024) -> Iterator[str]:
    """Names of numbers that are still large, to see what makes a model big."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from find_leftover(value, largest)
        elif isinstance(value, int) and value > largest:
            yield f"{name}={value}"
