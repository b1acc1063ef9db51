"""Which texts are worth learning from, and which are the same text again."""

import hashlib
import re

MAX_LINE = 10_000
"""Characters. Whole paragraphs on one line are shorter; data and minified code are longer."""
MAX_WORD = 500
"""ASCII characters without a space between them: longer ones are base64, minified code or tables of numbers."""
_COPYRIGHT_LINE = re.compile(r"^.{0,40}(?:\bcopyright\b|\(c\)|©).{0,80}$", re.IGNORECASE | re.MULTILINE)

_HALF_PAIR = re.compile(r"[\ud800-\udfff]")  # JSON can say them, UTF-8 cannot


def decoded(data: bytes) -> str | None:
    """Decode UTF-8, without its byte order mark; lines end in a newline alone. None if it is something else."""
    try:
        return with_plain_newlines(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return None


def with_plain_newlines(text: str) -> str:
    """Write line ends as on Unix."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_readable(text: str) -> bool:
    """Whether somebody wrote this to be read: no binary, not minified, no data, no halves of UTF-16 pairs."""
    if "\0" in text or _HALF_PAIR.search(text) or max(map(len, text.split("\n"))) > MAX_LINE:
        return False
    return not any(len(word) > MAX_WORD and word.isascii() for word in text.split())


def identity(text: str) -> str:
    """Hash what tells a text from others: 32 hex digits, equal for texts that differ in white space or copyright lines.

    Licences differ in these alone, and are in every package: not known as copies, they would be in all splits.
    """
    without = _COPYRIGHT_LINE.sub("", text)
    words = without.split() or text.split()
    return hashlib.blake2b(" ".join(words).encode(), digest_size=16).hexdigest()


def cut(text: str, max_bytes: int) -> str:
    """Shorten a text to at most `max_bytes` in UTF-8, at the end of a line where there is one."""
    data = text.encode(errors="surrogatepass")
    if len(data) <= max_bytes:
        return text
    start = data[:max_bytes].decode(errors="ignore")
    return start[: start.rfind("\n") + 1] or start
