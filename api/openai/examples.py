"""Examples of OpenAI's interface for the OpenAPI document, by method and path."""

from api.example import Example
from tuneyard_wire.completions import ChatCompletion, Completion
from tuneyard_wire.openai import OpenAIModel, OpenAIModels
from tuneyard_wire.openai_files import OpenAIFile, OpenAIFileDeleted, OpenAIFiles, OpenAIUpload, OpenAIUploadPart

UPLOAD = OpenAIUpload.example()
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
    ("POST", "/v1/files"): Example("Add a file", response=OpenAIFile.example(), errors=(507,)),
    ("GET", "/v1/files"): Example("List files", response=OpenAIFiles.example()),
    ("GET", "/v1/files/{file_id}"): Example("Get a file", response=OpenAIFile.example()),
    ("DELETE", "/v1/files/{file_id}"): Example("Delete a file", response=OpenAIFileDeleted.example()),
    ("GET", "/v1/files/{file_id}/content"): Example("Download a file"),
    ("POST", "/v1/uploads"): Example(
        "Begin an upload in parts",
        {
            "a file": {
                "filename": "support.jsonl",
                "bytes": 845312,
                "mime_type": "application/jsonl",
                "purpose": "fine-tune",
            }
        },
        UPLOAD | {"status": "pending", "file": None},
        (507,),
    ),
    ("POST", "/v1/uploads/{upload_id}/parts"): Example(
        "Add a part to an upload", response=OpenAIUploadPart.example(), errors=(507,)
    ),
    ("POST", "/v1/uploads/{upload_id}/complete"): Example(
        "Complete an upload",
        {"one part": {"part_ids": [OpenAIUploadPart.example()["id"]], "md5": "0f343b0931126a20f133d67c2b018a3b"}},
        UPLOAD,
        (507,),
    ),
    ("POST", "/v1/uploads/{upload_id}/cancel"): Example(
        "Cancel an upload", response=UPLOAD | {"status": "cancelled", "file": None}
    ),
}
