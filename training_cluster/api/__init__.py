"""Run `uvicorn train_server:app` in this folder."""
