"""The dataset registry: your git + DVC repository, or the default one, built from `datasets/`."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from filelock import FileLock

from jobs.project import find_sources as find_project
from jobs.sanitizing.log_lines import hide_passwords
from jobs.settings import Settings
from sft.errors import DatasetNotFound, StackError

PARAMS = Path("datasets/params.yaml")
STAMP = Path(".git/built-from")  # sources and path, written last: a registry with this stamp is complete
DVC = (sys.executable, "-P", "-m", "dvc")
FIRST_DATE = 1767225600  # 2026-01-01 UTC; each version is a day later
STEP_TIMEOUT_SECONDS = 120
GIT_TIMEOUT_SECONDS = 5
CLONE_TIMEOUT_SECONDS = 300
NO_COMMANDS = ("-c", "protocol.ext.allow=never")  # no address may run a command
NO_LAZY_FETCH = ("-c", "protocol.file.allow=never")  # no program named in a repository's settings may run


def ensure_registry(settings: Settings) -> Path:
    """The git repository to read datasets from; builds the default registry if it is missing or out of date.

    A registry at a URL is mirrored below `home` and updated on each call. Safe for parallel jobs.

    Raises:
        DatasetNotFound: the configured registry can't be reached.
        StackError: the default registry could not be built.
    """
    named = settings.dataset_registry
    if named is None:
        return build_registry(settings.home)
    if named.startswith("file://"):  # DVC resolves relative remotes for a path, but not for a URL
        named = unquote(urlsplit(named).path)
    path = Path(named).expanduser()
    if path.exists():
        return path.resolve()
    if "://" not in named and not named.startswith("git@"):
        raise DatasetNotFound(
            f"dataset_registry {settings.dataset_registry} does not exist; name a git + DVC repository"
        )
    return mirror_registry(named, settings.home)


def build_registry(home: Path, project: Path | None = None) -> Path:
    """Build `home/registry` from the project's `dvc.yaml` and `datasets/`: a commit and a tag for each version.

    Author and dates are fixed, so the same sources give the same commits on every machine.
    """
    registry = home / "registry"
    project = project or find_project()
    sources = find_sources(project)
    stamp = f"{digest_sources(project, sources)} {home}"
    if read_stamp(registry) == stamp:
        return registry
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "registry.lock"):
        if read_stamp(registry) == stamp:
            return registry
        fresh, scratch, old = (home / f"registry.{name}" for name in ("new", "scratch", "old"))
        for leftover in (fresh, scratch, old):
            shutil.rmtree(leftover, ignore_errors=True)
        for source in sources:
            (fresh / source).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(project / source, fresh / source)
        commit_versions(fresh, scratch)
        (fresh / STAMP).write_text(stamp, encoding="utf-8")
        if registry.exists():
            registry.rename(old)
        fresh.rename(registry)
        for leftover in (scratch, old):
            shutil.rmtree(leftover, ignore_errors=True)
    return registry


def commit_versions(registry: Path, scratch: Path) -> None:
    """Turn `registry`, which has the sources, into a git + DVC repository with all versions tagged and pushed."""
    versions: list[str] = yaml.safe_load((registry / PARAMS).read_text(encoding="utf-8"))["versions"]
    env = make_build_environment(scratch)

    def run(*command: str) -> None:
        try:
            subprocess.run(
                command,
                cwd=registry,
                env=env,
                check=True,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=STEP_TIMEOUT_SECONDS,
            )
        except (OSError, subprocess.SubprocessError) as error:
            output = getattr(error, "stderr", None) or str(error)
            raise StackError(
                f"building the dataset registry failed at {' '.join(command)}: {output.strip()}"
            ) from error

    run("git", "init", "--quiet", "--template=", "--initial-branch=main")
    run(*DVC, "init", "--quiet")
    # The committed path is relative: an absolute one would give each machine different commits. But DVC resolves it
    # against the file system's root when it reads a tag, so the registry also has the absolute one, uncommitted.
    remote = "['remote \"store\"']\n    url = {}\n"
    (registry / ".dvc/config").write_text(f"[core]\n    remote = store\n{remote.format('../../registry-remote')}")
    store = quote_value(str(registry.parent / "registry-remote"))
    (registry / ".dvc/config.local").write_text(remote.format(store), encoding="utf-8")
    for number, version in enumerate(versions):
        params = {"version": version, "versions": versions}
        (registry / PARAMS).write_text(yaml.safe_dump(params), encoding="utf-8")
        run(*DVC, "repro", "--quiet")
        run("git", "add", "--all")
        env["GIT_AUTHOR_DATE"] = env["GIT_COMMITTER_DATE"] = f"{FIRST_DATE + number * 86400} +0000"
        run("git", "commit", "--quiet", "--message", f"Datasets {version}")
        run("git", "tag", version)
    run(*DVC, "push", "--quiet", "--all-tags")


def quote_value(value: str) -> str:
    """Quote a value for DVC's configuration file: unquoted, a comma makes a list and `#` starts a comment."""
    mark = next((mark for mark in ('"', "'") if mark not in value), "'''")
    return f"{mark}{value}{mark}"


def make_build_environment(scratch: Path) -> dict[str, str]:
    """The environment of git and DVC for a build: no user configuration, and this interpreter as `python`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_"))}
    return env | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)]),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "Tuneyard",
        "GIT_AUTHOR_EMAIL": "tuneyard@localhost",
        "GIT_COMMITTER_NAME": "Tuneyard",
        "GIT_COMMITTER_EMAIL": "tuneyard@localhost",
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(scratch / "global"),
        "DVC_SYSTEM_CONFIG_DIR": str(scratch / "system"),
        "DVC_SITE_CACHE_DIR": str(scratch / "site"),
    }


def find_sources(project: Path) -> list[Path]:
    """The registry's source files, relative to the project and in a fixed order, without documentation."""
    found = [path.relative_to(project) for path in (project / "datasets").rglob("*") if path.is_file()]
    kept = (path for path in found if "__pycache__" not in path.parts and path.suffix != ".md")
    return [Path("dvc.yaml"), *sorted(kept)]


def digest_sources(project: Path, sources: list[Path]) -> str:
    """SHA-256 over names and contents."""
    digest = hashlib.sha256()
    for source in sources:
        content = (project / source).read_bytes()
        digest.update(f"{source.as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def read_stamp(registry: Path) -> str | None:
    """Read the stamp of a complete registry; None without one."""
    try:
        return (registry / STAMP).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None


def mirror_registry(url: str, home: Path) -> Path:
    """Clone or update a bare mirror of the git repository at `url`. Its data stays in the DVC remote."""
    mirror = home / "registries" / hashlib.sha256(url.encode()).hexdigest()[:16]
    mirror.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # git stores the URL, which may contain a password
    git(None, "ls-remote", "--quiet", "--end-of-options", url, "HEAD")  # fails within seconds if the server is down
    with FileLock(f"{mirror}.lock"):
        if mirror.exists():
            git(mirror, "fetch", "--quiet", "--prune", timeout_seconds=CLONE_TIMEOUT_SECONDS)
        else:
            fresh = mirror.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            git(None, "clone", "--quiet", "--mirror", "--", url, str(fresh), timeout_seconds=CLONE_TIMEOUT_SECONDS)
            fresh.rename(mirror)
    return mirror


def git(repository: Path | None, *arguments: str, timeout_seconds: float = GIT_TIMEOUT_SECONDS) -> str:
    """Run git without prompts and return its output.

    Raises:
        DatasetNotFound: git failed or timed out.
    """
    place = [*NO_COMMANDS, *(NO_LAZY_FETCH if repository and arguments[0] != "fetch" else ())]
    place += ["-C", str(repository)] if repository else []
    env = os.environ | {"GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}
    env |= {"GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o ConnectTimeout=4"}
    if repository:  # never a repository that contains it, or one whose hook runs us
        env["GIT_CEILING_DIRECTORIES"] = str(repository.parent)
    env = {name: value for name, value in env.items() if name not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    try:
        done = subprocess.run(
            ["git", *place, *arguments],
            check=True,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_seconds,
            env=env,
        )
    except subprocess.TimeoutExpired as error:
        raise DatasetNotFound(
            f"the dataset registry did not respond to git {arguments[0]} in {timeout_seconds:g} s; "
            "check dataset_registry"
        ) from error
    except (OSError, ValueError, subprocess.CalledProcessError) as error:  # ValueError: a NUL character
        output = (getattr(error, "stderr", None) or str(error)).strip()
        raise DatasetNotFound(f"git {arguments[0]} failed on the dataset registry: {hide_passwords(output)}") from error
    return done.stdout.strip()
