"""The frozen teacher: the pre-trained backbone, which matches the phrases of a dictionary with clips.

Its embeddings of all phrases are computed once and kept as a table; training looks them up and never runs the teacher. Every
clip is embedded on its own, so that its matches do not depend on the other clips of a worker.

Source: WAVER (arXiv 2312.09507), which matches the phrases of its video content dictionary in this way.
"""

import hashlib

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from waver.model.backbone import Backbone
from waver.model.interaction import last_token
from waver.model.tokenizer import Tokenizer


class Teacher:
    """Embeds phrases and clips in the common embedding space, without gradients.

    Args:
        backbone: the pre-trained backbone; it is frozen in place.
        tokenizer: of the backbone.
        prompt: template with {} in place of a phrase.
    """

    def __init__(self, backbone: Backbone, tokenizer: Tokenizer, prompt: str):
        self._backbone = backbone.eval().requires_grad_(False)
        self._tokenizer, self._prompt = tokenizer, prompt

    @property
    def backbone(self) -> Backbone:
        """The pre-trained backbone."""
        return self._backbone

    @property
    def device(self) -> torch.device:
        """Device of the teacher."""
        return self._backbone.pixel_mean.device

    @torch.no_grad()
    def embed_phrases(self, phrases: list[str]) -> Float[Tensor, "P D"]:
        """Embeds each phrase in the prompt, by its end token; not normalised."""
        tokens = self._tokenizer(phrases, max_words=self._backbone.num_positions, prompt=self._prompt)
        ids, mask = (tensor.to(self.device) for tensor in self._tokenizer.cut_padding(*tokens))
        return last_token(self._backbone.encode_tokens(ids, mask), mask)

    @torch.no_grad()
    def embed_clip(self, frames: UInt8[Tensor, "F 3 H W"]) -> Float[Tensor, " D"]:
        """Returns the mean of the normalised embeddings of a clip's F frames."""
        pixels = self._backbone.pixels(frames.to(self.device))
        mask = torch.ones(1, len(frames), dtype=torch.bool, device=self.device)
        return mean_frame(self._backbone.encode_frames(pixels[None], mask)[0])

    def digest(self) -> str:
        """Returns a short hash of the weights."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self._backbone.state_dict().items()):
            sha.update(name.encode())
            sha.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return sha.hexdigest()[:16]


def mean_frame(frames: Float[Tensor, "F D"]) -> Float[Tensor, " D"]:
    """Returns the embedding of a clip, the mean of the normalised embeddings of its F frames."""
    return F.normalize(frames, dim=-1).mean(dim=0)


def best_phrases(
    clip: Float[Tensor, " D"], phrases: Float[Tensor, "P D"], num_matches: int
) -> tuple[Int[Tensor, " K"], Float[Tensor, " K"]]:
    """Returns the phrases nearest to a clip, (ids, scores), best first; ties are sorted by id.

    Args:
        clip: embedding of the clip, see `Teacher.embed_clip`.
        phrases: normalised embeddings of all phrases of the dictionary.
        num_matches: K; fewer are returned if there are fewer phrases.
    """
    scores, order = torch.sort(phrases @ clip, descending=True, stable=True)
    return order[:num_matches], scores[:num_matches]
