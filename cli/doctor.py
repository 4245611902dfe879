"""`tuneyard doctor`: check what jobs need on this machine and suggest fixes."""

import importlib.metadata
import json
import os
import platform
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import httpx
import psutil
import typer

from cli.diagnosis import Diagnosis, Level
from cli.packages import check_packages, check_python, installed_version
from cli.trainer_role import check_trainers
from jobs.answer_engine import choose_engine, find_vllm
from jobs.errors import GenerationFailed, StoreRefused
from jobs.network.proxies import PROXY_VARIABLES, bypass_proxies
from jobs.privacy import find_open
from jobs.project import find_sources
from jobs.settings import Settings
from jobs.shared_store import SharedStore
from jobs.stack import local as stack
from jobs.stack import parts
from jobs.stack.readiness import STORE, PartCheck, check_parts
from sft.errors import StackError
from sft.files.disk import find_existing, measure_free
from sft.models.dtype_record import DtypeRecord, read_record
from sft.planning.gpus import inspect_gpu
from tuneyard_cli.exit import ExitCode
from tuneyard_cli.output import print_json, print_line

GIB = 2**30
OPEN_SHOWN = 5
DISK_FAIL_BYTES, DISK_WARN_BYTES = 2 * GIB, 20 * GIB
MEMORY_FAIL_BYTES, MEMORY_WARN_BYTES = 1 * GIB, 4 * GIB
TORCH_CODE = "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.is_available()]))"
GPU_COMMAND = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]


def doctor(as_json: bool = False) -> None:
    """Check ports, disk, memory, GPU, versions, the state folder and the stack. Starts nothing."""
    diagnoses = list(examine(Settings()))
    failures = sum(diagnosis.level is Level.FAIL for diagnosis in diagnoses)
    if as_json:
        print_json([{**asdict(diagnosis), "level": diagnosis.level.lower()} for diagnosis in diagnoses])
        raise typer.Exit(ExitCode.JOB_FAILED if failures else ExitCode.OK)
    for diagnosis in diagnoses:
        print_line(f"{diagnosis.level:<5} {diagnosis.topic:<9} {diagnosis.detail}")
        if diagnosis.remedy:
            print_line(f"{'':<15} -> {diagnosis.remedy}")
    typer.echo(f"{failures} problem(s) found." if failures else "Jobs can run on this machine.")
    raise typer.Exit(ExitCode.JOB_FAILED if failures else ExitCode.OK)


def examine(settings: Settings) -> Iterator[Diagnosis]:
    """Run all checks; yields their diagnoses."""
    yield check_python(platform.python_version(), importlib.metadata.metadata("tuneyard")["Requires-Python"])
    yield from check_packages(find_sources() / "constraints.txt", installed_version)
    yield from check_folder(settings.home)
    yield from check_permissions(settings)
    yield check_disk(settings.home, measure_free(settings.home))
    yield check_memory(psutil.virtual_memory().available)
    yield from check_gpu(_run(GPU_COMMAND), _run([sys.executable, "-c", TORCH_CODE]))
    yield check_dtype(settings.dtype, read_record(settings.home))
    yield check_answers(settings, find_vllm(settings), inspect_gpu() is not None)
    is_up = stack.is_up(settings)
    yield from check_proxies(os.environ)
    yield from check_store(SharedStore.find(settings))
    yield from check_ports(settings, is_up)
    if is_up:
        yield from check_stack({name: check for name, check in check_parts(settings).items() if name != STORE})
        yield from check_trainers(settings)
    else:
        yield Diagnosis(Level.OK, "stack", "is not running; it starts on first use")


def check_folder(home: Path) -> Iterator[Diagnosis]:
    """Check that the state folder is writable, but not by everybody."""
    folder = find_existing(home)
    if not _is_writable(folder):
        yield Diagnosis(Level.FAIL, "folder", f"{folder} is not writable", "set TUNEYARD_HOME to a writable folder")
    elif home.exists() and home.stat().st_mode & stat.S_IWOTH:
        yield Diagnosis(Level.FAIL, "folder", f"{home} is world-writable", f"chmod o-w {shlex.quote(str(home))}")
    else:
        yield Diagnosis(Level.OK, "folder", f"{home}" if home.exists() else f"{home}, created on first use")


def check_permissions(settings: Settings) -> Iterator[Diagnosis]:
    """Check that other accounts of this machine can't read the service's folders."""
    open_folders = 0
    for folder in dict.fromkeys((settings.home, settings.output_root, settings.data_root, settings.model_root)):
        if folder != settings.home and folder.is_relative_to(settings.home):
            continue
        found = list(islice(find_open(folder), OPEN_SHOWN + 1))
        if not found:
            continue
        open_folders += 1
        names = ", ".join(f"{path} ({stat.S_IMODE(path.lstat().st_mode):o})" for path in found[:OPEN_SHOWN])
        more = " …" if len(found) > OPEN_SHOWN else ""
        remedy = f"chmod -R go-rwx {shlex.quote(str(folder))}"
        if folder == settings.home:
            remedy += ", or `tuneyard down` and `tuneyard up`"
        yield Diagnosis(Level.WARN, "rights", f"other accounts can read {names}{more}", remedy)
    if not open_folders:
        yield Diagnosis(Level.OK, "rights", "no other account can read the service's folders")


def check_disk(home: Path, free_bytes: int) -> Diagnosis:
    """Check that the disk has space for models, adapters and checkpoints."""
    detail, remedy = f"{free_bytes / GIB:.1f} GiB free for {home}", "free space, or set TUNEYARD_HOME to a larger disk"
    if free_bytes < DISK_WARN_BYTES:
        return Diagnosis(Level.FAIL if free_bytes < DISK_FAIL_BYTES else Level.WARN, "disk", detail, remedy)
    return Diagnosis(Level.OK, "disk", detail)


def check_memory(available_bytes: int) -> Diagnosis:
    """Check that the memory holds the stack (0.6 GiB) and a small model."""
    detail, remedy = f"{available_bytes / GIB:.1f} GiB available", "stop other programs, or train a smaller model"
    if available_bytes < MEMORY_WARN_BYTES:
        return Diagnosis(Level.FAIL if available_bytes < MEMORY_FAIL_BYTES else Level.WARN, "memory", detail, remedy)
    return Diagnosis(Level.OK, "memory", detail)


def check_gpu(gpus: str | None, torch: str | None) -> Iterator[Diagnosis]:
    """Check that torch's build can use the GPUs.

    Args:
        gpus: Output of GPU_COMMAND; None if it is missing or fails.
        torch: Output of TORCH_CODE; None if torch can't be imported.
    """
    if torch is None:
        yield Diagnosis(Level.FAIL, "torch", "can't be imported", "pip install -c constraints.txt torch")
        return
    version, cuda, is_available = json.loads(torch.splitlines()[-1])
    names = [line.strip() for line in (gpus or "").splitlines() if line.strip()]
    for name in names:
        yield Diagnosis(Level.OK, "gpu", name)
    if is_available:
        yield Diagnosis(Level.OK, "torch", f"{version} uses CUDA {cuda}")
    elif not names:
        yield Diagnosis(Level.OK, "gpu", "no NVIDIA GPU or driver: jobs train on the CPU")
        yield Diagnosis(Level.OK, "torch", version)
    elif cuda is None:
        remedy = "install the CUDA build: pip install --force-reinstall -c constraints.txt torch"
        yield Diagnosis(Level.FAIL, "torch", f"{version} is a build without CUDA", remedy)
    else:
        remedy = "update the driver (`nvidia-smi` shows the newest CUDA it supports) or unset CUDA_VISIBLE_DEVICES"
        yield Diagnosis(Level.FAIL, "torch", f"{version} needs CUDA {cuda} and finds no GPU", remedy)


def check_store(store: SharedStore | None) -> Iterator[Diagnosis]:
    """Check that the store takes files from this machine. Yields nothing if none is set."""
    if store is None:
        return
    try:
        store.check()
    except StoreRefused as error:
        yield Diagnosis(Level.FAIL, "store", str(error))
    except StackError as error:
        remedy = "jobs train without it, and their checkpoints are lost with their machines"
        yield Diagnosis(Level.WARN, "store", str(error), remedy)
    else:
        yield Diagnosis(Level.OK, "store", f"{store.url} takes files")


def check_dtype(chosen: str | None, record: DtypeRecord | None) -> Diagnosis:
    """Show which dtype `mixed_precision: auto` selects on this machine's CPU."""
    if chosen is not None:
        return Diagnosis(Level.OK, "dtype", f"mixed_precision auto is {chosen}, set by TUNEYARD_DTYPE")
    if record is None:
        return Diagnosis(Level.OK, "dtype", "not measured on this CPU yet; the first plan or job measures it")
    times = f"matrix product: {1e3 * record.fp32_seconds:.1f} ms in fp32, {1e3 * record.bf16_seconds:.1f} ms in bf16"
    return Diagnosis(
        Level.OK,
        "dtype",
        f"mixed_precision auto is {record.mixed_precision} on this CPU, measured {record.measured_at} ({times}); "
        "TUNEYARD_DTYPE overrides it",
    )


def check_answers(settings: Settings, vllm: str | None, has_gpu: bool) -> Diagnosis:
    """Show what answers requests for text: transformers, or vLLM.

    Args:
        vllm: path of the command; None if it was not found.
    """
    try:
        engine = choose_engine(settings, vllm, has_gpu)
    except GenerationFailed as error:
        problem, _, remedy = str(error).partition("; ")
        return Diagnosis(Level.FAIL, "answers", problem, remedy)
    if engine == "vllm":
        return Diagnosis(Level.OK, "answers", f"by vLLM ({vllm})")
    if settings.vllm is not None and vllm is None:
        return Diagnosis(
            Level.WARN,
            "answers",
            f"by transformers: TUNEYARD_VLLM is {settings.vllm}, which is no command",
            "correct it",
        )
    unused = f"; {vllm} is used with a GPU, or by TUNEYARD_GENERATION_ENGINE=vllm" if vllm else ""
    return Diagnosis(Level.OK, "answers", f"by transformers{unused}")


def check_proxies(environment: Mapping[str, str]) -> Iterator[Diagnosis]:
    """Check that the proxies in the environment can be used. Yields nothing if none is set."""
    if not any(environment.get(name) for name in environment if name.lower() in PROXY_VARIABLES):
        return
    notes = bypass_proxies(dict(environment))
    for note in notes:
        problem, _, remedy = note.partition("; ")
        yield Diagnosis(Level.WARN, "proxy", problem, remedy or "set another proxy, or install the package it needs")
    if not notes:
        yield Diagnosis(Level.OK, "proxy", "used for other hosts; this machine is reached without it")


def check_ports(settings: Settings, is_up: bool) -> Iterator[Diagnosis]:
    """Check that the ports are free or used by this stack."""
    wanted = [("Prefect", settings.prefect_port, "TUNEYARD_PREFECT_PORT", settings.prefect_api_url)]
    wanted += [("MLflow", settings.mlflow_port, "TUNEYARD_MLFLOW_PORT", settings.mlflow_tracking_uri)]
    for part, port, variable, external in wanted:
        if external is None and not is_up:
            yield _check_port(part, port, variable, "127.0.0.1")
    if _is_our_api(settings):
        yield Diagnosis(Level.OK, "ports", f"the API runs on port {settings.api_port}")
    else:
        yield _check_port("The API", settings.api_port, "TUNEYARD_API_PORT", settings.host)


def _check_port(part: str, port: int, variable: str, host: str) -> Diagnosis:
    try:
        parts.check_port(part, port, variable, host)
    except StackError as error:
        problem, _, remedy = str(error).partition("; ")
        return Diagnosis(Level.FAIL, "ports", problem, remedy)
    return Diagnosis(Level.OK, "ports", f"{part}: port {port} is free")


def _is_our_api(settings: Settings) -> bool:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 - compared, not bound
    try:
        response = httpx.get(f"http://{host}:{settings.api_port}/", timeout=3, trust_env=False)
        return bool(response.json()["name"] == "Tuneyard")
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False


def check_stack(checks: Mapping[str, PartCheck]) -> Iterator[Diagnosis]:
    """Check that the running parts of the stack respond."""
    for name, check in checks.items():
        problem, _, advice = check.detail.partition("; ") if check.is_warning else (check.detail, "", "")
        if not check.ok:
            advice = "`tuneyard status` shows its log file; `tuneyard up` starts missing parts"
        level = Level.WARN if check.is_warning else Level.OK if check.ok else Level.FAIL
        yield Diagnosis(level, "stack", f"{name} {problem}", advice or None)


def _is_writable(folder: Path) -> bool:
    """Found by trying: permission bits say nothing about root or a read-only disk."""
    try:
        probe = folder / ".tuneyard-doctor"
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


def _run(command: list[str]) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=120
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
