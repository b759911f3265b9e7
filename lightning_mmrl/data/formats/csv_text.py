"""Reads the text of a CSV: finds its encoding, and the delimiter that its first line may declare."""

import codecs
import re
from contextlib import suppress
from pathlib import Path

from lightning_mmrl.errors import DataError

# Longer marks come first, because the mark of UTF-32-LE starts with the mark of UTF-16-LE.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_USUAL = ("gb18030", "shift_jis", "euc_kr", "cp1251", "cp1252")
"""Encodings that spreadsheets save a plain CSV in: Chinese, Japanese, Korean, Cyrillic, Western European."""

_DELIMITERS = ",;\t|"
_DECLARED = re.compile(r'"?sep=([^\w\s"]|\t)\W*', re.IGNORECASE)


def csv_text(path: Path, encoding: str | None = None) -> str:
    """Reads the text of a file, without a byte order mark.

    Args:
        path: The CSV.
        encoding: Python's name of the encoding; with None, the byte order mark decides, and without a mark UTF-8 is
            used.

    Raises:
        DataError: The file or the encoding does not exist, or the file has another encoding.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; name the CSV of labels")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its rights") from error
    used = encoding or next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(used)
    except LookupError as error:
        raise DataError(
            f"--encoding {used} is no encoding of text that Python knows; name one that it knows, such as cp1252"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(_undecodable(path, content, used, error)) from error
    if "\0" in text:
        twin = "utf-16-be" if content.startswith(b"\0") else "utf-16-le"
        raise DataError(f"{path} holds NUL characters, as other encodings read as {used} do; try --encoding {twin}")
    return text.removeprefix("\ufeff")


def delimiter_of(text: str) -> tuple[str, bool]:
    r"""Returns the delimiter, and whether the first line only declares it (`sep=;`, as Excel reads and writes it).

    Without such a line, the most frequent candidate in the header is the delimiter. Unlike the cells of the rows,
    column names do not contain delimiters.

    >>> delimiter_of("sep=;\nfile;label\n"), delimiter_of("file,label\n")
    ((';', True), (',', False))
    """
    first = re.split("[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    declared = _DECLARED.fullmatch(first)
    if declared is not None:
        return declared[1], True
    return max(_DELIMITERS, key=first.count), False


def _undecodable(path: Path, content: bytes, used: str, error: UnicodeDecodeError) -> str:
    line = len(re.findall(rb"\r\n?|\n", content[: error.start])) + 1
    others = []
    for name in _USUAL:
        with suppress(UnicodeDecodeError):
            content.decode(name)
            others.append(name)
    readable = ", ".join(name for name in others if name != used)
    return (
        f"{path}:{line}: byte 0x{content[error.start]:02x} is not {used.upper()}; save the file as CSV UTF-8, or say "
        f"by --encoding what it was saved in{f' (it can be read as {readable})' if readable else ''}"
    )
