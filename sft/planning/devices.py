"""Devices that a job can be planned for without having them: what `--device` and `?device=` name."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sft.config import SFTConfig
from sft.errors import DeviceNotFound, InvalidConfig
from sft.explanations import find_nearest

GIB = 2**30
NEWER_KERNELS = ("varlen", "flash_attention_2", "flash_attention_3")
USUAL_TERAFLOPS = 100.0
FIRST_WITH_BF16 = 8.0
HALF_PRECISION = "bf16 in hardware; false for cards older than compute capability 8.0"


class Card(BaseModel):
    """A CUDA device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory_gib: float = Field(gt=0, le=10_000, description="Memory as the driver reports it, in GiB.")
    teraflops: float = Field(USUAL_TERAFLOPS, ge=0.01, le=1e6, description="Dense matrix products in bf16 or fp16.")
    bf16: bool = Field(True, description=f"Computes in {HALF_PRECISION}.")
    compute_capability: float | None = Field(
        None, ge=3.5, lt=100, description="Such as 8.9; some models' attention depends on it. By bf16 if left out."
    )

    @model_validator(mode="after")
    def _check_capability(self) -> "Card":
        if self.compute_capability is not None and self.bf16 != (self.compute_capability >= FIRST_WITH_BF16):
            raise ValueError(
                f"bf16 {str(self.bf16).lower()} contradicts compute_capability {self.compute_capability}: devices have "
                f"bf16 from {FIRST_WITH_BF16} on; set bf16 to {str(not self.bf16).lower()}"
            )
        return self

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability, major and minor."""
        known = self.compute_capability or (FIRST_WITH_BF16 if self.bf16 else 7.5)
        return int(known), round(known * 10) % 10


# Memory as torch reports it, which is less than in the name; speeds from NVIDIA's data sheets, without sparsity.
CARDS = {
    "b200-180gb": Card(memory_gib=178.4, teraflops=2250, compute_capability=10.0),
    "h200-141gb": Card(memory_gib=139.8, teraflops=989, compute_capability=9.0),
    "h100-80gb": Card(memory_gib=79.1, teraflops=989, compute_capability=9.0),
    "a100-80gb": Card(memory_gib=79.2, teraflops=312, compute_capability=8.0),
    "a100-40gb": Card(memory_gib=39.4, teraflops=312, compute_capability=8.0),
    "l40s": Card(memory_gib=44.4, teraflops=362, compute_capability=8.9),
    "rtx6000-ada": Card(memory_gib=47.4, teraflops=364, compute_capability=8.9),
    "a6000": Card(memory_gib=47.4, teraflops=155, compute_capability=8.6),
    "rtx5090": Card(memory_gib=31.4, teraflops=209, compute_capability=12.0),
    "rtx4090": Card(memory_gib=23.5, teraflops=165, compute_capability=8.9),
    "rtx3090": Card(memory_gib=23.6, teraflops=71, compute_capability=8.6),
    "a10g": Card(memory_gib=22.1, teraflops=70, compute_capability=8.6),
    "l4": Card(memory_gib=22.0, teraflops=121, compute_capability=8.9),
    "v100-32gb": Card(memory_gib=31.7, teraflops=125, bf16=False, compute_capability=7.0),
    "v100-16gb": Card(memory_gib=15.8, teraflops=125, bf16=False, compute_capability=7.0),
    "t4": Card(memory_gib=14.6, teraflops=65, bf16=False, compute_capability=7.5),
}


def check_card(config: SFTConfig, name: str, card: Card) -> None:
    """Raise InvalidConfig for attention kernels that the device lacks."""
    kernels = config.attn_implementation
    if kernels in NEWER_KERNELS and not card.bf16:
        raise InvalidConfig(
            f"attn_implementation {kernels} needs compute capability 8.0, which device {name} lacks; set it to auto"
        )


def find_card(name: str, own: Mapping[str, Card]) -> Card:
    """The device of this name; the administrator's `own` come first. Raises DeviceNotFound for an unknown one."""
    known = CARDS | {own_name.lower(): card for own_name, card in own.items()}
    card = known.get(name.lower())
    if card is None:
        nearest = find_nearest(name, known)
        hint = f"did you mean {nearest}? " if nearest else ""
        raise DeviceNotFound(
            f"device {name[:60]!r} is not known: {hint}known are {', '.join(known)}; leave it out for the device of "
            "this machine, or describe yours in TUNEYARD_PLAN_DEVICES"
        )
    return card
