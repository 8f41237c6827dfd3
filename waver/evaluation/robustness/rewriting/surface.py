"""Rules that need no parse: case, punctuation, typing errors, dropped words, added phrases, casual tone."""

import re
import unicodedata

from waver.evaluation.robustness.rewriting.rule import choose, hash_to_int, shuffle
from waver.evaluation.robustness.rewriting.words import word_set

_TYPED = re.compile(r"(?<!\w)[A-Za-z]{4,}(?!\w)")
_NEIGHBOURS = {
    "q": "wa", "w": "qes", "e": "wrd", "r": "etf", "t": "ryg", "y": "tuh", "u": "yij", "i": "uok", "o": "ipl", "p": "ol",
    "a": "qsz", "s": "adwx", "d": "sfec", "f": "dgrv", "g": "fhtb", "h": "gjyn", "j": "hkum", "k": "jlio", "l": "kop",
    "z": "xas", "x": "zcsd", "c": "xvdf", "v": "cbfg", "b": "vngh", "n": "bmhj", "m": "njk",
}  # fmt: skip
"""Adjacent letters on a QWERTY keyboard."""

_ARTICLES = frozenset({"a", "an", "the", "some"})
_FUNCTION_WORDS = word_set(
    """
    a an the this these those some any each every another i you he she it we they me him us them my your his her
    its our their himself herself itself themselves who which that whose whom what where when how why there here
    is are was were am be been being has have had having will would shall should could can may might must of in
    on at to from with by for into onto off out up down over under about through across around along near behind
    beside between against towards toward upon after before during while as and or but so then if because than
    also s
    """
)
# After these the next word is a noun: "the can".
_BEFORE_NOUNS = _FUNCTION_WORDS & word_set("a an the this each every another my your his her its our their of")

_FRAMES = {
    "light": (
        "this is what happens in the video: {}",
        "the video shows the following: {}",
        "in this clip one can see the following: {}",
        "here is what the camera recorded: {}",
    ),
    # Most words come after the caption: models read a limited number of tokens (32 in the paper), and the caption must fit.
    "heavy": (
        "i am looking for a video in which one can see this: {}, and that is basically all that is going on in it, as "
        "far as i can tell from watching it",
        "what somebody recorded here is the following: {}, or at least that is how it looks to me when i try to put it "
        "into words",
        "please find me the video that shows this: {}, which is how i would describe it to somebody who wants to know "
        "what happens in it",
    ),
}

_CONTRACTIONS = (
    (r"\b(is|are|was|were|has|have|had|does|do|did|could|would|should) not\b", r"\1n't"),
    (r"\b(?:cannot|can not)\b", "can't"),
    (r"\bwill not\b", "won't"),
    (r"\b(i) am (?=\w)", r"\1'm "),
    (r"\b(you|we|they) are (?=\w)", r"\1're "),
    (r"\b(i|you|we|they) have (?=been\b)", r"\1've "),
    (r"\b(there|here|that|it|he|she|who|someone|somebody|everyone) is (?=\w)", r"\1's "),
    # Not after a sibilant (this, bus, fish) or a plural, where it is not said or reads as a possessive.
    (
        r"\b(?!(?:men|women|children|people|which|one|not|and|or)\b)([a-z]*[a-z](?<![sxz])(?<!ch)(?<!sh)) "
        r"is (?=[a-z]*[aeiouy][a-z]*ing\b)",
        r"\1's ",
    ),
    (r"\bgoing to (?=(?:be|do|make|get|have|take|eat|play|cut|show|put|see|go|try|start|fall|jump|sing)\b)", "gonna "),
    (r"\bwant to\b", "wanna"),
    (r"\bbecause\b", "cause"),
)
_OPENERS = ("ok so", "so", "haha", "lol", "um so", "yo")
_CLOSERS = ("lol", "haha", "i guess", "you know", "tbh", "i think")


def upper_case(text: str, key: str, doc: object) -> str:
    """Changes to upper case: `A MAN IS SINGING`."""
    return text.upper()


def strip_punctuation(text: str, key: str, doc: object) -> str:
    """Changes to lower case and drops punctuation, except within numbers (2.5): `a man s hat`."""
    text = text.lower()
    in_number = {found.start() for found in re.finditer(r"(?<=\d)[.,:](?=\d)", text)}
    return "".join(
        " " if unicodedata.category(letter).startswith("P") and at not in in_number else letter
        for at, letter in enumerate(text)
    )


def sentence_case(text: str, key: str, doc: object) -> str:
    """Writes a capital letter first and a full stop last, upper case becomes lower case: `A man is singing.`."""
    text = text.lower() if text.isupper() else text
    text = re.sub(r"\bi\b(?!\.)", "I", text[:1].upper() + text[1:])
    return text if unicodedata.category(text[-1]).startswith("P") else f"{text}."


def typos(text: str, key: str, doc: object, *, share: float) -> str:
    """Makes typing errors in a share of the words of four letters or more, at least in one; keeps first letters and numbers.

    Of a hundred words of MSVD that are mistyped, less than one becomes another word that is common there (hose for horse).
    """
    words = list(_TYPED.finditer(text))
    count = max(1, -int(-share * len(words) // 1))
    for word in sorted(shuffle(words, key)[:count], key=lambda word: -word.start()):
        text = text[: word.start()] + _mistyped(word[0], f"{key}/{word.start()}") + text[word.end() :]
    return text


def _mistyped(word: str, key: str) -> str:
    """Makes one error: a letter is replaced by its neighbour on the keyboard, swapped with the next, dropped or doubled."""
    at = 1 + hash_to_int(f"{key}/at") % (len(word) - 2)
    before, letter, following, after = word[:at], word[at], word[at + 1], word[at + 2 :]
    neighbour = choose(_NEIGHBOURS[letter.lower()], f"{key}/neighbour")
    mistakes = [
        before + (neighbour.upper() if letter.isupper() else neighbour) + following + after,
        before + following + letter + after,
        before + following + after,
        before + letter + letter + following + after,
    ]
    return choose([mistake for mistake in mistakes if mistake.lower() != word.lower()], f"{key}/mistake")


def keywords(text: str, key: str, doc: object) -> str | None:
    """Drops function words, as in a search box, except "no" and "not": `man playing guitar street`."""
    words = re.findall(r"\w+(?:[-.,]\w+)*", re.sub(r"['\u2019]s\b", "", text))
    kept: list[str] = []
    for place, word in enumerate(words):
        is_noun = word.lower() == "can" and place > 0 and words[place - 1].lower() in _BEFORE_NOUNS
        if word.lower() not in _FUNCTION_WORDS or is_noun:
            kept.append(word)
    return " ".join(kept) if len(kept) > 1 else None


def no_determiners(text: str, key: str, doc: object) -> str:
    """Drops articles (`man is playing guitar`), but keeps `a few`, `some of` and a possible letter (`vitamin a`)."""
    words = text.split()
    kept: list[str] = []
    for place, word in enumerate(words):
        following = words[place + 1].lower() if place + 1 < len(words) else ""
        stays = following in ("", "few", "of", "capella", "cappella") or (word == "A" and place > 0)
        if word.lower() not in _ARTICLES or stays:
            kept.append(word)
    return " ".join(kept)


def wordy(text: str, key: str, doc: object, *, severity: str) -> str:
    """Adds phrases without content around the caption, after a colon, which fits both a sentence and a noun phrase."""
    text = text.rstrip(" .")
    return choose(_FRAMES[severity], key).format(text) if text else ""


def casual(text: str, key: str, doc: object, *, heavy: bool) -> str:
    """Adds contractions (`a man's playing guitar`); if heavy, fillers too (`ok so a man's just playin guitar lol`)."""
    text = text.lower().rstrip(" .!")
    for pattern, replacement in _CONTRACTIONS:
        text = re.sub(pattern, replacement, text)
    if not heavy or not text:
        return text
    # After an auxiliary, a word in -ing is certainly a verb: not "the ceilin".
    just = choose(("", "just ", "like "), f"{key}/just")
    text = re.sub(r"(\bis |\bare |'s |'re )([a-z]*[aeiouy][a-z]*in)g\b", rf"\g<1>{just}\g<2>", text, count=1)
    opener, closer = choose(_OPENERS, f"{key}/opener"), choose(_CLOSERS, f"{key}/closer")
    return f"{opener} {text}" if opener == closer else f"{opener} {text} {closer}"
