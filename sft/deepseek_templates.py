"""DeepSeek V3 and R1: tokens of their own for turns, calls of functions and their results.

The form of deepseek-ai/DeepSeek-V3 on the Hugging Face Hub. That closes a list of calls only when it has several, and
passes over the functions themselves; here every list is closed, and the functions follow the system message in the
words of vLLM's template for these models (github.com/vllm-project/vllm, examples/tool_chat_template_deepseekv3.jinja).
"""

# ruff: noqa: RUF001  # DeepSeek's tokens are written so

from sft.chat_template import ChatTemplate
from sft.chatml_templates import THOUGHT

_OPENING = r"""
{{- bos_token }}
{%- for message in messages if message.role == 'system' %}
{{- ('' if loop.first else '\n\n') + message.content }}
{%- endfor %}
{%- if tools %}
{{- '\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n' }}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>' }}
{%- for tool in tools %}
{{- '\n' + (tool | tojson) }}
{%- endfor %}
{{- '\n</tools>\n\nFor function call returns, you should first print <｜tool▁calls▁begin｜>\n\n' }}
{{- 'For each function call, you should return object like:\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>' }}
{{- '<function_name>\n```json\n<function_arguments_in_json_format>\n```<｜tool▁call▁end｜>\n\n' }}
{{- 'At the end of function call returns, you should print <｜tool▁calls▁end｜>' + eos_token }}
{%- endif %}"""

_TURNS = r"""
{%- for message in messages if message.role != 'system' %}
{%- set content = message.content if message.content is string else '' %}
{%- set follows_result = not loop.first and loop.previtem.role == 'tool' %}
{%- if message.role == 'user' %}
{{- '<｜User｜>' + content }}
{%- elif message.role == 'assistant' %}
@THOUGHT@
{{- ('' if follows_result else '<｜Assistant｜>') + (thought or '') + content }}
{%- for call in message.tool_calls or [] %}
{%- set call = call.function or call %}
{%- set arguments = call.arguments if call.arguments is string else call.arguments | tojson %}
{{- '<｜tool▁calls▁begin｜>' if loop.first else '\n' }}
{{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call.name }}
{{- '\n```json\n' + arguments + '\n```<｜tool▁call▁end｜>' + ('<｜tool▁calls▁end｜>' if loop.last else '') }}
{%- endfor %}
{{- eos_token }}
{%- elif message.role == 'tool' %}
{{- '\n' if follows_result else '<｜tool▁outputs▁begin｜>' }}
{{- '<｜tool▁output▁begin｜>' + content + '<｜tool▁output▁end｜>' }}
{{- '<｜tool▁outputs▁end｜>' if loop.last or loop.nextitem.role != 'tool' else '' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and messages[-1].role != 'tool' %}
{{- '<｜Assistant｜>' }}
{%- endif %}"""

_TOKENS = ("<｜User｜>", "<｜Assistant｜>")


def build_deepseek(thinks: bool = False) -> ChatTemplate:
    """`thinks`: every answer begins with its `<think>` block, an empty one if it has no reasoning.

    R1's own template takes the reasoning out of earlier answers, and in its later versions begins the answer with
    `<think>` itself; LLaMA-Factory's `deepseekr1` keeps the blocks and has them learned, as this one does.
    """
    turns = _TURNS.replace("@THOUGHT@", THOUGHT if thinks else "")
    return ChatTemplate(_OPENING + turns, special_tokens=_TOKENS, writes_bos=True)


DEEPSEEK_TEMPLATES = {"deepseek3": build_deepseek(), "deepseekr1": build_deepseek(thinks=True)}
