"""Opens folders in object stores and on shared disks by their URL, with time limits for each request."""

import functools
import os
from typing import Any

from jobs.network.deadlines import READ_SECONDS

TRIES = 2  # of each request
CONNECT_SECONDS = 3.0
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_MISCONFIGURED = (
    *("ProfileNotFound", "ConfigNotFound", "ConfigParseError", "InvalidConfigError", "ParamValidationError"),
    *("InvalidRetryModeError", "InvalidRetryConfigurationError", "InvalidChecksumConfigError"),
    *("InvalidProxiesConfigError", "EndpointResolutionError"),
)
_UNREADABLE = (FileNotFoundError, PermissionError, IsADirectoryError, ValueError)  # a CA bundle, or an endpoint's URL
_WRONG_BUNDLE = "[X509"
_WRONG_TLS = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")  # an unknown authority, or a server without TLS


@functools.cache  # one object, as fsspec keeps a file system by its options
def _s3_session() -> Any:
    """A session that sends files without `Expect: 100-continue`: nothing would limit the wait for that response."""
    from aiobotocore.session import get_session
    from botocore.handlers import add_expect_header

    session = get_session()
    session.unregister("before-call.s3", add_expect_header)
    return session


def open_storage(url: str, endpoint_variable: str | None = None) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the URL's path in it.

    Credentials and endpoints are found as the store's own tools find them, in `AWS_...` variables for example. Raises
    what fsspec raises: ImportError for a store whose package is not installed.

    Args:
        endpoint_variable: a variable that may name an S3 endpoint other than the one that S3's own tools use.
    """
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}
    if url.startswith("s3://"):
        # Named here, though S3's tools would find theirs: fsspec keeps a file system by its options.
        variables = filter(None, (endpoint_variable, *ENDPOINT_VARIABLES))
        endpoint = next(filter(None, map(os.environ.get, variables)), None)
        options |= {
            "session": _s3_session(),
            "client_kwargs": {"endpoint_url": endpoint} if endpoint else {},
            "config_kwargs": {
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": READ_SECONDS,
                "retries": {"total_max_attempts": TRIES},
            },
        }
    elif url.startswith("file://"):
        options = {"auto_mkdir": True}
    storage, path = fsspec.core.url_to_fs(url.rstrip("/"), **options)
    if hasattr(storage, "retries"):  # s3fs repeats what botocore has given up, each time as long
        storage.retries = 1
    return storage, str(path)


def is_misconfigured(error: Exception) -> bool:
    """Whether an error of S3's tools is caused by this machine's settings, so that retries don't help."""
    name, inner = type(error).__name__, getattr(error, "kwargs", {}).get("error")
    is_local = name == "HTTPClientError" and (isinstance(inner, _UNREADABLE) or _WRONG_BUNDLE in str(error))
    return name in _MISCONFIGURED or is_local or any(word in str(error) for word in _WRONG_TLS)
