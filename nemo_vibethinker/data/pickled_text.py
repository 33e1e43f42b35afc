"""Text that a dataset stores as a compressed pickle, read without unpickling anything.

Unpickling runs whatever a pickle says. A pickle of one text needs five or six instructions, none of which runs
anything; these are read by the standard library's disassembler, and a pickle with any other instruction is refused.
"""

import base64
import binascii
import pickletools
import zlib

LARGEST = 1 << 30  # bytes after decompression
_TEXT = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"})
_AROUND = frozenset({"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP"})


def pickled_text(encoded: str, largest: int = LARGEST) -> str:
    """The text in base64(zlib(pickle(text))), the form of LiveCodeBench's private tests.

    Raises:
        ValueError: another form, more than `largest` bytes, or a pickle of anything but one text.
    """
    try:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(base64.b64decode(encoded, validate=True), largest)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"not a compressed pickle: {error}") from None
    if not unpacker.eof:
        raise ValueError(f"a compressed pickle that is torn, or of more than {largest:,} bytes")
    return _only_text(content)


def _only_text(content: bytes) -> str:
    try:
        instructions = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(content)]
    except ValueError as error:  # torn, or a text that is not UTF-8
        raise ValueError(f"not a readable pickle: {error}") from None
    if foreign := [name for name, _ in instructions if name not in _TEXT | _AROUND]:
        raise ValueError(f"a pickle with the instruction {foreign[0]}, which a text does not need: refused")
    texts = [argument for name, argument in instructions if name in _TEXT]
    if len(texts) != 1:
        raise ValueError(f"a pickle of {len(texts)} texts, where one is expected")
    return str(texts[0])
