"""Keeps credentials out of messages and logs."""

import re


def redact(text: object) -> str:
    """Returns the text with user names and passwords cut from the URLs in it.

    >>> redact("https://me:secret@host:5000/ml does not answer")
    'https://host:5000/ml does not answer'
    """
    return re.sub(r"://[^/\s]*@", "://", str(text))
