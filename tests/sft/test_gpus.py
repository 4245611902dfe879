"""The GPU of a plan is the one that the driver describes, with the speed of the card of that name."""

import pytest
from pydantic import ValidationError

from sft.planning.devices import CARDS, Card
from sft.planning.gpus import find_teraflops, inspect_gpu

LISTING = """\
0, GPU-11aa, NVIDIA H100 80GB HBM3, 9.0, 81559, 1200
1, GPU-22bb, NVIDIA H100 80GB HBM3, 9.0, 81559, 80900
2, GPU-33cc, Tesla T4, 7.5, 15360, 15100
3, GPU-44dd, NVIDIA A100-SXM4-40GB, 8.0, [N/A], [N/A]
"""


@pytest.mark.parametrize(
    ("visible", "free_mib"),
    [(None, 80900), ("0", 1200), ("0,2", 15100), ("GPU-11", 1200), ("3", None), ("", None), ("MIG-55ee", None)],
)
def test_it_is_the_one_with_the_most_free_memory_of_those_to_be_used(monkeypatch, visible, free_mib):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpu = inspect_gpu(lambda: LISTING)
    assert (None if gpu is None else gpu.free_bytes) == (free_mib and free_mib * 2**20)


def test_without_a_driver_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert inspect_gpu() is None
    assert inspect_gpu(lambda: "No devices were found") is None


def test_it_counts_as_the_card_of_its_name(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    card = inspect_gpu(lambda: LISTING).describe()
    assert card == Card(memory_gib=15, teraflops=65, bf16=False, compute_capability=7.5)
    assert card.capability == (7, 5)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H200", "h200-141gb"),
        ("NVIDIA B200", "b200-180gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000-ada"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("Tesla V100-SXM2-16GB", "v100-16gb"),
        ("Tesla T4", "t4"),
    ],
)
def test_speeds_are_found_by_the_drivers_names(name, key):
    assert find_teraflops(name) == CARDS[key].teraflops


def test_a_card_of_another_name_has_a_usual_speed():
    for name in ("NVIDIA L40", "NVIDIA GeForce RTX 4090 D2X", "NVIDIA T400", "Quadro RTX 6000"):
        assert find_teraflops(name) in (100.0, CARDS["rtx4090"].teraflops)


def test_compute_capability_goes_with_bf16():
    assert Card(memory_gib=1).capability == (8, 0)
    assert Card(memory_gib=1, bf16=False).capability == (7, 5)
    assert Card(memory_gib=1, compute_capability=8.9).capability == (8, 9)
    for bf16, capability in ((True, 7.5), (False, 8.0)):
        with pytest.raises(ValidationError, match=f"contradicts compute_capability {capability}.*set bf16 to"):
            Card(memory_gib=1, bf16=bf16, compute_capability=capability)
