"""Names of files and classes as people type them: in any locale, in either Unicode form."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

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


def typed_path(text: str) -> Path:
    """A path as typed; a part that is not there is tried in the other Unicode form.

    Raises:
        UsageError: if it begins with a user's home that nobody knows.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise UsageError(f"'{text}' begins with the home of an unknown user") from None
    if os.path.lexists(path):
        return path
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        found /= next((form for form in forms if os.path.lexists(found / form)), part)
    return found
