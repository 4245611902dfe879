"""SFTConfig: the documented defaults, and errors that name field, value and remedy."""

import pytest

from sft.config import SFTConfig
from sft.errors import InvalidConfig
from sft.sources import label_datasets

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
        ({"dataset_name": []}, "dataset_name: must be text, or must not be empty, got []"),
        ({"dataset_name": ["a", {"name": "b", "weight": 0}]}, "dataset_name.1.weight: must be greater than 0, got 0"),
        ({"dataset_name": [{"name": "b", "weight": -1}]}, "dataset_name.0.weight: must be greater than 0, got -1"),
        ({"dataset_name": [{"name": "b", "weight": float("nan")}]}, "dataset_name.0.weight: must be a finite number"),
        ({"dataset_name": [{"name": "b", "weight": float("inf")}]}, "dataset_name.0.weight: must be a finite number"),
        ({"dataset_name": [{"name": "b", "weight": 101}]}, "dataset_name.0.weight: must be at most 100, got 101"),
        ({"dataset_name": [{"name": "b", "weight": "2"}]}, "dataset_name.0.weight: must be a number, got '2'"),
        ({"dataset_name": ["a", 3]}, "dataset_name.1: must be a dataset's name, or an object with its name and weight"),
        ({"dataset_name": ["a", " "]}, "dataset_name.1.name: must not be blank, got ' '"),
        (
            {"dataset_name": ["a", "b", {"name": "a"}]},
            "must name each dataset once, 'a' is at the places 0 and 2; give",
        ),
        ({"dataset_name": [str(n) for n in range(33)]}, "must have at most 32 entries, it has 33"),
        ({"validation_dataset": ["v", "v"]}, "validation_dataset: must name each dataset once, 'v' is at the places"),
        ({"validation_dataset": "v", "validation_split": 0.2}, "validation_dataset replaces them; leave one out"),
        ({"use_qlora": True, "use_lora": False}, "use_qlora needs use_lora; set use_lora to true"),
    ],
)
def test_a_bad_value_is_refused_by_name(values, message):
    with pytest.raises(InvalidConfig) as refusal:
        SFTConfig.from_dict(REQUIRED | values)

    assert message in str(refusal.value)


def test_a_list_of_datasets_has_weights_and_is_kept_by_a_round_trip():
    sources = ["a@v1", {"name": " b ", "weight": 2}]
    config = SFTConfig.from_dict(REQUIRED | {"dataset_name": sources, "validation_dataset": "v"})
    assert [(source.name, source.weight) for source in config.sources] == [("a@v1", 1.0), ("b", 2.0)]
    assert (config.validation_dataset, config.validation_split) == ("v", 0.0)
    assert SFTConfig.from_dict(config.to_dict()) == config
    alone = SFTConfig.from_dict(REQUIRED)
    assert (alone.to_dict()["dataset_name"], alone.is_mixed) == ("tatsu-lab/alpaca", False)


def test_labels_of_datasets_are_different_and_fit_for_metrics():
    names = ["a@v1", "a/v1", "/x/y.jsonl", "a_v1", "@", "…", "é@v1", "x" * 300]
    labels = label_datasets(names)
    assert labels[:5] == ["a_v1", "a_v1-2", "x_y.jsonl", "a_v1-3", "dataset"]
    assert len({*labels}) == len(names)
    assert all(len(label) <= 90 for label in labels)


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
