"""Scores of captions and of retrieval, in Python and numpy."""

from lrcn_fast.evaluation.diversity import diversity_metrics
from lrcn_fast.evaluation.metrics import CaptionScorer, caption_metrics
from lrcn_fast.evaluation.ptb import ptb_tokenize
from lrcn_fast.evaluation.retrieval import normalize_log_likelihood, retrieval_metrics

__all__ = [
    "CaptionScorer",
    "caption_metrics",
    "diversity_metrics",
    "normalize_log_likelihood",
    "ptb_tokenize",
    "retrieval_metrics",
]
