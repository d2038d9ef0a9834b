import pytest
import torch
from transformers import AutoTokenizer

from genrec_rl.errors import DataError
from genrec_rl.sids.vocab import SidVocab, build_tokenizer, extend_tokenizer, sid_tokens, vocab_of

SIZES = (3, 2, 4)
VOCAB = SidVocab(codebook_sizes=SIZES, sid_token_start=10, history_id=1, separator_id=2, pad_id=0)


def test_levels_lie_one_after_the_other():
    assert VOCAB.level_starts == (10, 13, 15)
    assert VOCAB.token_ids(torch.tensor([[2, 1, 3]])).tolist() == [[12, 14, 18]]


def test_codes_undo_token_ids():
    codes = torch.tensor([[0, 0, 0], [2, 1, 3]])
    assert VOCAB.codes(VOCAB.token_ids(codes)).equal(codes)


@pytest.mark.parametrize(
    ("tokens", "codes"),
    [([13, 14, 18], [-1, 1, 3]), ([12, 12, 18], [2, -1, 3]), ([12, 14, 19], [2, 1, -1]), ([0, 1, 2], [-1, -1, -1])],
    ids=["second level first", "first level second", "past the end", "special tokens"],
)
def test_token_of_another_level_is_no_code(tokens, codes):
    assert VOCAB.codes(torch.tensor(tokens)).tolist() == codes


def test_tokenizer_comes_back_from_auto_tokenizer(tmp_path):
    tokenizer = build_tokenizer(SIZES)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = " ".join(sid_tokens(SIZES))
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"] == list(range(4, 13))
    assert vocab_of(loaded, SIZES) == vocab_of(tokenizer, SIZES)


def test_language_models_tokenizer_gets_the_sid_tokens_behind_its_own():
    tokenizer = build_tokenizer((2,))
    n_before = len(tokenizer)
    extend_tokenizer(tokenizer, (2, 3))
    assert vocab_of(tokenizer, (2, 3)).codebook_sizes == (2, 3)
    assert len(tokenizer) == n_before + 3  # <a_*> and the specials were there


def test_tokenizer_of_another_catalogue_is_refused():
    with pytest.raises(DataError, match=r"<a_0>\.\.<c_4>.*recipes/sft.py"):
        vocab_of(build_tokenizer(SIZES), (3, 2, 5))


def test_value_tokens_lie_behind_the_sids_and_move_nothing():
    plain, valued = (vocab_of(build_tokenizer(SIZES, n_values=n), SIZES) for n in (0, 5))
    assert (plain.value_token_start, plain.n_values, plain.value_tokens) == (None, None, range(0))
    assert valued.value_tokens == range(13, 18)
    assert valued.level_starts == plain.level_starts
    assert valued.codes(torch.tensor([[13, 14, 15]])).tolist() == [[-1, -1, -1]]


def test_value_tokens_come_back_from_an_extended_tokenizer():
    tokenizer = build_tokenizer((2,))
    extend_tokenizer(tokenizer, (2, 3), n_values=3)
    assert len(vocab_of(tokenizer, (2, 3)).value_tokens) == 3
