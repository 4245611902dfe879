"""What llama.cpp and vLLM can't load of an adapter is refused with the reason and the remedy."""

import shlex
import subprocess

import pytest
from peft import LoraConfig

from sft.adapting.adapter_files import VLLM_RANKS
from sft.errors import ExportRefused
from sft.exporting.adapter_limits import check_for_llama_cpp, check_for_vllm
from sft.exporting.vllm_script import build_command, write_script

PLAIN = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]).to_dict()
FOR_BOTH = [
    ({"use_dora": True}, "DoRA"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"bias": "lora_only"}, r"biases \(bias\)"),
    ({"lora_bias": True}, "lora_bias"),
    ({"target_parameters": ["experts.gate_up_proj"]}, "stacked experts"),
    ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
    ({"init_lora_weights": "pissa"}, r"its start \(pissa\)"),
    ({"peft_type": "IA3"}, "type IA3, not LORA"),
]


@pytest.mark.parametrize("check", [check_for_llama_cpp, check_for_vllm])
@pytest.mark.parametrize(("change", "words"), FOR_BOTH)
def test_what_neither_loads(check, change, words):
    with pytest.raises(ExportRefused, match=f"{words}.*Add --merged to export the merged model instead"):
        check(PLAIN | change)


def test_what_one_of_them_loads():
    with pytest.raises(ExportRefused, match="use_rslora"):
        check_for_llama_cpp(PLAIN | {"use_rslora": True})
    assert check_for_vllm(PLAIN | {"use_rslora": True}) == 8
    with pytest.raises(ExportRefused, match="rank_pattern"):
        check_for_vllm(PLAIN | {"rank_pattern": {"q_proj": 4}})
    check_for_llama_cpp(PLAIN | {"rank_pattern": {"q_proj": 4}})
    check_for_llama_cpp(PLAIN | {"r": 1000})


@pytest.mark.parametrize(("rank", "needed"), [(1, 1), (2, 8), (8, 8), (9, 16), (300, 320), (512, 512)])
def test_vllm_gets_the_smallest_of_its_ranks(rank, needed):
    assert check_for_vllm(PLAIN | {"r": rank}) == needed
    assert needed in VLLM_RANKS


def test_a_rank_above_vllms_is_refused():
    with pytest.raises(ExportRefused, match="its rank 513 is above 512"):
        check_for_vllm(PLAIN | {"r": 513})


def test_the_script_runs_the_command_in_its_own_folder(tmp_path):
    """With a `vllm` that writes what it was given: names with spaces and quotes arrive whole."""
    program = tmp_path / "bin/vllm"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    (tmp_path / "an export").mkdir()
    command = build_command("it's mine", "/models/my base", "adapter", 16)
    write_script(tmp_path / "an export/serve.sh", "title\nrm -rf /", command)
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin"}
    line = ["sh", str(tmp_path / "an export/serve.sh"), "--port", "9"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    folder, *given = done.stdout.splitlines()
    assert folder == str(tmp_path / "an export")
    assert shlex.join(given) == (
        "serve '/models/my base' --enable-lora --max-lora-rank 16 --lora-modules 'it'\"'\"'s mine=adapter' "
        "--tokenizer adapter --generation-config adapter --port 9"
    )


def test_a_merged_model_is_served_without_lora():
    assert build_command("mine", None, "model", None) == ["vllm", "serve", "model", "--served-model-name", "mine"]
