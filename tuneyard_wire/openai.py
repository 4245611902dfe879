"""OpenAI's error and models, as its clients read them."""

from typing import Literal

from pydantic import Field

from tuneyard_wire.response import Response, with_example


class OpenAIErrorBody(Response):
    """What is wrong with a request."""

    message: str = Field(description="For people: what is wrong and how to fix it.")
    type: str = Field(description="`invalid_request_error`, `rate_limit_error` or `server_error`.")
    param: str | None = Field(None, description="The parameter that is wrong, if it is one.")
    code: str | None = Field(None, description="For programs: a stable name, as in the other interfaces.")


class OpenAIError(Response):
    """An error response of OpenAI's interface."""

    error: OpenAIErrorBody


class OpenAIModel(Response):
    """A model that can be asked: a base model, or a version of an adapter."""

    model_config = with_example(
        id="handbook@3",
        object="model",
        created=1796000000,
        owned_by="tuneyard",
        parent="HuggingFaceTB/SmolLM2-135M-Instruct",
    )

    id: str = Field(description="`NAME@VERSION` for an adapter, else the base model's name.")
    object: Literal["model"] = "model"
    created: int = Field(description="Seconds since 1970.")
    owned_by: str = "tuneyard"
    parent: str | None = Field(None, description="An adapter's base model; null for a base model.")


class OpenAIModels(Response):
    """All models."""

    model_config = with_example(object="list", data=[OpenAIModel.example()])

    object: Literal["list"] = "list"
    data: list[OpenAIModel]
