"""`tuneyard plan`: estimate a job before it is submitted."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneyard_cli.exit import fail
from tuneyard_cli.job_options import JobArguments, takes_job_options
from tuneyard_cli.jobs import PANEL
from tuneyard_cli.machine import this_machine
from tuneyard_cli.output import open_console, print_json, print_rendered
from tuneyard_cli.service import JsonOption, UrlOption, connected
from tuneyard_wire.one_line import escape

if TYPE_CHECKING:
    from rich.console import Console

    from tuneyard_cli.submission import UnsentJob

commands = typer.Typer()

BAR_CELLS = 30
GB, MINUTE = 1e9, 60


@commands.command(rich_help_panel=PANEL)
@takes_job_options
def plan(
    job: JobArguments,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="No effect on a plan.")] = False,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="Plan for this device, which need not be there: h100-80gb, a100-40gb, rtx4090, t4, and others.",
        ),
    ] = None,
    here: Annotated[bool, typer.Option("--here", help="Plan on this machine, without a running service.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Estimate a job before you submit it: rows, tokens, steps, memory, disk, time.

    Takes the options of `tuneyard submit` and creates no job. The dataset is tokenized; the job reuses the result.
    """
    if here and job.config is not None:
        fail("--config needs the service, which stores the configurations; leave out --here")
    submission = job.build()
    if here and submission.file is not None:
        fail("--dataset FILE is added to a service; leave out --here, or give --set dataset_name=FILE in the data root")
    response = _plan_here(submission, device) if here else _request_plan(submission, url, device)
    if as_json:
        print_json(response)
    else:
        _show(open_console(), response)


def _plan_here(submission: "UnsentJob", device: str | None) -> dict[str, Any]:
    from tuneyard_cli.model_folders import settle_model

    return this_machine().plan(settle_model(submission, None), device)


def _request_plan(submission: "UnsentJob", url: str | None, device: str | None) -> dict[str, Any]:
    with connected(url) as client:
        response: dict[str, Any] = submission.complete(client).plan(client, device).model_dump(mode="json")
    return response


def _show(console: "Console", plan: dict[str, Any]) -> None:
    _show_rows(console, plan)
    _show_resources(console, plan)
    for sample in plan["samples"]:
        _show_sample(console, sample)
    for warning in plan["warnings"]:
        console.print(f"! {escape(warning['message'])}", style="yellow", markup=False, soft_wrap=True)


def _show_rows(console: "Console", plan: dict[str, Any]) -> None:
    dataset, tokens, batches = plan["dataset"], plan["tokens"], plan["batches"]
    revision = f"@{dataset['revision']}" if dataset["revision"] else ""
    console.print(escape(f"{dataset['name']}{revision}  md5 {dataset['md5']}"), markup=False, soft_wrap=True)
    for split, counts in plan["rows"].items():
        if counts is None:
            continue
        changed = [
            f"{counts[name]} {name.replace('_', ' ')}"
            for name in ("dropped", "invalid", "too_long", "truncated")
            if counts[name]
        ]
        console.print(", ".join([f"{split:<6}{counts['used']} of {counts['rows']} rows", *changed]))
        for problem in counts.get("reasons", []):
            rows = ", ".join(map(str, problem["rows"])) + (" …" if problem["count"] > len(problem["rows"]) else "")
            console.print(
                escape(f"  {problem['count']} invalid: {problem['reason']} (row {rows})"), markup=False, soft_wrap=True
            )
    for part in plan.get("sources") or []:
        console.print(escape(_describe_part(part)), markup=False, soft_wrap=True)
    share = f"{tokens['supervised_share']:.0%} supervised"
    console.print(f"tokens{batches['tokens_per_epoch']:>8} per epoch, {share}, {tokens['mean']:g} per row")
    most = max(bin["rows"] for bin in tokens["histogram"])
    for bin in tokens["histogram"]:
        bar = "█" * round(BAR_CELLS * bin["rows"] / most)
        console.print(f"  {bin['from']:>6} to {bin['to']:<6}{bin['rows']:>7}  {bar}")
    console.print(f"padding saved by packing: {batches['padding_saved']:.0%}")


def _describe_part(part: dict[str, Any]) -> str:
    """A dataset of several: what an epoch takes of its rows."""
    held_out = f"{part['eval']['used']} held out" if part["eval"] else ""
    if part["train"] is None:
        return f"  {part['name']}: {held_out}"
    counts = [f"{part[name]} {name.replace('_', ' ')}" for name in ("repeated", "left_out") if part[name]]
    taken = f"{part['taken']} of {part['train']['used']} rows an epoch (weight {part['weight']:g})"
    return f"  {part['name']}: " + ", ".join(filter(None, [taken, *counts, held_out]))


def _show_resources(console: "Console", plan: dict[str, Any]) -> None:
    memory, disk, time, device = plan["memory"], plan["disk"], plan["time"], plan["device"]
    trainable = plan["model"]["trainable_parameters"]
    share = f"{trainable:,} trainable parameters ({plan['model']['share']:.2%})"
    console.print(f"steps  {plan['steps']} in {plan['epochs']:g} epochs; {share}")
    adapted = ", ".join(f"{count} {name}" for name, count in plan["model"]["adapted"].items())
    if adapted:
        console.print(escape(f"adapts {adapted}"), markup=False, soft_wrap=True)
    checkpointing = ", activations recomputed" if plan["model"]["gradient_checkpointing"] else ""
    usable = memory["usable_bytes"] or memory["free_bytes"]  # None from an older service
    now = "" if usable == memory["free_bytes"] else f", {memory['free_bytes'] / GB:.1f} GB of them free now,"
    told = (
        f"memory {memory['peak_bytes'] / GB:.1f} GB of {usable / GB:.1f} GB{now} on {device['name']} "
        f"({device['dtype']}{checkpointing}); the largest batch_size that fits is {memory['largest_batch_size']}"
    )
    console.print(escape(told), markup=False, soft_wrap=True)
    console.print(f"disk   {disk['needed_bytes'] / GB:.2f} GB of {disk['free_bytes'] / GB:.1f} GB free")
    basis = {"past_runs": "from past jobs", "probe": "from a probe", "matrix_product": "estimated"}[time["basis"]]
    console.print(
        f"time   {_minutes(time['total_seconds'])}, {_minutes(time['train_seconds'])} of it training at "
        f"{time['tokens_per_second']:.0f} tokens/s ({basis})"
    )


def _show_sample(console: "Console", sample: dict[str, Any]) -> None:
    console.rule(f"row {sample['row']}: {sample['tokens']} tokens, {sample['supervised_tokens']} supervised (marked)")
    print_rendered([(part["text"], part["supervised"]) for part in sample["parts"]], console)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 2 * MINUTE else f"{seconds / MINUTE:.0f} min"
