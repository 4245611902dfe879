"""A config.json that asks for what no model has is refused before anything is made of it."""

import json

import pytest

from sft.errors import ModelUnusable
from sft.models.model_configuration import MOST_PARTS, check_configuration
from sft.models.weights import check_weights
from tests.tiny_models import save_tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def configure(model, tmp_path):
    """A folder of the model whose config.json has these fields too."""

    def write(**fields):
        for path in model.iterdir():
            if path.name != "config.json" and not (tmp_path / path.name).exists():
                (tmp_path / path.name).symlink_to(path)
        content = json.loads((model / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(content | fields))
        return tmp_path

    return write


COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "num_local_experts", "n_routed_experts", "num_experts", "depth")


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("count", [10**12, MOST_PARTS + 1])
def test_parts_without_end_are_refused(configure, name, count):
    """A trillion layers were made one by one until the plan's two minutes, or a job's memory, were over."""
    for fields in ({name: count}, {"text_config": {name: count}}, {"depths": [1, {"a": {name: count}}]}):
        with pytest.raises(ModelUnusable, match=f"it can't be read: {name} in config.json must be at most 4096, got"):
            check_weights(configure(**fields), "it")


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("value", ["someone/kernel", "someone/kernel@v1:name", {"text": "someone/kernel"}, ["a/b"]])
def test_code_on_the_hub_is_refused(configure, name, value):
    for fields in ({name: value}, {"vision_config": {name: value}}):
        with pytest.raises(ModelUnusable, match="it needs code of its own, which is never run"):
            check_weights(configure(**fields), "it")


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": 126, "num_experts": 2048, "n_routed_experts": None, "layer_types": ["full"] * 5000},
        {"shared_expert_intermediate_size": 20480, "num_experts_per_tok": 8, "block_size": 2**20},
        {"max_position_embeddings": 2**20, "vocab_size": 2**18, "_attn_implementation": "sdpa"},
        {"attn_implementation": None, "layer_norm_eps": 1e-5, "layerdrop": 0.0, "depth": True},
    ],
)
def test_what_models_have_is_left_alone(configure, fields):
    check_configuration(configure(**fields), "it")


@pytest.mark.parametrize("content", ["", "[", "[" * 100_000, "1", '"x"', "[]", "{}", "\x00"])
def test_what_is_no_configuration_is_left_to_who_reads_it(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    check_configuration(tmp_path, "it")
