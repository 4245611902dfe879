"""Checkpoints of jobs as models, by OpenAI's own client."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import openai
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs.folders import checkpoint_folder
from jobs.results.checkpoint_models import find_model
from jobs.service.job import Job
from jobs.service.job_service import JobService
from jobs.settings import Settings
from jobs.spec import JobSpec
from sft.checkpoints.folders import publish_checkpoint, stage_checkpoint
from sft.config import SFTConfig
from sft.errors import ModelNotFound
from tests.api.openai_client import connected
from tests.tiny_models import save_tiny_model

pytestmark = [
    pytest.mark.stack,
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]

BASE = "org/checkpointed"
CHAT = [{"role": "user", "content": "Hello there"}]
OPTIONS = {"messages": CHAT, "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def service(stack: Settings) -> Iterator[JobService]:
    save_tiny_model("llama", stack.model_root / BASE)
    service = JobService(stack)
    yield service
    service.close()


@pytest.fixture(scope="module")
def client(stack: Settings) -> Iterator[openai.OpenAI]:
    with connected(stack.model_copy(update={"dtype": "none"})) as client:
        yield client


@pytest.fixture
def job(service: JobService) -> Job:
    """A job that has not ended, with the checkpoints of steps 2 and 4, of random weights."""
    config = SFTConfig(base_model=BASE, dataset_name="d@v1", dataset_format="chat", save_total_limit=2)
    job = service.create(JobSpec(config=config, adapter_name="handbook"))
    for step in (2, 4):
        save_checkpoint(service, job, step)
    return job


def save_checkpoint(service: JobService, job: Job, step: int) -> Path:
    base = service.settings.model_root / BASE
    torch.manual_seed(step)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    staged = stage_checkpoint(checkpoint_folder(service.settings, job.spec.config, job.id), step)
    get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).save_pretrained(staged)
    AutoTokenizer.from_pretrained(base).save_pretrained(staged)
    return publish_checkpoint(staged)


def answer_plainly(service: JobService, folder: Path) -> str:
    base = service.settings.model_root / BASE
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def test_a_checkpoint_is_asked_by_its_name_and_listed_with_its_job_alone(client, service, job):
    folder = checkpoint_folder(service.settings, job.spec.config, job.id)
    name = f"ft:{BASE}:tuneyard:handbook:{job.id}:ckpt-step-4"
    url = str(client.base_url).removesuffix("/v1/")
    listed = httpx.get(f"{url}/train/{job.id}/checkpoints", timeout=60).json()["checkpoints"]
    assert [one["model"] for one in listed] == [name.replace("step-4", "step-2"), name]
    assert not [model.id for model in client.models.list() if "ckpt" in model.id]
    found = client.models.retrieve(name)
    assert (found.id, found.parent) == (name, BASE)

    answers = []
    for step in (2, 4):
        answer = client.chat.completions.create(model=f"{job.id}:ckpt-step-{step}", **OPTIONS)
        assert answer.model == name.replace("step-4", f"step-{step}")
        assert answer.choices[0].message.content == answer_plainly(service, folder / f"checkpoint-{step}")
        answers.append(answer.choices[0].message.content)
    assert answers[0] != answers[1]


def test_one_that_is_removed_harms_no_answer_and_is_not_found_afterwards(client, service, job):
    folder = checkpoint_folder(service.settings, job.spec.config, job.id) / "checkpoint-2"
    name = f"{job.id}:ckpt-step-2"
    wanted = client.chat.completions.create(model=name, **OPTIONS | {"max_tokens": 200}).choices[0].message.content
    with client.chat.completions.create(model=name, stream=True, **OPTIONS | {"max_tokens": 200}) as stream:
        chunks = iter(stream)
        text = next(chunks).choices[0].delta.content
        shutil.rmtree(folder)
        assert text + "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted
    with pytest.raises(
        openai.NotFoundError, match=r"no checkpoint of step 2\. Its steps are: 4; older ones are removed"
    ):
        client.chat.completions.create(model=name, **OPTIONS)
    assert client.chat.completions.create(model=f"{job.id}:ckpt-step-4", **OPTIONS).choices[0].message.content


def test_other_names_and_other_peoples_jobs_are_not_found(client, service, job):
    for name, words in (
        (f"{uuid4()}:ckpt-step-2", "no job has the id"),
        (f"ft:org/other:tuneyard:handbook:{job.id}:ckpt-step-2", "its checkpoint is ft:org/checkpointed:"),
        (f"{job.id}:ckpt-step-3", "Its steps are: 2, 4"),
    ):
        with pytest.raises(openai.NotFoundError, match=words):
            client.models.retrieve(name)
    with pytest.raises(ModelNotFound, match="no job has the id"):
        find_model(service, f"{job.id}:ckpt-step-2", owner=uuid4())
