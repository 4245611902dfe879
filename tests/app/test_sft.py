"""The documented Python names, and training in a plain script with no server anywhere."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from jobs.stack.process_manager import stack_processes
from sft.callbacks import SFTCallback, send_to_callbacks
from tests.conftest import command_line
from tests.tiny_models import save_tiny_llama

SCRIPT = textwrap.dedent("""
    import json
    from app.sft import SFTCallback, SFTConfig, SFTTrainer

    called = []

    class Recorder(SFTCallback):
        def on_train_begin(self, trainer, event): called.append(["begin", event["total_steps"]])
        def on_step_end(self, trainer, event): called.append(["step", event["step"]])
        def on_epoch_end(self, trainer, event): called.append(["epoch", event["epoch"]])
        def on_evaluate(self, trainer, event): called.append(["evaluate", event["step"]])
        def on_save(self, trainer, event): called.append(["save", event["step"]])
        def on_train_end(self, trainer, event):
            called.append(["end", event["status"], event["result"]["eval_loss"], trainer.config.base_model])

    class Broken(SFTCallback):
        def on_step_end(self, trainer, event): raise RuntimeError("no disk for the plot")

    config = SFTConfig(
        base_model="tiny/llama", dataset_name="rows.jsonl", dataset_format="alpaca", template_name="chatml",
        max_steps=2, batch_size=2, gradient_accumulation_steps=1, output_dir="mine", validation_split=0.3, save_steps=2,
    )
    result = SFTTrainer(config, callbacks=[Broken(), Recorder()]).train()
    print(json.dumps({"result": result, "called": called}))
""")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with a tiny model and ten rows."""
    home = tmp_path_factory.mktemp("home")
    save_tiny_llama(home / "models" / "tiny" / "llama")
    rows = [{"instruction": f"What is {n} and {n}?", "output": f"It is {2 * n}."} for n in range(10)]
    (home / "data").mkdir()
    (home / "data" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return home


def run_script(script: str, home: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TUNEYARD_HOME": str(home)}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def find_prefect() -> set[int]:
    """Processes of Prefect that were started from here."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if "prefect" in " ".join(command_line(child))}


def test_the_trainer_trains_in_a_plain_script_and_starts_no_server(home, tmp_path):
    before = find_prefect()  # those of other tests
    done = run_script(SCRIPT, home, tmp_path)

    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    result = printed["result"]
    assert result["train_loss"] > 0
    assert result["eval_loss"] == result["metrics"]["eval_loss"] > 0
    assert (result["model_name"], result["model_version"]) == ("llama-rows.jsonl", None)
    assert Path(result["output_dir"]).parent == home / "outputs" / "mine"
    assert result["adapter_path"] == f"{result['output_dir']}/adapter"
    assert (Path(result["adapter_path"]) / "adapter_model.safetensors").is_file()
    assert result["metrics"]["steps"] == 2
    order = [call[0] for call in printed["called"]]
    assert [name for name in order if name != "epoch"] == ["begin", "step", "step", "save", "evaluate", "end"]
    assert printed["called"][-1] == ["end", "completed", result["eval_loss"], "tiny/llama"]
    assert "no disk for the plot" in done.stderr
    assert stack_processes(home) == []
    assert not (home / "endpoints.json").exists()
    assert find_prefect() <= before


def test_what_fails_is_raised_and_told_to_the_callbacks(home, tmp_path):
    script = textwrap.dedent("""
        from app.sft import SFTCallback, SFTConfig, SFTTrainer

        class Recorder(SFTCallback):
            def on_train_end(self, trainer, event): print(event["status"], event["error"])

        config = SFTConfig(base_model="nobody/nothing", dataset_name="rows.jsonl", dataset_format="alpaca")
        SFTTrainer(config, callbacks=[Recorder()]).train()
    """)
    done = run_script(script, home, tmp_path)

    assert done.returncode == 1
    assert done.stdout.startswith("failed ")
    assert "nobody/nothing" in done.stdout
    assert "ModelNotFound" in done.stderr


def test_importing_the_documented_names_loads_nothing_heavy(tmp_path):
    script = textwrap.dedent("""
        import sys
        from app.sft import SFTCallback, SFTConfig, SFTTrainer
        from app.api.sft_job_manager import sft_job_manager
        heavy = ("torch", "transformers", "trl", "peft", "datasets", "mlflow", "dvc", "flows", "tasks")
        print([name for name in heavy if name in sys.modules])
    """)
    done = run_script(script, tmp_path, tmp_path)

    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_a_callback_that_raises_stops_neither_the_others_nor_the_training(caplog):
    called = []

    class First(SFTCallback):
        def on_evaluate(self, trainer, event):
            event.clear()
            raise ValueError("bad plot")

    class Second(SFTCallback):
        def on_evaluate(self, trainer, event):
            called.append((trainer, event))

    send_to_callbacks([First(), Second()], "trainer")("evaluate", {"eval_loss": 2.0})

    assert called == [("trainer", {"eval_loss": 2.0})]
    assert "on_evaluate of" in caplog.text
    assert "bad plot" in caplog.text
