"""Fetches datasets of the Hugging Face Hub into the store as parquet files."""

from pathlib import Path
from typing import Any

from sft.errors import DatasetNotFound
from sft.files.temporary_folders import temporary_folder
from tasks.dataset_store import StoredDataset, combine_md5, hash_file, store_dataset
from tasks.split_files import list_held_out

HUB_TIMEOUT_SECONDS = 5


def fetch_from_hub(name: str, store: Path, split: str) -> tuple[str | None, StoredDataset]:
    """Fetch a dataset; returns its commit and files. With HF_HUB_OFFLINE, from the local cache and without a commit.

    Raises:
        DatasetNotFound: the Hub has no such dataset, or can't be reached.
    """
    from datasets.load import load_dataset
    from huggingface_hub import HfApi, constants

    if Path(name).exists():  # `load_dataset` would use it instead
        raise DatasetNotFound(f"{name} is a path in {Path.cwd()}, where no datasets are read from")
    commit = None
    try:
        if not constants.HF_HUB_OFFLINE:  # checked first, as load_dataset retries for 23 s without a network
            commit = HfApi().dataset_info(name, timeout=HUB_TIMEOUT_SECONDS).sha
        splits = load_dataset(name, revision=commit)
    except Exception as error:  # errors of four libraries without a common base class
        raise DatasetNotFound(f"the Hub returned no dataset {name}: {error or type(error).__name__}") from error
    return commit, store_splits(splits, store, split)


def store_splits(splits: Any, store: Path, split: str) -> StoredDataset:
    """Store a split of a `datasets.DatasetDict` and its held-out split as parquet files."""
    if split not in splits:
        raise DatasetNotFound(
            f"the dataset on the Hub has no split {split}; it has: {', '.join(splits)}; set dataset_split"
        )
    chosen = {split: splits[split]}
    held_out = next((other for other in list_held_out(split) if other in splits), None)
    if held_out:  # stored as `eval`, unless that is the training split
        chosen[held_out if split == "eval" else "eval"] = splits[held_out]
    with temporary_folder("tuneyard-hub-") as scratch:
        files = {f"{name}.parquet": scratch / f"{name}.parquet" for name in chosen}
        for name, rows in chosen.items():
            rows.to_parquet(str(files[f"{name}.parquet"]))
        listing = {name: hash_file(path) for name, path in files.items()}

        def copy(name: str, target: Path) -> None:
            target.write_bytes(files[name].read_bytes())

        return store_dataset(store, combine_md5(listing), listing, copy, split)
