import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GemmaTokenizer

from sft.chat.templates import apply_template
from sft.data.encoding import encode
from sft.data.formats import Conversation
from sft.data.supervision import Renderer
from sft.models.loading import load_tokenizer
from sft.models.tokenizer_class import DECLARED, find_tokenizer_class
from tests.tiny_models import build_tokenizer


def save_tokenizer(folder: Path, model_type: str, declared: str) -> Path:
    if declared.startswith("Gemma"):
        specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{value:02X}>" for value in range(256))]
        vocabulary = {token: number for number, token in enumerate([*specials, *"▁abeHhelorustx", "he", "▁the"])}
        GemmaTokenizer(vocab=vocabulary, merges=[("h", "e")]).save_pretrained(folder)
    else:
        build_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": declared}))
    return folder


@pytest.mark.parametrize(
    ("model_type", "declared"), [(model_type, name) for model_type, names in DECLARED.items() for name in names]
)
def test_the_class_and_the_ids_are_those_of_auto_tokenizer(tmp_path: Path, model_type: str, declared: str) -> None:
    for name in {declared, declared.removesuffix("Fast") + "Fast"} - {"TokenizersBackendFast"}:
        folder = save_tokenizer(tmp_path / name, model_type, name)
        expected = AutoTokenizer.from_pretrained(folder)
        found = load_tokenizer(folder)
        assert find_tokenizer_class(folder) is type(found) is type(expected)
        text = "<|im_start|>user\nHello  there, Zürich 🙂!\n\n<|im_end|> x"
        assert found(text)["input_ids"] == expected(text)["input_ids"]
        assert found.special_tokens_map == expected.special_tokens_map


@pytest.mark.parametrize(
    ("model_type", "declared"), [("llama", "LlamaTokenizer"), ("mistral", "TokenizersBackend"), ("llama", "Own")]
)
def test_whatever_is_not_simple_is_left_to_auto_tokenizer(tmp_path: Path, model_type: str, declared: str) -> None:
    assert find_tokenizer_class(save_tokenizer(tmp_path, model_type, declared)) is None
    assert find_tokenizer_class(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("model_type", "declared", "template", "learned"),
    [
        ("llama", "PreTrainedTokenizerFast", "llama2", [" the sea </s>", " he </s>"]),
        ("qwen2", "Qwen2Tokenizer", "qwen", ["the sea<|im_end|>", "he<|im_end|>"]),
        ("gemma", "GemmaTokenizer", "gemma", ["the sea<end_of_turn>", "he<end_of_turn>"]),
        ("gpt2", "GPT2Tokenizer", "alpaca", ["the sea</s>", "he</s>"]),
    ],
)
def test_each_architecture_learns_its_answers(
    tmp_path: Path, model_type: str, declared: str, template: str, learned: list[str]
) -> None:
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, model_type, declared))
    special = {"extra_special_tokens": ["<start_of_turn>", "<end_of_turn>"]} if model_type == "gemma" else {}
    if model_type in ("llama", "gpt2"):
        special = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer.add_special_tokens(special)
    renderer = Renderer(tokenizer, apply_template(tokenizer, template))
    talk = [
        {"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(["a", "the sea", "x", "he"])
    ]
    rendered = renderer.render(Conversation(talk))
    ids, labels = (values.tolist() for values in next(encode(tokenizer, [rendered])))
    assert [rendered.text[start:end] for start, end in rendered.spans] == learned
    assert tokenizer.decode(ids, skip_special_tokens=False).strip() == rendered.text.strip()
    runs = "".join("." if label < 0 else "x" for label in labels).split(".")
    assert len([run for run in runs if run]) == 2
    assert tokenizer.decode([label for label in labels if label >= 0]).strip() == "".join(learned).strip()


def test_rows_are_tokenized_without_torch(model_path: Path, alpaca_file: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from sft.config import SFTConfig
from sft.data.tokenization import prepare
config = SFTConfig(base_model="tiny", dataset_name="rows", dataset_format="alpaca", template_name="chatml")
data = prepare(config, Path({str(model_path)!r}), Path({str(alpaca_file)!r}), Path({str(tmp_path / "cache")!r}))
assert data.stats["train"]["used"] and data.load_train()
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
