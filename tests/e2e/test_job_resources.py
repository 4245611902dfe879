"""Everything that can be had of one real job: events, log, metrics, checkpoints, adapter, callbacks."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

SMALL = {"template": "chatml", "max_samples": 24, "batch_size": 4, "gradient_accumulation_steps": 1, "num_epochs": 1}


def read_stream(lines):
    """The events of a text/event-stream: id, name and data."""
    fields = {}
    for line in lines:
        if not line and "data" in fields:
            yield fields["id"], fields["event"], json.loads(fields["data"])
            fields = {}
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value


@pytest.fixture(scope="module")
def followed(api, model):
    """A job of six steps and the events that a client got who followed it from the start to its end."""
    body = SMALL | {"model_name": model, "dataset_version": "v1.1", "lora_name": "followed", "save_steps": 2}
    job_id = api.post("/train", json=body | {"save_total_limit": 2, "eval_steps": 3}).json()["job_id"]
    with api.stream("GET", f"/train/{job_id}/events", timeout=240) as answer:
        events = [*read_stream(answer.iter_lines())]
    ended_at = datetime.now(UTC).timestamp()
    return job_id, events, ended_at


def test_the_events_tell_the_whole_job(api, followed):
    job_id, events, ended_at = followed
    job = api.get(f"/train/{job_id}").json()
    _, last, end = events[-1]

    phases = [data["phase"] for _, name, data in events if name == "phase"]
    assert phases[:3] == ["starting", "tokenizing", "loading model"]
    assert phases[3:] == ["training", "evaluating", "evaluating", "registering"]
    assert [name for _, name, _ in events if name in ("begin", "epoch", "end")] == ["begin", "epoch", "end"]
    assert [data["step"] for _, name, data in events if name == "step"][-1] == 6
    assert [data["step"] for _, name, data in events if name == "checkpoint"] == [2, 4, 6]
    assert [data["step"] for _, name, data in events if name == "evaluate"] == [3, 6, 6, 0]
    assert (last, end["status"], end["result"]) == ("end", "completed", job["result"])
    assert ended_at - job["end_time"] < 20  # a second or two where nothing else runs
    replayed = api.get(f"/api/sft/jobs/{job_id}/events", headers={"Last-Event-ID": events[4][0]})
    assert [*read_stream(replayed.text.split("\n"))] == events[5:]


def test_the_metrics_have_every_step(api, followed, stack):
    series = api.get(f"/train/{followed[0]}/metrics").json()["series"]

    for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second"):
        assert [step for step, _ in series[name]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in series["eval_loss"]] == [0, 3, 6]
    result = api.get(f"/train/{followed[0]}").json()["result"]
    assert (series["eval_loss"][0][1], series["eval_loss"][-1][1]) == (result["base_eval_loss"], result["eval_loss"])


def test_the_log_is_what_the_job_said(api, followed):
    last = "Finished in state"  # Prefect sends the last lines late
    wait_until(lambda: last in api.get(f"/train/{followed[0]}/logs").text, 60)
    followed_text = api.get(f"/api/sft/jobs/{followed[0]}/logs", params={"follow": "true"}, timeout=60).text
    text = api.get(f"/train/{followed[0]}/logs").text

    assert "rows used" in text
    assert "Registered models:/followed/1" in text
    assert text.startswith(followed_text)


def test_the_checkpoints_that_are_kept(api, followed):
    checkpoints = api.get(f"/train/{followed[0]}/checkpoints").json()["checkpoints"]

    assert [(entry["step"], entry["complete"]) for entry in checkpoints] == [(4, True), (6, True)]
    assert all(entry["bytes"] > 10_000 and Path(entry["path"]).is_dir() for entry in checkpoints)


def test_the_adapter_is_the_same_from_the_job_s_folder_and_from_the_registry(api, followed, tmp_path):
    job_id, events, _ = followed
    own_folder = Path(events[-1][2]["output_path"])
    here = api.get(f"/train/{job_id}/adapter")
    parked = own_folder.rename(own_folder.with_name("parked"))
    far = api.get(f"/api/sft/jobs/{job_id}/adapter")
    parked.rename(own_folder)

    assert here.headers["x-checksum-sha256"] == hashlib.sha256(here.content).hexdigest()
    assert far.headers["x-checksum-sha256"] == here.headers["x-checksum-sha256"]
    assert far.content == here.content
    assert here.headers["content-disposition"] == 'attachment; filename="followed-1.tar"'
    with tarfile.open(fileobj=io.BytesIO(here.content)) as archive:
        archive.extractall(tmp_path, filter="data")
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in own_folder.iterdir()}
    unpacked, trained = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, own_folder))
    assert all(bool((unpacked[name] == value).all()) for name, value in trained.items())


def test_callbacks_are_called_in_the_process_that_made_the_job(environment, model, tmp_path):
    script = textwrap.dedent(f"""
        import json, threading
        from app.api.sft_job_manager import sft_job_manager
        from app.sft import SFTCallback, SFTConfig

        called = []

        class Recorder(SFTCallback):
            def on_train_begin(self, trainer, event): called.append("begin")
            def on_step_end(self, trainer, event): called.append("step")
            def on_evaluate(self, trainer, event): called.append("evaluate")
            def on_save(self, trainer, event): called.append("save")
            def on_train_end(self, trainer, event):
                called.append([trainer.job_id, trainer.config.lora_r, event["status"]])

        class Broken(SFTCallback):
            def on_evaluate(self, trainer, event): raise RuntimeError("no disk for the plot")

        config = SFTConfig(
            base_model="{model}", dataset_name="handbook@v1.0", dataset_format="alpaca", template_name="chatml",
            max_samples=12, max_steps=1, lora_r=4, save_steps=1,
        )
        job_id = sft_job_manager.create_job(config, callbacks=[Broken(), Recorder()])
        waiting = sft_job_manager.create_job(config, callbacks=[Recorder()])
        sft_job_manager.start_job(job_id)
        sft_job_manager.stop_job(waiting)
        for thread in threading.enumerate():
            if thread.name.startswith("callbacks-"):
                thread.join(240)
                assert not thread.is_alive()
        print(json.dumps([job_id, waiting, called]))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    job_id, waiting, called = json.loads(done.stdout.splitlines()[-1])
    called.remove([waiting, 4, "stopped"])
    assert called == ["begin", "step", "save", "evaluate", "evaluate", [job_id, 4, "completed"]]
    assert "no disk for the plot" in done.stderr
