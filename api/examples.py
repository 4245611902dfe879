"""Examples for the OpenAPI document, by method and path."""

from api.data_examples import DATA_EXAMPLES
from api.example import Example
from api.openai.examples import EXAMPLES as OPENAI_EXAMPLES
from api.training_request import TrainingRequest, config_view
from sft.config import SFTConfig
from tuneyard_wire.base_models import Model, Models, ModelUpload, UploadedFile
from tuneyard_wire.configs import ConfigVersion, SavedConfig
from tuneyard_wire.deliveries import Deliveries, Delivery
from tuneyard_wire.jobs import Cancelled, Queue, SftJob, SftStarted, SubmissionWarning, TrainJob, TrainStarted
from tuneyard_wire.plan import Plan
from tuneyard_wire.records import Checkpoints, Metrics
from tuneyard_wire.service import Description, Health, Readiness

MODEL, MODEL_UPLOAD, UPLOAD = Model.example(), ModelUpload.example(), "/model-uploads/{upload_id}"
JOB_ID = TrainJob.example()["job_id"]


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
TRAIN_JOB = TrainJob.example() | {
    "config": config_view(TrainingRequest(**TRAIN_REQUEST).to_spec("handbook"), "handbook")
}
PLAN_REQUEST = {"model_name": "Qwen/Qwen2.5-1.5B-Instruct", "dataset_version": "v1.0", "template": "qwen"}
SAVED_CONFIG = SavedConfig.example()
CONFIG_ID, SFT_CONFIG = SAVED_CONFIG["config_id"], SAVED_CONFIG["config"]
SFT_JOB = SftJob.example() | {"config": SFTConfig.from_dict(SFT_CONFIG).to_dict()}

EXAMPLES: dict[tuple[str, str], Example] = {
    ("GET", "/"): Example(
        "Describe the service",
        response=Description.example(),
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
        TrainStarted.example(),
        (400, 404, 409),
        {
            "queued, and known to fail": {
                "job_id": JOB_ID,
                "status": "queued",
                "message": "Training job added to queue at position 2",
                "warnings": [SubmissionWarning.example()],
            }
        },
    ),
    ("POST", "/train/plan"): Example("Plan a training job", {"basic": PLAN_REQUEST}, Plan.example(), (400, 404)),
    ("GET", "/train"): Example("List training jobs", response=[TRAIN_JOB]),
    ("GET", "/train/{job_id}"): Example("Get the status of a job", response=TRAIN_JOB),
    ("DELETE", "/train/{job_id}"): Example(
        "Cancel a job",
        response=Cancelled.example(),
        errors=(400,),
    ),
    ("GET", "/queue"): Example("Get the queue", response=Queue.example()),
    ("POST", "/api/sft/train"): Example(
        "Start a job",
        {
            "alpaca": {"config": SFT_CONFIG},
            "a saved configuration with a change": {"config_id": CONFIG_ID, "config": {"learning_rate": 1e-4}},
        },
        SftStarted.example(),
        (404, 409, 422),
    ),
    ("POST", "/api/sft/plan"): Example("Plan a job", {"alpaca": {"config": SFT_CONFIG}}, Plan.example(), (404,)),
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
        "List the versions of a saved configuration", response=[ConfigVersion.example()]
    ),
    **{
        ("GET", f"{prefix}/{{job_id}}/{name}"): example
        for prefix in ("/train", "/api/sft/jobs")
        for name, example in {
            "events": Example("Follow a job's events"),
            "logs": Example("Get or follow a job's log"),
            "metrics": Example("Get a job's metrics", response=Metrics.example()),
            "checkpoints": Example(
                "List a job's checkpoints",
                response=Checkpoints.example(),
            ),
            "adapter": Example("Download a job's adapter"),
            "deliveries": Example("List a job's webhook deliveries", response=Deliveries.example()),
        }.items()
    },
    **{
        ("POST", f"{prefix}/{{job_id}}/deliveries/{{delivery_id}}/resend"): Example(
            "Deliver a webhook again",
            response=Delivery.example() | {"state": "pending", "next_attempt_at": "2026-04-05T17:02:00+00:00"},
        )
        for prefix in ("/train", "/api/sft/jobs")
    },
    **{
        ("HEAD", f"{prefix}/{{job_id}}/adapter"): Example("Get the length and checksum of a job's adapter")
        for prefix in ("/train", "/api/sft/jobs")
    },
    **DATA_EXAMPLES,
    **OPENAI_EXAMPLES,
    ("GET", "/models"): Example("List base models", response=Models.example()),
    ("GET", "/models/{name}"): Example("Get a base model without an organisation", response=MODEL | {"name": "gpt2"}),
    ("GET", "/models/{org}/{name}"): Example("Get a base model", response=MODEL),
    ("DELETE", "/models/{name}"): Example(
        "Remove a base model without an organisation",
        response={"message": "Base model gpt2 removed"},
        errors=(409,),
    ),
    ("DELETE", "/models/{org}/{name}"): Example(
        "Remove a base model", response={"message": f"Base model {MODEL['name']} removed"}, errors=(409,)
    ),
    ("POST", "/models"): Example(
        "Announce a base model",
        {
            "files and their SHA-256": {
                "name": MODEL["name"],
                "files": [
                    {"path": "config.json", "bytes": 861, "sha256": "5f" * 32},
                    {"path": "model.safetensors", "bytes": 269060552, "sha256": "7a" * 32},
                    {"path": "tokenizer.json", "bytes": 2104556, "sha256": "9c" * 32},
                ],
            }
        },
        MODEL_UPLOAD,
        (409, 507),
    ),
    ("GET", UPLOAD): Example("Get what has arrived of an upload", response=MODEL_UPLOAD),
    ("PUT", UPLOAD): Example("Send a piece of a file", response=UploadedFile.example(), errors=(409, 507)),
    ("DELETE", UPLOAD): Example("Abort an upload", response={"message": "Upload 5b1c0c1f3a0e4d7f removed"}),
    ("POST", f"{UPLOAD}/complete"): Example("Publish an uploaded base model", response=MODEL, errors=(400, 409)),
    ("GET", "/health"): Example("Is this process up?", response=Health.example()),
    ("GET", "/ready"): Example(
        "Could a job run now?",
        response=Readiness.example(),
    ),
    ("GET", "/metrics"): Example("Metrics for Prometheus"),
}
