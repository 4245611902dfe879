"""Examples of OpenAI's interface for the OpenAPI document, by method and path."""

from api.example import Example
from tuneyard_wire.completions import ChatCompletion, Completion
from tuneyard_wire.openai import OpenAIModel, OpenAIModels

CHAT = {
    "model": "handbook",
    "messages": [{"role": "user", "content": "When does the office open?"}],
    "temperature": 0,
    "max_tokens": 64,
}

EXAMPLES = {
    ("GET", "/v1/models"): Example("List models", response=OpenAIModels.example()),
    ("GET", "/v1/models/{model}"): Example("Get a model", response=OpenAIModel.example(), errors=(404,)),
    ("POST", "/v1/chat/completions"): Example(
        "Answer a chat", {"one question": CHAT}, ChatCompletion.example(), errors=(404,)
    ),
    ("POST", "/v1/completions"): Example(
        "Continue a text",
        {"one text": {"model": "handbook", "prompt": "The office", "max_tokens": 8}},
        Completion.example(),
        errors=(404,),
    ),
}
