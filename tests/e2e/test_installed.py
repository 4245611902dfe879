"""Tuneyard installed from its wheel, in a folder that is empty, where paths are odd and a company's proxy is set.

One stack for all of it: it comes up, runs a job on the dataset that the wheel carries, and neither it nor its pages ask
for any other host.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from jobs.project import PROJECT_ROOT
from jobs.stack.process_manager import run_folder, stack_processes
from tests.browser import hosts_asked_by
from tests.conftest import free_port
from tests.recording_proxy import RecordingProxy
from tests.tiny_models import save_tiny_llama

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

ODD = 'Müller\'s 60%(done) "x" #1 & $y;[z]'
NEEDED = (
    *("api", "app", "cli", "datasets", "demo", "flows", "jobs", "sft", "tasks", "training_cluster"),
    *("tuneyard_cli", "tuneyard_client", "tuneyard_wire"),
)
JOB = """
import json, time
import datasets
from app.api.sft_job_manager import sft_job_manager
from app.sft import SFTConfig

assert hasattr(datasets, "Dataset"), datasets  # the library, not a folder of ours
fields = {"max_steps": 2, "max_samples": 8, "batch_size": 2, "template_name": "chatml", "mixed_precision": "none"}
config = SFTConfig(base_model="tiny", dataset_name="handbook@v1.0", dataset_format="alpaca", **fields)
job_id = sft_job_manager.create_job(config)
sft_job_manager.start_job(job_id)
deadline = time.monotonic() + 240
while True:
    job = sft_job_manager.get_job_status(job_id)
    if job["status"] in ("completed", "failed", "stopped") or time.monotonic() > deadline:
        break
    time.sleep(0.5)
sft_job_manager.close()
print(json.dumps({"status": job["status"], "error": job["error"], "path": (job["result"] or {}).get("adapter_path")}))
"""


@dataclass(frozen=True)
class Installation:
    """A virtual environment with the wheel in it, and the environment and folder that a person runs it in."""

    python: Path
    environment: dict[str, str]
    folder: Path
    home: Path
    ports: tuple[int, int]
    proxy: RecordingProxy

    def run(self, *arguments: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )

    def tuneyard(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "cli", *arguments)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    base = tmp_path_factory.mktemp("installed")
    python = install_wheel(base, base / ODD / "venv")
    folder, data = base / ODD / "empty", base / ODD / "data"
    folder.mkdir()
    home = data / "tuneyard"
    save_tiny_llama(home / "models" / "tiny")
    ports = free_port(), free_port()
    with RecordingProxy() as proxy:
        dropped = ("TUNEYARD_", "PREFECT_", "MLFLOW_", "HF_", "PYTHON", "LC_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        for name in ("HOME", "NO_PROXY", "no_proxy", "VIRTUAL_ENV"):
            environment.pop(name, None)
        environment |= proxy.environment() | {
            "LANG": "C",
            "TZ": "Asia/Kathmandu",
            "TMPDIR": str(base / "missing"),
            "XDG_DATA_HOME": str(data),
            "TUNEYARD_PREFECT_PORT": str(ports[0]),
            "TUNEYARD_MLFLOW_PORT": str(ports[1]),
            "TUNEYARD_API_PORT": str(free_port()),
            "OMP_NUM_THREADS": "1",
        }
        installed = Installation(python, environment, folder, home, ports, proxy)
        old = os.umask(0o077)
        try:
            up = installed.tuneyard("up")
            assert up.returncode == 0, up.stderr
            yield installed
        finally:
            os.umask(old)
            installed.tuneyard("down")
    assert stack_processes(home) == []
    assert not run_folder(home).exists()


def install_wheel(base: Path, venv: Path) -> Path:
    """Build the wheel and install it alone, beside the packages of this Python; the new environment's Python."""
    source = base / "source"
    source.mkdir()
    for name in NEEDED:
        shutil.copytree(PROJECT_ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE", "prefect.yaml", "dvc.yaml", "constraints.txt"):
        shutil.copy(PROJECT_ROOT / file, source / file)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    quiet = ["-q", "--no-index", "--no-deps"]
    run_pip(*pip, "wheel", *quiet, "--no-build-isolation", "-w", str(base / "dist"), str(source))
    (wheel,) = (base / "dist").iterdir()
    run_pip(*pip, "--python", str(python), "install", *quiet, "--ignore-installed", str(wheel))
    return python


def run_pip(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_job_runs_on_what_the_wheel_carries(installation: Installation) -> None:
    done = installation.run("-c", JOB)
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout.splitlines()[-1])
    said = (installation.home / "logs" / "worker-0.log").read_text(encoding="utf-8")
    assert job["status"] == "completed", f"{job['error']}\n{said[-6000:]}"
    assert Path(job["path"]).is_relative_to(installation.home)
    assert list(installation.folder.iterdir()) == []
    site = next(installation.python.parent.parent.glob("lib/python*/site-packages"))
    assert not (site / "datasets").exists()
    assert not (site / ".tuneyard").exists()
    assert (installation.home / "postgres").stat().st_mode & 0o777 == 0o700


def test_the_doctor_finds_what_it_needs(installation: Installation) -> None:
    said = installation.tuneyard("doctor").stdout
    assert "constraints.txt" in said
    assert "FAIL" not in said


def test_nothing_asked_for_another_host(installation: Installation) -> None:
    """The stack's start, a job, the watchdog, and what Prefect's pages have its server fetch."""
    views = f"http://127.0.0.1:{installation.ports[0]}/api/collections/views/aggregate-worker-metadata"
    assert "prefect" in httpx.get(views, timeout=30, trust_env=False).json()
    assert installation.proxy.requests == []


@pytest.mark.parametrize("path", ["/", "/dashboard", "/v2/dashboard", "/blocks/catalog"])
def test_prefects_pages_ask_for_no_other_host(installation: Installation, path: str) -> None:
    hosts, page = hosts_asked_by(f"http://localhost:{installation.ports[0]}{path}")
    assert "<script" in page
    assert hosts <= {"127.0.0.1", "localhost"}
    assert installation.proxy.requests == []


def test_mlflows_page_asks_for_no_other_host(installation: Installation) -> None:
    hosts, page = hosts_asked_by(f"http://127.0.0.1:{installation.ports[1]}/")
    assert "<script" in page
    assert hosts <= {"127.0.0.1", "localhost"}
