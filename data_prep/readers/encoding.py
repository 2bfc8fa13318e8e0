"""The bytes of a source file as lines of text, decompressed and decoded one line at a time.

in   rows.csv.gz holding b"\\xff\\xfet\\x00e\\x00x\\x00t\\x00\\r\\x00\\n\\x00"
out  TextDecoding(encoding="utf-16-le", bom=True, line_ends={"crlf": 1}, ...), then the line "text\\r\\n"

A first pass over all bytes determines the encoding, so that a file fails before any of its rows is used.
"""

import codecs
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Literal, cast

# Backport of compression.zstd (Python 3.14).
from backports import zstd

from data_prep.readers.legacy_encodings import detect_western, find_fitting_codecs, is_mostly_utf8
from data_prep.readers.limits import DEFAULT_LIMITS, MAX_FILE_RATIO, Limits, file_ratio_error
from data_prep.readers.source_row import SourceFile
from insource.config.errors import RecipeError

BLOCK_BYTES = 1 << 20

# Longer marks first: a UTF-32 mark begins like a UTF-16 mark.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
FORMAT_SIGNATURES = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b\x08": "gzip data",
    b"\x28\xb5\x2f\xfd": "Zstandard data",
    b"PAR1\x15": "Parquet",
    b"<!doctype html": "an HTML page, for example an error message or a login form",
    b"<html": "an HTML page, for example an error message or a login form",
}
# Pointer to a file that Git LFS has not fetched (https://git-lfs.github.com/spec/v1).
GIT_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
DECOMPRESSION_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile, zstd.ZstdError)
LONE_SURROGATE_MESSAGE = "half of a surrogate pair, which is no character"


@dataclass(frozen=True)
class TextDecoding:
    """How the bytes of one file are decoded to text."""

    encoding: str
    codec: str
    errors: str
    guessed: bool
    bom: bool
    scan: "Scan"
    limits: Limits = DEFAULT_LIMITS

    @property
    def has_lone_surrogates(self) -> bool:
        """Return whether the decoder can produce lone surrogates."""
        return self.scan.has_lone_surrogates

    def file_info(self) -> dict[str, object]:
        """Return the detected properties for data.json."""
        return {
            "encoding": self.encoding,
            "encoding_guessed": self.guessed,
            "bom": self.bom,
            "line_ends": dict(self.scan.line_ends),
            "last_line_ended": self.scan.last_line_ended,
        }


@dataclass
class Scan:
    """Results of one pass over a file.

    `invalid_byte` is (first byte that the codec rejects, whether the file ends there), None for a valid file.
    """

    size_bytes: int = 0
    line_ends: Counter[str] = field(default_factory=Counter)
    last_line_ended: bool = True
    characters: int = 0
    has_bom: bool = False
    has_lone_surrogates: bool = False
    invalid_byte: tuple[int, bool] | None = None
    longest_line: tuple[int, int] = (0, 1)
    """(Characters, number) of the longest line that spans pieces of text or begins one."""
    _open_line: int = 0
    _after_return: bool = False

    @property
    def line(self) -> int:
        """Return the number of the line in which the text so far ends."""
        return self.line_ends.total() + 1

    def add(self, text: str) -> None:
        """Count a piece of text, which may begin between a carriage return and its newline."""
        if not text:
            return
        self.has_bom = self.has_bom or (self.characters == 0 and text[0] == "\ufeff")
        self._measure_first(text)
        returns, newlines = text.count("\r"), text.count("\n")
        pairs = text.count("\r\n") if returns else 0
        self.line_ends += Counter(crlf=pairs, cr=returns - pairs, lf=newlines - pairs)
        if self._after_return and text[0] == "\n":
            self.line_ends += Counter(crlf=1)
            self.line_ends -= Counter(cr=1, lf=1)
        self._after_return = text[-1] == "\r"
        self.last_line_ended = text[-1] in "\r\n"
        self.characters += len(text)
        self.has_lone_surrogates = self.has_lone_surrogates or has_lone_surrogate(text)

    def _measure_first(self, text: str) -> None:
        """Measure the line in which a piece begins, up to the end of the piece."""
        positions = [position for position in (text.find("\n"), text.find("\r")) if position >= 0]
        first_length = self._open_line + (min(positions) if positions else len(text))
        self.longest_line = max(self.longest_line, (first_length, self.line))
        self._open_line = len(text) - 1 - max(text.rfind("\n"), text.rfind("\r")) if positions else first_length


def open_bytes(file: SourceFile) -> IO[bytes]:
    """Return the file's bytes as a stream, decompressed while reading."""
    if file.compression == "gz":
        return cast(IO[bytes], gzip.open(file.path, "rb"))
    if file.compression == "zst":
        return cast(IO[bytes], zstd.open(file.path, "rb"))
    return file.path.open("rb")


def open_text(file: SourceFile, decoding: TextDecoding, newline: str) -> io.TextIOWrapper:
    """Return the file's characters as a stream, decompressed and decoded while reading."""
    return io.TextIOWrapper(open_bytes(file), encoding=decoding.codec, errors=decoding.errors, newline=newline)


@contextmanager
def as_recipe_errors(name: str) -> Iterator[None]:
    """Convert operating system and decompression errors to RecipeError."""
    try:
        yield
    except PermissionError:
        raise RecipeError(
            f"{name}: the file cannot be read (permission denied); give this user read permission", code="INS-D002"
        ) from None
    except DECOMPRESSION_ERRORS as error:
        raise RecipeError(
            f"{name}: the compressed stream is damaged ({error}); compress it again", code="INS-D011"
        ) from None
    except OSError as error:
        raise RecipeError(f"{name}: the file cannot be read ({error.strerror or error})", code="INS-D002") from None


def check_fetched(file: SourceFile) -> None:
    """Raise RecipeError if the file is a Git LFS pointer."""
    with as_recipe_errors(file.name), file.path.open("rb") as stream:
        if stream.read(len(GIT_LFS_POINTER)) == GIT_LFS_POINTER:
            raise RecipeError(
                f"{file.name}: this is a pointer of Git LFS, and its content was not fetched; run `git lfs pull` in "
                "its repository, or download the file itself",
                code="INS-D009",
            )


def detect_encoding(
    file: SourceFile,
    encoding: str,
    key: str = "data.source.encoding",
    limits: Limits = DEFAULT_LIMITS,
    row_is: Literal["line", "file"] | None = None,
) -> TextDecoding:
    """Return the decoding of the file: by `encoding`, or detected from the bytes if that is "auto".

    `key` is the recipe key of the encoding, for messages. `row_is` is the unit that has at least one row.

    Raise RecipeError with the line of the first invalid byte, or if a row or the decompressed data exceeds the limits.
    """
    with as_recipe_errors(file.name):
        if file.path.stat().st_size == 0:
            raise RecipeError(f"{file.name}: the file is empty", code="INS-D007")
        head = _read_head(file)
        for signature, format_name in FORMAT_SIGNATURES.items():
            if head.lstrip().lower().startswith(signature.lower()):
                raise RecipeError(
                    f"{file.name}: the content is {format_name}, unlike the name; rename the file, or export it as CSV",
                    code="INS-D008",
                )
        mark = next((mark for mark in BYTE_ORDER_MARKS if head.startswith(mark)), b"")
        if encoding == "auto":
            codec, errors = BYTE_ORDER_MARKS.get(mark) or _detect_by_zero_bytes(head), "surrogatepass"
        else:
            codec, errors = _check_codec(encoding, key), "strict"
        scan = _scan_file(file, codec, errors, key, limits, row_is)
        if scan.invalid_byte is not None:
            if encoding != "auto" or codec != "utf-8" or mark:
                raise _decoding_error(file, scan, f"not {codec.upper()}", f"set {key} to what it is")
            return _guess_encoding(file, scan, key, limits, row_is)
    # The codecs utf-16 and utf-32 consume the mark; the others return it.
    bom = scan.has_bom or (bool(mark) and codec in ("utf-16", "utf-32"))
    if scan.characters == scan.has_bom:
        raise RecipeError(
            f"{file.name}: the file is empty" + (" but for a byte order mark" if bom else ""), code="INS-D007"
        )
    display_name = "cesu-8" if codec == "utf-8" and scan.has_lone_surrogates else codec
    return TextDecoding(display_name, codec, errors, guessed=False, bom=bom, scan=scan, limits=limits)


def read_lines(file: SourceFile, decoding: TextDecoding, newline: str, limit: int | None = None) -> Iterator[str]:
    """Yield the lines with their ends, split at `newline` ("\\n" or "\\r"), or at any line end if it is "".

    Raise RecipeError for a line with more than `limit` characters, by default the limit of a row.
    """
    max_characters = decoding.limits.row if limit is None else limit
    with as_recipe_errors(file.name), open_text(file, decoding, newline) as stream:
        number = 1
        while line := stream.readline(max_characters + 1):
            if len(line) > max_characters:
                raise decoding.limits.row_error(f"{file.name}:{number}", "a line")
            line = line.removeprefix("\ufeff") if number == 1 else line
            yield join_surrogates(line) if decoding.has_lone_surrogates else line
            number += 1


def has_lone_surrogate(text: str) -> bool:
    """Return whether the text has a lone surrogate, which is no character and cannot be encoded."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def join_surrogates(text: str) -> str:
    """Return the text with each surrogate pair as one character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _read_head(file: SourceFile) -> bytes:
    """Return the first 64 bytes after decompression; b"" if the stream is damaged."""
    try:
        with open_bytes(file) as stream:
            return stream.read(64)
    except DECOMPRESSION_ERRORS:
        return b""  # the scan reports the location


def _check_codec(encoding: str, key: str) -> str:
    """Return the name of the codec. Raise RecipeError if there is no text codec of this name."""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=encoding).detach()
    except LookupError:
        raise RecipeError(
            f"{key}: given {encoding}, which is not a text encoding; try utf-8 or cp1252", code="INS-D010"
        ) from None
    return codecs.lookup(encoding).name.removesuffix("-sig")


def _detect_by_zero_bytes(head: bytes) -> str:
    """Return the encoding of a text without a mark whose first two characters are ASCII, as in a header."""
    pattern = bytes(byte and 1 for byte in head[:8])
    if pattern in (b"\x01\0\0\0\x01\0\0\0", b"\0\0\0\x01\0\0\0\x01"):
        return "utf-32-le" if pattern[0] else "utf-32-be"
    return {b"\x01\0\x01\0": "utf-16-le", b"\0\x01\0\x01": "utf-16-be"}.get(pattern[:4], "utf-8")


def read_blocks(file: SourceFile, scan: Scan) -> Iterator[bytes]:
    """Yield the decompressed bytes. `scan` gives the line for the error if the stream is cut off."""
    with open_bytes(file) as stream:
        try:
            # read1 still returns the bytes before the damage.
            while block := cast(io.BufferedReader, stream).read1(BLOCK_BYTES):
                yield block
        except DECOMPRESSION_ERRORS as error:
            raise RecipeError(
                f"{file.name}:{scan.line}: the {file.compression} stream is cut off after line {scan.line - 1} or "
                f"damaged there ({error}); copy or compress the file again",
                code="INS-D011",
            ) from None


def _scan_file(file: SourceFile, codec: str, errors: str, key: str, limits: Limits, row_is: str | None) -> Scan:
    """Decode the file once and return what was counted. Raise RecipeError if a limit is exceeded."""
    scan, stored_bytes = Scan(), file.path.stat().st_size
    decoder = codecs.getincrementaldecoder(codec)(errors)
    try:
        for block in read_blocks(file, scan):
            scan.size_bytes += len(block)
            scan.add(decoder.decode(block))
            if row_is == "line" and scan.longest_line[0] > limits.row:
                raise limits.row_error(f"{file.name}:{scan.longest_line[1]}", "a line")
            if row_is == "file" and scan.size_bytes > limits.row:
                raise limits.row_error(file.name, "a text")
            if limits.exceeds_ratio(scan.size_bytes, stored_bytes, MAX_FILE_RATIO):
                raise file_ratio_error(f"{file.name}:{scan.line}", limits, stored_bytes)
        scan.add(decoder.decode(b"", True))
    except UnicodeDecodeError as error:
        with suppress(UnicodeError):  # idna does not replace; the line is then that of the block
            scan.add(error.object[: error.start].decode(codec, "replace"))
        at_end = error.reason in ("unexpected end of data", "truncated data")
        scan.invalid_byte = error.object[error.start], at_end
    except UnicodeError as error:  # some codecs report no byte
        raise RecipeError(
            f"{file.name}:{scan.line}: not {codec.upper()} ({error}); set {key}", code="INS-D010"
        ) from None
    return scan


def _guess_encoding(file: SourceFile, failed_scan: Scan, key: str, limits: Limits, row_is: str | None) -> TextDecoding:
    """Return latin-1 or cp1252 if the text looks like it, marked as a guess: any bytes decode in these.

    Raise RecipeError with advice otherwise.
    """
    western = detect_western(read_blocks(file, failed_scan))
    if western is None or western == "utf-8" or (failed_scan.invalid_byte and failed_scan.invalid_byte[1]):
        if western == "utf-8" and is_mostly_utf8(read_blocks(file, failed_scan)):
            reason, advice = "not UTF-8, though the rest is UTF-8", f"correct those characters, or set {key}"
        else:
            reason = "not UTF-8, and not surely anything else"
            first_block = b"".join(islice(read_blocks(file, failed_scan), 1))
            codecs_to_try = find_fitting_codecs(first_block) or ["cp1252", "cp1251", "cp1250"]
            advice = f"set {key}, such as {' or '.join(codecs_to_try)}"
        raise _decoding_error(file, failed_scan, reason, advice)
    scan = _scan_file(file, "cp1252", "strict", key, limits, row_is)
    return TextDecoding(western, "cp1252", "strict", guessed=True, bom=False, scan=scan, limits=limits)


def _decoding_error(file: SourceFile, scan: Scan, reason: str, advice: str) -> RecipeError:
    """Return the error for the byte at which the scan stopped."""
    byte, at_end = scan.invalid_byte or (0, False)
    end = ": the file ends inside a character" if at_end else ""
    return RecipeError(
        f"{file.name}:{scan.line}: byte 0x{byte:02x} in line {scan.line} is {reason}{end}; {advice}", code="INS-D010"
    )
