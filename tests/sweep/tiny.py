"""A tiny random model of any type that transformers can build: its default configuration, with small numbers."""

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
            attention_hidden_size lru_width
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
OVERRIDES: dict[str, dict[str, Any]] = {
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
    values = _shrink(config_class().to_dict(), vocabulary, ids) | OVERRIDES.get(model_type, {})
    config: PreTrainedConfig = config_class(**values)
    return config


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
        elif isinstance(value, dict) and value and all(str(key).isdigit() for key in value):
            small[name] = {key: part for key, part in value.items() if int(key) < LAYERS}
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


def _pick_layers(values: dict[str, Any]) -> tuple[int, list[int]] | None:
    """The number of layers, and those to keep: the first of each kind, and of the rest as many as LAYERS has room."""
    names = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    count = next((values[name] for name in names if isinstance(values.get(name), int)), 0)
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
