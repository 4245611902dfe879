"""Families whose turns are marked by plain text, or end with the end-of-sequence token: any tokenizer can write them.

The source of each is named at it; where LLaMA-Factory's template of that name differs from what the models were
trained on, the models' own form is taken.
"""

from sft.chat_template import ChatTemplate

# LLaMA-Factory's `default`.
_DEFAULT = r"""
{%- set names = {'system': 'System: ', 'user': 'Human: ', 'assistant': 'Assistant:'} %}
{%- for message in messages %}
{%- if message.role in names %}
{{- names[message.role] + message.content + eos_token + '\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- 'Assistant:' }}
{%- endif %}"""

# Stanford Alpaca's prompt (github.com/tatsu-lab/stanford_alpaca, train.py), as a chat.
_ALPACA = r"""
{%- if messages[0].role != 'system' %}
{{- 'Below is an instruction that describes a task. ' }}
{{- 'Write a response that appropriately completes the request.\n\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'system' %}
{{- message.content + '\n\n' }}
{%- elif message.role == 'user' %}
{{- '### Instruction:\n' + message.content + '\n\n' }}
{%- elif message.role == 'assistant' %}
{{- '### Response:\n' + message.content + eos_token + '\n\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '### Response:\n' }}
{%- endif %}"""

# Vicuna 1.1 (github.com/lm-sys/FastChat, conversation.py, `vicuna_v1.1` and its separator style ADD_COLON_TWO).
_VICUNA = r"""
{%- if messages[0].role == 'system' %}
{{- messages[0].content + ' ' }}
{%- else %}
{{- 'A chat between a curious user and an artificial intelligence assistant. ' }}
{{- "The assistant gives helpful, detailed, and polite answers to the user's questions. " }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- 'USER: ' + message.content + ' ' }}
{%- elif message.role == 'assistant' %}
{{- 'ASSISTANT: ' + message.content + eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- 'ASSISTANT:' }}
{%- endif %}"""

# meta-llama/Llama-2-7b-chat-hf.
_LLAMA2 = r"""
{%- set system = '' %}
{%- if messages[0].role == 'system' %}
{%- set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}
{%- endif %}
{%- for message in (messages[1:] if system else messages) %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- if message.role == 'user' %}
{%- set content = (system if loop.first else '') + message.content %}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- elif message.role == 'assistant' %}
{{- ' ' + message.content.strip() + ' ' + eos_token }}
{%- endif %}
{%- endfor %}"""

# mistralai/Mistral-7B-Instruct-v0.3. Its own template moves the system text and the tools on to each newest question,
# so that earlier answers would be learned after a prompt they never follow; here both stay with the first question.
_MISTRAL = r"""
{{- bos_token }}
{%- set state = namespace(turn=0) %}
{%- set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}
{%- for message in (messages[1:] if messages[0].role == 'system' else messages) %}
{%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
{%- if (message.role == 'user') != (state.turn % 2 == 0) %}
{{- raise_exception('After the optional system message, roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- set state.turn = state.turn + 1 %}
{%- endif %}
{%- if message.role == 'user' %}
{%- if tools and state.turn == 1 %}
{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
{%- endif %}
{{- '[INST] ' + (system if state.turn == 1 else '') + message.content + '[/INST]' }}
{%- elif message.tool_calls %}
{{- '[TOOL_CALLS] [' }}
{%- for call in message.tool_calls %}
{%- set written = call.function | tojson %}
{%- if call.id %}
{%- if call.id | length != 9 %}
{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
{%- endif %}
{%- set written = written[:-1] + ', "id": "' + call.id + '"}' %}
{%- endif %}
{{- written + ('' if loop.last else ', ') }}
{%- endfor %}
{{- ']' + eos_token }}
{%- elif message.role == 'assistant' %}
{{- ' ' + (message.content | trim) + eos_token }}
{%- elif message.role == 'tool' %}
{{- '[TOOL_RESULTS] {"content": ' + message.content }}
{{- (', "call_id": "' + message.tool_call_id + '"' if message.tool_call_id else '') + '}[/TOOL_RESULTS]' }}
{%- endif %}
{%- endfor %}"""

# deepseek-ai/deepseek-llm-7b-chat, and DeepSeek-V2-Chat.
_DEEPSEEK = r"""
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}
{{- message.content + '\n\n' }}
{%- elif message.role == 'user' %}
{{- 'User: ' + message.content + '\n\n' }}
{%- elif message.role == 'assistant' %}
{{- 'Assistant: ' + message.content + eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- 'Assistant:' }}
{%- endif %}"""

# LLaMA-Factory's `empty`, with an end to each answer: without one the model could not learn to stop.
_EMPTY = r"""
{%- for message in messages %}
{%- if message.role in ('system', 'user') %}
{{- message.content }}
{%- elif message.role == 'assistant' %}
{{- message.content + eos_token }}
{%- endif %}
{%- endfor %}"""

TEXT_TEMPLATES = {
    "default": ChatTemplate(_DEFAULT, takes_bos=True),
    "empty": ChatTemplate(_EMPTY, takes_bos=True),
    "alpaca": ChatTemplate(_ALPACA, takes_bos=True),
    "vicuna": ChatTemplate(_VICUNA, takes_bos=True),
    "llama2": ChatTemplate(_LLAMA2, writes_bos=True),
    "mistral": ChatTemplate(_MISTRAL, writes_bos=True),
    "deepseek": ChatTemplate(_DEEPSEEK, writes_bos=True),
}
