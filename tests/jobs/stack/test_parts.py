"""What the stack's processes are given: devices, environment, addresses."""

import shlex
import shutil
import tempfile
from pathlib import Path

import pytest
from sqlalchemy import make_url
from supervisor.options import ServerOptions

from jobs.settings import Settings
from jobs.stack.database_urls import database_url, sibling_url
from jobs.stack.gpus import visible_gpus
from jobs.stack.parts import build_parts, fill_addresses, stack_environment
from jobs.stack.process_manager import PLAIN_PATH, StackPart, Supervisor, make_run_folder, render_config, run_folder
from sft.errors import StackError

TWO_GPUS = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1f)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2f)
"""


SLICED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 1c.3g.20gb  Device  1: (UUID: MIG-GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77/2/0)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-7d1c2a3b-0000-2b2c-524d-9e3d8d2b8a77)
"""
FIRST, SECOND = "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "MIG-GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77/2/0"
WHOLE = "GPU-7d1c2a3b-0000-2b2c-524d-9e3d8d2b8a77"


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, [FIRST, SECOND, WHOLE]),
        ("0", [FIRST, SECOND]),
        ("1,0", ["1", FIRST, SECOND]),
        ("GPU-5d5b", [FIRST, SECOND]),
        ("GPU-7d1c", ["GPU-7d1c"]),
        (SECOND, [SECOND]),
        ("-1,0", []),
    ],
)
def test_each_slice_of_a_gpu_is_one_of_its_own(tmp_path: Path, chosen: str | None, expected: list[str]) -> None:
    """CUDA can't use a GPU that is split into MIG slices but by its slices, one a process."""
    environment = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    found = visible_gpus(environment, lambda: SLICED)
    assert found == expected
    assert devices_of_workers(Settings(home=tmp_path), found) == (expected or [None])


def test_a_worker_has_one_slice_however_few_workers_there_are(tmp_path: Path) -> None:
    assert devices_of_workers(Settings(home=tmp_path, workers=1), [FIRST, SECOND]) == [FIRST]
    assert devices_of_workers(Settings(home=tmp_path, workers=2), [FIRST, SECOND, WHOLE]) == [WHOLE, SECOND]


@pytest.mark.parametrize(
    ("chosen", "listed", "expected"),
    [
        (None, TWO_GPUS, ["0", "1"]),
        (None, "", []),
        ("", TWO_GPUS, []),
        ("-1", TWO_GPUS, []),
        ("3", TWO_GPUS, ["3"]),
        ("GPU-1f, MIG-2a", TWO_GPUS, ["GPU-1f", "MIG-2a"]),
        ("1,-1,0", TWO_GPUS, ["1"]),
    ],
)
def test_gpus_are_those_that_cuda_would_show(chosen: str | None, listed: str, expected: list[str]) -> None:
    environment = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    assert visible_gpus(environment, lambda: listed) == expected


def devices_of_workers(settings: Settings, gpus: list[str]) -> list[str | None]:
    workers = [part for part in build_parts(settings, gpus) if part.name.startswith("worker-")]
    assert all("--limit 1 " in " ".join(part.command) for part in workers)
    return [part.environment.get("CUDA_VISIBLE_DEVICES") for part in workers]


def test_each_gpu_has_one_worker_and_a_machine_without_has_one_in_all(tmp_path: Path) -> None:
    assert devices_of_workers(Settings(home=tmp_path), ["0", "1"]) == ["0", "1"]
    assert devices_of_workers(Settings(home=tmp_path), []) == [None]
    assert devices_of_workers(Settings(home=tmp_path, workers=3), ["0", "1"]) == ["0", "1", "0"]
    assert devices_of_workers(Settings(home=tmp_path, workers=2), []) == [None, None]


def test_fewer_workers_than_gpus_share_them_for_jobs_on_several(tmp_path: Path) -> None:
    gpus = ["0", "1", "2", "GPU-3f"]
    assert devices_of_workers(Settings(home=tmp_path, workers=1), gpus) == ["0,1,2,GPU-3f"]
    assert devices_of_workers(Settings(home=tmp_path, workers=2), gpus) == ["0,2", "1,GPU-3f"]
    assert devices_of_workers(Settings(home=tmp_path, workers=3), gpus) == ["0,GPU-3f", "1", "2"]
    assert devices_of_workers(Settings(home=tmp_path, workers=5), gpus) == ["0", "1", "2", "GPU-3f", "0"]


def test_only_what_is_missing_is_run_here(tmp_path: Path) -> None:
    def names(**given: str) -> list[str]:
        return [part.name for part in build_parts(Settings(home=tmp_path, **given), [])]

    assert names() == ["postgres", "prefect", "mlflow", "worker-0", "watchdog"]
    assert names(database_url="postgresql://db/tuneyard") == ["prefect", "mlflow", "worker-0", "watchdog"]
    assert names(mlflow_tracking_uri="http://mlflow") == ["postgres", "prefect", "worker-0", "watchdog"]
    assert names(prefect_api_url="http://prefect/api") == ["postgres", "mlflow", "watchdog"]


def test_a_job_reads_the_settings_its_stack_was_started_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path / "a %(b)s", allowed_output_roots=(Path("/data"), Path("/scratch")), workers=2)
    monkeypatch.setenv("PREFECT_PROFILE", "work")
    monkeypatch.setenv("TUNEYARD_DEFAULT_DATASET", "other")
    environment = stack_environment(settings)
    assert "PREFECT_PROFILE" not in environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert environment["TMPDIR"] == str(run_folder(settings.home) / "tmp")
    roots = (*settings.allowed_output_roots, Path(tempfile.gettempdir()))  # what the usual temporary folder was
    assert Settings() == fill_addresses(settings).model_copy(update={"allowed_output_roots": roots})


def test_credentials_go_to_an_external_mlflow_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    assert "MLFLOW_TRACKING_TOKEN" not in stack_environment(Settings(home=tmp_path))
    external = Settings(home=tmp_path, mlflow_tracking_uri="http://mlflow")
    assert stack_environment(external)["MLFLOW_TRACKING_TOKEN"] == "secret"
    assert fill_addresses(Settings(home=tmp_path)).mlflow_tracking_token is None


def test_the_other_databases_lie_beside_an_external_one() -> None:
    url = "postgresql://me:p%40ss@db:5433/tuneyard?sslmode=require"
    assert sibling_url(url, "mlflow") == "postgresql+psycopg2://me:p%40ss@db:5433/mlflow?sslmode=require"
    assert sibling_url(url, "prefect", "asyncpg") == "postgresql+asyncpg://me:p%40ss@db:5433/prefect"


def test_what_an_address_of_postgres_says_to_libpq_is_said_to_prefects_driver_too(tmp_path: Path) -> None:
    url = "postgresql://me@db/tuneyard?sslmode=verify-full&sslrootcert=/ca.pem&sslcert=/a.crt&sslkey=/a.key&host=other"
    settings = Settings(home=tmp_path, database_url=f"{url}&connect_timeout=5&application_name=x&keepalives_idle=9")
    environment = stack_environment(settings)
    assert environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] == "postgresql+asyncpg://me@db/prefect?host=other"
    told = {name: environment[f"PG{name}"] for name in ("SSLMODE", "SSLROOTCERT", "SSLCERT", "SSLKEY")}
    assert told == {"SSLMODE": "verify-full", "SSLROOTCERT": "/ca.pem", "SSLCERT": "/a.crt", "SSLKEY": "/a.key"}


@pytest.mark.parametrize(
    "parameter", ["options=-csearch_path%3Dx", "channel_binding=require", "service=x", "sslpasword=x"]
)
def test_a_parameter_that_the_driver_lacks_is_refused_where_it_would_be_lost(tmp_path: Path, parameter: str) -> None:
    url = f"postgresql://me@db/tuneyard?{parameter}"
    with pytest.raises(StackError, match=f"has {parameter.partition('=')[0]}, which the driver of a local Prefect"):
        stack_environment(Settings(home=tmp_path, database_url=url))
    stack_environment(Settings(home=tmp_path, database_url=url, prefect_api_url="http://prefect/api"))


ODD_NAMES = [
    "a b",
    "60%done",
    "%(here)s",
    "Müller",
    "日本",
    "it's",
    'q"q',
    "a #b",
    "a ;b",
    "w?x&y",
    "$HOME",
    "b\\s",
    "-d",
    "[x]*",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_the_process_manager_reads_every_path_as_it_is(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    (home / "logs").mkdir(parents=True)
    folder = make_run_folder(home)
    try:
        file = folder / "supervisord.conf"
        command = [f"/opt/{name}/bin/python", "-m", name, ""]
        file.write_text(render_config(home, folder, [StackPart("one", command, 10)]), encoding="utf-8")
        options = ServerOptions()
        options.realize(["-c", str(file)])
        (program,) = options.process_group_configs[0].process_configs
        assert shlex.split(program.command) == command
        assert Path(program.stdout_logfile).parent.parent.samefile(home)
        assert Path(options.directory).samefile(home)
        url = make_url(database_url(Settings(home=home), "tuneyard"))
        assert Path(str(url.query["host"])).parent.samefile(home)
        assert PLAIN_PATH.fullmatch(str(url.query["host"]))
    finally:
        shutil.rmtree(folder)


def test_a_line_break_in_the_installations_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="line break; install Tuneyard in a folder without one"):
        render_config(tmp_path, tmp_path / "run", [StackPart("one", ["/opt/a\nb/python"], 10)])


def test_a_link_of_somebody_elses_is_not_taken_for_the_run_folder(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a b")
    folder.symlink_to(tmp_path)
    try:
        with pytest.raises(StackError, match="belongs to another user"):
            run_folder(tmp_path / "a b")
    finally:
        folder.unlink()


def test_a_long_state_folder_has_a_short_socket_folder(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 30)
    folder = Supervisor(home).run
    assert len(str(folder)) < 50
    assert Supervisor(home).run == folder != Supervisor(tmp_path / ("long" * 31)).run
    assert Supervisor(tmp_path).run == tmp_path / "run"
