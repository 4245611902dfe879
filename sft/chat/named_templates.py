"""The named chat templates: a Jinja file for each family, and this table of names.

Each file has the `chat_template` that its models publish on the Hugging Face Hub, except for what its first comment
says. If LLaMA-Factory's template of that name differs from what the models were trained on, the models' own is used.
"""

# ruff: noqa: RUF001  # DeepSeek's tokens have such characters

from sft.chat.chat_template import ChatTemplate

_CHATML = ChatTemplate("chatml", "<|im_end|>", ("<|im_start|>", "<|im_end|>"))
_QWEN = _CHATML._replace(file="qwen")
_GEMMA = ChatTemplate("gemma", "<end_of_turn>", ("<start_of_turn>", "<end_of_turn>"), writes_bos=True)
_PHI3 = ChatTemplate("phi3", "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"))
_LLAMA3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_DEEPSEEK3 = ChatTemplate("deepseek3", special_tokens=("<｜User｜>", "<｜Assistant｜>"), writes_bos=True)

_QWEN_SYSTEM = "{%- set default_system = 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' %}"
_SMOLLM2_SYSTEM = "{%- set default_system = 'You are a helpful AI assistant named SmolLM, trained by Hugging Face' %}"
_THINKS = "{%- set thinks = true %}"

TEMPLATES = {
    # Turns are marked by plain text or end with the end-of-sequence token: works with any tokenizer.
    "default": ChatTemplate("default", takes_bos=True),
    "empty": ChatTemplate("empty", takes_bos=True),
    "alpaca": ChatTemplate("alpaca", takes_bos=True),
    "vicuna": ChatTemplate("vicuna", takes_bos=True),
    "llama2": ChatTemplate("llama2", writes_bos=True),
    "mistral": ChatTemplate("mistral", writes_bos=True),
    "deepseek": ChatTemplate("deepseek", writes_bos=True),
    # ChatML, and the families that use it.
    "chatml": _CHATML,
    "qwen": _QWEN._replace(settings=_QWEN_SYSTEM),
    "qwen3": _QWEN._replace(settings=_THINKS),
    "qwen3_nothink": _QWEN,
    "smollm": _CHATML,
    "smollm2": _CHATML._replace(settings=_SMOLLM2_SYSTEM),
    "yi": _CHATML,
    "phi4": ChatTemplate("phi4", "<|im_end|>", ("<|im_start|>", "<|im_sep|>", "<|im_end|>")),
    # A header before every turn.
    "llama3": ChatTemplate("llama3", "<|eot_id|>", _LLAMA3_TOKENS, writes_bos=True),
    "gemma": _GEMMA,
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "phi": _PHI3,
    "phi3": _PHI3,
    "zephyr": ChatTemplate("zephyr"),
    # Own special tokens for turns, calls and results.
    "deepseek3": _DEEPSEEK3,
    "deepseekr1": _DEEPSEEK3._replace(settings=_THINKS),
}
