"""Chromium, where it is installed: what a page asks for when a person opens it."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Itself it must be silent, so that what is seen is the page's.
SILENT = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
)


def find_browser() -> str:
    """The browser's program; without one the test is skipped."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found


def hosts_asked_by(url: str, seconds: float = 8) -> tuple[set[str], str]:
    """Every host that the browser looked for while `url` was open, and the page's document at the end.

    No name is resolved but this machine's, so nothing is sent to another one whatever the page does.
    """
    with tempfile.TemporaryDirectory(prefix="tuneyard-browser-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "net.json")
        command = [find_browser(), *SILENT, f"--user-data-dir={folder}/profile", f"--log-net-log={log}"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"]
        command += [f"--virtual-time-budget={int(seconds * 1000)}", "--dump-dom", url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
    return {host for line in lines if (host := _host_asked(line, origin))}, done.stdout


def _host_asked(line: str, origin: str) -> str | None:
    """The host that one event of the log asks for on behalf of a page of `origin`; the browser's own are left out."""
    try:
        event = json.loads(line.strip().rstrip(","))
        url, initiator = event["params"]["url"], event["params"]["initiator"]
    except (ValueError, KeyError, TypeError):
        return None
    return urlsplit(str(url)).hostname if initiator == origin else None
