"""What the service is asked, as types. What a job may be given is in `tuneyard_wire.fields`."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypedDict

from pydantic import BaseModel

from tuneyard_wire.fields import TrainStatus

Config = BaseModel | Mapping[str, Any]  # the fields of SFTConfig: a mapping, or the model of the full package


class JobFilters(TypedDict, total=False):
    """What `GET /train` filters by. Times are ISO 8601 or datetimes; metadata is matched pair by pair."""

    status: TrainStatus
    model: str
    adapter: str
    dataset: str
    created_after: datetime | str
    created_before: datetime | str
    metadata: dict[str, str]
    id_prefix: str
