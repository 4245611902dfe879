"""A job that starts while Prefect's server is away, since that is being started anew, waits for it."""

import os
import sys
import time
import urllib.error
import urllib.request

PATIENCE_SECONDS = 120.0
POLL_SECONDS = 0.5
SERVER_ERROR = 500


def wait_for_prefect(patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Return once the server answers anything, or when it has not for so long: then Prefect says what is wrong."""
    url = os.environ.get("PREFECT_API_URL")
    deadline = time.monotonic() + patience_seconds
    is_told = False
    while url and not _answers(f"{url}/health") and time.monotonic() < deadline:
        if not is_told:
            sys.stderr.write(f"Prefect does not answer at {url}; waiting for it\n")
        is_told = True
        time.sleep(POLL_SECONDS)


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
