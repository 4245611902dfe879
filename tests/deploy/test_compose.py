"""deploy/compose.yaml: read by Compose's own rules; who gets which secret; what each service may do."""

import os
import subprocess

import compose_spec
import pytest
import yaml

from jobs.project import PROJECT_ROOT
from tests.deploy.compose_file import FOLDER, read_compose, secrets_of

COMPOSE = read_compose("compose.yaml")
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if name != "postgres"}


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_compose_reads_the_file(name):
    read = compose_spec.PyCompose.from_yaml(yaml.safe_dump(read_compose(name)))
    assert read.service_names()


def test_compose_would_refuse_an_unknown_option():
    with pytest.raises(ValueError, match="readonly"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(COMPOSE).replace("read_only", "readonly"))


def test_everything_that_is_referred_to_is_there():
    for service in SERVICES.values():
        assert set(secrets_of(service).values()) <= set(COMPOSE["secrets"])
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        named = {volume.split(":")[0] for volume in service.get("volumes", []) if not volume.startswith(".")}
        assert named <= set(COMPOSE["volumes"])
        for other, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[other]


@pytest.mark.parametrize("name", OURS)
def test_a_service_of_ours_has_few_rights_and_limits(name):
    service = OURS[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"]["memory"]
    assert service["restart"] == ("no" if name == "setup" else "unless-stopped")
    assert any(volume.endswith(":/var/lib/tuneyard") for volume in service["volumes"])


def test_secrets_are_files_and_reach_those_who_need_them():
    passwords = [value for service in SERVICES.values() for value in service.get("environment", {}).values()]
    assert not [value for value in passwords if "password" in str(value).lower() and not str(value).startswith("/run")]
    worker = secrets_of(SERVICES["worker"])
    assert worker["TUNEYARD_DATABASE_URL"] == "trainer-database-url"
    assert "database-url" not in worker.values()
    for name in ("api", "watchdog", "setup"):
        assert secrets_of(SERVICES[name])["TUNEYARD_DATABASE_URL"] == "database-url"


def test_ports_are_open_to_the_host_alone():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_a_worker_trains_one_job_with_one_gpu():
    words = SERVICES["worker"]["command"]
    assert words[words.index("--limit") + 1] == "1"
    assert SERVICES["worker"]["stop_grace_period"] == "2m"
    workers = read_compose("compose.cuda.yaml")["services"].values()
    gpus = [one["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for one in workers]
    assert sorted(gpus) == [["0"], ["1"]]


def test_the_secret_files_are_made_once(tmp_path):
    folder = tmp_path / "secrets"
    for _ in range(2):
        subprocess.run([FOLDER / "make-secrets.sh", folder], check=True)
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(made) == {entry["file"].removeprefix("secrets/") for entry in COMPOSE["secrets"].values()}
    subprocess.run([FOLDER / "make-secrets.sh", folder], check=True)
    assert made == {path.name: path.read_text() for path in folder.iterdir()}
    assert folder.stat().st_mode & 0o777 == 0o700
    filled = [value for value in made.values() if value]
    assert len(set(filled)) == len(filled)


def run_entrypoint(folder, variables):
    script = 'echo "${ONE-unset} ${TWO-unset} ${THREE-unset}"; exit 7'
    command = [FOLDER / "entrypoint.sh", "sh", "-c", script]
    environment = {"PATH": os.environ["PATH"], "SECRETS_FOLDER": str(folder), **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_secret_files_become_variables(tmp_path):
    (tmp_path / "ONE").write_text("a 'quoted' $value\n")
    (tmp_path / "TWO").write_text("from the file")
    (tmp_path / "THREE").write_text("")
    (tmp_path / "database-url").write_text("not a variable")
    (tmp_path / "KUBERNETES").mkdir()
    done = run_entrypoint(tmp_path, {"TWO": "given"})
    assert (done.returncode, done.stdout) == (7, "a 'quoted' $value given unset\n")
    assert run_entrypoint(tmp_path / "none", {}).stdout == "unset unset unset\n"


def test_no_secret_file_is_committed():
    ignored = subprocess.run(["git", "check-ignore", "deploy/secrets/database-url"], cwd=PROJECT_ROOT, check=False)
    assert ignored.returncode == 0
