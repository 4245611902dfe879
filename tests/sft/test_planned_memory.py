"""The memory that a plan foretells is what the real step allocates, on this machine or on one that is not here."""

from collections import Counter

import psutil
import pytest
import torch
from peft import get_peft_model
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from sft.adapting import adapters
from sft.config import SFTConfig
from sft.data.tokenization import prepare
from sft.errors import DeviceNotFound, InvalidConfig
from sft.kernels.fused_lora import fuse_adapters
from sft.models.loading import quiet_transformers
from sft.models.model_class import build_empty
from sft.planning import plan as plan_module
from sft.planning.devices import CARDS, Card, find_card
from sft.planning.gpus import Gpu
from sft.planning.machine import settle_precision
from sft.planning.plan import make_plan
from sft.training import ledger, step_memory
from sft.training.arguments import fill_packed_rows
from sft.training.fake_step import Step, make_batch
from sft.training.layout import LOSSES, choose_layout
from sft.training.stand_ins import count_workspace
from sft.training.step_memory import GAPS, find_adapter_settings, measure_steps
from tests.tiny_models import save_tiny_llama, save_tiny_model

FREE = 10**12
LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def config_of(**fields):
    values = {"base_model": "m", "dataset_name": "x", "dataset_format": "alpaca", "gradient_accumulation_steps": 1}
    return SFTConfig.from_dict(values | fields)


def count_saved_bytes(model, batch, layout):
    """Bytes that autograd keeps between the forward and the backward pass, beside the weights."""
    sizes = {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total, _ = LOSSES[layout](model, batch)
    total.backward()
    return sum(sizes.values())


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"use_lora": False}, {"lora_r": 64}], ids=str)
def test_a_fake_step_keeps_what_the_real_one_keeps(tmp_path, kind, fields):
    config = config_of(**fields)
    path = save_tiny_model(kind, tmp_path / kind)
    model = AutoModelForCausalLM.from_pretrained(path)
    layout = choose_layout(model)
    step = Step((150, 90), 0.5, layout, "cpu", torch.float32, checkpointing=False)
    empty = build_empty(path)
    settings = find_adapter_settings(empty, config)
    if settings is not None:
        with quiet_transformers():
            model = get_peft_model(model, settings)
        fuse_adapters(model)
    batch = make_batch(step, model.get_input_embeddings().weight.shape[0])
    kept = count_saved_bytes(model.train(), batch, layout)
    [need] = measure_steps(empty, config, [step])
    fake = (need.held - need.resting) / GAPS["cpu"]

    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = sum(weight.numel() for weight in model.parameters() if not weight.requires_grad)
    assert need.resting == pytest.approx(12 * trained, rel=0.01, abs=5000)  # a weight and two moments, in fp32
    assert need.frozen == pytest.approx(4 * frozen, rel=0.01, abs=5000)
    assert kept <= fake <= 1.6 * kept + 4 * trained  # beside it, temporary tensors and gradients


@pytest.mark.parametrize("fields", [{}, {"use_lora": False}, {"gradient_checkpointing": True}], ids=str)
def test_layers_that_are_not_run_count_as_those_that_are(fields):
    def build(layers):
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=500, num_hidden_layers=layers, **sizes))

    config = config_of(**fields)
    step = Step((40, 30), 0.5, "documents", "cpu", torch.float32, config.gradient_checkpointing is True)
    four, five, nine = (measure_steps(build(layers), config, [step])[0] for layers in (4, 5, 9))
    for name in ("frozen", "resting", "held"):  # of five and nine a part is run
        a, b, c = (getattr(need, name) for need in (four, five, nine))
        assert c - b == pytest.approx(4 * (b - a), rel=1e-3, abs=100)


def test_what_takes_long_in_a_plan_is_done_once(make_config, alpaca_file, tmp_path, monkeypatch):
    """The empty model, the choice of layers, and a fake model of each depth serve all questions."""
    calls = Counter()

    def count(place, name):
        real = getattr(place, name)

        def call(*args, **kwargs):
            calls[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(place, name, call)

    for place in (adapters, step_memory):
        count(place, "plan_adapter")
    count(plan_module, "build_empty")
    count(plan_module, "run_probe")
    count(step_memory, "run_fake_steps")
    config, path = make_config(), save_tiny_llama(tmp_path / "deep")
    deep = AutoConfig.from_pretrained(path, num_hidden_layers=8)
    AutoModelForCausalLM.from_config(deep).save_pretrained(path)
    rows = prepare(config, path, alpaca_file, tmp_path / "cache")
    plan = make_plan(config, rows, path, [], FREE)

    assert (plan["memory"]["basis"], plan["time"]["basis"]) == ("step", "probe")
    assert calls == {"build_empty": 1, "plan_adapter": 1, "run_fake_steps": 2, "run_probe": 1}


@pytest.mark.parametrize("fields", [{"gradient_accumulation_steps": 2}, {"use_lora": False}], ids=str)
def test_fake_steps_in_a_row_find_what_each_finds_alone(model_path, fields):
    model, config = build_empty(model_path), config_of(**fields)
    steps = [Step((length,), 0.9, "documents", "cpu", torch.float32, checkpointing=False) for length in (300, 900)]
    assert measure_steps(model, config, steps) == [measure_steps(model, config, [step])[0] for step in steps]


@pytest.fixture(scope="module")
def llama_8b(tmp_path_factory):
    """A Llama of 8 billion weights, without the weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA_8B))


@pytest.mark.parametrize(("layout", "kept"), [("trl", 268e3), ("documents", 228e3)])
def test_a_large_model_on_a_gpu_that_is_not_here(llama_8b, layout, kept):
    """Llama-3-8B, LoRA, 4 x 2048 tokens: 16.1 GB of weights, and bytes kept for each token and layer."""
    step = Step((2048,) * 4, 0.9, layout, "cuda", torch.bfloat16, checkpointing=False)
    [need] = measure_steps(llama_8b, config_of(), [step])
    assert need.frozen == pytest.approx(16.06e9, rel=0.001)
    assert (need.held - need.resting) / 8192 / 32 == pytest.approx(kept, rel=0.05)


@pytest.mark.parametrize(("key_heads", "expanded"), [(32, 0), (8, 2 * 2 * 8192 * 4096)])
def test_the_backward_pass_of_flash_attention_has_its_buffers(key_heads, expanded, monkeypatch):
    """The gradient of 8192 queries of 32 heads in fp32; keys and values of all heads where heads share them."""
    sizes = {"hidden_size": 256, "intermediate_size": 64, "num_attention_heads": 32, "head_dim": 128, "vocab_size": 500}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            LlamaConfig(num_hidden_layers=4, num_key_value_heads=key_heads, **sizes)
        )
    config = config_of(lora_target_modules=["o_proj"])  # little else is alive while attention's gradient is computed
    step = Step((2048,) * 4, 0.1, "documents", "cuda", torch.bfloat16, checkpointing=True)
    counted = []
    monkeypatch.setattr(ledger, "count_workspace", lambda *call: counted.append(count_workspace(*call)) or counted[-1])
    [with_buffers] = measure_steps(model, config, [step])
    monkeypatch.setattr(ledger, "count_workspace", lambda *_: 0)
    [without] = measure_steps(model, config, [step])

    buffers = 4 * (8192 + 4 * 128) * 32 * (128 + 1) + expanded
    assert {size for size in counted if size} == {buffers}
    assert buffers / 4 < with_buffers.held - without.held <= buffers


def test_qlora_leaves_embeddings_and_head_in_16_bits(llama_8b):
    step = Step((512,), 0.9, "trl", "cuda", torch.bfloat16, checkpointing=True)
    [need] = measure_steps(llama_8b, config_of(use_qlora=True), [step])
    assert need.frozen == pytest.approx(5.7e9, rel=0.02)
    assert need.held < 4e9


def test_qlora_with_dora_is_measured_too(llama_8b):
    """DoRA's norm unpacks a layer's weight (58.7 million numbers at most), and PEFT multiplies an identity matrix."""
    step = Step((512,), 0.9, "documents", "cuda", torch.bfloat16, checkpointing=True)
    plain, with_norm = (
        measure_steps(llama_8b, config_of(use_qlora=True, use_dora=dora), [step])[0] for dora in (False, True)
    )
    assert with_norm.frozen == pytest.approx(plain.frozen, rel=1e-3)
    assert with_norm.resting > plain.resting
    assert 2 * 58.7e6 < with_norm.held - plain.held < 3e9


def test_a_plan_for_a_named_device(make_config, model_path, alpaca_file, tmp_path):
    config = make_config(mixed_precision="auto", use_qlora=True, batch_size=4)
    rows = prepare(config, model_path, alpaca_file, tmp_path / "cache")
    plans = {name: make_plan(config, rows, model_path, [], FREE, (name, CARDS[name])) for name in ("h100-80gb", "t4")}

    assert {name: plan["device"]["dtype"] for name, plan in plans.items()} == {"h100-80gb": "bfloat16", "t4": "float16"}
    for name, plan in plans.items():
        assert plan["device"]["name"] == name
        assert (plan["device"]["kind"], plan["device"]["is_here"]) == ("cuda", False)
        assert plan["device"]["memory_bytes"] == int(CARDS[name].memory_gib * 2**30)
        assert plan["memory"]["basis"] == "step"
        assert plan["memory"]["fits"]
        assert plan["time"]["basis"] == "matrix_product"
    with pytest.raises(InvalidConfig, match="bf16 is not supported"):
        make_plan(make_config(mixed_precision="bf16"), rows, model_path, [], FREE, ("t4", CARDS["t4"]))


GPU = Gpu("NVIDIA GeForce RTX 4090", (8, 9), 24 * 2**30, 2 * 2**30)


@pytest.fixture
def busy_gpu(monkeypatch):
    """A machine with a GPU of which a job holds most; whoever starts CUDA there fails the test."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda._lazy_init", lambda: pytest.fail("CUDA was started"))
    monkeypatch.setattr("sft.planning.machine.inspect_gpu", lambda: GPU)


def test_a_plan_leaves_the_gpu_of_this_machine_alone(make_config, model_path, alpaca_file, tmp_path, busy_gpu):
    """It knows the GPU by the driver, takes no optimizer step there and times nothing there."""
    config = make_config(mixed_precision="auto", optimizer_type="sgd", gradient_checkpointing="auto")
    rows = prepare(config, model_path, alpaca_file, tmp_path / "cache")
    settled = settle_precision(config, tmp_path)
    plan = make_plan(settled, rows, model_path, [], FREE)

    device, memory = plan["device"], plan["memory"]
    assert (device["name"], device["kind"], device["dtype"], device["is_here"]) == (GPU.name, "cuda", "bfloat16", True)
    assert (device["gflops"], plan["time"]["basis"]) == (165_000, "matrix_product")
    assert (memory["free_bytes"], memory["usable_bytes"], memory["total_bytes"]) == (2 * 2**30, 24 * 2**30, 24 * 2**30)
    assert memory["fits"]
    assert memory["fits_now"]
    assert plan["model"]["layout"] == "documents"


def test_a_plan_says_apart_whether_a_job_fits_when_its_turn_comes_and_now(
    make_config, model_path, alpaca_file, tmp_path, busy_gpu, monkeypatch
):
    config = make_config(mixed_precision="auto")
    rows = prepare(config, model_path, alpaca_file, tmp_path / "cache")

    def plan(total, free):
        gpu = GPU._replace(total_bytes=int(total * 1e9), free_bytes=int(free * 1e9))
        monkeypatch.setattr("sft.planning.machine.inspect_gpu", lambda: gpu)
        return make_plan(config, rows, model_path, [], FREE)

    def told(plan):
        return {note["code"]: note["message"] for note in plan["warnings"] if note["code"].startswith("memory")}

    waits, never = plan(10, 0.2), plan(0.5, 0.2)
    assert (waits["memory"]["fits"], waits["memory"]["fits_now"]) == (True, False)
    assert told(waits) == {
        "memory_now": "the job needs about 0.6 GB and 0.2 GB are free at the moment: it fits once other work on the "
        "device has ended"
    }
    assert (never["memory"]["fits"], never["memory"]["fits_now"]) == (False, False)
    assert told(never) == {
        "memory": "the job needs about 0.6 GB and the device has 0.5 GB: no batch_size fits; lower max_seq_length"
    }


def test_main_memory_that_jobs_hold_is_there_when_they_have_ended(
    make_config, model_path, alpaca_file, tmp_path, monkeypatch
):
    config = make_config()
    rows = prepare(config, model_path, alpaca_file, tmp_path / "cache")
    real = psutil.virtual_memory()
    monkeypatch.setattr("psutil.virtual_memory", lambda: real._replace(available=10**8, total=10**10))
    alone = make_plan(config, rows, model_path, [], FREE)["memory"]
    beside = make_plan(config, rows, model_path, [], FREE, held_bytes=3 * 10**9)["memory"]
    most = make_plan(config, rows, model_path, [], FREE, held_bytes=10**12)["memory"]

    assert (alone["usable_bytes"], alone["fits"], alone["fits_now"]) == (10**8, False, False)
    assert (beside["usable_bytes"], beside["fits"], beside["fits_now"]) == (3_100_000_000, True, False)
    assert most["usable_bytes"] == 10**10


def test_padding_counts_where_the_layout_pads(make_config, model_path, alpaca_file, tmp_path):
    config = make_config(batch_size=4, mixed_precision="auto")
    rows = prepare(config, model_path, alpaca_file, tmp_path / "cache")
    plan = make_plan(config, rows, model_path, [], FREE, ("t4", CARDS["t4"]))
    longest = max(rows.load_train()["length"])

    assert plan["model"]["layout"] == "padded"
    assert plan["batches"]["max_tokens"] == 4 * longest
    end_to_end = make_plan(config, rows, model_path, [], FREE, ("a100-40gb", CARDS["a100-40gb"]))
    assert end_to_end["model"]["layout"] == "documents"
    assert end_to_end["batches"]["max_tokens"] < 4 * longest
    assert end_to_end["memory"]["parts"]["activations"] < plan["memory"]["parts"]["activations"]


def test_devices_are_found_by_name_and_can_be_ones_own():
    own = {"lab": Card(memory_gib=48.0)}
    assert find_card("H100-80GB", {}).memory_gib == pytest.approx(79.1)
    assert find_card("lab", own).memory_gib == 48
    assert find_card("h100-80GB", {"H100-80GB": Card(memory_gib=48.0)}).memory_gib == 48
    assert {"h100-80gb", "a100-40gb", "rtx4090", "t4"} <= set(CARDS)
    with pytest.raises(DeviceNotFound, match=r"'h100-80g' is not known: did you mean h100-80gb.*TUNEYARD_PLAN_DEVICES"):
        find_card("h100-80g", own)


def test_a_plan_for_another_device_judges_the_job_and_not_this_machine(make_config, model_path, alpaca_file, tmp_path):
    config = make_config(mixed_precision="auto", batch_size=2)
    rows = prepare(config, model_path, alpaca_file, tmp_path / "cache")

    def plan(name="h100-80gb", **fields):
        return make_plan(config.model_copy(update=fields), rows, model_path, [], FREE, (name, CARDS[name]))

    for fields in ({"attn_implementation": "flash_attention_2"}, {"device_map": "cuda:1"}):
        assert plan(**fields)["memory"]["fits"]
    with pytest.raises(InvalidConfig, match=r"needs compute capability 8\.0, which device t4 lacks; set it to auto"):
        plan("t4", attn_implementation="varlen")
    with pytest.raises(InvalidConfig, match="optimizer_type 'bogus' is not known"):
        plan(optimizer_type="bogus")


def test_a_packed_batch_holds_what_the_rows_can_fill(make_config):
    config = make_config(packing=True, batch_size=3, max_seq_length=100)
    found = {tokens: fill_packed_rows(config, tokens, 3) for tokens in (40, 100, 250, 1000)}
    assert found == {40: (40,), 100: (100,), 250: (100, 100, 50), 1000: (100, 100, 100)}


@pytest.mark.parametrize("teraflops", [float("inf"), 1e308, 1e-320, 0])
def test_a_device_has_a_speed_that_a_plan_can_reckon_with(teraflops):
    with pytest.raises(ValidationError):
        Card(memory_gib=48, teraflops=teraflops)
