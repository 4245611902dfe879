"""LoRA supervised fine-tuning as a library: no service, no Prefect, no MLflow."""
