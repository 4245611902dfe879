"""A checkpoint that training writes is asked like a saved adapter."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft.generation.adapted_model import AdaptedModel
from sft.generation.batches import run_batch
from tests.sft.generation.test_batches import generate_plainly, make_sequence

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")


def test_a_checkpoint_answers_as_plain_transformers_and_peft(open_session, model_path):
    session = open_session(save_steps=2, template_name="qwen")
    session.train()
    checkpoint = session.checkpoint_dir / "checkpoint-2"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert tokenizer.chat_template == session.tokenizer.chat_template
    base = [AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32) for _ in range(2)]
    wanted = generate_plainly(PeftModel.from_pretrained(base[0], checkpoint), tokenizer, "Count to 3.")
    sequence, _ = make_sequence(tokenizer, "Count to 3.")
    with AdaptedModel(base[1]).using(checkpoint) as model:
        run_batch(model, [sequence], tokenizer.pad_token_id)
    assert sequence.generated == wanted
