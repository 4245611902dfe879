"""Commands that ask models: `tuneyard chat`, `tuneyard generate`."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneyard_cli.output import escape_lines, print_json, print_line
from tuneyard_cli.questions import Question, read_questions
from tuneyard_cli.references import complete_model
from tuneyard_cli.service import JsonOption, UrlOption, connected

if TYPE_CHECKING:
    from tuneyard_client import Tuneyard
    from tuneyard_client.models import AnswerOptions

PANEL = "Models"
AT_ONCE = 8
SILENT_SECONDS = 3.0

commands = typer.Typer()

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="An adapter (NAME, its latest version, or NAME@VERSION), a base model, or a job's checkpoint "
        "(JOB_ID:ckpt-step-N).",
    ),
]
TemperatureOption = Annotated[float, typer.Option(min=0, max=2, help="0 always takes the most likely token.")]
TokensOption = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Maximum tokens of an answer.")]
SeedOption = Annotated[int | None, typer.Option(help="Repeat the same draws.")]
WaitOption = Annotated[
    int | None,
    typer.Option("--wait", metavar="SECONDS", min=1, max=600, help="Wait while jobs leave no room."),
]


@commands.command(rich_help_panel=PANEL)
def chat(
    name: ModelArgument,
    question: Annotated[
        str | None,
        typer.Argument(metavar="QUESTION", help="One question; without it, and with a terminal, a conversation."),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Also show the answers of the adapter's base model.")] = False,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message.")] = None,
    temperature: TemperatureOption = 0.0,
    max_tokens: TokensOption = None,
    seed: SeedOption = None,
    wait: WaitOption = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Ask a model, and with --base its base model beside it.

    Without a question each line that is typed is one, until Ctrl-D; text from a pipe is one question.
    """
    options: AnswerOptions = {
        "temperature": temperature,
        "max_tokens": max_tokens,
        "seed": seed,
        "wait_seconds": wait,
    }
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
        if not question:
            raise typer.BadParameter("a question is missing", param_hint="QUESTION")
    with connected(url) as client:
        talk = Chat(client, _choose_models(client, name, base), system, options)
        if question is not None:
            answers = talk.ask(question, is_shown=not as_json)
            if as_json:
                print_json({"question": question, "answers": answers})
            return
        while (line := _read_line()) is not None:
            if line.strip():
                ask_or_tell(talk, line)


@commands.command(rich_help_panel=PANEL)
def generate(
    name: ModelArgument,
    file: Annotated[
        Path,
        typer.Option(
            "--file",
            exists=True,
            dir_okay=False,
            help="JSON lines, or a JSON list, of `prompt`, `messages` or training rows.",
        ),
    ],
    temperature: TemperatureOption = 0.0,
    max_tokens: TokensOption = None,
    seed: SeedOption = None,
    wait: WaitOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Errors are JSON on stderr too.")] = False,
    url: UrlOption = None,
) -> None:
    """Answer each line or row of a file, in its order, as JSON lines: its own fields, and `answer`, `finish_reason`.

    `messages` are a chat, with `tools` if the model may call functions; a `prompt` is text that is continued, without
    the chat template. Of a row of training data the last answer is left out, and kept as `reference`. The first one
    that can't be answered ends it.
    """
    options: AnswerOptions = {
        "temperature": temperature,
        "max_tokens": max_tokens,
        "seed": seed,
        "wait_seconds": wait,
    }
    questions = read_questions(file)
    if (answered := sum(1 for one in questions if one.reference)) and not as_json:
        what = "which is left out of the prompt and kept as `reference`"
        print_line(f"{answered} of {len(questions)} rows end with an answer, {what}.", err=True)
    from tuneyard_client.errors import ClientError

    with connected(url) as client:
        model = client.model(complete_model(client, name)).id  # one version for all lines

        def answer(question: Question) -> dict[str, Any]:
            try:
                return {**question.row, **question.reference, **ask(question)}
            except ClientError as error:
                detail = f"{file}: {question.place}: {error.detail}"
                raise type(error)(detail, error.status, error.code, error.request_id) from error

        def ask(question: Question) -> dict[str, Any]:
            if isinstance(question.asked, str):
                continued = client.complete(model, question.asked, **options).choices[0]
                return {"answer": continued.text, "finish_reason": continued.finish_reason}
            chosen = client.chat(model, question.asked, **options, tools=question.tools).choices[0]
            calls = [call.model_dump() for call in chosen.message.tool_calls or ()]
            made = {"answer": chosen.message.content, "finish_reason": chosen.finish_reason}
            return {**made, "tool_calls": calls} if calls else made

        with ThreadPoolExecutor(AT_ONCE) as pool, telling_of_wait() as has_begun:
            try:
                for made in pool.map(answer, questions):
                    has_begun()
                    typer.echo(json.dumps(made, ensure_ascii=True))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


@contextmanager
def telling_of_wait() -> Iterator[Callable[[], None]]:
    """Say on stderr why nothing is shown yet, unless what is yielded is called within `SILENT_SECONDS`."""
    text = "Waiting for the first words: the service loads a model before its first answer."
    timer = threading.Timer(SILENT_SECONDS, print_line, (text, True))
    timer.daemon = True
    timer.start()
    try:
        yield timer.cancel
    finally:
        timer.cancel()


class Chat:
    """A conversation with one or more models, each of which sees its own answers."""

    def __init__(self, client: "Tuneyard", models: list[str], system: str | None, options: "AnswerOptions") -> None:
        start = [] if system is None else [{"role": "system", "content": system}]
        self._client = client
        self._options = options
        self._messages = {model: [*start] for model in models}

    def ask(self, question: str, is_shown: bool) -> dict[str, str]:
        """Ask all models; returns the answers, which are shown while they come."""
        answers = {}
        for model, messages in self._messages.items():
            if is_shown and len(self._messages) > 1:
                print_line(f"[{model}]")
            asked = [*messages, {"role": "user", "content": question}]
            parts, is_cut_off = [], False
            with telling_of_wait() as has_begun:
                for chunk in self._client.stream_chat(model, asked, **self._options):
                    has_begun()
                    text = "".join(choice.delta.content or "" for choice in chunk.choices)
                    is_cut_off = is_cut_off or any(choice.finish_reason == "length" for choice in chunk.choices)
                    parts.append(text)
                    if is_shown:
                        typer.echo(escape_lines(text), nl=False)
            if is_shown:
                typer.echo()
            if is_cut_off:
                print_line("The answer was cut off at its maximum of tokens; --max-tokens allows more.", err=True)
            answers[model] = "".join(parts)
            messages += [asked[-1], {"role": "assistant", "content": answers[model]}]
        return answers


def ask_or_tell(talk: Chat, question: str) -> None:
    """Ask in a conversation, which goes on after a question that is refused, such as one that is too long."""
    from tuneyard_client.errors import ClientError

    try:
        talk.ask(question, is_shown=True)
    except ClientError as error:
        print_line(f"tuneyard: {error}", err=True)


def _choose_models(client: "Tuneyard", name: str, with_base: bool) -> list[str]:
    """The exact ids of the models to ask: the base model first, if it is wanted."""
    found = client.model(complete_model(client, name))
    if not with_base:
        return [found.id]
    if found.parent is None:
        raise typer.BadParameter(f"{found.id} is a base model; leave --base out", param_hint="--base")
    return [found.parent, found.id]


def _read_line() -> str | None:
    try:
        return input("> ")
    except EOFError:
        return None
