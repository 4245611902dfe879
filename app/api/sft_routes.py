"""The SFT API's routes under their documented import path."""

from api.sft_routes import router

__all__ = ["router"]
