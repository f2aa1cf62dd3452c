import pytest

from sae_sweep.config import DatasetConfig, EmbeddedDataset, SaeSweepError
from sae_sweep.text import embedded, fingerprint, open_text
from sae_sweep.text.embedded import Corpus


@pytest.fixture
def _corpus(monkeypatch):
    corpus = Corpus("stdlib_docs", ["one", "two", "three"], ["held"], "f00d")
    monkeypatch.setattr(embedded, "embedded_corpus", lambda name, cache: corpus)


@pytest.mark.usefixtures("_corpus")
def test_an_embedded_corpus_is_a_text_of_single_documents(tmp_path):
    source = open_text(EmbeddedDataset(), tmp_path)
    assert [list(source.read(unit)) for unit in range(source.units)] == [
        [("one", 1)],
        [("two", 1)],
        [("three", 1)],
    ]
    assert list(source.read(0, 1)) == []
    assert list(source.held_out()) == ["held"]
    assert fingerprint(EmbeddedDataset(), tmp_path) == "f00d"


def test_an_unknown_kind_of_text_is_refused(tmp_path):
    for use in (open_text, fingerprint):
        with pytest.raises(SaeSweepError, match="dataset=owt: a DatasetConfig is no text that can be read"):
            use(DatasetConfig(), tmp_path)
