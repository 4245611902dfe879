"""The client where nothing else of Tuneyard is installed."""

import json
import subprocess
import sys

from tests.client.scripted_service import Scripted

OURS = ("app", "api", "jobs", "flows", "tasks", "sft")
BLOCKED = (*OURS, "torch", "transformers", "prefect", "mlflow", "fastapi", "sqlalchemy", "yaml", "dvc")
ALONE = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ImportError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Blocked())
from pydantic import BaseModel
from tuneyard_client import ClientError, Tuneyard

class Config(BaseModel):
    base_model: str

with Tuneyard(sys.argv[1]) as client:
    print(client.submit({{"model_name": "m"}}).job_id, client.sft(Config(base_model="m")).job_id)
    try:
        client.job("2")
    except ClientError as error:
        print(error.code)
"""


def test_it_needs_httpx_and_pydantic_alone(service):
    started = Scripted(body=json.dumps({"job_id": "1", "status": "started", "message": "Training job started"}))
    missing = Scripted(404, json.dumps({"detail": "Job 2 not found", "code": "job_not_found", "request_id": "r"}))
    url = service(started, started, missing).url
    done = subprocess.run([sys.executable, "-c", ALONE, url], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("1 1\njob_not_found\n", "")
