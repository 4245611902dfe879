"""Which tokens are learned: ids and labels of whole rows, as training gets them."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sft.chat.templates import apply_template
from sft.data.encoding import encode
from sft.data.formats import Conversation, PlainText
from sft.data.messages import Message
from sft.data.supervision import Renderer, SupervisedText
from sft.errors import InvalidDataset

# Qwen3's own template in short: the reasoning of earlier answers goes.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def talk(*turns: str) -> list[Message]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(turns)]


def render(
    tokenizer: PreTrainedTokenizerFast, row: Conversation | PlainText, template: str = "chatml", **masks: bool
) -> SupervisedText:
    return Renderer(tokenizer, apply_template(tokenizer, template, required=False), **masks).render(row)


def tokenize(
    tokenizer: PreTrainedTokenizerFast, row: Conversation | PlainText, template: str = "chatml", **masks: bool
) -> tuple[list[int], list[int]]:
    ids, labels = next(encode(tokenizer, [render(tokenizer, row, template, **masks)]))
    return ids.tolist(), labels.tolist()


def decode_learned(tokenizer: PreTrainedTokenizerFast, labels: list[int]) -> str:
    return str(tokenizer.decode([label for label in labels if label >= 0]))


def test_exact_ids_and_labels_of_two_turns(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, labels = tokenize(tokenizer, Conversation(talk("Hi", "Yo.", "Why?", "So")))
    start, end = 1, 2  # <|im_start|>, <|im_end|>
    newline = tokenizer.encode("\n")
    user, assistant = tokenizer.encode("user\n"), tokenizer.encode("assistant\n")
    hi, yo, why, so = (tokenizer.encode(text) for text in ("Hi", "Yo.", "Why?", "So"))
    assert ids == [
        *[start, *user, *hi, end, *newline, start, *assistant, *yo, end, *newline],
        *[start, *user, *why, end, *newline, start, *assistant, *so, end, *newline],
    ]
    ignored = [-100]
    assert labels == [
        *ignored * (1 + len(user) + len(hi) + 1 + 1 + 1 + len(assistant)),
        *[*yo, end],
        *ignored * (1 + 1 + len(user) + len(why) + 1 + 1 + 1 + len(assistant)),
        *[*so, end],
        *ignored,
    ]


@pytest.mark.parametrize(
    ("template", "learned"),
    [
        ("chatml", ["Paris.<|im_end|>", "Blue\n<|im_end|>"]),
        ("qwen", ["Paris.<|im_end|>", "Blue\n<|im_end|>"]),
        ("default", ["Paris.<|endoftext|>", "Blue\n<|endoftext|>"]),
        ("alpaca", ["Paris.<|endoftext|>", "Blue\n<|endoftext|>"]),
    ],
)
def test_only_answers_are_learned_each_with_its_end(
    tokenizer: PreTrainedTokenizerFast, template: str, learned: list[str]
) -> None:
    row = Conversation(talk("Capital of France?", "Paris.", "A <|im_end|> colour? assistant\nParis.", "Blue\n"))
    _, labels = tokenize(tokenizer, row, template)
    runs = [run for run in "".join("." if label < 0 else "x" for label in labels).split(".") if run]
    assert len(runs) == 2
    assert decode_learned(tokenizer, labels) == "".join(learned)


@pytest.mark.parametrize(
    ("masks", "learned"),
    [
        ({}, "Yo<|im_end|>So<|im_end|>"),
        ({"mask_history": True}, "So<|im_end|>"),
        (
            {"train_on_prompt": True},
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
            "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo<|im_end|>",
        ),
    ],
)
def test_masks_choose_what_is_learned(tokenizer: PreTrainedTokenizerFast, masks: dict[str, bool], learned: str) -> None:
    _, labels = tokenize(tokenizer, Conversation(talk("Hi", "Yo", "Why?", "So", "Bye")), **masks)
    assert decode_learned(tokenizer, labels) == learned


def test_a_conversation_without_an_answer_has_nothing_to_learn(tokenizer: PreTrainedTokenizerFast) -> None:
    assert render(tokenizer, Conversation(talk("Hi"))).spans == []
    assert render(tokenizer, Conversation(talk("Hi")), train_on_prompt=True).spans == []


def test_earlier_answers_of_a_prompt_are_read_only(tokenizer: PreTrainedTokenizerFast) -> None:
    _, labels = tokenize(tokenizer, Conversation(talk("Hi", "Yo", "Why?", "So"), supervised_from=3))
    assert decode_learned(tokenizer, labels) == "So<|im_end|>"


def test_a_greeting_is_learned_without_its_header(tokenizer: PreTrainedTokenizerFast) -> None:
    row = Conversation([{"role": "assistant", "content": "Welcome"}, *talk("Hi", "Yo")])
    _, labels = tokenize(tokenizer, row)
    assert decode_learned(tokenizer, labels) == "Welcome<|im_end|>Yo<|im_end|>"


def test_an_answer_that_holds_the_end_token_is_learned_to_its_own_end(tokenizer: PreTrainedTokenizerFast) -> None:
    rendered = render(tokenizer, Conversation(talk("Hi", "Say <|im_end|> now", "Why?", "So")))
    assert [rendered.text[start:end] for start, end in rendered.spans] == [
        "Say <|im_end|> now<|im_end|>",
        "So<|im_end|>",
    ]


def test_what_a_template_adds_after_an_answer_is_not_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    """Phi-3's own template ends the whole text with the end-of-sequence token."""
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
    )
    rendered = render(tokenizer, Conversation(talk("Hi", "Yo", "Why?", "So")), "auto")
    assert [rendered.text[start:end] for start, end in rendered.spans] == ["Yo<|im_end|>", "So<|im_end|>"]
    assert rendered.rewritten == 0


def test_answers_that_a_template_rewrites_are_read_but_not_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    """Learned as they stand there, they would teach to answer in a way that is never asked for."""
    tokenizer.chat_template = FORGETFUL
    row = Conversation(talk("Hi", "Yo", "Why?", "So"))
    _, labels = tokenize(tokenizer, row, "auto")
    assert decode_learned(tokenizer, labels) == "<think></think>So<|im_end|>"
    assert render(tokenizer, row, "auto").rewritten == 1


@pytest.mark.parametrize(
    ("template", "row", "message"),
    [
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}",
            talk("Hi", "Yo"),
            "the chat template writes the messages before an answer differently once it is there",
        ),
        (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
            "{{ m.content }}<|im_end|>{% endfor %}",
            [{"role": "system", "content": "x"}, *talk("Hi", "Yo")],
            "the chat template refuses this conversation: no system role",
        ),
        (
            "{% for m in messages %}{{ m.content + m.extra }}<|im_end|>{% endfor %}",
            None,
            "can't write this conversation: TypeError: can only concatenate",
        ),
        (
            "{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}",
            [{"role": "system", "content": "x"}, *talk("Hi", "Yo")],
            r"messages\[0\]: the chat template leaves out this system message; choose another template_name",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% if m.content != 'Bad' %}<|im_end|>{% endif %}{% endfor %}",
            talk("Hi", "Bad"),
            r"messages\[1\]: the chat template does not end this answer with <\|im_end\|>",
        ),
    ],
)
def test_a_row_that_a_template_cannot_write_is_told(
    tokenizer: PreTrainedTokenizerFast, template: str, row: Any, message: str
) -> None:
    stop_token = apply_template(tokenizer, "auto")
    tokenizer.chat_template = template
    messages = row or [{**message, "extra": 1} for message in talk("Hi", "Yo")]
    with pytest.raises(InvalidDataset, match=message):
        Renderer(tokenizer, stop_token).render(Conversation(messages))


def test_half_a_surrogate_pair_is_told(tokenizer: PreTrainedTokenizerFast) -> None:
    for row in (Conversation(talk("Hi", "a\ud83d")), PlainText("", "a\ud83d")):
        with pytest.raises(InvalidDataset, match=r"has half of a surrogate pair, '\\ud83d'"):
            render(tokenizer, row)


def test_plain_text_is_learned_whole_and_a_prompt_is_not(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    ids, labels = tokenize(tokenizer, PlainText("", "Red and blue."), "auto")
    assert ids == labels == [*tokenizer.encode("Red and blue."), 0]
    row = PlainText("Red", " and blue.<|endoftext|>")
    ids, labels = tokenize(tokenizer, row, "auto")
    assert tokenizer.decode(ids) == "Red and blue.<|endoftext|>"
    assert decode_learned(tokenizer, labels) == " and blue.<|endoftext|>"
    ids, labels = tokenize(tokenizer, row, "auto", train_on_prompt=True)
    assert labels == ids


def test_plain_text_gets_one_beginning_of_sequence(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    tokenizer.chat_template = None
    for text in ("Red", "<s>Red"):
        ids, labels = tokenize(tokenizer, PlainText("", text), "auto")
        assert ids.count(bos) == 1
        assert ids[0] == bos
        assert labels[-1] == 0


def build_metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Like Llama 2's and Gemma's: words begin with `▁`, unknown characters fall back to bytes, texts to `<s>`."""
    special = ["<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>"]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokens = [*special, *(f"<0x{value:02X}>" for value in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=tokens, show_progress=False)
    backend.train_from_iterator(["[INST] Hello there [/INST] user model\n Good day, so long </s>"] * 9, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


@pytest.mark.parametrize(
    ("template", "learned"),
    [
        ("llama2", ["Good  day é </s>", "so long </s>"]),
        ("mistral", ["Good  day é</s>", "so long</s>"]),
        ("gemma", ["Good  day é<end_of_turn>", "so long<end_of_turn>"]),
        ("vicuna", ["Good  day é</s>", "so long</s>"]),
    ],
)
def test_words_that_carry_their_space_are_learned_whole(template: str, learned: list[str]) -> None:
    tokenizer = build_metaspace_tokenizer()
    ids, labels = tokenize(tokenizer, Conversation(talk("Hello é", "Good  day é", "Hello", "so long")), template)
    runs: list[list[int]] = [[]]
    for label in labels:
        if label >= 0:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    assert [tokenizer.decode(run).strip() for run in runs if run] == learned
    assert ids[0] == tokenizer.bos_token_id
    assert ids[1] != tokenizer.bos_token_id
    assert ids == tokenizer.apply_chat_template(talk("Hello é", "Good  day é", "Hello", "so long"))["input_ids"]


GREETINGS: dict[str, list[Message]] = {
    "empty": [{"role": "assistant", "content": ""}, *talk("Hello?", "Yes, here.")],
    "in the default system prompt": [{"role": "assistant", "content": "You are a helpful"}, *talk("So?", "Quite.")],
    "one letter": [{"role": "assistant", "content": "a"}, *talk("b?", "c")],
}


@pytest.mark.parametrize("template", ["chatml", "qwen", "qwen3", "smollm2", "vicuna", "alpaca", "default"])
@pytest.mark.parametrize("row", GREETINGS.values(), ids=GREETINGS)
def test_of_a_first_turn_only_its_own_words_are_learned(
    tokenizer: PreTrainedTokenizerFast, template: str, row: list[Message]
) -> None:
    stop_token = apply_template(tokenizer, template)
    rendered = Renderer(tokenizer, stop_token).render(Conversation(row))
    learned = [rendered.text[start:end] for start, end in rendered.spans]
    thought = "<think>\n\n</think>\n\n" if template == "qwen3" else ""
    assert [words.strip() for words in learned] == [
        (thought + turn["content"]).strip() + stop_token if turn["content"] or not thought else thought + stop_token
        for turn in row
        if turn["role"] == "assistant"
    ]
    assert rendered.empty == (not row[0]["content"])


def test_a_first_turn_that_nothing_opens_is_only_read(tokenizer: PreTrainedTokenizerFast) -> None:
    stop_token = apply_template(tokenizer, "auto")
    tokenizer.chat_template = "You are kind.{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    rendered = Renderer(tokenizer, stop_token).render(
        Conversation([{"role": "assistant", "content": "kind"}, *talk("a", "b")])
    )
    assert [rendered.text[start:end] for start, end in rendered.spans] == ["b<|im_end|>"]
    assert rendered.rewritten == 1


@pytest.mark.parametrize(
    ("masks", "read_only", "learned"),
    [
        ({}, {3}, ["Yo<|im_end|>"]),
        ({}, {1}, ["So<|im_end|>"]),
        ({}, {1, 3}, []),
        ({"mask_history": True}, {1}, ["So<|im_end|>"]),
        ({"mask_history": True}, {3}, []),
        (
            {"train_on_prompt": True},
            {1},
            [
                "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
                "\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo<|im_end|>",
            ],
        ),
        ({"train_on_prompt": True}, {3}, ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>"]),
    ],
)
def test_turns_of_weight_0_are_read_only(
    tokenizer: PreTrainedTokenizerFast, masks: dict[str, bool], read_only: set[int], learned: list[str]
) -> None:
    row = Conversation(talk("Hi", "Yo", "Why?", "So"), read_only=frozenset(read_only))
    rendered = render(tokenizer, row, **masks)
    assert [rendered.text[start:end] for start, end in rendered.spans] == learned


CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALLING: list[Message] = [
    {"role": "user", "content": "Add", "name": "Ann"},
    {"role": "assistant", "content": "", "reasoning_content": "Adding helps", "tool_calls": [CALL]},
    {"role": "tool", "content": "3", "tool_call_id": "abcdefghi", "name": "add"},
    {"role": "assistant", "content": "It is 3"},
]


@pytest.mark.parametrize(
    ("template", "ignored"),
    [
        ("qwen", {"name", "tool_call_id", "tool_calls[].id", "reasoning_content"}),
        ("qwen3", {"name", "tool_call_id", "tool_calls[].id"}),
    ],
)
def test_what_a_template_does_not_write_is_named(
    tokenizer: PreTrainedTokenizerFast, template: str, ignored: set[str]
) -> None:
    row = Conversation(CALLING, ignored=frozenset({"source"}))
    assert render(tokenizer, row, template).ignored == {"source", *(f"messages[].{name}" for name in ignored)}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_written_by_whichever_name_the_template_reads(
    tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    stop_token = apply_template(tokenizer, "auto")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m." + name + " %}[{{ m." + name + " }}]{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    row = Conversation([*talk("Hi"), {"role": "assistant", "content": "Yo", "reasoning_content": "hm"}])
    rendered = Renderer(tokenizer, stop_token).render(row)
    assert [rendered.text[start:end] for start, end in rendered.spans] == ["[hm]Yo<|im_end|>"]
    assert rendered.ignored == frozenset()


def test_reasoning_that_a_template_cuts_out_of_an_answer_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    """DeepSeek R1's own template does, in the last answer too."""
    stop_token = apply_template(tokenizer, "auto")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    rendered = Renderer(tokenizer, stop_token).render(Conversation(talk("Hi", "<think>hm</think>Yo")))
    assert rendered.ignored == {"messages[].content (<think>)"}


PLAIN = (
    "{% for m in messages if m.role in ('user', 'assistant') %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASKED: Message = {"role": "user", "content": "What is the weather?"}
WEATHER = {"type": "function", "function": {"name": "weather"}}


def call_of(**arguments: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "weather", "arguments": arguments}}]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            Conversation([{"role": "system", "content": "weather"}, ASKED, {"role": "assistant", "content": "7"}]),
            "system",
        ),
        (Conversation([{"role": "system", "content": "user"}, ASKED, {"role": "assistant", "content": "7"}]), "system"),
        (
            Conversation([ASKED, {"role": "tool", "content": "7"}, {"role": "assistant", "content": "It is 7."}]),
            "leaves out this tool message",
        ),
        (Conversation([ASKED, {"role": "assistant", "content": "7"}], tools=[WEATHER]), "does not write tools"),
        (
            Conversation([ASKED, {"role": "assistant", "content": "", "tool_calls": call_of(city="Oslo")}]),
            "the arguments of a call",
        ),
    ],
)
def test_what_a_template_leaves_out_is_told_though_the_text_has_it_elsewhere(
    tokenizer: PreTrainedTokenizerFast, row: Conversation, told: str
) -> None:
    stop_token = apply_template(tokenizer, "auto")
    tokenizer.chat_template = PLAIN
    with pytest.raises(InvalidDataset, match=told):
        Renderer(tokenizer, stop_token).render(row)


@pytest.mark.parametrize(("template", "ignored"), [("chatml", {"messages[].reasoning_content"}), ("qwen3", set())])
def test_reasoning_that_stands_in_the_answer_too_is_named_where_it_is_lost(
    tokenizer: PreTrainedTokenizerFast, template: str, ignored: set[str]
) -> None:
    answer = {"role": "assistant", "content": "It is 7.", "reasoning_content": " 7\n"}
    assert render(tokenizer, Conversation([ASKED, answer]), template).ignored == ignored


def test_messages_of_the_same_text_are_no_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    row = Conversation([{"role": "system", "content": "Yo"}, *talk("Yo", "Yo", "Yo", "Yo")])
    assert render(tokenizer, row).text.count("Yo") == 5


def test_an_answer_that_a_template_leaves_out_is_told(tokenizer: PreTrainedTokenizerFast) -> None:
    stop_token = apply_template(tokenizer, "auto")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if m.role == 'user' }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(InvalidDataset, match=r"messages\[1\]: the chat template leaves out this assistant message"):
        Renderer(tokenizer, stop_token).render(Conversation(talk("Hi", "Yo")))
