"""What each template writes, against texts written out by hand; «» marks what is learned.

The texts follow the forms the models publish: the `chat_template` of meta-llama/Llama-2-7b-chat-hf, Meta-Llama-3 and
Llama-3.1 Instruct, mistralai/Mistral-7B-Instruct-v0.3, google/gemma-3, microsoft/Phi-3.5-mini-instruct and phi-4,
Qwen/Qwen2.5 and Qwen3, HuggingFaceTB/SmolLM and SmolLM2, HuggingFaceH4/zephyr-7b-beta, deepseek-ai/deepseek-llm-7b-chat
and DeepSeek-V3 on the Hugging Face Hub; vLLM's tool_chat_template_deepseekv3.jinja for DeepSeek's functions;
FastChat's conversation.py for Vicuna 1.1; Stanford Alpaca's train.py; and
LLaMA-Factory's template.py for `default`, `empty` and the thoughts of `qwen3` and `deepseekr1`.
"""

# ruff: noqa: RUF001  # DeepSeek's tokens are written so

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sft.chat.named_templates import TEMPLATES
from sft.chat.templates import apply_template, check_template_name, list_templates
from sft.data.encoding import encode
from sft.data.formats import Conversation
from sft.data.messages import Message, Tool
from sft.data.supervision import Renderer
from sft.errors import InvalidDataset, TemplateNotFound
from sft.training.session import TrainingSession
from tests.tiny_models import build_tokenizer

SPECIAL_TOKENS = {
    token for template in TEMPLATES.values() for token in (template.stop_token, *template.special_tokens) if token
}
SYSTEM: Message = {"role": "system", "content": "Obey."}
TALK: list[Message] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
]
CALL = {"id": "abc123xyz", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é"}}}
CALLING: list[Message] = [
    {"role": "user", "content": "Add"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "3", "tool_call_id": "abc123xyz"},
    {"role": "assistant", "content": "It is 3"},
]
TOOLS: list[Tool] = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]

QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CHATML = (
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n«Yo<|im_end|>»\n"
    "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n«So long<|im_end|>»\n"
)
THINKING = CHATML.replace("«", "«<think>\n\n</think>\n\n")
CHATML_SYSTEM = "<|im_start|>system\nObey.<|im_end|>\n"
ALPACA = "### Instruction:\nHi\n\n### Response:\n«Yo</s>»\n\n### Instruction:\nBye\n\n### Response:\n«So long</s>»\n\n"
ALPACA_OPENING = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
VICUNA_OPENING = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
VICUNA = "USER: Hi ASSISTANT:« Yo</s>»USER: Bye ASSISTANT:« So long</s>»"
DEFAULT = "Human: Hi</s>\nAssistant:«Yo</s>»\nHuman: Bye</s>\nAssistant:«So long</s>»\n"
LLAMA3 = (
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n«Yo<|eot_id|>»"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n«So long<|eot_id|>»"
)
GEMMA_REST = (
    "Hi<end_of_turn>\n<start_of_turn>model\n«Yo<end_of_turn>»\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n«So long<end_of_turn>»\n"
)
PHI3 = "<|user|>\nHi<|end|>\n<|assistant|>\n«Yo<|end|>»\n<|user|>\nBye<|end|>\n<|assistant|>\n«So long<|end|>»\n"
PHI4 = (
    "<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>«Yo<|im_end|>»"
    "<|im_start|>user<|im_sep|>Bye<|im_end|><|im_start|>assistant<|im_sep|>«So long<|im_end|>»"
)
ZEPHYR = "<|user|>\nHi</s>\n<|assistant|>\n«Yo</s>»\n<|user|>\nBye</s>\n<|assistant|>\n«So long</s>»\n"
DEEPSEEK = "User: Hi\n\nAssistant:« Yo</s>»User: Bye\n\nAssistant:« So long</s>»"
DEEPSEEK3 = "<｜User｜>Hi<｜Assistant｜>«Yo</s>»<｜User｜>Bye<｜Assistant｜>«So long</s>»"
DEEPSEEKR1 = DEEPSEEK3.replace("«", "«<think>\n\n</think>\n\n")
EMPTY = "Hi«Yo</s>»Bye«So long</s>»"
GEMMA = ("<s><start_of_turn>user\n" + GEMMA_REST, "<s><start_of_turn>user\nObey.\n\n" + GEMMA_REST)
LLAMA2_REST = "Hi [/INST]« Yo </s>»<s>[INST] Bye [/INST]« So long </s>»"
MISTRAL_REST = "Hi[/INST]« Yo</s>»[INST] Bye[/INST]« So long</s>»"

WRITTEN = {  # by template: without and with a system message
    "default": (DEFAULT, "System: Obey.</s>\n" + DEFAULT),
    "alpaca": (ALPACA_OPENING + ALPACA, "Obey.\n\n" + ALPACA),
    "vicuna": (VICUNA_OPENING + VICUNA, "Obey. " + VICUNA),
    "llama2": ("<s>[INST] " + LLAMA2_REST, "<s>[INST] <<SYS>>\nObey.\n<</SYS>>\n\n" + LLAMA2_REST),
    "mistral": ("<s>[INST] " + MISTRAL_REST, "<s>[INST] Obey.\n\n" + MISTRAL_REST),
    "deepseek": ("<s>" + DEEPSEEK, "<s>Obey.\n\n" + DEEPSEEK),
    "deepseek3": ("<s>" + DEEPSEEK3, "<s>Obey." + DEEPSEEK3),
    "deepseekr1": ("<s>" + DEEPSEEKR1, "<s>Obey." + DEEPSEEKR1),
    "empty": (EMPTY, "Obey." + EMPTY),
    "chatml": (CHATML, CHATML_SYSTEM + CHATML),
    "yi": (CHATML, CHATML_SYSTEM + CHATML),
    "smollm": (CHATML, CHATML_SYSTEM + CHATML),
    "smollm2": (f"<|im_start|>system\n{SMOLLM}<|im_end|>\n{CHATML}", CHATML_SYSTEM + CHATML),
    "qwen": (f"<|im_start|>system\n{QWEN}<|im_end|>\n{CHATML}", CHATML_SYSTEM + CHATML),
    "qwen3": (THINKING, CHATML_SYSTEM + THINKING),
    "qwen3_nothink": (CHATML, CHATML_SYSTEM + CHATML),
    "phi4": (PHI4, "<|im_start|>system<|im_sep|>Obey.<|im_end|>" + PHI4),
    "llama3": ("<s>" + LLAMA3, "<s><|start_header_id|>system<|end_header_id|>\n\nObey.<|eot_id|>" + LLAMA3),
    "gemma": GEMMA,
    "gemma2": GEMMA,
    "gemma3": GEMMA,
    "phi": (PHI3, "<|system|>\nObey.<|end|>\n" + PHI3),
    "phi3": (PHI3, "<|system|>\nObey.<|end|>\n" + PHI3),
    "zephyr": (ZEPHYR, "<|system|>\nObey.</s>\n" + ZEPHYR),
}
QWEN_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    '{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}\n</tools>\n\n'
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> "
    'XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
)
QWEN_CALLING = (
    "<|im_start|>user\nAdd<|im_end|>\n<|im_start|>assistant\n«THOUGHT<tool_call>\n"
    '{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call><|im_end|>»\n'
    "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n"
    "<|im_start|>assistant\n«THOUGHTIt is 3<|im_end|>»\n"
)
DEEPSEEK_CALLING = (
    "<s>\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    '{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}\n</tools>\n\n'
    "For function call returns, you should first print <｜tool▁calls▁begin｜>\n\n"
    "For each function call, you should return object like:\n"
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜><function_name>\n"
    "```json\n<function_arguments_in_json_format>\n```<｜tool▁call▁end｜>\n\n"
    "At the end of function call returns, you should print <｜tool▁calls▁end｜></s>"
    "<｜User｜>Add<｜Assistant｜>«THOUGHT<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n"
    '```json\n{"a": 1, "b": "é"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜></s>»'
    "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>3<｜tool▁output▁end｜><｜tool▁outputs▁end｜>«THOUGHTIt is 3</s>»"
)
WRITTEN_CALLS = {
    "deepseek3": DEEPSEEK_CALLING.replace("THOUGHT", ""),
    "deepseekr1": DEEPSEEK_CALLING.replace("THOUGHT", "<think>\n\n</think>\n\n"),
    "qwen": f"<|im_start|>system\n{QWEN}\n\n" + QWEN_TOOLS + QWEN_CALLING.replace("THOUGHT", ""),
    "qwen3": "<|im_start|>system\n" + QWEN_TOOLS + QWEN_CALLING.replace("THOUGHT", "<think>\n\n</think>\n\n"),
    "qwen3_nothink": "<|im_start|>system\n" + QWEN_TOOLS + QWEN_CALLING.replace("THOUGHT", ""),
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n"
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that "
    'best answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of '
    "argument name and its value}.Do not use variables.\n\n"
    '{\n    "type": "function",\n    "function": {\n        "name": "add",\n        "parameters": {\n'
    '            "type": "object"\n        }\n    }\n}\n\nAdd<|eot_id|>'
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    '«{"name": "add", "parameters": {"a": 1, "b": "é"}}<|eot_id|>»'
    '<|start_header_id|>ipython<|end_header_id|>\n\n"3"<|eot_id|>'
    "<|start_header_id|>assistant<|end_header_id|>\n\n«It is 3<|eot_id|>»",
    "mistral": '<s>[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "add", "parameters": '
    '{"type": "object"}}}][/AVAILABLE_TOOLS][INST] Add[/INST]'
    '«[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": "é"}, "id": "abc123xyz"}]</s>»'
    '[TOOL_RESULTS] {"content": 3, "call_id": "abc123xyz"}[/TOOL_RESULTS]« It is 3</s>»',
}


def build_rich_tokenizer() -> PreTrainedTokenizerFast:
    """One that has every family's special tokens, `<s>` and `</s>`, and puts `<s>` before no text of its own."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens(
        {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": sorted(SPECIAL_TOKENS)}
    )
    return tokenizer


def check_written(name: str, messages: list[Message], tools: list[Tool] | None, written: str) -> None:
    """Text, ids and labels of a conversation are those of the text written by hand."""
    text = re.sub("[«»]", "", written)
    learned = re.findall("«(.*?)»", written, re.DOTALL)
    tokenizer = build_rich_tokenizer()
    stop_token = apply_template(tokenizer, name)
    assert tokenizer.apply_chat_template(messages, tools=tools, tokenize=False) == text
    assert all(part.endswith(stop_token) for part in learned)

    rendered = Renderer(tokenizer, stop_token).render(Conversation(messages, tools=tools))
    assert rendered.text == text
    assert [text[start:end] for start, end in rendered.spans] == learned
    pieces = [part for part in re.split("(«.*?»)", written, flags=re.DOTALL) if part]
    ids, labels = (values.tolist() for values in next(encode(tokenizer, [rendered])))
    encoded = [(part[0] == "«", tokenizer.encode(part.strip("«»"), add_special_tokens=False)) for part in pieces]
    assert ids == [token for _, part in encoded for token in part]
    assert labels == [token if is_learned else -100 for is_learned, part in encoded for token in part]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_writes_a_conversation(name: str) -> None:
    check_written(name, TALK, None, WRITTEN[name][0])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_system_message_has_its_place(name: str) -> None:
    check_written(name, [SYSTEM, *TALK], None, WRITTEN[name][1])


@pytest.mark.parametrize("name", WRITTEN_CALLS)
def test_calls_and_their_results_have_their_places(name: str) -> None:
    check_written(name, CALLING, TOOLS, WRITTEN_CALLS[name])


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - set(WRITTEN_CALLS)))
def test_a_family_without_calls_does_not_lose_them_silently(name: str) -> None:
    tokenizer = build_rich_tokenizer()
    renderer = Renderer(tokenizer, apply_template(tokenizer, name))
    with pytest.raises(
        InvalidDataset, match="does not write tools; choose template_name qwen, qwen3, llama3, mistral or deepseek3"
    ):
        renderer.render(Conversation(TALK, tools=TOOLS))
    with pytest.raises(InvalidDataset, match=r"does not write calls|leaves out this tool|refuses this conversation"):
        renderer.render(Conversation(CALLING))
    with pytest.raises(InvalidDataset, match="does not write calls of functions; choose template_name qwen, qwen3"):
        renderer.render(Conversation(CALLING[:2]))


def test_mistral_writes_calls_without_ids_and_refuses_those_it_cannot_have() -> None:
    tokenizer = build_rich_tokenizer()
    renderer = Renderer(tokenizer, apply_template(tokenizer, "mistral"))
    call = {"type": "function", "function": CALL["function"]}
    rows = [CALLING[0], {**CALLING[1], "tool_calls": [call]}, {"role": "tool", "content": "3"}, CALLING[3]]
    assert renderer.render(Conversation(rows)).text == (
        '<s>[INST] Add[/INST][TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": "é"}}]</s>'
        '[TOOL_RESULTS] {"content": 3}[/TOOL_RESULTS] It is 3</s>'
    )
    rows[1] = {**CALLING[1], "tool_calls": [{**call, "id": "call_1"}]}
    with pytest.raises(InvalidDataset, match="Tool call IDs should be alphanumeric strings with length 9"):
        renderer.render(Conversation(rows))


def test_qwen3_keeps_the_thoughts_of_every_answer() -> None:
    messages: list[Message] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYo"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "So long", "reasoning_content": "well"},
    ]
    written = CHATML.replace("«Yo", "«<think>\nhm\n</think>\n\nYo").replace("«So", "«<think>\nwell\n</think>\n\nSo")
    check_written("qwen3", messages, None, written)
    tokenizer = build_rich_tokenizer()
    apply_template(tokenizer, "qwen3")
    prompt = tokenizer.apply_chat_template(
        messages[:1], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("qwen", "qwen2_5"),
        ("qwen3", "qwen3_training"),
        ("qwen3_nothink", "qwen3_instruct_2507"),
        ("llama3", "llama3"),
        ("llama3", "llama3_1"),
        ("gemma", "gemma"),
        ("gemma3", "gemma3"),
    ],
)
def test_the_published_template_writes_the_same(name: str, reference: str) -> None:
    """Against the models' own templates, as TRL carries them for comparison."""
    spec = importlib.util.find_spec("trl")
    assert spec
    assert spec.origin
    folder = Path(spec.origin).parent / "chat_templates"
    ours, published = build_rich_tokenizer(), build_rich_tokenizer()
    apply_template(ours, name)
    published.chat_template = (folder / f"{reference}.jinja").read_text(encoding="utf-8")
    odd: list[Message] = [
        {"role": "user", "content": " 'Hi' \\n {{ 1 }} "},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n Yo\n"},
        *TALK,
        {"role": "user", "content": "ü\n"},
    ]
    calls: list[Message] = [
        *([SYSTEM] if "gemma" not in name else []),
        {**CALLING[0], "content": " Add "},
        *CALLING[1:],
        {"role": "user", "content": "ok"},
    ]
    two: list[Message] = [
        CALLING[0],
        {"role": "assistant", "content": "Wait", "tool_calls": [CALL, CALL]},
        CALLING[2],
        *CALLING[2:],
    ]
    cases: list[tuple[list[Message], list[Tool] | None]] = [(odd, None), ([SYSTEM, *odd], None)]
    match reference:
        case "llama3_1":  # without tools it writes a header of dates, which Llama 3 has not
            cases = [(calls, TOOLS), (calls[1:], TOOLS), (CALLING[:1], TOOLS * 2)]
        case "gemma":  # it refuses a system message
            cases = [(odd, None)]
        case _ if "qwen" in reference:
            cases += [(calls, TOOLS), (calls[1:], None), (two, TOOLS * 2), (CALLING[:3], TOOLS)]
    for messages, tools in cases:
        for prompted in (False, True):
            options: dict[str, Any] = {"tools": tools, "tokenize": False, "add_generation_prompt": prompted}
            written = published.apply_chat_template(messages, **options)
            assert ours.apply_chat_template(messages, **options) == written


def test_deepseek_writes_conversations_and_calls_as_published() -> None:
    """Functions, which the published template passes over, and the prompt of an answer that thinks aside."""
    spec = importlib.util.find_spec("trl")
    assert spec
    assert spec.origin
    ours, published = build_rich_tokenizer(), build_rich_tokenizer()
    apply_template(ours, "deepseek3")
    file = Path(spec.origin).parent / "chat_templates" / "deepseekv3.jinja"
    published.chat_template = file.read_text(encoding="utf-8").replace("<｜end▁of▁sentence｜>", "</s>")
    call = {**CALL, "function": {"name": "add", "arguments": '{"a": 1}'}}  # it takes no other arguments than text
    calls: list[Message] = [
        CALLING[0],
        {"role": "assistant", "content": "Wait", "tool_calls": [call, call]},
        *CALLING[2:],
        *TALK,
    ]
    for messages in ([SYSTEM, SYSTEM, *TALK], calls, calls[:3]):
        assert ours.apply_chat_template(messages, tokenize=False) == published.apply_chat_template(
            messages, tokenize=False
        )


@pytest.mark.parametrize("name", ["default", "empty", "alpaca", "vicuna"])
def test_a_text_begins_as_the_tokenizer_begins_it_and_never_twice(name: str) -> None:
    tokenizer = build_rich_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    stop_token = apply_template(tokenizer, name)
    text = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert text == "<s>" + re.sub("[«»]", "", WRITTEN[name][0])
    ids = next(encode(tokenizer, [Renderer(tokenizer, stop_token).render(Conversation(TALK))]))[0].tolist()
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids == tokenizer.apply_chat_template(TALK)["input_ids"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_saved_with_the_tokenizer_writes_the_same(name: str, tmp_path: Path) -> None:
    tokenizer = build_rich_tokenizer()
    stop_token = apply_template(tokenizer, name)
    tokenizer.save_pretrained(tmp_path)
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert saved.eos_token == stop_token
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
    written = saved.apply_chat_template(TALK[:3], **options)
    text = re.sub("[«»]", "", WRITTEN[name][0])
    assert text.startswith(written)
    assert text[len(written) :].lstrip().removeprefix("<think>\n\n</think>\n\n").startswith("So long")


def test_the_template_is_saved_with_the_adapter(open_session: Callable[..., TrainingSession], tmp_path: Path) -> None:
    session = open_session(template_name="qwen", max_steps=1)
    session.train()
    adapter = session.save(tmp_path / "adapter")
    assert (adapter / "chat_template.jinja").read_text(encoding="utf-8") == TEMPLATES["qwen"].jinja
    saved = AutoTokenizer.from_pretrained(adapter)
    assert saved.eos_token == "<|im_end|>"
    assert saved.apply_chat_template(TALK, tokenize=False) == re.sub("[«»]", "", WRITTEN["qwen"][0])
    generation = json.loads((adapter / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"][0] == saved.convert_tokens_to_ids("<|im_end|>")


def test_auto_is_the_tokenizers_own_and_finds_what_ends_an_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    own = tokenizer.chat_template
    assert tokenizer.eos_token == "<|endoftext|>"
    assert apply_template(tokenizer, "auto") == "<|im_end|>"
    assert (tokenizer.chat_template, tokenizer.eos_token) == (own, "<|im_end|>")


def test_auto_without_a_chat_template_suggests_names(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    usable = "default, empty, alpaca, vicuna, chatml, qwen, qwen3, qwen3_nothink, smollm, smollm2, yi, zephyr$"
    with pytest.raises(TemplateNotFound, match=f"has none; templates it can use: {usable}"):
        apply_template(tokenizer, "auto")
    assert apply_template(tokenizer, "auto", required=False) == "<|endoftext|>"


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        ("{% for message in messages %}{{ message['content'] }}\n{% endfor %}", "could not learn to stop"),
        ("{{ raise_exception('never') }}", r"can't write a question and its answer \(never\)"),
    ],
)
def test_auto_refuses_a_template_that_cannot_teach(
    tokenizer: PreTrainedTokenizerFast, jinja: str, message: str
) -> None:
    tokenizer.chat_template = jinja
    with pytest.raises(TemplateNotFound, match=message):
        apply_template(tokenizer, "auto")


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("llama3", "<|start_header_id|>, <|end_header_id|>, <|eot_id|>, a beginning-of-sequence token"),
        ("gemma", "<start_of_turn>, <end_of_turn>, a beginning-of-sequence token"),
        ("phi3", "<|system|>, <|user|>, <|assistant|>, <|end|>"),
        ("phi4", "<|im_sep|>"),
        ("deepseek3", "<｜User｜>, <｜Assistant｜>, a beginning-of-sequence token"),
        ("llama2", "a beginning-of-sequence token"),
        ("mistral", "a beginning-of-sequence token"),
    ],
)
def test_a_template_whose_tokens_are_missing_names_them(
    tokenizer: PreTrainedTokenizerFast, name: str, missing: str
) -> None:
    expected = re.escape(f"template_name {name} needs {missing}, which the tokenizer of this model lacks; templates")
    with pytest.raises(TemplateNotFound, match=expected):
        apply_template(tokenizer, name)


def test_a_template_that_ends_with_the_end_of_sequence_needs_one(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None
    with pytest.raises(TemplateNotFound, match=r"alpaca needs an end-of-sequence token, .* can use: chatml, qwen,"):
        apply_template(tokenizer, "alpaca")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(TemplateNotFound, match=r"'qwne' is not known; did you mean qwen\? known are: auto, default"):
        check_template_name("qwne")
    for name in list_templates():
        check_template_name(name)
    assert set(list_templates()) == {"auto", *WRITTEN}


def test_names_can_be_checked_without_torch_and_transformers() -> None:
    code = (
        "import sys, sft.chat.templates as t; t.check_template_name('qwen'); "
        "sys.exit(bool({'torch', 'transformers', 'jinja2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
