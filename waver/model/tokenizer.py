"""Tokenizes captions and phrases as open_clip does for a backbone: with CLIP's byte pairs, or a tokenizer of the hub.

Source: open_clip's model configurations, whose `text_cfg` names tokenizer, cleaning and context length.
"""

# pyright: reportMissingTypeStubs=false
# (open_clip and transformers have no stubs.)

import functools
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Bool, Int
from open_clip.tokenizer import get_clean_fn
from torch import Tensor

from waver.model.architecture import CONTEXT_LENGTH, find_architecture, locate_parts, reads_padding
from waver.model.errors import BackboneError
from waver.tools.hub import is_downloaded

VOCABULARY_SIZE = 49408
"""Number of tokens that CLIP's tokenizer knows."""
_CACHED_TEXTS = 1 << 16
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")

Tokens = tuple[int, ...]
"""Token ids of a whole text, without start and end token."""


@dataclass(frozen=True)
class Tokenizer:
    """Turns texts into token ids for one text tower.

    Attributes:
        split: returns the tokens of each text, however long it is.
        strings: returns a string for each token id, to show them.
        before, after: tokens that stand before and after each text.
        padding: token id that fills shorter texts.
        vocabulary_size: number of token ids.
        context_length: number of tokens that the text tower reads.
        fills_context: whether every text is padded to the context, because the tower's result depends on padding.
    """

    split: Callable[[Sequence[str]], list[Tokens]]
    strings: Callable[[Sequence[int]], tuple[str, ...]]
    before: Tokens
    after: Tokens
    padding: int
    vocabulary_size: int
    context_length: int
    fills_context: bool = False

    def __call__(
        self, texts: list[str], *, max_words: int, prompt: str | None = None
    ) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B N"]]:
        """Tokenizes texts; longer ones are truncated and keep their end token.

        Args:
            texts: B texts.
            max_words: N, the number of tokens per text, start and end token included.
            prompt: template with {} in place of the text; None for none.

        Returns:
            As `pad`.
        """
        return self.pad(self.encode(texts, prompt=prompt), max_words=max_words)

    def encode(self, texts: Sequence[str], *, prompt: str | None = None) -> list[Tokens]:
        """Returns the tokens of each text, however long it is.

        Args:
            texts: the texts.
            prompt: template with {} in place of the text; None for none.
        """
        unique = list(dict.fromkeys(texts))
        asked = unique if prompt is None else [prompt.replace("{}", text) for text in unique]
        tokens = dict(zip(unique, self.split(asked), strict=True))
        return [tokens[text] for text in texts]

    def pad(self, tokens: Sequence[Tokens], *, max_words: int) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B N"]]:
        """Adds the tokens before and after each text, truncates or pads to N = `max_words` tokens.

        Returns:
            Token ids and their mask (True for valid tokens). T is N, or the context length if the tower reads padding.
        """
        length = self.context_length if self.fills_context else max_words
        ids = torch.full((len(tokens), length), self.padding, dtype=torch.int64, device="cpu")
        mask = torch.zeros(len(tokens), max_words, dtype=torch.bool, device="cpu")
        for row, own in enumerate(tokens):
            kept = [*self.before, *own[: self._room(max_words)], *self.after]
            ids[row, : len(kept)] = torch.tensor(kept, device="cpu")
            mask[row, : len(kept)] = True
        return ids, mask

    def cut_padding(
        self, token_ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B N"]
    ) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B M"]]:
        """Cuts the mask to the longest text, and also the token ids, unless the text tower reads padding."""
        longest = int(mask.sum(1).max())
        return token_ids if self.fills_context else token_ids[:, :longest], mask[:, :longest]

    def cut(self, tokens: Tokens, *, max_words: int) -> Tokens:
        """Returns the tokens of a text that `pad` keeps."""
        return tokens[: self._room(max_words)]

    def is_cut(self, tokens: Tokens, *, max_words: int) -> bool:
        """Returns whether `pad` truncates a text."""
        return len(tokens) > self._room(max_words)

    def measure_truncation(self, tokens: Sequence[Tokens], *, max_words: int) -> "Truncation":
        """Counts the texts that `pad` truncates."""
        kept = self._room(max_words)
        of_kept: dict[Tokens, set[Tokens]] = {}
        for ids in set(tokens):
            of_kept.setdefault(ids[:kept], set()).add(ids)
        cut = [ids for ids in tokens if len(ids) > kept]
        return Truncation(
            num_texts=len(tokens),
            num_cut=len(cut),
            num_merged=sum(len(of_kept[ids[:kept]]) > 1 for ids in cut),
            longest=max(map(len, tokens), default=0) + len(self.before) + len(self.after),
            max_positions=self.context_length,
        )

    def _room(self, max_words: int) -> int:
        return max_words - len(self.before) - len(self.after)


@dataclass(frozen=True)
class Truncation:
    """How much of some texts the tokenizer cuts off."""

    num_texts: int
    num_cut: int
    """Texts that are longer than `max_words` tokens."""
    num_merged: int
    """Truncated texts that became equal to another text, from which they differed before."""
    longest: int
    """Number of tokens of the longest text, start and end token included."""
    max_positions: int
    """Number of tokens that the text tower reads at most."""

    def describe(self, max_words: int) -> str:
        """Says how many texts are cut, and which setting reads all of them."""
        cut = f"{self.num_cut} of {self.num_texts} captions are longer than text.max_words = {max_words} tokens and are cut"
        if self.num_merged:
            cut += f", and {self.num_merged} of them become equal to another caption"
        if self.longest <= self.max_positions:
            return f"{cut}; text.max_words={self.longest} reads all"
        return (
            f"{cut}; the longest has {self.longest} tokens, and model.backbone reads at most {self.max_positions} "
            "(text.max_words)"
        )


def find_tokenizer(backbone: str | dict[str, Any], weights: str | None = None) -> Tokenizer:
    """Returns the tokenizer of a backbone.

    Args:
        backbone: name of an open_clip model, or its architecture.
        weights: weights of the backbone; if their folder holds the files of a tokenizer, these are read instead of the hub.

    Raises:
        BackboneError: if the backbone is unknown, or its tokenizer cannot be loaded.
    """
    return _find(json.dumps(backbone, sort_keys=True), weights)


@functools.lru_cache(maxsize=16)
def _find(backbone: str, weights: str | None) -> Tokenizer:
    architecture = find_architecture(json.loads(backbone))
    text = architecture["text_cfg"]
    length, fills = text.get("context_length", CONTEXT_LENGTH), reads_padding(architecture)
    name = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    return _of_hub(name, weights, text, length, fills) if name else _of_clip(text, length, fills)


def _of_clip(text: Mapping[str, Any], length: int, fills: bool) -> Tokenizer:
    clip = open_clip.SimpleTokenizer(context_length=length, **text.get("tokenizer_kwargs", {}))

    @functools.lru_cache(maxsize=_CACHED_TEXTS)
    def encode(text: str) -> Tokens:
        return tuple(clip.encode(text))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType, reportUnknownVariableType]

    return Tokenizer(
        lambda texts: [encode(text) for text in texts],
        _show_byte_pairs,
        before=(clip.sot_token_id,),
        after=(clip.eot_token_id,),
        padding=0,
        vocabulary_size=clip.vocab_size,
        context_length=length,
        fills_context=fills,
    )


def _show_byte_pairs(token_ids: Sequence[int]) -> tuple[str, ...]:
    """Decodes each token of CLIP's tokenizer; all pieces of a word but the last end in a hyphen."""
    pieces = [open_clip.decode(torch.tensor([token])) for token in token_ids]
    names = {"<start_of_text>": "<start>", "<end_of_text>": "<end>"}
    return tuple(names.get(piece.strip(), piece.strip() if piece.endswith(" ") else f"{piece}-") for piece in pieces)


def _of_hub(name: str, weights: str | None, text: Mapping[str, Any], length: int, fills: bool) -> Tokenizer:
    """Returns a tokenizer of transformers.

    Raises:
        BackboneError: if transformers is not installed, or cannot load it.
    """
    if text.get("tokenizer_mode"):
        raise BackboneError(
            f"model.backbone: its text_cfg asks for tokenizer_mode = {text['tokenizer_mode']}, which waver does not have: "
            "choose another model"
        )
    settings = dict(text.get("tokenizer_kwargs", {}))
    clean: Callable[[str], str] = get_clean_fn(settings.pop("clean", "whitespace"))  # pyright: ignore[reportUnknownVariableType]
    strips_end = settings.pop("strip_sep_token", False)
    loaded = _load_tokenizer(_source(name, weights), settings)

    def encode(texts: Sequence[str]) -> list[Tokens]:
        if not texts:
            return []
        found: list[list[int]] = loaded([clean(text) for text in texts], add_special_tokens=False).input_ids
        return [tuple(ids) for ids in found]

    # The special tokens before and after a text: those around the tokens of an example.
    inner = encode(["a"])[0]
    whole = tuple(loaded(clean("a")).input_ids)
    start = next(place for place in range(len(whole)) if whole[place : place + len(inner)] == inner)
    after = whole[start + len(inner) :]
    return Tokenizer(
        encode,
        lambda ids: tuple(loaded.convert_ids_to_tokens(list(ids))),
        before=whole[:start],
        after=tuple(0 if strips_end and token == loaded.sep_token_id else token for token in after),
        padding=loaded.pad_token_id,
        vocabulary_size=len(loaded),
        context_length=length,
        fills_context=fills,
    )


def _source(name: str, weights: str | None) -> str:
    """Returns the place of a tokenizer: the folder of the weights if it holds one, else its repository of the hub."""
    if not is_downloaded(weights):
        return name
    folder = Path(weights).expanduser()
    folder = folder if folder.is_dir() else folder.parent
    return str(folder) if any((folder / file).is_file() for file in _TOKENIZER_FILES) else name


def _load_tokenizer(source: str, settings: Mapping[str, Any]) -> Any:
    located = locate_parts(source, "tokenizer_config.json", *_TOKENIZER_FILES, what="its tokenizer")
    transformers: Any = importlib.import_module("transformers")  # has no types
    try:
        return transformers.AutoTokenizer.from_pretrained(located, **settings)
    except Exception as error:  # the network, the hub and a damaged file raise many kinds, with one remedy for the user
        raise BackboneError(
            f"model.backbone: its tokenizer {source} cannot be loaded ({next(iter(str(error).splitlines()), '')}): download "
            "the repository on a machine with network, copy its folder here, and set model.weights to the folder, or "
            "text_cfg.hf_tokenizer_name in a mapping as model.backbone"
        ) from error
