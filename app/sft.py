"""`from app.sft import SFTConfig`"""

from sft.config import SFTConfig

__all__ = ["SFTConfig"]
