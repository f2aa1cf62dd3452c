import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sae_sweep.config import PackingConfig
from sae_sweep.text.packing import pack, pack_documents, token_mask
from tests.text.helpers import BOS, EOT

STUDY = PackingConfig(
    seq_len=4, bos_every_sequence=False, separate_documents=False, max_document_tokens=6, mask_special=False
)
TOKENS = np.array([[0, 5, 9], [7, 0, 3]], dtype=np.int32)
DOCUMENTS = st.lists(st.lists(st.integers(0, 255), max_size=12), max_size=12)


def test_modern_opens_every_sequence_and_separates_documents():
    sequences, carry = pack([[1, 2], [3, 4, 5, 6]], PackingConfig(seq_len=4), BOS, EOT)
    assert sequences.tolist() == [[BOS, 1, 2, EOT], [BOS, 3, 4, 5]]
    assert carry == [6, EOT]


def test_study_opens_documents_and_cuts_them():
    sequences, carry = pack([[1, 2, 3, 4, 5, 6, 7], [8, 9]], STUDY, BOS, EOT)
    assert sequences.tolist() == [[BOS, 1, 2, 3], [4, 5, BOS, 8]]
    assert carry == [9]


def test_empty_documents_leave_no_trace():
    sequences, carry = pack([[], [], []], PackingConfig(seq_len=4), BOS, EOT)
    assert sequences.shape == (0, 4)
    assert carry == []


@given(documents=DOCUMENTS, cut=st.integers(0, 12), separate=st.booleans(), every=st.booleans())
def test_packing_in_two_parts_is_packing_at_once(documents, cut, separate, every):
    packing = PackingConfig(seq_len=5, separate_documents=separate, bos_every_sequence=every)
    whole, left = pack(documents, packing, BOS, EOT)
    first, carry = pack(documents[:cut], packing, BOS, EOT)
    second, rest = pack(documents[cut:], packing, BOS, EOT, carry)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    assert rest == left


@given(documents=DOCUMENTS)
def test_no_token_is_lost_or_moved(documents):
    packing = PackingConfig(seq_len=5)
    sequences, carry = pack(documents, packing, BOS, EOT)
    assert (sequences[:, 0] == BOS).all()
    expected = [token for document in documents if document for token in [*document, EOT]]
    assert [*sequences[:, 1:].flatten().tolist(), *carry] == expected


@given(documents=DOCUMENTS, every=st.booleans())
def test_documents_apart_keep_their_tokens_and_share_no_sequence(documents, every):
    packing = PackingConfig(seq_len=5, bos_every_sequence=every)
    found = pack_documents(documents, packing, BOS, EOT)
    there = [document for document in documents if document]
    assert found.tokens.shape == found.filled.shape == (len(found.owners), 5)
    assert (found.tokens[~found.filled] == EOT).all()
    for number, document in enumerate(there):
        of = found.owners == number
        tokens = found.tokens[of][found.filled[of]]
        assert tokens[tokens != BOS].tolist() == [token for token in document if token != BOS]
        assert found.tokens[of][0, 0] == BOS
    assert sorted(set(found.owners.tolist())) == list(range(len(there)))


def test_special_tokens_do_not_count():
    mask = token_mask(TOKENS, {0, 3}, PackingConfig())
    np.testing.assert_array_equal(mask, [[False, True, True], [True, False, False]])


def test_everything_counts_without_masking():
    assert token_mask(TOKENS, {0, 3}, PackingConfig(mask_special=False)).all()
