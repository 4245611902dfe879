"""Checks that a job's files fit on the disk, before anything is loaded."""

from pathlib import Path

from sft.config import SFTConfig
from sft.data.mixing import AnyRows
from sft.errors import DiskFull
from sft.files.disk import describe_lack, find_existing, measure_free
from sft.models.hardware import check_hardware, inspect_hardware
from sft.models.model_class import build_empty
from sft.models.weights import check_weights
from sft.planning.memory import plan_disk
from sft.planning.shape import measure_companions, measure_shape, measure_weight
from sft.planning.steps import MANY_ROWS, plan_batches
from sft.planning.tokens import read_lengths
from sft.training.optimizers import check_optimizer


def check_disk_space(
    config: SFTConfig, prepared: AnyRows, model_path: Path, output_dir: Path, checkpoint_dir: Path
) -> None:
    """Raise DiskFull if the checkpoints, the adapter and the merged model would not fit on their disks.

    Checkpoints that the job already has need no more space. Raises InvalidConfig and ModelNotFound as
    `sft.planning.plan.make_plan` does.
    """
    check_optimizer(config)
    check_hardware(config, inspect_hardware())
    check_weights(model_path, f"base_model {config.base_model}")
    shape = measure_shape(build_empty(model_path), config, model_path)
    lengths = read_lengths(prepared.load_train())
    some = lengths[:: len(lengths) // MANY_ROWS + 1]
    steps = plan_batches(config, some, is_padded=False, scale=len(lengths) / len(some)).steps
    parts = plan_disk(config, shape, measure_weight(shape), measure_companions(model_path), steps, 0)["parts"]
    checkpoints = max(parts["checkpoints"] - _measure_files(checkpoint_dir), 0)
    results = parts["adapter"] + parts["merged_model"]
    is_one_disk = find_existing(output_dir).stat().st_dev == find_existing(checkpoint_dir).stat().st_dev
    if is_one_disk:
        _check(output_dir, "the job, with its checkpoints and its adapter,", checkpoints + results)
    else:
        _check(checkpoint_dir, "the job, for its checkpoints,", checkpoints)
        _check(output_dir, "the job, for its adapter,", results)


def _check(folder: Path, what: str, needed_bytes: int) -> None:
    free_bytes = measure_free(folder)
    if needed_bytes > free_bytes:
        raise DiskFull(describe_lack(folder, what, needed_bytes, free_bytes))


def _measure_files(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
