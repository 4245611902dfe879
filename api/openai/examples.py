"""Examples of OpenAI's interface for the OpenAPI document, by method and path."""

from api.example import Example
from tuneyard_wire.openai import OpenAIModel, OpenAIModels

EXAMPLES = {
    ("GET", "/v1/models"): Example("List models", response=OpenAIModels.example()),
    ("GET", "/v1/models/{model}"): Example("Get a model", response=OpenAIModel.example(), errors=(404,)),
}
