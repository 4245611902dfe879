"""The prompt process: `python -m tasks.prompts` turns prompts into token ids, one line of JSON for each line on stdin.

Tokenizers and chat templates are programs that come with a model and may never end. Here they have limits
(`sft.confinement`), and where one ends its process, the answers that are being generated elsewhere go on.
"""

import json
import logging
import os
import sys
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.privacy import keep_private
from jobs.sanitizing.log_lines import keep_lines_whole
from jobs.settings import Settings
from sft.errors import TuneyardError
from sft.files.stamps import stamp_folder
from tasks.causes import explain
from tasks.limits import writing_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MOST_TOKENIZERS = 4


class PromptWriter:
    """Writes prompts; keeps the tokenizers used last."""

    def __init__(self) -> None:
        self._tokenizers: OrderedDict[tuple[Path, str], PreTrainedTokenizerBase] = OrderedDict()

    def write(self, request: dict[str, Any]) -> dict[str, Any]:
        """The `ids` of each prompt, and `calls`, the form in which the model writes calls of functions.

        Raises TuneyardError, or ends the process at a limit.
        """
        from sft.generation.prompts import write_chat, write_text
        from sft.generation.tool_prompts import check_tool_chat, find_form, has_tools, read_tool_chat

        model = str(request["model"])
        with writing_prompt(Settings.model_validate(request["settings"]), model):
            tokenizer = self._find(Path(request["folder"]))
            if request["messages"] is None:
                return {"ids": [write_text(tokenizer, model, text) for text in request["prompts"]], "calls": None}
            messages, tools = request["messages"], request["tools"]
            if has_tools(messages, tools):
                messages, tools = read_tool_chat(messages, tools)
                ids = write_chat(tokenizer, model, messages, tools)
                check_tool_chat(tokenizer, model, messages, tools)
                return {"ids": [ids], "calls": find_form(tokenizer) if tools else None}
            return {"ids": [write_chat(tokenizer, model, messages)], "calls": None}

    def _find(self, folder: Path) -> "PreTrainedTokenizerBase":
        from sft.models.loading import load_tokenizer

        key = folder, stamp_folder(folder)
        if key not in self._tokenizers:
            self._tokenizers[key] = load_tokenizer(folder)
        self._tokenizers.move_to_end(key)
        while len(self._tokenizers) > MOST_TOKENIZERS:
            self._tokenizers.popitem(last=False)
        return self._tokenizers[key]


def answer(writer: PromptWriter, line: str) -> str:
    """Respond to a request with `{"ids": ..., "calls": ...}` or `{"error": {"code": ..., "detail": ...}}`."""
    try:
        return json.dumps(writer.write(json.loads(line)))
    except Exception as error:
        cause = explain(error)
        if cause.code == TuneyardError.code:
            logger.exception("A prompt could not be written")
        return json.dumps({"error": {"code": cause.code, "detail": cause.message}})


def main() -> None:
    """Serve requests until stdin is closed."""
    keep_private()
    keep_lines_whole()
    responses = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not stand among the responses
    writer = PromptWriter()
    for line in sys.stdin:
        responses.write(answer(writer, line) + "\n")
        responses.flush()


if __name__ == "__main__":
    main()
