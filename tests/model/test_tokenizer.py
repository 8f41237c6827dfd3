import open_clip
import torch

from waver.model.tokenizer import Truncation, find_tokenizer

CLIP = find_tokenizer("ViT-B-32")


def test_mask_ends_at_the_end_token_and_an_exclamation_mark_is_a_word():
    ids, mask = CLIP(["!©", "a " * 50], max_words=8, prompt=None)
    assert ids[0].tolist()[:2] == [49406, 0]  # the exclamation mark, not padding
    assert mask.sum(1).tolist() == [int((ids[0] == 49407).int().argmax()) + 1, 8]
    assert mask[0, 1]
    assert ids[1, 7] == 49407  # cut, and still with its end


def test_a_caption_that_holds_the_words_of_the_end_token_is_read_to_its_own_end():
    ids, mask = CLIP(["see <end_of_text> here"], max_words=12)
    assert mask.sum() == 5
    assert ids[0, mask[0]].tolist()[-1] == 49407


def test_prompt():
    with_prompt, _ = CLIP(["a cat"], max_words=16, prompt="see {}.")
    as_written, _ = CLIP(["see a cat."], max_words=16)
    assert torch.equal(with_prompt, as_written)


def test_cut_captions_are_counted():
    opening = "a person " * 20
    texts = [opening + "runs", opening + "runs", opening + "swims", "a dog runs"]
    tokens = CLIP.encode(texts)
    truncation = CLIP.measure_truncation(tokens, max_words=32)
    assert truncation == Truncation(num_texts=4, num_cut=3, num_merged=3, longest=43, max_positions=77)
    assert truncation.describe(32) == (
        "3 of 4 captions are longer than text.max_words = 32 tokens and are cut, and 3 of them become equal to another "
        "caption; text.max_words=43 reads all"
    )
    assert [CLIP.is_cut(ids, max_words=32) for ids in tokens] == [True, True, True, False]
    assert CLIP.measure_truncation(tokens, max_words=43).num_cut == 0
    assert CLIP.measure_truncation(CLIP.encode(["a dog"], prompt="a video of {}"), max_words=32).longest == 7


def test_tokens_are_those_of_open_clip():
    texts = ["a man rides a horse", "the " * 40, "see <end_of_text> here!", "", "a man rides a horse"]
    for max_words in (3, 9, 77):
        ids, mask = CLIP(texts, max_words=max_words)
        assert torch.equal(ids, open_clip.get_tokenizer("ViT-B-32")(texts, context_length=max_words))
        assert mask.sum(1).tolist() == [min(len(own) + 2, max_words) for own in CLIP.encode(texts)]
