"""A job's name in the registry, and what a spec refuses."""

import pytest

from jobs.spec import JobSpec
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
    spec = JobSpec.build(config=make_config(lora_target_modules=["q_proj"]), adapter_name="support", webhook_url=None)

    assert JobSpec.build(**spec.to_parameters()) == spec


@pytest.mark.parametrize("url", ["example.com/hook", "file:///etc/passwd", "https://", "http://host:99999/"])
def test_a_webhook_url_must_be_http(url):
    with pytest.raises(InvalidConfig, match="webhook_url: must be an http or https URL"):
        JobSpec.build(config=make_config(), webhook_url=url)
