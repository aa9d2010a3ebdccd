"""Captions, vocabularies, videos, image features on disk, and the batches training reads.

Vocabulary, sets of captions or videos and their readers need nothing but numpy; videos and optical flow need
``pip install 'lrcn_fast[video]'``; the feature cache and the datasets need torch (``pip install
'lrcn_fast[models]'``). Each is loaded on first use.
"""

import importlib
from typing import Any

_NAMES = {
    "CaptionItem": "captions",
    "CaptionSet": "captions",
    "photo_names": "captions",
    "read_caption_chunks": "caption_chunks",
    "write_caption_chunks": "caption_chunks",
    "read_captions": "readers",
    "CrfClip": "crf_clips",
    "CrfSet": "crf_clips",
    "read_crf_clips": "crf_clips",
    "write_crf_clips": "crf_clips",
    "kitchen_clips": "kitchen",
    "Vocabulary": "vocabulary",
    "tokenize": "vocabulary",
    "CaptionBatch": "dataset",
    "CaptionDataset": "dataset",
    "EpochBatchSampler": "dataset",
    "language_model_windows": "dataset",
    "FeatureCache": "features",
    "extract_features": "features",
    "file_key": "features",
    "flow_images": "flow",
    "flow_video": "flow",
    "mirror_flow_images": "flow",
    "optical_flow": "flow",
    "Video": "video",
    "clip_indices": "video",
    "open_video": "video",
    "sliding_indices": "video",
    "read_video_captions": "video_captions",
    "VideoItem": "video_sets",
    "VideoSet": "video_sets",
    "read_ucf101": "video_sets",
    "read_ut_interaction": "video_sets",
    "read_video_folders": "video_sets",
    "read_video_list": "video_sets",
    "uniform_indices": "video",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"lrcn_fast.data.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'lrcn_fast.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
