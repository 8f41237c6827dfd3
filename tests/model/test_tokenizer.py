import torch

from waver.model.tokenizer import tokenize


def test_mask_ends_at_the_end_token_and_an_exclamation_mark_is_a_word():
    ids, mask = tokenize(["!©", "a " * 50], max_words=8, prompt=None)
    assert ids[0].tolist()[:2] == [49406, 0]  # the exclamation mark, not padding
    assert mask.sum(1).tolist() == [int((ids[0] == 49407).int().argmax()) + 1, 8]
    assert mask[0, 1]
    assert ids[1, 7] == 49407  # cut, and still with its end


def test_a_caption_that_holds_the_words_of_the_end_token_is_read_to_its_own_end():
    ids, mask = tokenize(["see <end_of_text> here"], max_words=12)
    assert mask.sum() == 5
    assert ids[0, mask[0]].tolist()[-1] == 49407


def test_prompt():
    with_prompt, _ = tokenize(["a cat"], max_words=16, prompt="see {}.")
    as_written, _ = tokenize(["see a cat."], max_words=16)
    assert torch.equal(with_prompt, as_written)
