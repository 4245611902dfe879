"""`tuneyard export`: a registered adapter in the form that another program loads."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tuneyard_cli.exit import fail
from tuneyard_cli.output import print_json, print_line, print_warnings
from tuneyard_cli.service import JsonOption
from tuneyard_cli.values import read_path

PANEL = "Models"

commands = typer.Typer()


class Form(StrEnum):
    """Forms of `tasks.export.Target`, here without its imports."""

    PEFT = "peft"
    MERGED = "merged"
    GGUF = "gguf"
    OLLAMA = "ollama"
    VLLM = "vllm"


class OutType(StrEnum):
    """Number formats of `sft.exporting.gguf_conversion.OUTTYPES`."""

    AUTO = "auto"
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"


@commands.command(rich_help_panel=PANEL)
def export(
    adapter: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="Or NAME, for its latest version.")],
    to: Annotated[Form, typer.Option(help="What it is exported for.")],
    out: Annotated[
        Path | None,
        typer.Option(parser=read_path, metavar="PATH", help="A new or empty folder; NAME-VERSION-FORM if not given."),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="gguf, ollama, vllm: merge the adapter into the model.")
    ] = False,
    outtype: Annotated[OutType, typer.Option(help="gguf, ollama: number format of the model.")] = OutType.AUTO,
    llama_cpp: Annotated[
        Path | None,
        typer.Option(
            "--llama-cpp",
            parser=read_path,
            metavar="PATH",
            help="gguf, ollama: llama.cpp's sources; the extra gguf if not given.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export in the folder.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Export an adapter from the registry: for PEFT, as a merged model, for llama.cpp, Ollama or vLLM.

    Runs on a machine with the full package and the base model. The folder appears when it is complete.
    """
    if merged and to is Form.PEFT:
        fail("--merged is for gguf, ollama and vllm; without it peft has the adapter, and merged the merged model")
    if to not in (Form.GGUF, Form.OLLAMA) and (llama_cpp or outtype is not OutType.AUTO):
        fail(f"--outtype and --llama-cpp are for gguf and ollama, not for {to.value}")
    from dataclasses import asdict

    from jobs.settings import Settings
    from jobs.stack import local as stack
    from tasks.export import Options, Target, export
    from tasks.export_source import find_adapter

    settings = Settings()
    if settings.mlflow_tracking_uri is None:
        settings = stack.ensure_up(settings)
    if out is None:
        found = find_adapter(settings, adapter)
        out = Path(f"{found.name}-{found.version}-{to.value}")
    options = Options(merged or to is Form.MERGED, outtype.value, llama_cpp, force)
    made = export(settings, adapter, Target(to.value), out, options)
    if as_json:
        print_json(asdict(made))
        return
    print_warnings(made.notes)
    print_line(made.folder)
    print_line(f"Next: {made.command}", err=True)
