"""`GET /v1/models`: the base models, adapters and checkpoints that can be asked."""

from typing import Annotated

from fastapi import APIRouter, Path

from api.dependencies import Service, VisibleOwner
from api.responses import respond
from jobs.results.checkpoint_models import find_model
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
    owner: VisibleOwner,
    model: Annotated[
        str,
        Path(
            description="A base model, `NAME@VERSION` of an adapter, or `NAME` for its latest version; also "
            "`ft:BASE:tuneyard:NAME:VERSION`, and `JOB_ID:ckpt-step-N`, a checkpoint of a job."
        ),
    ],
) -> OpenAIModel:
    """Get one model."""
    return respond(OpenAIModel, _describe(find_model(service, model, owner)))


def _describe(model: ServedModel) -> dict[str, object]:
    parent = model.base if model.adapter else None
    return {"id": model.id, "created": model.created, "owned_by": "tuneyard", "object": "model", "parent": parent}
