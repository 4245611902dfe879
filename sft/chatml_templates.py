"""ChatML and the families that write it: Qwen, SmolLM, Yi, Phi-4.

Each is the form its models publish as `chat_template` on the Hugging Face Hub, but for what its docstring or comment
says. Qwen's tool turns are those of Hermes: calls in `<tool_call>`, results in a user turn as `<tool_response>`.
"""

from sft.chat_template import ChatTemplate

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")

_PROMPT = r"""
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}"""

_PLAIN = r"""
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}"""

# @DEFAULT@ is written where the user gives no system message.
_QWEN_SYSTEM = r"""
{%- set system = messages[0].content if messages[0].role == 'system' else '@DEFAULT@' %}
{%- if tools %}
{{- '<|im_start|>system\n' + system + ('\n\n' if system else '') }}
{{- '# Tools\n\nYou may call one or more functions to assist with the user query.\n\n' }}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>' }}
{%- for tool in tools %}
{{- '\n' + (tool | tojson) }}
{%- endfor %}
{{- '\n</tools>\n\nFor each function call, return a json object with function name and arguments ' }}
{{- 'within <tool_call></tool_call> XML tags:\n<tool_call>\n' }}
{{- '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n' }}
{%- elif system or messages[0].role == 'system' %}
{{- '<|im_start|>system\n' + system + '<|im_end|>\n' }}
{%- endif %}"""

_QWEN_TURNS = r"""
{%- for message in messages %}
{%- set content = message.content if message.content is string else '' %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}
@THOUGHT@
{{- '<|im_start|>assistant\n' + (thought or '') + content }}
{%- for call in message.tool_calls or [] %}
{%- set call = call.function or call %}
{%- set arguments = call.arguments if call.arguments is string else call.arguments | tojson %}
{{- '\n' if content or not loop.first else '' }}
{{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' + arguments + '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' else '' }}
{{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
{{- '<|im_end|>\n' if loop.last or loop.nextitem.role != 'tool' else '' }}
{%- endif %}
{%- endfor %}"""

# An assistant turn's reasoning as its block in `thought`, and `content` without it.
THOUGHT = r"""
{%- set thought = message.reasoning_content if message.reasoning_content is string else '' %}
{%- if not thought and '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1] %}
{%- set content = content.split('</think>')[-1] %}
{%- endif %}
{%- set thought = '<think>\n' + thought.strip('\n') + '\n</think>\n\n' %}
{%- set content = content.lstrip('\n') %}"""

_NO_THINKING = r"""
{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}
{{- '<think>\n\n</think>\n\n' }}
{%- endif %}"""

_PHI4 = r"""
{%- for message in messages %}
{%- if message.role in ('system', 'user', 'assistant') %}
{{- '<|im_start|>' + message.role + '<|im_sep|>' + message.content + '<|im_end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant<|im_sep|>' }}
{%- endif %}"""


def build_chatml(default_system: str = "") -> ChatTemplate:
    """ChatML (OpenAI's `chatml.md`): a `tool` turn is written like any other, calls have no form."""
    opening = (
        "{%- if messages[0].role != 'system' %}"
        "{{- '<|im_start|>system\\n" + default_system + "<|im_end|>\\n' }}"
        "{%- endif %}"
    )
    return ChatTemplate((opening if default_system else "") + _PLAIN + _PROMPT, "<|im_end|>", CHATML_TOKENS)


def build_qwen(default_system: str = "", thinks: bool = False) -> ChatTemplate:
    """Qwen2.5 with its default system message, Qwen3 without one.

    `thinks`: every answer begins with its `<think>` block, an empty one if it has no reasoning. Qwen3's own template
    takes the reasoning out of earlier answers, so that what is learned there is never what the model would be asked
    to write; LLaMA-Factory's `qwen3` and TRL's `qwen3_training.jinja` keep the blocks as this one does.
    """
    system = _QWEN_SYSTEM.replace("@DEFAULT@", default_system)
    turns = _QWEN_TURNS.replace("@THOUGHT@", THOUGHT if thinks else "")
    return ChatTemplate(system + turns + _PROMPT + (_NO_THINKING if thinks else ""), "<|im_end|>", CHATML_TOKENS)


CHATML_TEMPLATES = {
    "chatml": build_chatml(),
    "qwen": build_qwen("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "qwen3": build_qwen(thinks=True),
    "qwen3_nothink": build_qwen(),
    "smollm": build_chatml(),
    "smollm2": build_chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "yi": build_chatml(),
    "phi4": ChatTemplate(_PHI4, "<|im_end|>", ("<|im_start|>", "<|im_sep|>", "<|im_end|>")),
}
