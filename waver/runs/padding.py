"""Measures how much padding changes the similarities of `ti` and `wti` in the original code.

The code of DRL and WAVER sets the cosines of padding to 0, and then takes the maximum over words or frames. If all other
cosines are negative, padding wins this maximum. In waver padding never wins.
"""

import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from waver.config import ExperimentConfig
from waver.data.clip_store import ClipStore
from waver.evaluation.embedding import embed_clips, embed_tokens
from waver.model.embeddings import Embeddings
from waver.model.student import Student
from waver.runs.inputs import load_captions, open_store
from waver.tools.errors import WaverError
from waver.training.build import build_tokenizer

_NUM_CLIPS = 64
"""Clips, with one caption each, on which the difference is measured."""


def wti_with_zeros(text: Embeddings, video: Embeddings) -> Float[Tensor, "T V"]:
    """Computes `waver.model.interaction.wti` as the original code does: cosines of padding are 0, and may win a maximum."""
    texts, videos = (F.normalize(each.values.masked_fill(~each.mask[..., None], 0), dim=-1) for each in (text, video))
    cosines = torch.einsum("tnd,vfd->tvnf", texts, videos)
    words = torch.einsum("tvn,tn->tv", cosines.amax(dim=3), text.weights)
    frames = torch.einsum("tvf,vf->tv", cosines.amax(dim=2), video.weights)
    return (words + frames) / 2


def describe_padding(student: Student, config: ExperimentConfig) -> str:
    """Compares both on the first clips of the data set, if its clip store exists; returns the result in a sentence.

    Args:
        student: the model.
        config: its configuration.

    Returns:
        An empty string for an interaction that padding cannot change (dp, xti).
    """
    if config.similarity.kind not in ("ti", "wti"):
        return ""
    begin = (
        "padding: the original code sets similarities of padding to 0, which can win a maximum; in waver it never wins"
    )
    try:
        captions = load_captions(config)
        store = open_store(config, captions)
    except (WaverError, OSError, ValueError):
        return f"{begin}. The difference was not measured, because the data have no clip store yet"
    text, video, split = _embed_some(student, config, captions, store)
    if not len(text):
        return f"{begin}. The difference was not measured, because no clip has frames"
    ours, theirs = student.similarity(text, video), wti_with_zeros(text, video)
    difference = (ours - theirs).abs()
    hits = [100 * (each.argmax(dim=1) == torch.arange(len(each))).float().mean().item() for each in (ours, theirs)]
    informed = ", without phrases" if config.informed_at_inference else ""
    return (
        f"{begin}. On {len(text)} clips of {split}{informed} similarities differ by at most {difference.max().item():.2g} "
        f"({int((difference > 1e-6).sum())} of {difference.numel()} pairs by more than 1e-6), and text to video R@1 is "
        f"{hits[0]:.1f} in waver, {hits[1]:.1f} with the original code"
    )


@torch.no_grad()
def _embed_some(
    student: Student, config: ExperimentConfig, captions: pa.Table, store: ClipStore
) -> tuple[Embeddings, Embeddings, str]:
    """Embeds the first clips with frames of test, else of validation, else of train, and one caption of each."""
    ok = pa.array(store.ok_clip_ids(), pa.string())
    decoded = captions.filter(pc.is_in(captions["clip_id"], value_set=ok))
    splits = decoded["split"].to_pylist()
    split = next((each for each in ("test", "validation") if each in splits), "train")
    rows = decoded.filter(pc.equal(decoded["split"], split))
    # In reverse, so that the first caption of each clip is kept.
    first = dict(zip(*(rows[name].to_pylist()[::-1] for name in ("clip_id", "caption")), strict=True))
    clip_ids = sorted(first)[:_NUM_CLIPS]
    student.eval()
    if not clip_ids:
        nothing = Embeddings(torch.zeros(0, 1, 1), torch.ones(0, 1, dtype=torch.bool), torch.ones(0, 1))
        return nothing, nothing, split
    # All texts as long as the original code pads them.
    tokens, mask = build_tokenizer(config)(
        [first[clip] for clip in clip_ids], max_words=config.text.max_words, prompt=config.text.prompt
    )
    video = embed_clips(student, clip_ids, store, config, None, lambda done, total: None)
    return embed_tokens(student, tokens, mask, config), video, split
