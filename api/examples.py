"""Examples for the OpenAPI document, by method and path."""

from dataclasses import dataclass, field
from typing import Any

from api.plan_example import PLAN
from api.training_request import TrainingRequest, config_view
from sft.config import SFTConfig

JOB_ID = "550e8400-e29b-41d4-a716-446655440000"
DELIVERY_ID = "6f0d8bb2-58a4-4f5c-9c46-2a1e4ce5d7a1"
CONFIG_ID = "0b8d3c52-6a0e-4a53-9a4e-3c1d3d1f6a77"


@dataclass(frozen=True)
class Example:
    """What is shown of one operation. `errors` are those beyond what every operation can answer."""

    summary: str | None = None
    requests: dict[str, Any] = field(default_factory=dict)
    response: Any = None
    errors: tuple[int, ...] = ()
    other_responses: dict[str, Any] = field(default_factory=dict)  # by what is special about them


PROGRESS = {
    "step": 40,
    "total_steps": 117,
    "percent": 34.2,
    "epoch": 1.03,
    "loss": 0.412,
    "tokens_per_second": 212.0,
    "eta_seconds": 81,
}
RESULT = {
    "train_loss": 0.398,
    "eval_loss": 0.441,
    "adapter_path": f"/srv/tuneyard/outputs/{JOB_ID}/adapter",
    "merged_path": None,
    "output_dir": f"/srv/tuneyard/outputs/{JOB_ID}",
    "model_name": "handbook",
    "model_version": "3",
    "rows": {
        "train": {
            "rows": 901,
            "used": 899,
            "skipped": 2,
            "dropped": 1,
            "invalid": 1,
            "too_long": 0,
            "truncated": 1,
            "tokens": 163495,
            "supervised_tokens": 137452,
            "reasons": [{"reason": "output must be text, got None", "count": 1, "rows": [17]}],
        },
        "eval": None,
        "ignored": {"source": 899},
    },
    "warnings": ["fields that are not followed, nor learned: source (899 rows)"],
    "adapted": {
        "trainable_parameters": 9232384,
        "parameters": 1552946688,
        "share": 0.0059,
        "modules": {"down_proj": 28, "gate_proj": 28, "q_proj": 28},
        "left_out": [],
    },
    "previous_version": "2",
    "previous_eval_loss": 0.487,
    "is_worse": False,
    "comparison": "version 3 is better than version 2: held-out loss 0.441 after 0.487 on the same rows",
    "stopped_early": False,
    "metrics": {"train_loss": 0.398, "eval_loss": 0.441, "train_runtime": 551.9},
}
ORIGIN: dict[str, Any] = {
    "metadata": {"team": "search"},
    "config_id": None,
    "config_version": None,
    "config_name": None,
    "made_by": None,
}
TRAIN_REQUEST = {
    "model_name": "Qwen/Qwen2.5-1.5B-Instruct",
    "dataset_version": "v1.0",
    "template": "qwen",
    "cutoff_len": 2048,
    "max_samples": 1000,
    "batch_size": 1,
    "gradient_accumulation_steps": 2,
    "learning_rate": 2e-05,
    "num_epochs": 3.0,
    "logging_backend": "wandb",
    "webhook_url": "https://example.com/webhook",
}
TRAIN_JOB = {
    "job_id": JOB_ID,
    "name": "graceful-otter",
    "status": "running",
    "priority": "normal",
    "config": config_view(TrainingRequest(**TRAIN_REQUEST).to_spec("handbook"), "handbook"),
    "start_time": 1712334054.539546,
    "end_time": None,
    "tracking_url": "http://127.0.0.1:5000/#/experiments/1/runs/6f0e0f1f",
    "error": None,
    "error_code": None,
    "attempt": 1,
    "output_path": None,
    "queue_position": None,
    "waiting_for": None,
    "phase": "training",
    "progress": PROGRESS,
    "result": None,
    **ORIGIN,
}
PLAN_REQUEST = {"model_name": "Qwen/Qwen2.5-1.5B-Instruct", "dataset_version": "v1.0", "template": "qwen"}
SFT_CONFIG = {
    "base_model": "gpt2",
    "dataset_name": "tatsu-lab/alpaca",
    "dataset_format": "alpaca",
    "max_steps": 100,
    "output_dir": "./outputs/sft",
    "use_lora": True,
    "lora_r": 16,
    "lora_alpha": 32,
    "learning_rate": 2e-4,
    "batch_size": 4,
}
SFT_JOB = {
    "job_id": JOB_ID,
    "name": "graceful-otter",
    "status": "completed",
    "priority": "normal",
    "created_at": "2026-04-05T16:20:51.118000+00:00",
    "started_at": "2026-04-05T16:20:54.539546+00:00",
    "completed_at": "2026-04-05T16:31:07.004000+00:00",
    "error": None,
    "error_code": None,
    "attempt": 1,
    "result": RESULT,
    "phase": "done",
    "progress": PROGRESS | {"step": 117, "percent": 100.0, "eta_seconds": 0},
    "queue_position": None,
    "waiting_for": None,
    "config": SFTConfig.from_dict(SFT_CONFIG).to_dict(),
    **ORIGIN,
}
SAVED_CONFIG = {
    "config_id": CONFIG_ID,
    "name": "my_config",
    "config": SFT_CONFIG,
    "version": 1,
    "created_at": "2026-04-05T16:20:51.118000+00:00",
    "updated_at": "2026-04-05T16:20:51.118000+00:00",
}
CONFIG_VERSION = {name: value for name, value in SAVED_CONFIG.items() if name != "updated_at"}
WARNINGS = [
    {
        "code": "model_not_found",
        "message": "model_name 'Qwen/Qwen2.5-1.5B-Instuct' is neither in the model root (/srv/tuneyard/models/Qwen/"
        "Qwen2.5-1.5B-Instuct) nor in the Hugging Face cache, and the Hub has no such model that is open to you; put "
        "its files into /srv/tuneyard/models/Qwen/Qwen2.5-1.5B-Instuct or name another model, or set HF_TOKEN",
    }
]
DELIVERY = {
    "delivery_id": DELIVERY_ID,
    "webhook_id": f"msg_{DELIVERY_ID.replace('-', '')}",
    "job_id": JOB_ID,
    "event": "ended",
    "status": "completed",
    "url": "https://example.com/webhook",
    "state": "delivered",
    "attempts": [
        {"time": "2026-04-05T16:31:07.214000+00:00", "status_code": 503, "error": None},
        {"time": "2026-04-05T16:31:09.380000+00:00", "status_code": 200, "error": None},
    ],
    "next_attempt_at": None,
    "created_at": "2026-04-05T16:31:07.204000+00:00",
}
READY = {"ok": True, "detail": "answers"}

EXAMPLES: dict[tuple[str, str], Example] = {
    ("GET", "/"): Example(
        "What this service is",
        response={
            "name": "Tuneyard",
            "version": "0.1.0",
            "description": "Self-hosted LoRA fine-tuning: post a job, get a registered adapter.",
            "endpoints": {"POST /train": "Start a training job (?strategy=queue or reject)"},
        },
    ),
    ("POST", "/train"): Example(
        "Start a training job",
        {
            "basic": {
                "model_name": "Qwen/Qwen2.5-1.5B-Instruct",
                "lora_name": "initial-sft",
                "dataset_version": "v1.0",
                "template": "qwen",
                "logging_backend": "mlflow",
            },
            "all documented parameters": TRAIN_REQUEST,
            "from an earlier adapter": {"lora_name": "handbook", "lora_version": 2, "save_name": "handbook-next"},
        },
        {"job_id": JOB_ID, "status": "started", "message": "Training job started"},
        (400, 404, 409),
        {
            "queued, and known to fail": {
                "job_id": JOB_ID,
                "status": "queued",
                "message": "Training job added to queue at position 2",
                "warnings": WARNINGS,
            }
        },
    ),
    ("POST", "/train/plan"): Example("Plan a training job", {"basic": PLAN_REQUEST}, PLAN, (400, 404)),
    ("GET", "/train"): Example("List training jobs", response=[TRAIN_JOB]),
    ("GET", "/train/{job_id}"): Example("Get the status of a job", response=TRAIN_JOB),
    ("DELETE", "/train/{job_id}"): Example(
        "Cancel a job",
        response={"status": "cancelled", "message": f"Training job {JOB_ID} cancelled"},
        errors=(400,),
    ),
    ("GET", "/queue"): Example(
        "Get the queue", response={"is_training_running": True, "queue_length": 1, "queued_jobs": [JOB_ID]}
    ),
    ("POST", "/api/sft/train"): Example(
        "Start a job",
        {
            "alpaca": {"config": SFT_CONFIG},
            "a saved configuration with a change": {"config_id": CONFIG_ID, "config": {"learning_rate": 1e-4}},
        },
        {"job_id": JOB_ID, "status": "running"},
        (404, 409, 422),
    ),
    ("POST", "/api/sft/plan"): Example("Plan a job", {"alpaca": {"config": SFT_CONFIG}}, PLAN, (404,)),
    ("GET", "/api/sft/jobs"): Example("List jobs", response={"jobs": [SFT_JOB]}),
    ("GET", "/api/sft/jobs/{job_id}"): Example("Get a job", response=SFT_JOB),
    ("POST", "/api/sft/jobs/{job_id}/stop"): Example("Stop a job", response={"message": f"Job {JOB_ID} stopped"}),
    ("POST", "/api/sft/configs"): Example(
        "Save a configuration",
        {"partial": {"name": "my_config", "config": {"base_model": "gpt2", "use_lora": True}}},
        SAVED_CONFIG | {"config": {"base_model": "gpt2", "use_lora": True}},
    ),
    ("GET", "/api/sft/configs"): Example("List saved configurations", response=[SAVED_CONFIG]),
    ("GET", "/api/sft/configs/{config_id}"): Example("Get a saved configuration", response=SAVED_CONFIG),
    ("PUT", "/api/sft/configs/{config_id}"): Example(
        "Replace a saved configuration",
        {"whole": {"name": "my_config", "config": SFT_CONFIG}},
        SAVED_CONFIG | {"version": 2},
    ),
    ("PATCH", "/api/sft/configs/{config_id}"): Example(
        "Change a saved configuration", {"one field": {"config": {"lora_r": 32}}}, SAVED_CONFIG | {"version": 3}
    ),
    ("DELETE", "/api/sft/configs/{config_id}"): Example(
        "Delete a saved configuration", response={"message": f"Config {CONFIG_ID} deleted"}
    ),
    ("GET", "/api/sft/configs/{config_id}/versions"): Example(
        "List the versions of a saved configuration", response=[CONFIG_VERSION]
    ),
    **{
        ("GET", f"{prefix}/{{job_id}}/{name}"): example
        for prefix in ("/train", "/api/sft/jobs")
        for name, example in {
            "events": Example("Follow a job's events"),
            "logs": Example("Get or follow a job's log"),
            "metrics": Example(
                "Get a job's metrics", response={"series": {"loss": [[1, 2.31], [2, 2.07]], "eval_loss": [[2, 2.2]]}}
            ),
            "checkpoints": Example(
                "List a job's checkpoints",
                response={
                    "checkpoints": [
                        {
                            "step": 100,
                            "path": f"/srv/tuneyard/outputs/{JOB_ID}/checkpoints/checkpoint-100",
                            "time": "2026-04-05T16:29:40+00:00",
                            "bytes": 14680064,
                            "complete": True,
                        }
                    ]
                },
            ),
            "adapter": Example("Download a job's adapter"),
            "deliveries": Example("List a job's webhook deliveries", response={"deliveries": [DELIVERY]}),
        }.items()
    },
    **{
        ("POST", f"{prefix}/{{job_id}}/deliveries/{{delivery_id}}/resend"): Example(
            "Deliver a webhook again",
            response=DELIVERY | {"state": "pending", "next_attempt_at": "2026-04-05T17:02:00+00:00"},
        )
        for prefix in ("/train", "/api/sft/jobs")
    },
    **{
        ("HEAD", f"{prefix}/{{job_id}}/adapter"): Example("Get the length and checksum of a job's adapter")
        for prefix in ("/train", "/api/sft/jobs")
    },
    ("GET", "/health"): Example("Is this process up?", response={"status": "ok", "version": "0.1.0"}),
    ("GET", "/ready"): Example(
        "Could a job run now?",
        response={
            "ready": True,
            "parts": dict.fromkeys(("database", "prefect", "mlflow", "worker", "watchdog"), READY),
        },
    ),
    ("GET", "/metrics"): Example("Figures for Prometheus"),
}
