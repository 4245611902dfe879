"""Answers over HTTP, by OpenAI's own client: of a base model and of an adapter in the registry."""

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import openai
import pytest
import torch
from fastapi.testclient import TestClient
from mlflow import MlflowClient
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from api.main import create_app
from api.openai.answer_request import ChatRequest, CompletionRequest
from api.openai.answering import read_wait
from jobs.settings import Settings
from sft.explanations import explain_problems
from tests.calling_model import TOOLS
from tests.live_service import serving_api
from tests.tiny_models import save_tiny_model

pytestmark = [
    pytest.mark.stack,
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]

BASE = "org/answers"
CHAT = [{"role": "user", "content": "Hello there"}]
TOKENS = 12
CALLING = {
    "role": "assistant",
    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "find_hours", "arguments": "{}"}}],
}
FORCED = {"type": "function", "function": {"name": "find_hours"}}


@pytest.fixture(scope="module")
def adapter_dir(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model in the stack's model root, and a folder with an adapter of random weights."""
    base = save_tiny_model("llama", stack.model_root / BASE)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(stack: Settings, adapter_dir: Path) -> str:
    """The adapter's name in the registry."""
    name = f"answers-{uuid4().hex[:8]}"
    mlflow = MlflowClient(stack.mlflow_tracking_uri, stack.mlflow_tracking_uri)
    run = mlflow.create_run("0")
    mlflow.log_artifacts(run.info.run_id, str(adapter_dir), "adapter")
    mlflow.create_registered_model(name)
    source = f"{run.info.artifact_uri}/adapter"
    mlflow.create_model_version(name, source, run.info.run_id, tags={"base_model": BASE}, await_creation_for=0)
    return name


@pytest.fixture(scope="module")
def client(stack: Settings, adapter_dir: Path) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    settings = stack.model_copy(update={"dtype": "none"})
    with serving_api(settings) as url, openai.OpenAI(api_key="x", base_url=f"{url}/v1", max_retries=0) as client:
        yield client


def answer_plainly(stack: Settings, adapter_dir: Path | None) -> str:
    """The answer of plain transformers and PEFT."""
    model = AutoModelForCausalLM.from_pretrained(stack.model_root / BASE, dtype=torch.float32)
    if adapter_dir:
        model = PeftModel.from_pretrained(model, adapter_dir)
    tokenizer = AutoTokenizer.from_pretrained(adapter_dir or stack.model_root / BASE)
    inputs = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def test_a_base_and_its_adapter_answer_as_plain_transformers_and_peft(client, stack, adapter, adapter_dir):
    options = {"messages": CHAT, "temperature": 0, "max_tokens": TOKENS}
    wanted = [answer_plainly(stack, one) for one in (None, adapter_dir)]
    assert wanted[0] != wanted[1]
    for name, text in zip((BASE, adapter), wanted, strict=True):
        answer = client.chat.completions.create(model=name, **options)
        assert answer.choices[0].message.content == text
        assert answer.model == (name if name == BASE else f"{name}@1")
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        with client.chat.completions.create(
            model=name, stream=True, stream_options={"include_usage": True}, **options
        ) as stream:
            chunks = [*stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == text
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-2].choices[0].finish_reason == answer.choices[0].finish_reason
        assert chunks[-1].usage == answer.usage
        assert len(chunks) >= 3


def join_bytes(tokens) -> str:
    """The text that the bytes of tokens are; a random model writes parts of characters that are no text."""
    return b"".join(bytes(one.bytes or ()) for one in tokens).decode(errors="replace")


def test_n_stop_seed_and_logprobs(client):
    options = {"model": BASE, "messages": CHAT, "max_tokens": TOKENS}
    several = client.chat.completions.create(n=3, seed=5, temperature=1.5, **options)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in several.choices}) > 1
    again = client.chat.completions.create(n=3, seed=5, temperature=1.5, **options)
    assert [one.message.content for one in again.choices] == [one.message.content for one in several.choices]

    (plain,) = client.chat.completions.create(temperature=0, logprobs=True, top_logprobs=2, **options).choices
    tokens = plain.logprobs.content
    assert "".join(one.token for one in tokens).startswith(plain.message.content)
    assert join_bytes(tokens) == plain.message.content
    with client.chat.completions.create(temperature=0, logprobs=True, stream=True, **options) as stream:
        chunks = [chunk.choices[0] for chunk in stream]
    assert all(join_bytes(one.logprobs.content) == (one.delta.content or "") for one in chunks)
    assert "".join(one.delta.content or "" for one in chunks) == plain.message.content
    assert all(one.top_logprobs[0].logprob == pytest.approx(one.logprob) for one in tokens)
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in tokens)
    stop = plain.message.content[3:5]
    (stopped,) = client.chat.completions.create(temperature=0, stop=stop, **options).choices
    assert stopped.message.content == plain.message.content.partition(stop)[0]
    assert stopped.finish_reason == "stop"


def test_texts_are_continued(client):
    options = {"model": BASE, "max_tokens": 6, "temperature": 0}
    answer = client.completions.create(prompt=["hello", "colours"], n=2, logprobs=1, **options)
    texts = [choice.text for choice in answer.choices]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert len(answer.choices[0].logprobs.tokens) == 6
    with client.completions.create(prompt="hello", stream=True, **options) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == texts[0]


def test_an_answer_is_sent_back_as_a_message_and_what_changes_nothing_is_accepted(client):
    options = {"model": BASE, "max_tokens": 4, "temperature": 0}
    first = client.chat.completions.create(messages=CHAT, **options).choices[0].message
    neutral = {
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "logit_bias": {},
        "metadata": {"team": "support"},
        "store": False,
        "service_tier": "auto",
        "modalities": ["text"],
        "safety_identifier": "one",
        "prompt_cache_key": "two",
        **dict.fromkeys(["audio", "functions", "function_call", "prediction", "reasoning_effort", "verbosity"]),
    }
    again = [*CHAT, first, {"role": "user", "content": "And then?"}]
    answers = [
        client.chat.completions.create(messages=again, **options),
        client.chat.completions.create(messages=[*CHAT, first.model_dump(), again[-1]], **options, **neutral),
    ]
    assert answers[0].choices[0].message == answers[1].choices[0].message


@pytest.mark.parametrize(
    ("change", "status", "param", "words"),
    [
        ({"n": 9}, 400, "n", "8"),
        ({"max_tokens": 10**7}, 400, "max_tokens", "131072"),
        ({"max_tokens": 511}, 400, "messages", "maximum context length is 512"),
        ({"temperature": 3}, 400, "temperature", "2"),
        ({"temperature": "1"}, 400, "temperature", " - temperature: must be a number, got '1'$"),
        ({"messages": CHAT * 4097}, 400, "messages", "at most 4096 entries, it has 4097"),
        ({"top_logprobs": 2}, 400, "top_logprobs", "needs logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, 400, "max_completion_tokens", "give one of them"),
        ({"messages": []}, 400, "messages", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].tool_call_id", "tool_call_id"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role", "user, assistant or tool"),
        ({"reasoning_effort": "low"}, 400, "reasoning_effort", "must be null"),
        ({"metadata": {"a": "b" * 513}}, 400, "metadata.a", "at most 512 characters"),
        ({"tools": [{"type": "function"}]}, 400, "tools[0].function", r"tools\.0\.function is required"),
        ({"tools": TOOLS}, 400, "tools", "org/answers does not write tools.*template_name qwen"),
        ({"messages": [*CHAT, CALLING]}, 400, "messages[1]", "does not write calls"),
        ({"tools": TOOLS, "tool_choice": "required"}, 400, "tool_choice", "not forced"),
        ({"tools": TOOLS, "tool_choice": FORCED}, 400, "tool_choice", "not forced"),
        ({"tools": TOOLS, "parallel_tool_calls": False}, 400, "parallel_tool_calls", "must be true or left out"),
        ({"messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content", "content"),
        ({"stop": [""]}, 400, "stop", "stop"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format.type", "text"),
        ({"store": True}, 400, "store", "store"),
        ({"model": "nowhere"}, 404, "model", "nowhere"),
    ],
)
def test_what_is_wrong_has_a_status_and_names_the_parameter(client, change, status, param, words):
    body = {"model": BASE, "messages": CHAT, **change}
    for more in ({}, {"stream": True}):
        with pytest.raises(openai.APIStatusError, match=words) as caught:
            client.post("/chat/completions", body={**body, **more}, cast_to=object)
        assert (caught.value.status_code, caught.value.param) == (status, param)
        assert caught.value.request_id


def test_a_read_key_lists_models_and_does_not_ask(stack, own_database):
    from jobs.clients.keys import KeyScope, create_key
    from jobs.storage.tables import engine_for

    _, key = create_key(engine_for(str(own_database.database_url)), "reader", KeyScope.READ)
    app = TestClient(create_app(own_database), base_url="http://localhost")
    headers = {"Authorization": f"Bearer {key}"}
    assert app.get("/v1/models", headers=headers).status_code == 200
    answer = app.post("/v1/chat/completions", headers=headers, json={"model": BASE, "messages": CHAT})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


def test_too_many_requests_of_one_client_are_refused(stack, client, adapter_dir):
    app = create_app(stack.model_copy(update={"max_generations": 1}))
    with app.state.generation_limit.held("address testclient"):
        answer = TestClient(app, base_url="http://localhost").post(
            "/v1/chat/completions", json={"model": BASE, "messages": CHAT}
        )
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
    assert "Retry-After" in answer.headers


def test_the_api_responds_while_it_generates(client):
    url = str(client.base_url).removesuffix("/v1/")
    endless = {"model": BASE, "messages": CHAT, "max_tokens": 400, "temperature": 2.0, "n": 8}
    with client.chat.completions.create(stream=True, **endless) as stream:
        next(iter(stream))
        for _ in range(20):
            assert httpx.get(f"{url}/health", timeout=10).json()["status"] == "ok"


def test_numbers_are_those_of_json():
    plain = {"model": "m", "prompt": "a"}
    assert CompletionRequest.model_validate({**plain, "seed": -3.0, "n": 2.0, "top_p": 1}).seed == -3
    for wrong in ({"seed": "3"}, {"n": True}, {"n": 1.5}, {"temperature": "1"}, {"stream": 1}):
        with pytest.raises(ValidationError):
            CompletionRequest.model_validate(plain | wrong)


def test_a_field_that_must_be_empty_says_so():
    with pytest.raises(ValidationError) as refused:
        CompletionRequest.model_validate({"model": "m", "prompt": "a", "logit_bias": {"10": 5}})
    assert explain_problems(refused.value.errors(), ()) == "logit_bias: must be empty, got {'10': 5}"


def test_no_field_of_the_request_is_suggested_for_one_of_an_entry():
    part = {"type": "text", "text": "a", "input_audio": 1}
    with pytest.raises(ValidationError) as refused:
        ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": [part]}]})
    told = explain_problems(refused.value.errors(), [*ChatRequest.model_fields])
    assert told == "messages.0.content.0.input_audio is not a known field"


def test_the_wait_is_read_as_the_standard_has_it():
    found = [read_wait(text) for text in ("wait=20", "respond-async, wait=5", 'wait="7"', "", "await=3", "wait=999999")]
    assert found == [20, 5, 7, 0, 0, 600]
    assert json.loads(json.dumps(found)) == found
