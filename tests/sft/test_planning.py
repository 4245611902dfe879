"""A plan says of a job what the job then does."""

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from trl import pack_dataset

from sft.data.tokenization import prepare
from sft.errors import InvalidConfig
from sft.models.model_class import build_empty
from sft.planning import probe as probe_module
from sft.planning.duration import PastRun, plan_time
from sft.planning.machine import Device
from sft.planning.plan import make_plan
from sft.planning.probe import Probe, choose_rows, run_probe
from sft.planning.shape import measure_shape
from sft.planning.steps import pack_lengths, plan_batches
from sft.planning.tokens import read_lengths, read_tokens
from sft.training.session import TrainingSession
from tests.tiny_models import build_tokenizer, save_tiny_model

FREE = 10**12
DEEP_LAYERS = 6


class Begun(Exception):
    """Training has begun, with the values of its `begin` event."""


@pytest.fixture
def prepared(make_config, model_path, tmp_path):
    """Makes the prepared rows of a configuration."""

    def make(file, **fields):
        config = make_config(**fields)
        return config, prepare(config, model_path, file, tmp_path / "cache")

    return make


@pytest.fixture
def plan_of(prepared, model_path):
    """Makes the plan of a configuration."""

    def make(file, past_runs=(), free=FREE, **fields):
        config, rows = prepared(file, **fields)
        return make_plan(config, rows, model_path, list(past_runs), free)

    return make


def codes(plan):
    """The warnings' codes."""
    return [warning["code"] for warning in plan["warnings"]]


def test_rows_tokens_and_histogram_are_those_of_the_prepared_rows(plan_of, prepared, alpaca_file):
    plan = plan_of(alpaca_file)
    _, rows = prepared(alpaca_file)
    lengths = sorted(rows.load_train()["length"])

    assert {name: plan["rows"]["train"][name] for name in rows.stats["train"]} == rows.stats["train"]
    assert plan["rows"]["eval"]["used"] == rows.stats["eval"]["used"]
    assert (plan["tokens"]["min"], plan["tokens"]["max"]) == (lengths[0], lengths[-1])
    bins = plan["tokens"]["histogram"]
    assert [bin["from"] for bin in bins] == [0, *(bin["to"] for bin in bins[:-1])]
    assert [bin["rows"] for bin in bins] == [
        sum(bin["from"] <= length < bin["to"] for length in lengths) for bin in bins
    ]
    counts = rows.stats["train"]
    assert plan["tokens"]["supervised_share"] == round(counts["supervised_tokens"] / counts["tokens"], 4)


def test_rows_that_are_left_out_are_named_with_the_reason(plan_of, write_rows):
    rows = [{"instruction": "Name a colour.", "output": "Red."} for _ in range(3)]
    rows.insert(1, {"instruction": "Name a colour.", "output": None})
    rows.append({"instruction": "Count. " * 40, "output": "One."})
    plan = plan_of(write_rows(rows), validation_split=0.0, max_seq_length=64)
    train = plan["rows"]["train"]

    assert (train["rows"], train["used"], train["invalid"], train["dropped"]) == (5, 3, 1, 1)
    assert train["notes"]["invalid"] == [{"row": 2, "reason": "output must be text, got None"}]
    assert train["notes"]["dropped"] == train["notes"]["truncated"] == [5]
    assert {"rows_invalid", "rows_dropped", "rows_truncated"} <= set(codes(plan))
    duplicates = next(warning for warning in plan["warnings"] if warning["code"] == "duplicates")
    assert duplicates["rows"] == [3, 4]


@pytest.mark.parametrize(
    "fields",
    [
        {"batch_size": 2, "num_epochs": 1.0},
        {"batch_size": 4, "gradient_accumulation_steps": 2, "num_epochs": 2.5},
        {"batch_size": 1, "gradient_accumulation_steps": 5, "num_epochs": 0.3},
        {"max_steps": 3},
        {"packing": True, "num_epochs": 2.0},
        {"max_batch_tokens": 150, "num_epochs": 2.0},
    ],
    ids=str,
)
def test_steps_and_weights_are_those_of_the_session(plan_of, prepared, model_path, alpaca_file, tmp_path, fields):
    plan = plan_of(alpaca_file, **fields)
    config, rows = prepared(alpaca_file, **fields)

    def stop_at_once(name, values):
        assert name == "begin"
        raise Begun(values)

    with pytest.raises(Begun) as stopped:
        TrainingSession(config, rows, model_path, tmp_path / "out", stop_at_once).train()
    begun = stopped.value.args[0]

    assert plan["steps"] == begun["total_steps"]
    assert plan["model"]["trainable_parameters"] == begun["trainable_parameters"]
    assert plan["model"]["gradient_checkpointing"] == begun["gradient_checkpointing"]
    assert plan["device"]["dtype"] == begun["dtype"]


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_r": 3},
        {"lora_target_modules": ["q_proj", "down_proj"]},
        {"use_dora": True},
        {"use_lora": False},
    ],
    ids=str,
)
def test_trained_weights_are_counted_as_peft_makes_them(
    prepared, make_config, model_path, alpaca_file, tmp_path, fields
):
    config, rows = prepared(alpaca_file, **fields)
    model = TrainingSession(config, rows, model_path, tmp_path / "out").trainer.model
    shape = measure_shape(build_empty(model_path), config, model_path)

    assert shape.trainable == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    if config.use_lora:
        assert (
            shape.parameters == sum(weight.numel() for weight in model.base_model.model.parameters()) - shape.trainable
        )


def test_a_layer_to_adapt_that_is_not_there_is_refused_as_the_job_would(plan_of, alpaca_file):
    with pytest.raises(InvalidConfig, match="lora_target_modules has no layer 'attention'"):
        plan_of(alpaca_file, lora_target_modules=["attention"])


def test_packed_sequences_are_as_many_as_trl_makes(prepared, alpaca_file):
    _, rows = prepared(alpaca_file)
    dataset = rows.load_train()
    lengths = np.array(dataset["length"])
    packed = pack_dataset(dataset.select_columns(["input_ids"]), 128, strategy="bfd")

    packs = pack_lengths(lengths, 128)
    assert len(packs) == len(packed) < len(lengths)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert all(lengths[pack].sum() <= 128 for pack in packs)


def test_padding_saved_is_what_padded_batches_would_hold_more(plan_of, prepared, alpaca_file):
    _, rows = prepared(alpaca_file)
    lengths = rows.load_train()["length"]
    alone = plan_of(alpaca_file, batch_size=1)["batches"]
    whole = plan_of(alpaca_file, batch_size=len(lengths))["batches"]

    assert (alone["padded_tokens_per_epoch"], alone["padding_saved"]) == (sum(lengths), 0)
    assert whole["padded_tokens_per_epoch"] == max(lengths) * len(lengths)
    assert whole["padding_saved"] == round(1 - sum(lengths) / (max(lengths) * len(lengths)), 4)


def test_samples_show_what_is_learned(plan_of, alpaca_file):
    samples = plan_of(alpaca_file)["samples"]

    assert len(samples) == len({sample["row"] for sample in samples}) == 3
    assert [sample["tokens"] for sample in samples] == sorted(sample["tokens"] for sample in samples)
    for sample in samples:
        count = sample["row"] - 1
        learned = "".join(part["text"] for part in sample["parts"] if part["supervised"])
        assert learned == " ".join(map(str, range(count + 1))) + "<|im_end|>"
        prompt = f"<|im_start|>user\nCount to {count}.<|im_end|>\n<|im_start|>assistant\n"
        assert "".join(part["text"] for part in sample["parts"]) == prompt + learned + "\n"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"learning_rate": 1e-5}, "learning_rate_low"),
        ({"learning_rate": 1e-2}, "learning_rate_high"),
        ({"learning_rate": 1e-3, "use_lora": False}, "learning_rate_high"),
        ({"learning_rate": 1e-7, "use_lora": False}, "learning_rate_low"),
        ({"validation_split": 0.0}, "no_held_out_rows"),
        ({"max_seq_length": 24}, "rows_truncated"),
        ({"max_seq_length": 24, "excess_length_strategy": "drop"}, "rows_too_long"),
        ({"warmup_ratio": 0.6, "num_epochs": 4.0}, "long_warmup"),
        ({"eval_steps": 100}, "no_evaluation"),
        ({"gradient_accumulation_steps": 8}, "few_steps"),
        ({"batch_size": 1000}, "batch_beyond_rows"),
        ({"gradient_accumulation_steps": 8}, "batch_beyond_rows"),
        ({"max_batch_tokens": 30}, "rows_beyond_batch"),
        ({}, "few_rows"),
        ({"packing": True, "max_seq_length": 1024}, "beyond_context"),
    ],
    ids=str,
)
def test_warnings(plan_of, alpaca_file, fields, code):
    usual = {"learning_rate": 2e-4, "num_epochs": 4.0}
    told = codes(plan_of(alpaca_file, **{**usual, **fields}))
    calm = codes(plan_of(alpaca_file, **usual)) if fields else []

    assert code in told
    assert code not in calm


def test_near_empty_answers_and_an_eval_file_that_repeats_the_data(make_config, model_path, write_rows, tmp_path):
    rows = [{"instruction": f"Say {n}.", "output": "a" if n % 2 else "Red, green and blue."} for n in range(8)]
    held_out = [
        rows[2],
        {"instruction": "Say 3.", "output": "Hello there."},
        {"instruction": "Hi.", "output": "Hello."},
    ]
    config = make_config()
    files = write_rows(rows), write_rows(held_out, "eval.json")
    prepared = prepare(config, model_path, files[0], tmp_path / "cache", files[1])
    warnings = {warning["code"]: warning for warning in make_plan(config, prepared, model_path, [], FREE)["warnings"]}

    assert warnings["short_answers"]["rows"] == [2, 4, 6, 8]
    assert warnings["eval_overlap"]["rows"] == [1]
    assert warnings["eval_prompt_overlap"]["rows"] == [2]


def test_disk_is_what_the_job_then_writes(plan_of, prepared, model_path, alpaca_file, tmp_path):
    fields = {"save_steps": 2, "save_total_limit": 2, "save_merged_model": True, "num_epochs": 2.0, "lora_r": 16}
    disk = plan_of(alpaca_file, **fields)["disk"]
    config, rows = prepared(alpaca_file, **fields)
    session = TrainingSession(config, rows, model_path, tmp_path / "out")
    session.train()
    session.save(tmp_path / "out" / "adapter")

    def size(folder):
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    checkpoints = sorted((tmp_path / "out" / "checkpoints").glob("checkpoint-*"))
    assert len(checkpoints) == disk["checkpoints_kept"] == 2
    assert disk["checkpoint_bytes"] == pytest.approx(size(checkpoints[0]), rel=0.6)
    assert disk["needed_bytes"] >= size(tmp_path / "out")
    assert disk["fits"] is True


def test_too_little_disk_or_memory_is_a_warning(plan_of, alpaca_file, monkeypatch):
    real = psutil.virtual_memory()
    monkeypatch.setattr("psutil.virtual_memory", lambda: real._replace(available=5 * 10**8))
    plan = plan_of(alpaca_file, free=1000, gradient_checkpointing=False)

    assert (plan["disk"]["fits"], plan["memory"]["fits"]) == (False, False)
    assert {"disk", "memory"} <= set(codes(plan))
    assert plan["memory"]["largest_batch_size"] == 0


def test_the_largest_batch_is_the_one_whose_longest_rows_still_fit(plan_of, prepared, alpaca_file):
    plan = plan_of(alpaca_file)
    _, rows = prepared(alpaca_file)
    lengths = read_tokens(rows.load_train()).lengths
    largest, budget = plan["memory"]["largest_batch_size"], plan["memory"]["largest_batch_tokens"]

    assert largest == len(lengths)  # a tiny model
    assert int(np.sort(lengths)[-largest:].sum()) <= budget


def test_past_runs_of_the_same_work_tell_the_time(plan_of, alpaca_file):
    first = plan_of(alpaca_file)
    run = {
        "tokens_per_second": 50.0,
        "tokens_per_step": first["batches"]["mean_tokens"] * 1.2,
        "trainable_parameters": first["model"]["trainable_parameters"],
        "dtype": "float32",
        "device": first["device"]["kind"],
        "gradient_checkpointing": False,
        "startup_seconds": 7.0,
        "finish_seconds": None,
    }
    other = PastRun(**run | {"trainable_parameters": 1, "tokens_per_second": 9000.0})
    longer = PastRun(**run | {"tokens_per_step": first["batches"]["mean_tokens"] * 2, "tokens_per_second": 9000.0})
    time = plan_of(alpaca_file, past_runs=[other, PastRun(**run), longer])["time"]

    assert (first["time"]["basis"], time["basis"], time["past_runs"]) == ("matrix_product", "past_runs", 1)
    assert time["train_seconds"] == pytest.approx(first["batches"]["tokens_per_epoch"] / 50, abs=0.06)
    assert time["tokens_per_second"] == 50
    assert time["startup_seconds"] == 7


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory):
    """A tiny Llama of six layers: the probe takes three of them."""
    folder = tmp_path_factory.mktemp("deep")
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=DEEP_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_the_probe_measures_layers_and_head_of_the_real_trainer(make_config, deep_model, alpaca_file, tmp_path):
    config = make_config(base_model="deep", batch_size=4, validation_split=0.0)
    rows = prepare(config, deep_model, alpaca_file, tmp_path / "cache")
    plan = make_plan(config, rows, deep_model, [], FREE)
    probe = run_probe(config, rows, deep_model, "float32", [0, 1, 2, 3])

    assert plan["time"]["basis"] == "probe"
    assert plan["model"]["layout"] == "documents"
    assert plan["time"]["train_seconds"] >= 0
    assert probe.tokens == sum(rows.load_train()["length"][:4])
    assert probe.predict_layers(12) > probe.predict_layers(6) or probe.layer_seconds == 0


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_large_head_is_timed_by_a_part_of_its_rows(make_config, alpaca_file, tmp_path, monkeypatch, kind):
    """With a clock of 1 second a layer and 1 microsecond a logit; Gemma 2 scores every position on a CPU."""
    vocabulary, path = 20_000, save_tiny_model(kind, tmp_path / kind)
    config = AutoConfig.from_pretrained(path, num_hidden_layers=DEEP_LAYERS, vocab_size=vocabulary)
    if kind == "gemma2":
        config.layer_types = ["sliding_attention", "full_attention"] * (DEEP_LAYERS // 2)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    rows = prepare(make_config(), path, alpaca_file, tmp_path / "cache")
    passes = []

    def time(trainer, batch):
        head = trainer.model.get_base_model().get_output_embeddings()
        run_backward(trainer, batch)
        learned = batch["labels"].numel() if kind == "gemma2" else int((batch["labels"] != -100).sum())
        passes.append((trainer.model.config.num_hidden_layers, learned, head.weight.shape[0]))

    def clock(run):
        run()
        layers, positions, head_rows = passes[-1]
        return layers + positions * head_rows * 1e-6

    run_backward = probe_module._run_backward
    monkeypatch.setattr(probe_module, "_run_backward", time)
    monkeypatch.setattr(probe_module, "_clock", clock)
    monkeypatch.setattr(probe_module, "ENOUGH_SECONDS", 1e-9)
    probe = run_probe(make_config(), rows, path, "float32", [0, 1])

    assert [(layers, head_rows) for layers, _, head_rows in passes] == [(3, 4096), (1, 4096), (1, 16384)]
    assert probe.layer_seconds == pytest.approx(1)
    if kind == "gemma2":
        assert probe.layout == "trl"
        assert (probe.few_seconds, probe.head_seconds) == (pytest.approx(1 + probe.tokens * vocabulary * 1e-6), 0)
    else:
        assert probe.few_seconds == pytest.approx(1, abs=0.02)  # the logits of 4 positions
        assert probe.head_seconds == pytest.approx(vocabulary * 1e-6)


@pytest.mark.parametrize(
    ("kind", "checkpointing", "seconds"),
    [
        ("cpu", False, (10 + 0.5) * 1.05),
        ("cuda", False, 10.0),
        ("cuda", True, 10.0 * (0.8 * 1.45 + 0.2)),  # the layers' forward pass again, not the head's
    ],
)
def test_a_probe_is_corrected_for_what_a_whole_model_takes_more(
    make_config, model_path, alpaca_file, prepared, kind, checkpointing, seconds
):
    config = make_config(batch_size=1, max_steps=10)
    batches = plan_batches(config, read_lengths(prepared(alpaca_file)[1].load_train()), is_padded=False)
    shape = measure_shape(build_empty(model_path), config, model_path)
    token = 1 / batches.mean_tokens  # seconds of one; a batch takes a second, a fifth of it in the head
    probe = Probe(100, "documents", 100 * 0.8 * token, 0.0, 0.2 * token / 0.5, 0.0)
    device = Device("", kind, "float32", 4, 1, 1, 1e9)
    time = plan_time(config, shape, device, batches, 0.5, 0, checkpointing, [], [], probe)

    assert (time["basis"], time["train_seconds"]) == ("probe", pytest.approx(seconds, abs=0.06))


def test_a_probe_takes_as_many_rows_as_its_time_allows(make_config, model_path):
    shape = measure_shape(build_empty(model_path), make_config(), model_path)
    per_token = 4 * 3 * shape.matrix_parameters / shape.layers

    assert choose_rows(shape, [300, 500, 100], flops_per_second=1.0) == [2]
    assert choose_rows(shape, [900, 800, 700], flops_per_second=1.0) == [2]
    assert choose_rows(shape, [300, 500, 100], flops_per_second=per_token * 1e9) == [1, 0, 2]
