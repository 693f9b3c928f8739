"""Text files that people give: which encoding they are in, or an error that names the file and the line."""

import codecs
from typing import Final

__all__ = ["decode_text"]

_MARKS: Final = (
    # The mark of UTF-32 begins with that of UTF-16.
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(data: bytes, name: str) -> str:
    """Decode a text file: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    UTF-16 without a mark is recognised if its first character is ASCII, by its zero byte. Older encodings such as
    Latin-1 cannot be told apart from each other, so they are an error.

    Args:
        data: All of the file.
        name: The file, for the error.

    Raises:
        ValueError: It has another encoding; with the name and the line.
    """
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)
    if encoding is None:
        start = data[:2]
        encoding = "utf-16-le" if start[1:] == b"\0" else "utf-16-be" if start[:1] == b"\0" else "utf-8"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name}, line {line}: the text is not {encoding.partition('-sig')[0].upper()}; save the file as UTF-8"
        ) from None
