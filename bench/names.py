"""Names of files and classes as people type them: in any locale, in either Unicode form."""

from __future__ import annotations

import os
import unicodedata

from bench.errors import UsageError


def text_of(name: str) -> str:
    """A name from the file system as UTF-8 text, whatever the locale made of it.

    Raises:
        UsageError: if it is not UTF-8; no record could hold it.
    """
    raw = os.fsencode(name)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        shown = raw.decode(errors="backslashreplace")
        raise UsageError(f"the name '{shown}' is not valid UTF-8; rename it") from None


def composed(text: str) -> str:
    """Text in the Unicode form in which two spellings of one name are equal."""
    return unicodedata.normalize("NFC", text)
