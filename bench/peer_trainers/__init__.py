"""The trainers of other projects, each driven one step at a time by `peer_worker.py` in its own interpreter.

A module for each, which imports the project only when its trainer is built; nothing of sae_sweep is imported.
"""

from peer_trainers.base import Job, Peer, now
from peer_trainers.dictionary_learning import DictionaryLearning
from peer_trainers.saelens import SAELens
from peer_trainers.sparsify import Sparsify
from peer_trainers.study import Study

__all__ = ["PEERS", "Job", "now"]

PEERS: dict[str, type[Peer]] = {
    "saelens": SAELens,
    "dictionary_learning": DictionaryLearning,
    "sparsify": Sparsify,
    "study": Study,
}
