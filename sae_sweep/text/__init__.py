"""Text: corpora in, packed token sequences out. Nothing here needs torch."""

from sae_sweep.text.mixture import MixedSequences, Text, held_out_sequences, training_sequences
from sae_sweep.text.open import fingerprint, open_documents, open_text
from sae_sweep.text.packing import Documents, TextTokenizer, token_mask
from sae_sweep.text.sequences import TrainingSequences, held_out_documents
from sae_sweep.text.source import TextSource

__all__ = [
    "Documents",
    "MixedSequences",
    "Text",
    "TextSource",
    "TextTokenizer",
    "TrainingSequences",
    "fingerprint",
    "held_out_documents",
    "held_out_sequences",
    "open_documents",
    "open_text",
    "token_mask",
    "training_sequences",
]
