"""Scores of captions, of retrieval and of recognition, in Python and numpy."""

from lrcn_fast.evaluation.diversity import diversity_metrics
from lrcn_fast.evaluation.metrics import CaptionScorer, caption_metrics
from lrcn_fast.evaluation.ptb import ptb_tokenize
from lrcn_fast.evaluation.recognition import confusion_matrix, late_fusion, recognition_metrics
from lrcn_fast.evaluation.retrieval import normalize_log_likelihood, retrieval_metrics

__all__ = [
    "CaptionScorer",
    "caption_metrics",
    "confusion_matrix",
    "diversity_metrics",
    "late_fusion",
    "normalize_log_likelihood",
    "ptb_tokenize",
    "recognition_metrics",
    "retrieval_metrics",
]
