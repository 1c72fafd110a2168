"""Captions as words, by the rules of the COCO caption challenge: Stanford's PTB tokenizer, or the same in Python.

The challenge writes captions in lower case, splits them as the Penn Treebank does (`isn't` is `is n't`), and leaves out
what stands in `PUNCTUATION`. Its tokenizer is a Java program that pycocoevalcap brings along.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vlchat.errors import ConfigError
from vlchat.evaluate.metrics.packages import scorer

PUNCTUATION = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())

_JAR = "stanford-corenlp-3.4.1.jar"
_CLASS = "edu.stanford.nlp.process.PTBTokenizer"


def stanford_tokens(captions: Sequence[str]) -> list[str]:
    """Captions as COCO's challenge compares them: Stanford's PTB tokenizer, all in one call of Java.

    Args:
        captions: texts as people or models write them; breaks of lines count as spaces.

    Returns:
        for each its words in lower case with spaces between them, without `PUNCTUATION`.

    Raises:
        ConfigError: pycocoevalcap or Java is missing, or the program fails.
    """
    from importlib.util import find_spec

    if not captions:
        return []
    scorer("pycocoevalcap.tokenizer.ptbtokenizer", "pycocoevalcap", "Caption scores")
    specification = find_spec("pycocoevalcap.tokenizer.ptbtokenizer")
    assert specification is not None and specification.origin is not None  # it was just imported
    jar = Path(specification.origin).with_name(_JAR)
    command = ["java", "-cp", str(jar), _CLASS, "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    text = "\n".join(_one_line(caption) for caption in captions)
    remedy = "Set the tokenizer to python, or mend the Java that is found first on the PATH."
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    except OSError as error:
        raise ConfigError(f"Stanford's tokenizer needs Java, which cannot start: {error.strerror}. {remedy}") from error
    lines = done.stdout.decode(errors="replace").split("\n")
    if done.returncode or len(lines) != len(captions):
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["nothing"]
        gave = f"{len(lines):,} lines for {len(captions):,} captions"
        raise ConfigError(f"Stanford's tokenizer gave {gave}; it says: {said[0]} {remedy}")
    return [_words(line.rstrip().split(" ")) for line in lines]


def java_runs() -> bool:
    """Whether `java` is there and starts (on a Mac without Java a file of that name only says that it is missing)."""
    if shutil.which("java") is None:
        return False
    try:
        return subprocess.run(["java", "-version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def python_tokens(captions: Sequence[str]) -> list[str]:
    """The same words without Java, by rules that follow Stanford's program for what stands in captions.

    They cover contractions and possessives, hyphens, slashes, numbers, prices, abbreviations, initials, quotes, dashes,
    brackets, addresses, tags and emoji. They do not cover smileys, telephone numbers, fractions after a number, markup,
    or dates.

    Args and returns: as `stanford_tokens`.
    """
    return [_words(_tokens(_spelled(_one_line(caption)))) for caption in captions]


def _words(tokens: Iterable[str]) -> str:
    return " ".join(token for token in tokens if token not in PUNCTUATION)


def _one_line(caption: str) -> str:
    """A caption on one line, in what UTF-8 can hold: half of a surrogate pair, which is no character, is a `?`."""
    return " ".join(caption.split()).encode(errors="replace").decode()


# How Stanford's program spells characters that the Penn Treebank did not have. Signs that are dropped anyway (quotes,
# dashes, three dots) only keep words apart here.
_SPELLINGS = {
    "’": "'", "‘": "'", "‛": "'", "“": " ", "”": " ", "„": " ", "«": " ", "»": " ", "‹": " ", "›": " ", '"': " ",
    "–": " ", "—": " ", "―": " ", "…": " ",
    "€": "$", "¤": "$", "£": "#", "¢": " cents ", "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ",
    "⅔": " 2/3 ", "\u00ad": "", "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": " ", "&apos;": "'", "&nbsp;": " ",
}  # fmt: skip
_SPELLING = re.compile("|".join(map(re.escape, sorted(_SPELLINGS, key=len, reverse=True))))
# What Stanford's program has no rule for, and leaves out: emoji, joiners, control characters.
_UNKNOWN = re.compile(
    "[^\u0020-\uffff]|[\u007f-\u009f\u200b-\u200f\u2028-\u202f\u2060-\u206f\u20e3\ue000-\uf8ff\ufe00-\ufe0f\ufeff]"
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

# Words whose full stop belongs to them wherever they stand; initials (a.m., U.S., J.) are so by their shape.
_ABBREVIATIONS = """
    mr mrs ms dr st jr sr vs etc prof inc ltd co corp ave blvd rd mt ft jan feb mar apr jun jul aug sep sept oct nov dec
    mon tue tues wed thu thurs fri gen col maj lt sgt capt cmdr adm gov sen rep pres rev hon ph.d al est dept univ bros
    messrs calif tenn va ga fla ala ind ariz mich minn mo conn md okla kan colo cf sq tel ext assn ct bldg
""".split()
_BEFORE_NUMBERS = "no nos fig figs pp ca".split()  # whose full stop belongs to them before a number

_DIGIT_LIKE = "\u00b2\u00b3\u00b9\u2070-\u2099\u2150-\u2189\u2460-\u249b"  # raised, Roman, circled: no part of words
_MARKS = "\u0300-\u036f\u0900-\u0903\u093a-\u094f"  # accents and vowel signs, which Python's \\w leaves out
_L = rf"(?:[^\W\d_{_DIGIT_LIKE}]|[{_MARKS}])"  # a letter
_D = rf"(?:{_L}|\d)"  # a letter or digit
_END = r"(?!\w)"
# What may run on past the token that it yields is bounded, so that no text takes long.
_TOKEN = re.compile(
    rf"""
    (?!(?:cannot|(?:gon|wan|got)[nt]a|(?:gim|lem)me){_END})[a-z]+(?=\s|$)          # most words
  | https?://[^\s"<>|()]{{1,200}}\.[^\s"<>|()]{{0,500}}[^\s"<>|().!?,;:{{}}\[\]-]        # addresses
  | (?:[a-z\d-]{{1,63}}\.){{1,8}}(?:com|net|org|edu)/[^\s"<>|()]{{1,500}}[^\s"<>|().!?,;:{{}}\[\]-]
  | [a-z\d][\w.+-]{{0,63}}@[a-z\d][\w.-]*\w
  | [@\#][a-z_]\w*                                                              # people, topics
  | c\+\+ | (?:{_L}\.)+(?!{_L}) | ph\.d\.                                         # initials: U.S., a.m.
  | {_L}{_D}*(?:[.!?]{_L}{_D}*)+                                                # end.Next
  | (?:{"|".join(_ABBREVIATIONS)})\.
  | (?:{"|".join(_BEFORE_NUMBERS)})\.(?=\ ?\d)
  | {_L}+\.(?=[,;:])                                                            # any word before a comma
  | can(?=not{_END}) | (?:gon|wan)(?=na{_END}) | got(?=ta{_END}) | (?:gim|lem)(?=me{_END}) | 't(?=(?:is|was)(?!{_L}))
  | {_L}+?(?=n't{_END}) | n't{_END} | '(?:s|d|m|ll|re|ve){_END}                 # contractions
  | '(?:em|till?|cause|n'?){_END} | '\d\ds?{_END}                               # words that begin with an apostrophe
  | [dlno]'{_L}+ | (?:c'(?:mon|est)|ma'am|ne'er|e'er|cap'n|nat'l){_END} | [jy]'(?={_L}) | ol'
  | (?-i:[A-Z]+(?:&[A-Z]+)+)                                                    # AT&T
  | \d+(?:[.,]\d+)*-{_L}{_D}*(?:-{_D}+)*                                        # 1.5-mile
  | [-+]?\d*(?:[.,:]\d+)+ | [-+]?\d+(?!{_D}|[-_/]{_D})                          # numbers
  | {_D}+(?:[-_/]{_D}+)*                                                        # words
  | [?!]+ | \*+ | _+ | @+ | \#+ | <+ | >+ | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)


def _spelled(caption: str) -> str:
    spelled = _SPELLING.sub(lambda found: _SPELLINGS[found[0]], caption)
    return _UNKNOWN.sub(" ", spelled)


def _tokens(caption: str) -> Iterable[str]:
    return (_BRACKETS.get(token) or token.lower() for token in _TOKEN.findall(caption))


TOKENIZERS: dict[str, Callable[[Sequence[str]], list[str]]] = {"stanford": stanford_tokens, "python": python_tokens}
