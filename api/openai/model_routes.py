"""`GET /v1/models`: the base models and adapters that can be asked."""

from typing import Annotated

from fastapi import APIRouter, Path

from api.dependencies import Service
from api.responses import respond
from jobs.service.served_models import ServedModel, ServedModels
from tuneyard_wire.openai import OpenAIModel, OpenAIModels

router = APIRouter(tags=["OpenAI API"])


@router.get("/v1/models")
def list_models(service: Service) -> OpenAIModels:
    """List base models, then adapters as `NAME@VERSION`, newest first."""
    found = ServedModels(service.settings).list_all()
    return respond(OpenAIModels, {"data": [_describe(model) for model in found]})


@router.get("/v1/models/{model:path}")
def get_model(
    service: Service,
    model: Annotated[
        str,
        Path(
            description="A base model, `NAME@VERSION` of an adapter, or `NAME` for its latest version; also "
            "`ft:BASE:tuneyard:NAME:VERSION`."
        ),
    ],
) -> OpenAIModel:
    """Get one model."""
    return respond(OpenAIModel, _describe(ServedModels(service.settings).find(model)))


def _describe(model: ServedModel) -> dict[str, object]:
    parent = model.base if model.adapter else None
    return {"id": model.id, "created": model.created, "owned_by": "tuneyard", "object": "model", "parent": parent}
