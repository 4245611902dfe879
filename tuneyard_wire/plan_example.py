"""The example of a plan in the OpenAPI document."""

from typing import Any

_NOTES: dict[str, Any] = {
    "invalid": [{"row": 17, "reason": "output must be text, got None"}],
    "too_long": [],
    "dropped": [],
}
_EVAL: dict[str, Any] = {
    "rows": 98,
    "used": 98,
    "skipped": 0,
    "reasons": [],
    "dropped": 0,
    "invalid": 0,
    "too_long": 0,
    "truncated": 0,
}
EXAMPLE: dict[str, Any] = {
    "dataset": {
        "name": "handbook",
        "revision": "v1.0",
        "commit": "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
        "md5": "0e0abd9b182bab936d99f224cab7853e",
        "rows": 901,
        "held_out_file": "eval.jsonl",
        "source": "dvc",
    },
    "device": {
        "name": "NVIDIA L4",
        "kind": "cuda",
        "dtype": "bfloat16",
        "memory_bytes": 23034068992,
        "free_memory_bytes": 22600000000,
        "gflops": 61200.0,
    },
    "rows": {
        "train": {
            "rows": 901,
            "used": 900,
            "skipped": 1,
            "reasons": [{"reason": "output must be text, got None", "count": 1, "rows": [17]}],
            "dropped": 0,
            "invalid": 1,
            "too_long": 0,
            "truncated": 1,
            "tokens": 163495,
            "supervised_tokens": 137452,
            "notes": _NOTES | {"truncated": [225]},
        },
        "eval": _EVAL
        | {"tokens": 16593, "supervised_tokens": 13673, "notes": _NOTES | {"invalid": [], "truncated": []}},
    },
    "ignored": {"source": 998},
    "tokens": {
        "min": 26,
        "mean": 181.5,
        "p50": 142.0,
        "p90": 386.0,
        "p95": 427.0,
        "p99": 540.0,
        "max": 729,
        "histogram": [{"from": 0, "to": 32, "rows": 20}, {"from": 32, "to": 64, "rows": 238}],
        "supervised_share": 0.8407,
    },
    "batches": {
        "rows_per_step": 16,
        "batches_per_epoch": 226,
        "mean_tokens": 723.4,
        "max_tokens": 1434,
        "tokens_per_epoch": 163495,
        "padded_tokens_per_epoch": 300375,
        "padding_saved": 0.4557,
        "packed_sequences": None,
    },
    "steps": 171,
    "epochs": 3.0,
    "model": {
        "parameters": 1543714304,
        "trainable_parameters": 9232384,
        "share": 0.0059,
        "adapted": {"down_proj": 28, "gate_proj": 28, "q_proj": 28},
        "left_out": [],
        "layout": "trl",
        "gradient_checkpointing": False,
    },
    "memory": {
        "peak_bytes": 9100000000,
        "free_bytes": 22600000000,
        "fits": True,
        "largest_batch_size": 14,
        "largest_batch_tokens": 7100,
        "parts": {"process": 600000000, "weights": 3087428608, "activations": 5000000000},
    },
    "disk": {
        "needed_bytes": 430000000,
        "free_bytes": 76765184000,
        "fits": True,
        "checkpoint_bytes": 122000000,
        "checkpoints_kept": 2,
        "parts": {"checkpoints": 366000000, "adapter": 40000000, "merged_model": 0, "registry": 40000000},
    },
    "time": {
        "basis": "probe",
        "past_runs": 0,
        "train_seconds": 182.0,
        "evaluate_seconds": 6.1,
        "startup_seconds": 8.0,
        "finish_seconds": 4.0,
        "total_seconds": 200.1,
        "tokens_per_second": 2695.0,
        "seconds_per_step": 1.064,
    },
    "samples": [
        {
            "row": 24,
            "tokens": 142,
            "supervised_tokens": 125,
            "parts": [
                {"text": "<|im_start|>user\nName three vaccinations ...", "supervised": False},
                {"text": "1. Influenza ...<|im_end|>", "supervised": True},
            ],
            "is_cut": False,
        }
    ],
    "warnings": [{"code": "duplicates", "message": "13 rows are duplicates of earlier ones", "rows": [31, 402]}],
    "was_tokenized_before": False,
}
