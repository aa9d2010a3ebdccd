"""What to decode: the settings of a search and its result. How it is done is the engine's business."""

from lrcn_fast.decoding.config import GenerationConfig
from lrcn_fast.decoding.result import DecodeResult

__all__ = ["DecodeResult", "GenerationConfig"]
