from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrec_rl.data.pages import DAY
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.models.prompts import PACKED, PromptEncoder, PromptGrammar, pack_sids, unpack_sids
from genrec_rl.sids.vocab import SidVocab
from tests.fixtures import make_context

VOCAB = SidVocab(codebook_sizes=(4, 4), sid_token_start=10, history_id=1, separator_id=2, pad_id=0)
DIGEST = "c1a54595ee7828900f2c279d62711ac8094037f4b972831dab6e0c13dc4c183f"
PARALLEL = ("history", "history_times", "history_pages")
CODES = np.array([[0, 1], [2, 3], [3, 0]])


def encoder(**grammar) -> PromptEncoder:
    return PromptEncoder(PromptGrammar(**grammar), VOCAB, CODES)


@given(st.lists(st.tuples(*[st.integers(0, 2**20 - 1)] * 3), min_size=1, max_size=5))
def test_unpacking_undoes_packing(rows):
    codes = np.array(rows)
    assert np.array_equal(unpack_sids(torch.from_numpy(pack_sids(codes)), 3).numpy(), codes)


def test_packed_ids_lie_above_every_vocabulary():
    assert pack_sids(np.array([[0, 0]])).min() >= PACKED


def test_merged_item_and_its_separator_take_two_places():
    ids = encoder(merge=True, separator="item").prompt(make_context([1, 2]))
    packed = pack_sids(CODES)
    assert ids.tolist() == [1, packed[1], 2, packed[2], 2]


def test_unmerged_item_takes_one_place_a_level():
    ids = encoder(merge=False, separator="item").prompt(make_context([1, 2]))
    assert ids.tolist() == [1, 12, 17, 2, 13, 14, 2]


def test_page_separator_closes_each_page():
    ids = encoder(merge=False, separator="page").prompt(make_context([1, 2, 0], pages=[5, 5, 6]))
    assert ids.tolist() == [1, 12, 17, 13, 14, 2, 10, 15, 2]


def test_day_separator_says_whether_what_follows_is_of_the_same_day():
    vocab = replace(VOCAB, same_day_id=3)
    context = replace(make_context([1, 2, 0]), history_times=np.array([0, DAY - 1, DAY]), time=2 * DAY - 1)
    ids = PromptEncoder(PromptGrammar(merge=False, separator="day"), vocab, CODES).prompt(context)
    assert ids.tolist() == [1, 12, 17, 3, 13, 14, 2, 10, 15, 3]
    newest = PromptEncoder(PromptGrammar(merge=False, separator="day", max_history=1), vocab, CODES)
    assert newest.prompt(replace(context, time=2 * DAY)).tolist() == [1, 10, 15, 2]
    assert newest.render(ids[-3:]) == "<a_0> <b_1> <|same_day|>"


def test_day_separator_needs_its_token():
    with pytest.raises(DataError, match=r"lacks <\|same_day\|>"):
        encoder(separator="day")


def test_digest_of_a_vocabulary_without_days_is_as_it_was():
    """Policies made before days could be told load as before."""
    assert PromptGrammar().digest(VOCAB) == DIGEST


def test_no_separator():
    assert encoder(merge=False, separator="none").prompt(make_context([1])).tolist() == [1, 12, 17]


@pytest.mark.parametrize("separator", ["item", "page", "none"])
def test_new_user_has_the_history_token_alone(separator):
    assert encoder(separator=separator).prompt(make_context([])).tolist() == [1]


def test_oldest_items_are_dropped():
    ids = encoder(merge=False, separator="none", max_history=1).prompt(make_context([1, 2]))
    assert ids.tolist() == [1, 13, 14]


def test_answer_is_written_at_full_resolution():
    assert encoder().answer(np.array([2, 0])).tolist() == [13, 14, 10, 15]


def test_finished_items_of_a_page_are_read_as_codes_or_the_last_code_as_the_merged_item():
    packed = pack_sids(CODES)
    assert encoder().read_answer(np.array([2, 0])).tolist() == [13, 14, 10, 15]
    merged = encoder(page_items="merged")
    assert merged.read_answer(np.array([2, 0])).tolist() == [13, packed[2], 10, packed[0]]
    assert merged.answer(np.array([2, 0])).tolist() == [13, 14, 10, 15]


def test_running_prompt_reads_the_open_day_as_a_page_in_training():
    context = replace(make_context([1, 2, 0]), history_times=np.array([0, DAY, DAY]), time=DAY)
    packed = pack_sids(CODES)
    assert encoder().running_prompt(context).tolist() == [1, packed[1], 2, 13, 14, 10, 15]
    merged = encoder(page_items="merged").running_prompt(context)
    assert merged.tolist() == [1, packed[1], 2, 13, packed[2], 10, packed[0]]


def test_batch_pads_on_the_left():
    ids, is_token = encoder().batch([np.array([1]), np.array([1, 7, 2])])
    assert ids.tolist() == [[0, 0, 1], [1, 7, 2]]
    assert is_token.tolist() == [[False, False, True], [True, True, True]]


def test_render_names_items_and_tokens():
    ids = encoder().prompt(make_context([1]))
    assert encoder().render(ids) == "<|history|> (2,3) <|sep|>"
    assert encoder(merge=False).render(np.array([0, 1, 12, 17])) == "<|history|> <a_2> <b_3>"


@pytest.mark.parametrize(
    "change", [{"merge": False}, {"separator": "none"}, {"max_history": 9}, {"page_items": "merged"}]
)
def test_digest_changes_with_every_choice(change):
    assert PromptGrammar(**change).digest(VOCAB) != PromptGrammar().digest(VOCAB)


def test_wrong_choices_are_refused():
    with pytest.raises(ConfigError, match="separator 'comma' is not one of item, day, page, none"):
        PromptGrammar(separator="comma")
    with pytest.raises(ConfigError, match="max_history is 0"):
        PromptGrammar(max_history=0)
    with pytest.raises(ConfigError, match="page_items 'item' is not one of codes, merged"):
        PromptGrammar(page_items="item")
    with pytest.raises(ConfigError, match="needs merge: true"):
        PromptGrammar(merge=False, page_items="merged")


def test_catalogue_of_another_depth_is_refused():
    with pytest.raises(DataError, match="3 SID levels, the vocabulary 2"):
        PromptEncoder(PromptGrammar(), VOCAB, np.zeros((1, 3), int))


def test_running_page_is_the_beginning_of_the_answer():
    day = 86_400
    context = replace(make_context([0, 1, 2]), time=3 * day, history_times=np.array([day, 3 * day, 3 * day]))
    prompts = encoder()
    closed = replace(context, **{name: getattr(context, name)[:1] for name in PARALLEL})
    expected = [*prompts.prompt(closed), *prompts.answer(np.array([1, 2]))]
    assert prompts.running_prompt(context).tolist() == expected


def test_without_items_of_the_requests_day_a_running_prompt_is_the_prompt():
    context = replace(make_context([0, 1]), time=9 * 86_400)
    assert encoder().running_prompt(context).tolist() == encoder().prompt(context).tolist()
