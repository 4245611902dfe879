"""Waits at a job's start for a Prefect server that is down, for example restarting."""

import os
import sys
import urllib.error
import urllib.request

from tenacity import retry_if_not_result

from jobs.retrying import patient

PATIENCE_SECONDS = 120.0
PAUSES = (0.5, 0.5)
SERVER_ERROR = 500


def wait_for_prefect(patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Return once the server responds, or after `patience_seconds`: then Prefect's own error reports the problem."""
    if url := os.environ.get("PREFECT_API_URL"):
        message = f"Prefect does not respond at {url}; waiting for it\n"
        tries = patient(retry_if_not_result(bool), patience_seconds, PAUSES, lambda _: sys.stderr.write(message))
        tries(_answers, f"{url}/health")


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=10).close()  # noqa: S310 - Prefect's own address
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < SERVER_ERROR
    except urllib.error.URLError as error:
        return not isinstance(error.reason, ConnectionError | TimeoutError)
    except OSError:
        return False
    return True
