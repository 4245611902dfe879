"""`python -m sft.serving.plain`: loads a saved adapter as anyone does who has transformers and PEFT, and no Tuneyard.

A process of its own, in which nothing of ours touches a model: of this project it imports limits and error types only.
It reads a request, one line of JSON, from stdin (`sft.serving.process`), writes a line of JSON for each finding, and
ends when stdin does: with the process that has started it.
"""

import contextlib
import gc
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from sft.confinement import Limits, confined
from sft.errors import is_of_machine, walk_causes

IGNORED = -100
REASON_CHARACTERS = 300
WEIGHTS = "adapter_model.safetensors"
ANSWERS = 3
ANSWERING_SHARE = 0.9  # of the time limit, after which no answer goes on

Tell = Callable[..., None]


def main() -> None:
    """Answer the request."""
    started_at = time.monotonic()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no reply
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(stage: str, **facts: Any) -> None:
        replies.write(json.dumps({"stage": stage, **facts}) + "\n")
        replies.flush()

    _import_libraries()
    limits = Limits(request["memory_bytes"], request["seconds"], None)
    with contextlib.suppress(_Ended), confined(limits, request["note"], "the serving check"):
        _check(request, tell, started_at + ANSWERING_SHARE * request["seconds"])
    os._exit(0)  # destroying torch's objects takes seconds


def _keep_quiet(stage: str, **facts: Any) -> None:
    """Tell nothing."""


def _end_with_parent() -> NoReturn:
    sys.stdin.read()
    os._exit(1)


def _import_libraries() -> None:
    gc.disable()  # it takes one of the seconds that these imports take
    import peft  # noqa: F401
    import torch  # noqa: F401
    from transformers.utils import logging

    gc.enable()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


class _Ended(Exception):
    """What was told leaves nothing more to look at."""


@contextlib.contextmanager
def _stage(name: str, tell: Tell) -> Iterator[None]:
    """Tell of an error in the block, and end."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:REASON_CHARACTERS]
        is_machine = is_of_machine(error) or any(isinstance(one, MemoryError) for one in walk_causes(error))
        tell(name, error=reason, is_of_machine=is_machine)
        raise _Ended from error


def _check(request: dict[str, Any], tell: Tell, deadline: float) -> None:
    with _stage("tokenizer", tell):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(request["adapter"])
    told = tell if request["compares_prompts"] else _keep_quiet
    prompts = [_compare_prompt(tokenizer, sample, told) for sample in request["samples"]]
    model = _load(request, tell)
    with _stage("loss", tell):
        tell("loss", loss=_measure_loss(model, request["samples"]))
    with _stage("answers", tell):
        asked = [(sample, ids) for sample, ids in zip(request["samples"], prompts, strict=True) if ids]
        for sample, ids in asked[:ANSWERS]:
            if most := sample["answer_tokens"]:
                answer = _answer(model, request, ids, most, deadline - time.monotonic())
                tell("answer", row=sample["row"], **answer)
    ours = sorted(name for name in sys.modules if name.startswith("sft."))
    tell("done", ours=ours)


def _compare_prompt(tokenizer: Any, sample: dict[str, Any], tell: Tell) -> list[int] | None:
    """Tell how the ids of the row's prompt, as the saved tokenizer writes it, differ from those trained on.

    Returns them. A conversation has a prompt before each answer, of which one has to be the row's.
    """
    written: list[list[int]] = []
    try:
        if sample["text"] is not None:
            written.append(list(tokenizer(sample["text"])["input_ids"]))
        for messages in sample["prompts"]:
            options = {"tools": sample["tools"], "add_generation_prompt": True, "return_dict": True}
            written.append(list(tokenizer.apply_chat_template(messages, **options)["input_ids"]))
    except MemoryError:
        raise
    except Exception as error:  # a template is a program
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:REASON_CHARACTERS]
        tell("prompt", row=sample["row"], difference=f"they can't be written: {reason}")
        return None
    if not written:
        return None
    differences = [_find_difference(tokenizer, ids, sample) for ids in written]
    matching = [ids for ids, difference in zip(written, differences, strict=True) if difference is None]
    tell("prompt", row=sample["row"], difference=None if matching else differences[-1 if sample["is_whole"] else 0])
    return (matching or written)[0]


def _find_difference(tokenizer: Any, written: list[int], sample: dict[str, Any]) -> str | None:
    """Explain the first difference between these ids and those of the row; None without any."""
    ids, labels = sample["ids"], sample["labels"]
    supervised = next((place for place, label in enumerate(labels) if label != IGNORED), len(ids))
    trained = ids[: len(written)] if sample["is_whole"] else ids[:supervised]
    if written == trained:
        return None
    pairs = enumerate(zip(written, trained, strict=False))
    place = next((place for place, (one, other) in pairs if one != other), min(len(written), len(trained)))
    shown = [_show(tokenizer, found, place) for found in (written, trained)]
    return f"token {place + 1} is {shown[0]} and was {shown[1]} in training"


def _show(tokenizer: Any, ids: list[int], place: int) -> str:
    return f"{tokenizer.decode(ids[place : place + 1])!r:.40}" if place < len(ids) else "missing"


def _load(request: dict[str, Any], tell: Tell) -> Any:
    """The model with the adapter, or the saved model, ready to compute."""
    import transformers
    from transformers import GenerationConfig

    folder = Path(request["adapter"])
    is_adapter = request["base"] is not None
    with _stage("base", tell):
        options: dict[str, Any] = {"device_map": {"": request["device"]}} if request["device"] != "cpu" else {}
        options["generation_config"] = GenerationConfig.from_pretrained(folder)
        options["dtype"] = request["dtype"] if is_adapter else "auto"
        kind = getattr(transformers, request["auto_class"])
        model, loading = kind.from_pretrained(
            request["base"] or folder, output_loading_info=True, use_safetensors=True, **options
        )
    if not is_adapter:
        tell("keys", missing=sorted(loading["missing_keys"]), unexpected=sorted(loading["unexpected_keys"]))
        return model.eval()
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    with _stage("adapter", tell):
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            stored = set(file.keys())
        model = PeftModel.from_pretrained(model, str(folder)).eval()
        expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    tell("keys", missing=sorted(expected - stored), unexpected=sorted(stored - expected))
    return model


def _measure_loss(model: Any, samples: list[dict[str, Any]]) -> float | None:
    """Mean negative log-likelihood of the supervised tokens of all rows, one row at a time; None without rows."""
    import torch
    from torch.nn.functional import cross_entropy

    total, count = 0.0, 0
    with torch.inference_mode():
        for sample in samples:
            ids = torch.tensor([sample["ids"]], device=model.device)  # (1, T)
            labels = torch.tensor(sample["labels"], device=model.device)[1:]  # (T - 1,)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()  # (T - 1, V)
            total += cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum").item()
            count += int((labels != IGNORED).sum())
    return total / count if count else None


def _answer(model: Any, request: dict[str, Any], ids: list[int], most: int, seconds: float) -> dict[str, Any]:
    """Answer a prompt greedily. `stopped` is None if time, or the model's positions, ended it before `most` tokens."""
    import torch
    from transformers import GenerationConfig

    settled = GenerationConfig.from_pretrained(request["adapter"])
    named = settled.eos_token_id
    ends = {named} if isinstance(named, int) else set(named or ())
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or len(ids) + most
    room = min(most, positions - len(ids))
    if seconds <= 0 or room <= 0:
        return {"stopped": None, "tokens": 0}
    prompt = torch.tensor([ids], device=model.device)  # (1, T)
    with torch.inference_mode():
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            num_beams=1,
            max_new_tokens=room,
            max_time=seconds,
        )
    new = output[0, len(ids) :].tolist()
    stopped = bool(new) and new[-1] in ends
    return {"stopped": True if stopped else False if len(new) >= most else None, "tokens": len(new)}


if __name__ == "__main__":
    main()
