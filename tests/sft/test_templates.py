import subprocess
import sys

import pytest
from transformers import PreTrainedTokenizerFast

from sft.errors import TemplateNotFound
from sft.templates import apply_template, check_template_name, list_templates

CONVERSATION = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo\n"},
    {"role": "user", "content": "Bye"},
]
RENDERED = {
    "chatml": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo\n<|im_end|>\n"
    "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "qwen": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo\n<|im_end|>\n"
    "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "smollm2": "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo\n<|im_end|>\n"
    "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "default": "Human: Hi<|endoftext|>\nAssistant:Yo\n<|endoftext|>\nHuman: Bye<|endoftext|>\nAssistant:",
    "alpaca": "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nHi\n\n### Response:\nYo\n<|endoftext|>\n\n### Instruction:\nBye\n\n### Response:\n",
    "llama3": "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nYo\n<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
}
STOP_TOKENS = {"default": "<|endoftext|>", "alpaca": "<|endoftext|>", "llama3": "<|eot_id|>"}


@pytest.mark.parametrize("name", RENDERED)
def test_a_template_writes_a_conversation(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    if name == "llama3":
        tokenizer.add_special_tokens(
            {
                "bos_token": "<s>",
                "additional_special_tokens": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
            }
        )
    assert apply_template(tokenizer, name) == STOP_TOKENS.get(name, "<|im_end|>")
    assert tokenizer.eos_token == STOP_TOKENS.get(name, "<|im_end|>")
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert text == RENDERED[name]


@pytest.mark.parametrize("name", ["qwen", "smollm2", "alpaca"])
def test_a_system_message_takes_the_place_of_the_default_one(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    apply_template(tokenizer, name)
    text = tokenizer.apply_chat_template([{"role": "system", "content": "Obey."}, *CONVERSATION], tokenize=False)
    assert text.count("Obey.") == 1
    assert not any(default in text for default in ("Qwen", "SmolLM", "Below is"))


def test_auto_is_the_tokenizers_own_and_finds_what_ends_an_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    own = tokenizer.chat_template
    assert tokenizer.eos_token == "<|endoftext|>"
    assert apply_template(tokenizer, "auto") == "<|im_end|>"
    assert (tokenizer.chat_template, tokenizer.eos_token) == (own, "<|im_end|>")


def test_auto_without_a_chat_template_suggests_names(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    with pytest.raises(TemplateNotFound, match="has none; templates it can use: default, alpaca, chatml, qwen"):
        apply_template(tokenizer, "auto")
    assert apply_template(tokenizer, "auto", required=False) == "<|endoftext|>"


def test_auto_refuses_a_template_that_never_stops(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    with pytest.raises(TemplateNotFound, match="could not teach it to stop"):
        apply_template(tokenizer, "auto")


def test_a_template_whose_tokens_are_missing_names_them(tokenizer: PreTrainedTokenizerFast) -> None:
    missing = r"llama3 needs <\|start_header_id\|>, <\|end_header_id\|>, <\|eot_id\|>, which the tokenizer"
    with pytest.raises(TemplateNotFound, match=missing):
        apply_template(tokenizer, "llama3")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(TemplateNotFound, match=r"'qwne' is not known; did you mean qwen\? known are: auto, default"):
        check_template_name("qwne")
    for name in list_templates():
        check_template_name(name)


def test_names_can_be_checked_without_torch_and_transformers() -> None:
    code = (
        "import sys, sft.templates as t; t.check_template_name('qwen'); "
        "sys.exit(bool({'torch', 'transformers', 'jinja2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
