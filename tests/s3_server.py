"""An S3 server of a test's own, with one bucket."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "tuneyard-tests"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "ann",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
}


class S3Server(NamedTuple):
    """Its address, and a client of it."""

    url: str
    client: Any


@contextmanager
def s3_server(*endpoint_variables: str) -> Iterator[S3Server]:
    """Run one; meanwhile the credentials, and its address in these variables, are in the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (ENVIRONMENT | dict.fromkeys(endpoint_variables, url)).items():
                patch.setenv(name, value)
            client = boto3.client("s3", endpoint_url=url)
            client.create_bucket(Bucket=BUCKET)
            yield S3Server(url, client)
    finally:
        server.stop()
