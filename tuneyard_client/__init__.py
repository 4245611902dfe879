"""The Python client of a Tuneyard service: `Tuneyard`, and `AsyncTuneyard` for asyncio."""

from tuneyard_client.async_client import AsyncTuneyard
from tuneyard_client.client import Tuneyard
from tuneyard_client.errors import ClientError

__all__ = ["AsyncTuneyard", "ClientError", "Tuneyard"]
