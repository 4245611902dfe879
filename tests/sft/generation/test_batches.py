"""What is generated is what plain transformers and PEFT generate, alone and in a batch, for a base and its adapters."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft.generation.adapted_model import AdaptedModel
from sft.generation.batches import JOIN_TOKENS, run_batch
from sft.generation.sampling import Sampling
from sft.generation.sequences import Piece, Sequence
from sft.generation.text import TextReader
from tests.tiny_models import save_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")

TEXTS = ["hello", "What is the capital of France?", "user Name three colours. Red", "a"]
TOKENS = 24
GREEDY = Sampling(temperature=0)


def load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def save_adapter(model_dir: Path, folder: Path, seed: int) -> Path:
    """An adapter with random weights, so that it changes every answer."""
    torch.manual_seed(seed)
    base = load(model_dir)
    is_gpt2 = base.config.model_type == "gpt2"
    settings = LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=is_gpt2, task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(base, settings)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma3", "gpt2"])
def made(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, list[Path]]:
    """A base model of an architecture, and two adapters of it."""
    base = save_tiny_model(request.param, folder / request.param)
    return base, [save_adapter(base, folder / f"{request.param}-{seed}", seed) for seed in (1, 2)]


def make_sequence(tokenizer, text, max_tokens=TOKENS, sampling=GREEDY, index=0, ends=None, stops=(), **more):
    pieces: list[Piece] = []
    sequence = Sequence(
        tokenizer.encode(text), max_tokens, sampling, index, {tokenizer.eos_token_id} if ends is None else ends,
        TextReader(tokenizer, stops), pieces.append, **more,
    )  # fmt: skip
    return sequence, pieces


def generate_plainly(model, tokenizer, text, max_tokens=TOKENS) -> list[int]:
    inputs = tokenizer(text, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def test_answers_are_those_of_transformers_and_peft_token_for_token(made):
    base, adapters = made
    tokenizer = AutoTokenizer.from_pretrained(base)
    plain = {None: load(base), **{one: PeftModel.from_pretrained(load(base), one) for one in adapters}}
    wanted = {one: [generate_plainly(plain[one], tokenizer, text) for text in TEXTS] for one in plain}
    assert len({str(answers) for answers in wanted.values()}) == 3

    model = AdaptedModel(load(base))
    for adapter in (None, *adapters, None, adapters[0]):  # each after each, as they are swapped
        with model.using(adapter) as chosen:
            together = [make_sequence(tokenizer, text)[0] for text in TEXTS]
            run_batch(chosen, together, tokenizer.pad_token_id)
            assert [one.generated for one in together] == wanted[adapter]
            for text, answer in zip(TEXTS, wanted[adapter], strict=True):
                alone = make_sequence(tokenizer, text)[0]
                run_batch(chosen, [alone], tokenizer.pad_token_id)
                assert alone.generated == answer


def test_before_each_layer_the_caller_is_asked(made):
    base, adapters = made
    asked: list[bool] = []
    model = AdaptedModel(load(base), lambda: asked.append(True))
    sequence, _ = make_sequence(AutoTokenizer.from_pretrained(base), "hello", max_tokens=3, ends=set())
    with model.using(adapters[0]) as chosen:
        run_batch(chosen, [sequence], 0)
    assert len(asked) == 3 * model.model.config.num_hidden_layers


@pytest.fixture(scope="module")
def tiny(folder: Path):
    base = save_tiny_model("llama", folder / "tiny")
    return load(base).eval(), AutoTokenizer.from_pretrained(base)


def test_a_sequence_that_joins_later_changes_nothing(tiny):
    model, tokenizer = tiny
    long = JOIN_TOKENS + TOKENS
    first, second = (make_sequence(tokenizer, text, long, ends=())[0] for text in TEXTS[:2])
    run_batch(model, [first], tokenizer.pad_token_id, has_news=lambda: True)
    assert len(first.generated) == JOIN_TOKENS
    run_batch(model, [first, second], tokenizer.pad_token_id)

    for sequence, text in ((first, TEXTS[0]), (second, TEXTS[1])):
        alone = make_sequence(tokenizer, text, long, ends=())[0]
        run_batch(model, [alone], tokenizer.pad_token_id)
        assert sequence.generated == alone.generated
        assert len(alone.generated) == long


def test_pieces_make_up_the_text_and_end_with_a_reason(tiny):
    model, tokenizer = tiny
    sequence, pieces = make_sequence(tokenizer, TEXTS[0], ends=())
    run_batch(model, [sequence], tokenizer.pad_token_id)
    text = "".join(piece.text for piece in pieces)
    assert text == tokenizer.decode(sequence.generated, skip_special_tokens=True)
    assert [piece.finish for piece in pieces if piece.finish] == ["length"]
    assert len(pieces) > 1

    stop = text[4:6]
    stopped, pieces = make_sequence(tokenizer, TEXTS[0], ends=(), stops=(stop,))
    run_batch(model, [stopped], tokenizer.pad_token_id)
    assert "".join(piece.text for piece in pieces) == text[: text.index(stop)]
    assert pieces[-1].finish == "stop"
    assert len(stopped.generated) < len(sequence.generated)

    ended, pieces = make_sequence(tokenizer, TEXTS[0], ends={sequence.generated[3]})
    run_batch(model, [ended], tokenizer.pad_token_id)
    at = sequence.generated.index(sequence.generated[3])
    assert (ended.generated, pieces[-1].finish) == (sequence.generated[: at + 1], "stop")


def test_a_seed_repeats_draws_and_each_answer_has_its_own(tiny):
    model, tokenizer = tiny

    def draw(seed: int | None, index: int = 0, **more) -> list[int]:
        sampling = Sampling(temperature=2.0, seed=seed, **more)
        sequence = make_sequence(tokenizer, TEXTS[0], sampling=sampling, index=index, ends=())[0]
        other = make_sequence(tokenizer, TEXTS[1], sampling=Sampling(temperature=1.0), ends=())[0]
        run_batch(model, [sequence, other], tokenizer.pad_token_id)
        return sequence.generated

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(7) != draw(7, index=1)
    assert draw(None) != draw(None)
    greedy = make_sequence(tokenizer, TEXTS[0], ends=())[0]
    run_batch(model, [greedy], tokenizer.pad_token_id)
    assert draw(7, top_p=1e-9) == greedy.generated


def test_log_probabilities_are_those_of_the_model(tiny):
    model, tokenizer = tiny
    sampling = Sampling(temperature=0, logprobs=3)
    sequence, pieces = make_sequence(tokenizer, TEXTS[1], sampling=sampling, ends=())
    run_batch(model, [sequence], tokenizer.pad_token_id)
    with torch.no_grad():
        logits = model(torch.tensor([sequence.ids])).logits[0, len(sequence.prompt) - 1 : -1].float()
    wanted = torch.log_softmax(logits, -1)
    reported = [one for piece in pieces for one in piece.tokens]
    assert [one["token"] for one in reported] == sequence.generated
    for one, row in zip(reported, wanted, strict=True):
        assert one["logprob"] == pytest.approx(float(row[one["token"]]), abs=1e-4)
        assert [value for _, value in one["top"]] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


def test_a_cancelled_sequence_ends_at_once_and_the_others_go_on(tiny):
    model, tokenizer = tiny
    cancelled, pieces = make_sequence(tokenizer, TEXTS[0], ends=(), is_cancelled=lambda: len(cancelled.generated) == 3)
    other = make_sequence(tokenizer, TEXTS[1], ends=())[0]
    run_batch(model, [cancelled, other], tokenizer.pad_token_id)
    assert (len(cancelled.generated), len(other.generated)) == (3, TOKENS)
    assert all(piece.finish is None for piece in pieces)
