"""`uvicorn train_server:app` in this folder, as the Training API documents it."""

from app.main import app

__all__ = ["app"]
