"""Texts made by hand, and a tokenizer that needs no library: a token is a byte."""

from trainables.llm.tokens import TextTokenizer

END = 256
START = 257


def bytes_tokenizer(*, start_id=None, shift=0):
    """Its tokens start at `shift`."""
    return TextTokenizer(
        encode=lambda texts: [[byte + shift for byte in text.encode()] for text in texts],
        decode=lambda ids: bytes(token - shift for token in ids if token < END + shift).decode(),
        end_id=END + shift,
        start_id=start_id,
        largest_id=START + shift,
        json="",
    )


def write_texts(folder, domain, count, *, words=20):
    """Write texts of their own to folder/domain; returns them."""
    texts = [" ".join(f"{domain}{number}-{word}" for word in range(words)) for number in range(count)]
    (folder / domain).mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / domain / f"{number:03}.txt").write_text(text)
    return texts
