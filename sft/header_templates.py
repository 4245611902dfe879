"""Families that put a header before every turn: Llama 3, Gemma, Phi-3, Zephyr.

Each is the form its models publish as `chat_template` on the Hugging Face Hub, but for what its comment says.
"""

from sft.chat_template import ChatTemplate

# Llama 3; with tools, Llama 3.1, whose functions stand in the first question and whose results are JSON texts.
_LLAMA3 = r"""
{{- bos_token }}
{%- set system = messages[0].content | trim if messages[0].role == 'system' else '' %}
{%- if tools %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n' }}
{{- 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' + system + '<|eot_id|>' }}
{%- elif messages[0].role == 'system' %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' + system + '<|eot_id|>' }}
{%- endif %}
{%- set seen = namespace(question=false) %}
{%- for message in (messages[1:] if messages[0].role == 'system' else messages) %}
{%- set role = 'ipython' if message.role == 'tool' else message.role %}
{{- '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}
{%- if message.role == 'user' and tools and not seen.question %}
{%- set seen.question = true %}
{{- 'Given the following functions, please respond with a JSON for a function call ' }}
{{- 'with its proper arguments that best answers the given prompt.\n\n' }}
{{- 'Respond in the format {"name": function name, "parameters": ' }}
{{- 'dictionary of argument name and its value}.Do not use variables.\n\n' }}
{%- for tool in tools %}
{{- (tool | tojson(indent=4)) + '\n\n' }}
{%- endfor %}
{%- endif %}
{%- if message.tool_calls %}
{%- if message.tool_calls | length != 1 %}
{{- raise_exception('This model only supports single tool-calls at once!') }}
{%- endif %}
{%- set call = message.tool_calls[0].function %}
{{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}' }}
{%- elif message.role == 'tool' %}
{{- message.content | tojson }}
{%- else %}
{{- message.content | trim }}
{%- endif %}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""

# Gemma has no system turn: as in Gemma 3's own template, its text stands before the first question.
_GEMMA = r"""
{{- bos_token }}
{%- set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}
{%- for message in (messages[1:] if messages[0].role == 'system' else messages) %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
{{- (system if loop.first else '') + (message.content | trim) + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<start_of_turn>model\n' }}
{%- endif %}"""

# Phi-3's own template also ends a whole text with <|endoftext|>, after the <|end|> that a chat stops at.
_PHI3 = r"""
{%- for message in messages %}
{%- if message.role in ('system', 'user', 'assistant') %}
{{- '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\n' }}
{%- endif %}"""

_ZEPHYR = r"""
{%- for message in messages %}
{%- if message.role in ('system', 'user', 'assistant') %}
{{- '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\n' }}
{%- endif %}"""

_LLAMA3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_GEMMA_TEMPLATE = ChatTemplate(_GEMMA, "<end_of_turn>", ("<start_of_turn>", "<end_of_turn>"), writes_bos=True)
_PHI3_TEMPLATE = ChatTemplate(_PHI3, "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"))

HEADER_TEMPLATES = {
    "llama3": ChatTemplate(_LLAMA3, "<|eot_id|>", _LLAMA3_TOKENS, writes_bos=True),
    "gemma": _GEMMA_TEMPLATE,
    "gemma2": _GEMMA_TEMPLATE,
    "gemma3": _GEMMA_TEMPLATE,
    "phi": _PHI3_TEMPLATE,
    "phi3": _PHI3_TEMPLATE,
    "zephyr": ChatTemplate(_ZEPHYR),
}
