"""SFTConfig: the documented defaults, and errors that name field, value and remedy."""

import pytest

from sft.config import SFTConfig
from sft.errors import InvalidConfig

REQUIRED = {"base_model": "gpt2", "dataset_name": "tatsu-lab/alpaca", "dataset_format": "alpaca"}


def test_the_documented_example_is_valid():
    config = SFTConfig.from_dict(
        REQUIRED
        | {
            "max_steps": 100,
            "output_dir": "./outputs/sft",
            "use_lora": True,
            "lora_r": 16,
            "lora_alpha": 32,
            "learning_rate": 2e-4,
            "batch_size": 4,
        }
    )

    assert (config.max_steps, config.lora_r, config.output_dir) == (100, 16, "./outputs/sft")


def test_defaults_are_the_documented_ones():
    config = SFTConfig(**REQUIRED)

    assert (config.lora_r, config.lora_alpha, config.lora_dropout) == (8, 16, 0.05)
    assert (config.batch_size, config.gradient_accumulation_steps, config.learning_rate) == (4, 4, 2e-4)
    assert (config.num_epochs, config.warmup_ratio, config.weight_decay) == (3, 0.03, 0.001)
    assert (config.max_grad_norm, config.max_seq_length, config.validation_split) == (0.3, 2048, 0.1)
    assert config.get_effective_batch_size() == 16


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_r": 0}, "lora_r: must be greater than 0, got 0"),
        ({"validation_split": 1}, "validation_split: must be less than 1, got 1"),
        ({"learning_rate": float("nan")}, "learning_rate: must be a finite number, got nan"),
        (
            {"dataset_format": "xml"},
            "dataset_format: must be 'alpaca', 'chat', 'completion' or 'auto', got 'xml'",
        ),
        ({"lora_rank": 8}, "lora_rank is not a known field; did you mean lora_r?"),
        ({"base_model": " "}, "base_model: must not be blank, got ' '"),
        ({"use_qlora": True, "use_lora": False}, "use_qlora needs use_lora; set use_lora to true"),
    ],
)
def test_a_bad_value_is_refused_by_name(values, message):
    with pytest.raises(InvalidConfig) as refusal:
        SFTConfig.from_dict(REQUIRED | values)

    assert message in str(refusal.value)


def test_what_is_missing_is_named():
    with pytest.raises(InvalidConfig) as refusal:
        SFTConfig.from_dict({"base_model": "gpt2"})

    assert str(refusal.value).splitlines() == ["dataset_name is required", "dataset_format is required"]


@pytest.mark.parametrize(
    ("given", "read"),
    [("all", None), (["all"], None), ("q_proj, v_proj,", ("q_proj", "v_proj")), (["q_proj"], ("q_proj",))],
)
def test_target_modules_as_people_write_them(given, read):
    assert SFTConfig(**REQUIRED, lora_target_modules=given).lora_target_modules == read


@pytest.mark.parametrize("given", [[], "", " , "])
def test_target_modules_that_name_nothing_are_refused(given):
    with pytest.raises(InvalidConfig, match="lora_target_modules: must name a layer, or be left out"):
        SFTConfig.from_dict(REQUIRED | {"lora_target_modules": given})


def test_yaml_round_trip(tmp_path):
    config = SFTConfig.from_dict(REQUIRED | {"lora_target_modules": ["q_proj"], "max_steps": 3})
    config.to_yaml(tmp_path / "job.yaml")

    assert SFTConfig.from_yaml(tmp_path / "job.yaml") == config


@pytest.mark.parametrize("text", ["- 1\n- 2", "a: [", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "job.yaml").write_text(text)

    with pytest.raises(InvalidConfig, match=r"job\.yaml"):
        SFTConfig.from_yaml(tmp_path / "job.yaml")
