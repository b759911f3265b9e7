"""Makes text safe to print on a terminal, and writes times in words."""

import re

# Control codes except tab and line feed, separators that some terminals take for line ends, characters that change the
# reading direction (CVE-2021-42574), and halves of characters, which no stream can encode.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Returns a text with its control codes escaped, so that a terminal shows them and obeys none.

    >>> printable("\x1b[2Jangry"), printable("\u8352\u8c2c")
    ('\\x1b[2Jangry', '\u8352\u8c2c')
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(75.0), duration(1800.0), duration(9000.0)
    ('75 s', '30 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
