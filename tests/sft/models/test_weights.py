"""Files of a model or an adapter that are not what they should be: a code and a sentence, before anything is loaded."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sft.errors import InvalidConfig, ModelNotFound, ModelNotSupported, ModelUnusable
from sft.models.loading import find_model, load_model, load_tokenizer, quiet_transformers
from sft.models.model_class import build_empty
from sft.models.weights import check_weights, find_weight_damage
from sft.planning.shape import measure_shape
from tests.tiny_models import save_tiny_model

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 269060552\n"


@pytest.fixture
def folder(model_path, tmp_path):
    return Path(shutil.copytree(model_path, tmp_path / "model"))


def pointer(folder):
    (folder / "model.safetensors").write_bytes(POINTER)


def torn(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def torn_in_its_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def web_page(folder):
    (folder / "model.safetensors").write_bytes(b"<!DOCTYPE html><html><body>Access to this model is restricted")


def too_long(folder):
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")


def lie_about_a_shape(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(b'"dtype":"F32"', b'"dtype":"F16"', 1)
    path.write_bytes(content[:8] + header + content[8 + length :])


def lose_a_shard(folder):
    (folder / "model.safetensors").unlink()
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    save_file({"a": torch.zeros(1)}, folder / names["a"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def break_the_index(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("[1, 2]")


def pickle_only(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def gguf_only(folder):
    (folder / "model.safetensors").rename(folder / "model-Q4_K_M.gguf")


def nothing(folder):
    (folder / "model.safetensors").unlink()


def other_names(folder):
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")


def other_shapes(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (pointer, "model.safetensors is a Git LFS pointer, not the weights: run `git lfs pull`"),
        (torn, "model.safetensors is cut off: it has [0-9]+ bytes and should have [0-9]+"),
        (torn_in_its_header, "model.safetensors is cut off after 100 bytes"),
        (empty, r"model.safetensors is not a safetensors file \(0 bytes\)"),
        (web_page, "model.safetensors is not a safetensors file"),
        (too_long, "model.safetensors is longer than it says"),
        (lie_about_a_shape, "model.safetensors contradicts itself about"),
        (lose_a_shard, r"model-00002-of-00002.safetensors is missing \(1 of the 2 files"),
        (break_the_index, "model.safetensors.index.json holds no list of files"),
        (pickle_only, r"has pickled weights \(pytorch_model.bin\) and no safetensors"),
        (gguf_only, r"has GGUF files \(model-Q4_K_M.gguf\) and no safetensors"),
        (nothing, "has no weights: neither model.safetensors nor"),
        (other_names, "has no model.safetensors and no .*, only consolidated.safetensors"),
        (other_shapes, r"other shapes than config.json says, .* for one is \(.*\) and should be \("),
    ],
)
def test_a_models_damaged_files_are_refused(folder, make_config, damage, told):
    damage(folder)
    with pytest.raises(ModelUnusable, match=told) as error:
        load_model(folder, make_config())
    assert str(error.value).startswith("base_model tiny ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{torn", "can't be read: "),
        (b"[]", "can't be read: "),
        (POINTER, "config.json is a Git LFS pointer"),
        (b'{"model_type": "never_heard_of"}', "can't be read: "),
        (b'{"model_type": "mine", "auto_map": {"AutoConfig": "a.B"}}', "needs code of its own, which is never run"),
        (b'{"model_type": "llama", "hidden_size": "wide"}', "can't be read: "),
        (b'{"model_type": "llama", "num_attention_heads": 0}', "can't be read: "),
        (b'{"model_type": "clip"}', "does not know as a causal language model"),
    ],
    ids=str,
)
def test_a_configuration_that_cant_be_read_is_refused(folder, make_config, content, told):
    (folder / "config.json").write_bytes(content)
    for load in (build_empty, lambda path: load_model(path, make_config())):
        with pytest.raises((ModelUnusable, ModelNotSupported), match=told) as error:
            load(folder)
        assert "\n" not in str(error.value)
        assert "trust_remote_code" not in str(error.value)


@pytest.mark.parametrize(
    "method", ["gptq", "awq", "bitsandbytes", "fp8", "torchao", "compressed-tensors", "never_heard_of", None]
)
def test_quantization_that_the_machine_lacks_is_refused(folder, make_config, method):
    config = json.loads((folder / "config.json").read_text())
    quantization = {"quant_method": method, "bits": 4, "load_in_4bit": True, "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    for load in (build_empty, lambda path: load_model(path, make_config())):  # the plan knows it already
        with pytest.raises(ModelUnusable, match=r"^base_model (tiny|model) can't be read: "):
            load(folder)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", r"^base_model model has a damaged tokenizer\.json; copy or download it again$"),
        (b"{", r"^base_model model has a damaged tokenizer\.json; copy or download it again$"),
        (b'{"model": 3}', "the tokenizer of base_model model can't be read: "),
        (POINTER, "base_model model can't be read: .*git lfs pull"),
        (None, r"^base_model model has no tokenizer \(tokenizer\.json\); copy or download its files too$"),
    ],
    ids=str,
)
def test_a_tokenizer_that_cant_be_read_is_refused(folder, content, told):
    (folder / "tokenizer.json").unlink()
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelUnusable, match=told):
        load_tokenizer(folder)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter of the tiny Llama, as PEFT writes it."""
    place = tmp_path_factory.mktemp("adapter")
    model = load_llama(save_tiny_model("llama", place / "base"))
    return save_adapter(model, place / "adapter", target_modules="all-linear")


def load_llama(path):
    return AutoModelForCausalLM.from_pretrained(path)


def save_adapter(model, folder, **settings):
    with quiet_transformers():
        get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, **settings)).save_pretrained(
            folder, save_embedding_layers=False
        )
    return folder


def rewrite(folder, change):
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(change(weights), folder / "adapter_model.safetensors")


def set_field(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("damage", "kind", "told"),
    [
        (lambda a: (a / "adapter_model.safetensors").write_bytes(POINTER), ModelUnusable, "is a Git LFS pointer"),
        (lambda a: (a / "adapter_model.safetensors").write_bytes(b""), ModelUnusable, "is not a safetensors file"),
        (lambda a: (a / "adapter_config.json").write_bytes(POINTER), ModelUnusable, "is a Git LFS pointer"),
        (
            lambda a: (a / "adapter_model.safetensors").rename(a / "adapter_model.bin"),
            ModelNotFound,
            r"only pickled weights \(adapter_model.bin\), which are not read",
        ),
        (lambda a: (a / "adapter_config.json").write_text("{"), InvalidConfig, "no adapter_config.json that can be"),
        (lambda a: set_field(a, peft_type="IA3"), InvalidConfig, "its peft_type is 'IA3'"),
        (lambda a: set_field(a, r=8), InvalidConfig, r"lora_[AB].* is of shape \(4, \d+\) in the adapter"),
        (lambda a: set_field(a, rank_pattern={"q_proj": 2}), InvalidConfig, "is of shape"),
        (lambda a: set_field(a, target_modules=["c_attn"]), InvalidConfig, "c_attn"),
        (lambda a: set_field(a, target_modules=["q_proj"]), InvalidConfig, "the model has no place for 24 of its 28"),
        (lambda a: set_field(a, r="four"), InvalidConfig, "does not fit"),
        (
            lambda a: rewrite(a, lambda weights: dict(list(weights.items())[:-2])),
            InvalidConfig,
            "its file lacks 2 of the 28 weights",
        ),
    ],
)
def test_an_adapter_that_cant_be_gone_on_from_is_refused(
    adapter, tmp_path, open_session, model_path, make_config, damage, kind, told
):
    start = Path(shutil.copytree(adapter, tmp_path / "start"))
    damage(start)
    planned = make_config(adapter_path=str(start))
    for use in (
        lambda: open_session(adapter_path=str(start)),
        lambda: measure_shape(build_empty(model_path), planned, model_path),
    ):
        with pytest.raises(kind, match=told) as error:
            use()
        assert str(error.value).startswith("adapter_path ")
        assert "\n" not in str(error.value)


def test_an_adapter_of_another_architecture_is_refused(tmp_path, open_session):
    model = load_llama(save_tiny_model("gpt2", tmp_path / "gpt2"))
    save_adapter(model, tmp_path / "a", fan_in_fan_out=True)
    with pytest.raises(InvalidConfig, match=r"adapter_path .* does not fit base_model tiny: .*c_attn"):
        open_session(adapter_path=str(tmp_path / "a"))


def test_an_adapter_whose_base_has_more_tokens_names_both_numbers(model_path, tmp_path, open_session):
    model = load_llama(model_path)
    rows = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(rows + 7)
    save_adapter(model, tmp_path / "grown", modules_to_save=["embed_tokens", "lm_head"])
    with pytest.raises(InvalidConfig, match=f"a vocabulary of {rows + 7} tokens and the model has {rows}"):
        open_session(adapter_path=str(tmp_path / "grown"))


def test_whole_files_have_no_damage(model_path):
    assert find_weight_damage(model_path / "model.safetensors") is None


def write_header(path, header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + body)


def tensor(start, end, shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


HUGE = 2**62
HEADERS = {
    "a huge tensor": ({"a": tensor(0, HUGE, (HUGE // 4,))}, 16, "is cut off: it has"),
    "a huge shape": ({"a": tensor(0, 16, (HUGE, HUGE))}, 16, "contradicts itself about a"),
    "beyond any file": ({"a": tensor(0, 2**70, (2**68,))}, 16, "has no header that can be read"),
    "negative": ({"a": tensor(-16, 0), "b": tensor(0, 16)}, 16, "has no header that can be read"),
    "a negative shape": ({"a": tensor(0, 16, (-2, -2))}, 16, "has no header that can be read"),
    "backwards": ({"a": tensor(0, 32, (8,)), "b": tensor(32, 16)}, 32, "contradicts itself about b"),
    "overlapping": ({"a": tensor(0, 16), "b": tensor(8, 24)}, 24, "contradicts itself about b"),
    "a gap": ({"a": tensor(0, 16), "b": tensor(32, 48)}, 48, "contradicts itself about b"),
    "the same place": ({"a": tensor(0, 16), "b": tensor(0, 16)}, 16, "contradicts itself about b"),
    "not from the start": ({"a": tensor(16, 32)}, 32, "contradicts itself about a"),
    "fractions": ({"a": tensor(0.0, 16.0)}, 16, "has no header that can be read"),
    "truths": ({"a": tensor(False, True, (1,), "U8")}, 1, "has no header that can be read"),
    "texts": ({"a": tensor("0", "16")}, 16, "has no header that can be read"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 16]}}, 16, "has no header that can be read"),
    "a thousand dimensions": ({"a": tensor(0, 4, (1,) * 1000)}, 4, "has no header that can be read"),
    "nested": (b"[" * 200_000, 0, "has no header that can be read"),
    "a list": ([], 0, "has no header that can be read"),
    "no JSON": (b"{torn", 0, "has no header that can be read"),
    "a name with line breaks": ({"a\n\x1b[31m": tensor(0, 16, (3,))}, 16, r"contradicts itself about a\\n\\x1b\[31m"),
}


@pytest.mark.parametrize(("header", "body", "told"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies_is_refused_before_anything_is_loaded(folder, make_config, header, body, told):
    write_header(folder / "model.safetensors", header, bytes(body))
    with pytest.raises(ModelUnusable, match=told):
        load_model(folder, make_config())


@pytest.mark.parametrize("length", [2**62, 2**64 - 1, 60_000_000, 1, 0])
def test_a_headers_length_is_not_believed(folder, make_config, length):
    write_header(folder / "model.safetensors", b"{}", bytes(16), length)
    with pytest.raises(ModelUnusable, match="is not a safetensors file"):
        load_model(folder, make_config())


@pytest.mark.parametrize(
    "names",
    [
        ["../../secret.safetensors"],
        ["/etc/passwd"],
        [".."],
        ["a\0b"],
        [["a"]],
        [{}],
        [3],
        ["missing.safetensors"],
        [""],
    ],
    ids=str,
)
def test_an_index_that_leads_elsewhere_is_refused(folder, make_config, names):
    (folder / "model.safetensors").unlink()
    weight_map = {f"w{number}": name for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelUnusable) as error:
        load_model(folder, make_config())
    assert "root:" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_text_file_out_of_all_proportion_is_refused_unread(folder, make_config, name):
    with (folder / name).open("wb") as file:
        file.truncate(2**30)  # a hole: it takes no room
    with pytest.raises(ModelUnusable, match=f"{name} has 1073741824 bytes, and no more than [0-9]+ are read"):
        load_model(folder, make_config())
    with pytest.raises(ModelUnusable, match=f"{name} has 1073741824 bytes"):
        find_model(folder.name, folder.parent)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"])
def test_nesting_without_end_is_a_model_that_cant_be_read(folder, make_config, name):
    (folder / name).write_bytes(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
    try:
        load_tokenizer(folder)
        load_model(folder, make_config())
    except ModelUnusable:
        return
    assert name == "generation_config.json"  # which is left out where it can't be read


def test_pickles_beside_safetensors_are_not_opened(folder, make_config, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "opened",))

    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "model.pth"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    load_tokenizer(folder)
    load_model(folder, make_config())
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(("dtype", "name"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.uint8, "U8")])
def test_small_numbers_that_nothing_says_how_to_scale_are_refused(folder, make_config, dtype, name):
    weights = load_file(folder / "model.safetensors")
    layer = "model.layers.0.mlp.up_proj.weight"
    weights[layer] = weights[layer].to(dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnusable, match=rf"{layer} of model.safetensors is in {name}, .* no quantization_config"):
        load_model(find_model(str(folder), folder.parent), make_config(), torch.float32)


def test_a_header_is_read_once(folder, monkeypatch):
    """Some have tens of megabytes."""
    opened, really_open = [], Path.open

    def keep_name(path, *args, **options):
        opened.append(path.name)
        return really_open(path, *args, **options)

    monkeypatch.setattr(Path, "open", keep_name)
    check_weights(folder, "base_model tiny")
    assert opened.count("model.safetensors") == 1


def test_an_adapter_beside_a_models_weights_is_refused(folder, make_config):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelUnusable, match=r"has an adapter beside its own weights \(adapter_config.json\).*; move"):
        load_model(folder, make_config())
