r"""Text from items, handlers, Slurm or S3 as a terminal may show it: control characters visible.

A control character can clear a screen, rename a window, overwrite a line or reverse text, and so
show text that was never written. Hidden characters are written as Python's escapes, ``\x1b``.
That includes a lone surrogate, which no encoding can write.
"""

from __future__ import annotations

from itertools import chain

#: C0, DEL and C1; marks that change the direction of text; line and paragraph separators; lone
#: surrogates.
_HIDDEN = (
    range(0x20),
    range(0x7F, 0xA0),
    (0x61C, 0x200E, 0x200F),
    range(0x2028, 0x202F),
    range(0x2066, 0x206A),
    range(0xD800, 0xE000),
)
_VISIBLE = {code: ascii(chr(code))[1:-1] for code in chain(*_HIDDEN)}
_VISIBLE_LINES = {code: text for code, text in _VISIBLE.items() if chr(code) not in "\n\t"}
#: The same in JSON: a parser gives the original text back. For a lone surrogate it gives the
#: escape instead, as no program can write it.
_IN_JSON = {
    code: f"\\u{code:04x}" if not 0xD800 <= code < 0xE000 else f"\\\\u{code:04x}"
    for code in chain(*_HIDDEN)
}


def printable(text: str) -> str:
    """One line: each control character, a line end too, as its escape."""
    return text if text.isprintable() else text.translate(_VISIBLE)


def printable_lines(text: str) -> str:
    """Several lines: as `printable`, but line ends and tabs stay; CR LF is a line end."""
    return text if text.isprintable() else text.replace("\r\n", "\n").translate(_VISIBLE_LINES)


def printable_json(line: str) -> str:
    """A line of JSON that means the same and holds no control character."""
    return line if line.isprintable() else line.translate(_IN_JSON)


def encodable(text: str) -> str:
    r"""The text with each lone surrogate as its escape, ``\udcff``: no encoding can hold one."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
