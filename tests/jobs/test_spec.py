"""A job's name in the registry, and what a spec refuses."""

import functools

import pytest

from jobs.spec import JobOptions, JobSpec, read_spec
from sft.config import SFTConfig
from sft.errors import InvalidConfig


def make_config(**values):
    defaults = {"base_model": "gpt2", "dataset_name": "tatsu-lab/alpaca", "dataset_format": "alpaca"}
    return SFTConfig.from_dict(defaults | values)


@pytest.mark.parametrize(
    ("base_model", "dataset_name", "name"),
    [
        ("gpt2", "tatsu-lab/alpaca", "gpt2-alpaca"),
        ("Qwen/Qwen2.5-1.5B-Instruct", "handbook@v1.0", "qwen2.5-1.5b-instruct-handbook"),
        ("模型", "数据", "adapter"),
    ],
)
def test_an_adapter_without_a_name_is_called_after_model_and_dataset(base_model, dataset_name, name):
    assert JobSpec.build(config=make_config(base_model=base_model, dataset_name=dataset_name)).registered_name == name


def test_parameters_survive_the_way_to_the_flow():
    around = {"adapter_name": "support", "webhook_url": "https://example.com", "webhook_events": ["checkpoint"]}
    spec = JobSpec.build(config=make_config(lora_target_modules=["q_proj"]), **around)

    assert spec.to_parameters()["webhook_events"] == ["checkpoint"]
    assert JobSpec.build(**spec.to_parameters()) == spec


@pytest.mark.parametrize("url", ["example.com/hook", "file:///etc/passwd", "https://", "http://host:99999/"])
def test_a_webhook_url_must_be_http(url):
    with pytest.raises(InvalidConfig, match="webhook_url: must be an http or https URL"):
        JobSpec.build(config=make_config(), webhook_url=url)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"webhook_events": ["started"]}, "webhook_events needs webhook_url"),
        ({"webhook_events": [], "webhook_url": "https://example.com"}, "webhook_events: must not be empty"),
        ({"webhook_events": ["ended"], "webhook_url": "https://example.com"}, "webhook_events.*'started' or 'check"),
    ],
)
def test_events_of_a_webhook_are_known_ones_of_a_webhook(given, problem):
    with pytest.raises(InvalidConfig, match=problem):
        JobSpec.build(config=make_config(), **given)


def test_a_job_is_found_by_model_adapter_dataset_and_metadata():
    spec = JobSpec.build(config=make_config(dataset_name="handbook@v1.0"), metadata={"team": "a=b", "n": ""})

    assert spec.tags() == [
        "model:gpt2",
        "adapter:gpt2-handbook",
        "dataset:handbook",
        "dataset:handbook@v1.0",
        "metadata:team=a=b",
        "metadata:n=",
    ]
    assert "dataset:tatsu-lab/alpaca" in JobSpec.build(config=make_config()).tags()


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"__prefect_kind": "jinja"}, "reserved"),
        ({"a b": "x"}, "letters, digits"),
        ({"k\n": "x"}, "letters, digits"),
        ({"k": "x" * 257}, "at most 256"),
        ({str(number): "" for number in range(17)}, "at most 16"),
    ],
)
def test_metadata_is_small_and_plain(metadata, problem):
    with pytest.raises(InvalidConfig, match=f"(?s)metadata.*{problem}"):
        JobSpec.build(config=make_config(), metadata=metadata)


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_cannot_be_stored_is_refused(text):
    with pytest.raises(InvalidConfig, match=r"metadata|config"):
        JobSpec.build(config=make_config(), metadata={"k": text})
    with pytest.raises(InvalidConfig, match="run_name"):
        JobSpec.build(config=make_config(run_name=text))


PLAIN = {"base_model": "gpt2", "dataset_name": "tatsu-lab/alpaca", "dataset_format": "alpaca"}


def test_what_is_read_of_parameters_is_the_job_they_were_made_of():
    spec = JobSpec.build(config=make_config(), webhook_url="https://example.com", metadata={"team": "a"})
    read = read_spec(spec.to_parameters())
    assert (read.spec, read.problem, read.options, read.raw_config) == (spec, None, spec, spec.config.to_dict())


def test_a_name_that_is_not_known_is_a_problem_and_hides_no_job():
    read = read_spec({"config": PLAIN, "metadatas": {}})
    assert read.spec == JobSpec.build(config=PLAIN)
    assert read.problem == "metadatas is not a known field; did you mean metadata?"


@pytest.mark.parametrize(
    ("parameters", "webhook_url"),
    [
        (None, None),
        ({}, None),
        ({"cls": 1, "self": 1, "webhook_url": "https://example.com"}, "https://example.com"),
        ({"config": "text", "webhook_url": "https://example.com"}, "https://example.com"),
        ({"config": {"lora_r": -1}, "webhook_url": "https://example.com", "metadata": 5}, "https://example.com"),
        ({"config": {}, "webhook_url": "https://example.com", "webhook_events": ["ended"]}, "https://example.com"),
        ({"config": PLAIN, "webhook_url": 1}, None),
        ({"config": PLAIN, "webhook_url": "file:///etc/passwd", "webhook_events": ["started"]}, None),
        ({"config": PLAIN, "webhook_events": ["started"]}, None),
        ([1], None),
        ("text", None),
        (7, None),
        ({"config": PLAIN, "": 1}, None),
        ({"config": PLAIN, "k" * 1_000_000: 1}, None),
        ({"config": PLAIN | {"seed": 1 << 20_000}}, None),
        ({"config": functools.reduce(lambda inner, _: [inner], range(10_000), 1)}, None),
    ],
    ids=range(16),
)
def test_of_parameters_that_are_no_job_the_valid_options_are_read(parameters, webhook_url):
    read = read_spec(parameters)
    assert read.spec in (None, JobSpec.build(config=PLAIN))
    assert read.problem
    assert len(read.problem) < 1000
    assert type(read.options) in (JobOptions, JobSpec)
    assert read.options.webhook_url == webhook_url
