"""Text: corpora in, packed token sequences out. Nothing here needs torch."""

from sae_sweep.text.documents import TextSource, fingerprint, open_text
from sae_sweep.text.packing import TextTokenizer
from sae_sweep.text.stream import SequenceStream, held_out_sequences

__all__ = ["SequenceStream", "TextSource", "TextTokenizer", "fingerprint", "held_out_sequences", "open_text"]
