"""Data files, most of them malformed, with the expected result of reading each: a table for several tests.

MalformedFile("never closed", "rows.csv", b'text,label\\n"hello,a\\n', refusal="rows.csv:2: not CSV")
"""

import gzip
import json
import struct
import zipfile
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from backports import zstd


@dataclass(frozen=True)
class MalformedFile:
    """One file, and its rows or a part of the error message.

    A row is (line, values), or (line, part of the problem's message) for an unusable one.
    """

    case: str
    file: str
    content: bytes
    rows: tuple[tuple[int, dict[str, Any] | str], ...] = ()
    refusal: str = ""
    source: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """Expected properties of the file in the report."""


def expected_row(line: int, text: Any, label: Any = "a") -> tuple[int, dict[str, Any]]:
    """Return the expected row of a text and a label."""
    return line, {"text": text, "label": label}


def expected_text_line(
    number: int, text: str, file: str = "rows.txt", label: str = "rows"
) -> tuple[int, dict[str, Any]]:
    """Return the expected row of a line of a text file."""
    return number, {"text": text, "label": label, "file": file}


def parquet_bytes(columns: dict[str, Any]) -> bytes:
    """Return the bytes of a Parquet file."""
    buffer = BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"


def workbook_bytes(rows: str, prolog: str = "", **parts: bytes) -> bytes:
    """Return the bytes of an Excel workbook with one sheet: `rows` as XML, and further parts."""
    sheet = f'{prolog}<worksheet xmlns="{MAIN}"><sheetData>{rows}</sheetData></worksheet>'
    types = f'<Types xmlns="{PACKAGE}/content-types"><Default Extension="xml" ContentType="application/xml"/>'
    for path, kind in (("workbook", "sheet.main"), ("worksheets/sheet1", "worksheet"), ("styles", "styles")):
        content = f"application/vnd.openxmlformats-officedocument.spreadsheetml.{kind}+xml"
        types += f'<Override PartName="/xl/{path}.xml" ContentType="{content}"/>'
    relation = '<Relationship Id="r{}" Type="' + RELATIONS + '/{}" Target="{}"/>'
    relations = f'<Relationships xmlns="{PACKAGE}/relationships">' + "{}</Relationships>"
    workbook = (
        f'<workbook xmlns="{MAIN}" xmlns:r="{RELATIONS}"><sheets><sheet name="S" sheetId="1" r:id="r1"/></sheets>'
    )
    relationships = relation.format(1, "worksheet", "worksheets/sheet1.xml") + relation.format(
        2, "styles", "styles.xml"
    )
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", f"{types}</Types>")
        archive.writestr("_rels/.rels", relations.format(relation.format(1, "officeDocument", "xl/workbook.xml")))
        archive.writestr("xl/workbook.xml", f"{workbook}</workbook>")
        archive.writestr("xl/_rels/workbook.xml.rels", relations.format(relationships))
        archive.writestr("xl/styles.xml", parts.pop("styles", f'<styleSheet xmlns="{MAIN}"/>'.encode()))
        archive.writestr("xl/worksheets/sheet1.xml", sheet)
        for name, content in parts.items():
            archive.writestr(f"xl/{name}.xml", content)
    return buffer.getvalue()


def workbook_row(number: int, *texts: str) -> str:
    """Return the XML of a row of texts."""
    cells = "".join(f'<c t="inlineStr"><is><t>{text}</t></is></c>' for text in texts)
    return f'<row r="{number}">{cells}</row>'


def to_cesu8(text: str) -> bytes:
    """Return the text in CESU-8, as old MySQL and Java write it: surrogate pairs of three bytes each above U+FFFF."""
    units = struct.unpack(f"<{len(text.encode('utf-16-le', 'surrogatepass')) // 2}H", text.encode("utf-16-le"))
    return "".join(map(chr, units)).encode("utf-8", "surrogatepass")


PLAIN = b"text,label\nhello,a\nworld,b\n"
TWO_ROWS = (expected_row(2, "hello"), expected_row(3, "world", "b"))
UMLAUTS = "text,label\nGrüße aus Köln,a\nworld,b\n"
UMLAUT_ROWS = (expected_row(2, "Grüße aus Köln"), expected_row(3, "world", "b"))
LINES = b'{"text": "hello", "label": "a"}\n{"text": "world", "label": "b"}\n'
LINE_ROWS = (expected_row(1, "hello"), expected_row(2, "world", "b"))
TABLE = parquet_bytes({"text": ["hello", "world"], "label": ["a", "b"]})
GOOD_LINE = '{"text": "hello", "label": "a"}\n'.encode
DEEP_LINE = b'{"text": "x", "label": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
KOREAN = "text,label\n안녕 🎉,a\n"
EMOJI_ROWS = (expected_row(2, "안녕 🎉"),)
BOM = b"\xef\xbb\xbf"

# Encodings of one or two bytes per character, not Western European: reading them as latin-1 would be wrong.
FOREIGN_TEXTS = {
    "cp1251": "Где моя карта",
    "koi8-r": "Где моя карта",
    "cp866": "Где моя карта",
    "iso8859-7": "πού είναι",
    "cp1250": "gdzie są pieniądze i łóżko",
    "iso8859-2": "příliš žluťoučký kůň",
    "iso8859-16": "őrült tűző nő",
    "cp1254": "şimdi ağır yağmur",
    "mac-roman": "café Zürich",
    "shift-jis": "カードはどこですか",
    "gbk": "我的卡在哪里",
}

ENCODINGS = [
    MalformedFile(
        "plain", "rows.csv", PLAIN, TWO_ROWS, facts={"encoding": "utf-8", "bom": False, "last_line_ended": True}
    ),
    MalformedFile("utf-8 with a mark", "rows.csv", BOM + PLAIN, TWO_ROWS, facts={"bom": True}),
    MalformedFile("a mark and utf-8 by name", "rows.csv", BOM + PLAIN, TWO_ROWS, source={"encoding": "utf-8"}),
    MalformedFile("a mark and utf-8-sig by name", "rows.csv", BOM + PLAIN, TWO_ROWS, source={"encoding": "utf-8-sig"}),
    MalformedFile(
        "a mark before a quote", "rows.csv", b'\xef\xbb\xbf"text","label"\n"hello","a"\n', (expected_row(2, "hello"),)
    ),
    *(
        MalformedFile(
            f"{codec} {'with' if mark else 'without'} a mark",
            "rows.csv",
            (mark + KOREAN.replace("\n", "\r\n")).encode(codec),
            EMOJI_ROWS,
            facts={"encoding": codec, "bom": bool(mark), "line_ends": {"crlf": 2}},
        )
        for codec in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
        for mark in ("\ufeff", "")
    ),
    MalformedFile("utf-16 by name", "rows.csv", KOREAN.encode("utf-16"), EMOJI_ROWS, source={"encoding": "utf-16"}),
    MalformedFile(
        "utf-16 cut inside a character", "rows.csv", KOREAN.encode("utf-16")[:-1], refusal="rows.csv:2: byte 0x0a"
    ),
    MalformedFile(
        "half a pair in utf-16",
        "rows.csv",
        "\ufefftext,label\nx\ud83d,a\nworld,b\n".encode("utf-16-le", "surrogatepass"),
        ((2, "surrogate"), expected_row(3, "world", "b")),
    ),
    MalformedFile("cesu-8", "rows.csv", to_cesu8(KOREAN), EMOJI_ROWS, facts={"encoding": "cesu-8"}),
    MalformedFile(
        "cesu-8 with a half left over",
        "rows.csv",
        to_cesu8(KOREAN) + b"x\xed\xa0\xbdy,a\ngood,b\n",
        (*EMOJI_ROWS, (3, "surrogate"), expected_row(4, "good", "b")),
    ),
    MalformedFile(
        "cesu-8 in jsonl",
        "rows.jsonl",
        to_cesu8('{"text": "🎉", "label": "a"}\n') + b'{"text": "\xed\xa0\xbd", "label": "a"}\n',
        (expected_row(1, "🎉"), (2, "surrogate")),
    ),
    *(
        MalformedFile(
            f"{language} in {codec}",
            "rows.csv",
            f"text,label\n{text},a\n".encode(codec),
            (expected_row(2, text),),
            facts={"encoding": codec, "encoding_guessed": True},
        )
        for language, codec, text in (
            ("German", "latin-1", "Grüße aus Köln"),
            ("French", "cp1252", "ça coûte 5 € : c’est très cher"),
            ("Portuguese", "latin-1", "informação não é OPÇÃO"),
            ("Spanish", "latin-1", "¿Compañía? ¡sí señor!"),
            ("Finnish", "latin-1", "tämä on hyvää työtä"),
        )
    ),
    MalformedFile(
        "latin-1 by name", "rows.csv", b"text,label\n\xff,a\n", (expected_row(2, "ÿ"),), source={"encoding": "latin-1"}
    ),
    *(
        MalformedFile(codec, "rows.csv", f"text,label\n{text},a\n".encode(codec), refusal="rows.csv:2: byte 0x")
        for codec, text in FOREIGN_TEXTS.items()
    ),
    *(
        MalformedFile(
            f"{codec} by name",
            "rows.csv",
            f"text,label\n{text},a\n".encode(codec),
            (expected_row(2, text),),
            source={"encoding": codec},
        )
        for codec, text in FOREIGN_TEXTS.items()
    ),
    MalformedFile("a byte that no text has", "rows.csv", b"text,label\nhell\xff,a\n", refusal="byte 0xff in line 2"),
    MalformedFile(
        "utf-8 with one broken byte",
        "rows.csv",
        UMLAUTS.encode() + b"caf\xe9,a\n",
        refusal="rows.csv:4: byte 0xe9 in line 4 is not UTF-8, though the rest is UTF-8",
    ),
    MalformedFile(
        "utf-8 read strictly", "rows.csv", UMLAUTS.encode("latin-1"), refusal="0xfc", source={"encoding": "utf-8"}
    ),
    MalformedFile("ascii by name", "rows.csv", UMLAUTS.encode(), refusal="byte 0xc3", source={"encoding": "ascii"}),
    MalformedFile("no encoding of text", "rows.csv", PLAIN, refusal="data.source.encoding", source={"encoding": "hex"}),
    MalformedFile("overlong", "rows.csv", b"text,label\nhe\xc0\x80llo,a\n", refusal="rows.csv:2: byte 0xc0 in line 2"),
    MalformedFile("above U+10FFFF", "rows.csv", b"text,label\nx\xf5\x90\x80\x80,a\n", refusal="rows.csv:2: byte 0xf5"),
    MalformedFile("a cut character", "rows.csv", PLAIN + b"caf\xc3", refusal="the file ends inside a character"),
    MalformedFile("zeros in a value", "rows.csv", b"text,label\nhe\0llo,a\n", (expected_row(2, "he\0llo"),)),
    MalformedFile(
        "a tail of zeros", "rows.csv", PLAIN + b"\0" * 5000, (*TWO_ROWS, (4, "1 fields where the header has 2 (NUL"))
    ),
    MalformedFile("nothing but zeros", "rows.csv", b"\0" * 5000, ()),
    MalformedFile("a tail of zeros in jsonl", "rows.jsonl", LINES + b"\0" * 5000, (*LINE_ROWS, (3, "NUL bytes"))),
    MalformedFile(
        "zeros after json", "rows.json", b"[" + LINES.split(b"\n")[0] + b"]" + b"\0" * 9, refusal="rows.json:1"
    ),
]

CSV = [
    MalformedFile("empty", "rows.csv", b"", refusal="rows.csv: the file is empty"),
    MalformedFile("only a mark", "rows.csv", BOM, refusal="empty but for a byte order mark"),
    MalformedFile("only a mark of utf-16", "rows.csv", b"\xff\xfe", refusal="empty but for a byte order mark"),
    MalformedFile("only newlines", "rows.csv", b"\n\r\n\n", refusal="no header line"),
    MalformedFile("only delimiters", "rows.csv", b",,\n,,\n", refusal="no header line"),
    MalformedFile("header only", "rows.csv", b"text,label\n"),
    MalformedFile("header without its end", "rows.csv", b"text,label", facts={"last_line_ended": False}),
    MalformedFile("one name twice", "rows.csv", b"text,text\na,b\n", refusal="rows.csv:1: column 'text' occurs twice"),
    MalformedFile(
        "the index of pandas",
        "rows.csv",
        b",text,label\n0,hello,a\n",
        ((2, {"column 1": "0", "text": "hello", "label": "a"}),),
        facts={"columns": ["column 1", "text", "label"], "unnamed_columns": [1]},
    ),
    MalformedFile(
        "blank lines",
        "rows.csv",
        b"\n\ntext,label\n\nhello,a\r\n\r\nworld,b",
        (expected_row(5, "hello"), expected_row(7, "world", "b")),
    ),
    MalformedFile("one column", "rows.csv", b'text\nhello\n\n""\n', ((2, {"text": "hello"}), (4, {"text": ""}))),
    MalformedFile(
        "carriage returns alone", "rows.csv", PLAIN.replace(b"\n", b"\r"), TWO_ROWS, facts={"line_ends": {"cr": 3}}
    ),
    MalformedFile("no end of the last line", "rows.csv", PLAIN[:-1], TWO_ROWS, facts={"last_line_ended": False}),
    MalformedFile(
        "bare newlines in quotes",
        "rows.csv",
        b'text,label\r\n"\nWhere is\nmy card?",a\r\n"a\r\nb\rc",b\r\n',
        (expected_row(2, "\nWhere is\nmy card?"), expected_row(5, "a\r\nb\rc", "b")),
        facts={"line_ends": {"crlf": 4, "lf": 2, "cr": 1}},
    ),
    MalformedFile(
        "doubled quotes", "rows.csv", b'text,label\n"say ""hi"", now",a\n', (expected_row(2, 'say "hi", now'),)
    ),
    MalformedFile("a quote inside a bare field", "rows.csv", b'text,label\n5" pipe,a\n', (expected_row(2, '5" pipe'),)),
    MalformedFile("never closed", "rows.csv", PLAIN + b'"never,a\nand,b\n', refusal="rows.csv:4: not CSV: a quote"),
    MalformedFile(
        "text after a quote", "rows.csv", PLAIN + b'"a\nb" c,a\n', refusal="rows.csv:4: not CSV: a quoted field"
    ),
    MalformedFile(
        "bare quotes", "rows.csv", b'text,label\n"hello,a\n', (expected_row(2, '"hello'),), source={"quotes": False}
    ),
    MalformedFile(
        "single quotes",
        "rows.csv",
        b"text,label\n'say \"hi\", it''s',a\n",
        (expected_row(2, 'say "hi", it\'s'),),
        source={"quotes": "'"},
        facts={"quotes": "'"},
    ),
    MalformedFile(
        "quotes by name, delimiter found",
        "rows.csv",
        b"text;label\n|a;b|;a\n",
        (expected_row(2, "a;b"),),
        source={"quotes": "|"},
        facts={"delimiter": ";"},
    ),
    MalformedFile(
        "a delimiter of several characters",
        "rows.csv",
        b'text::label\n"a:b::a\na::b::c\n',
        (expected_row(2, '"a:b'), (3, "3 fields where the header has 2")),
        source={"delimiter": "::", "quotes": False},
        facts={"delimiter": "::"},
    ),
    MalformedFile(
        "a delimiter of several characters, no header",
        "rows.csv",
        b"hello ||| a\n",
        (expected_row(1, "hello"),),
        source={"delimiter": " ||| ", "quotes": False, "header": ["text", "label"]},
    ),
    MalformedFile(
        "a delimiter without a header",
        "rows.csv",
        b"hello, you;a\nworld;b\n",
        (expected_row(1, "hello, you"), expected_row(2, "world", "b")),
        source={"header": ["text", "label"]},
        facts={"delimiter": ";"},
    ),
    MalformedFile("an excel order that quotes", "rows.csv", b'sep="\ntext,label\n', refusal="data.source.delimiter"),
    MalformedFile(
        "ragged",
        "rows.csv",
        b"text,label\nhello,a\nworld\na,b,c\nagain,b\n",
        (
            expected_row(2, "hello"),
            (3, "1 fields where the header has 2"),
            (4, "3 fields where"),
            expected_row(5, "again", "b"),
        ),
    ),
    *(
        MalformedFile(
            f"delimiter {delimiter!r}",
            "rows.csv",
            f'text{delimiter}label\n"x,;\t|y"{delimiter}a\n'.encode(),
            (expected_row(2, "x,;\t|y"),),
            facts={"delimiter": delimiter},
        )
        for delimiter in ",;\t|"
    ),
    MalformedFile(
        "more commas than semicolons",
        "rows.csv",
        b"text;label;a,b,c,d\nhello;a;1,2,3,4\n",
        ((2, {"text": "hello", "label": "a", "a,b,c,d": "1,2,3,4"}),),
    ),
    MalformedFile(
        "a delimiter by name",
        "rows.csv",
        b"text~label\na,b;c~a\n",
        (expected_row(2, "a,b;c"),),
        source={"delimiter": "~"},
    ),
    MalformedFile(
        "a delimiter that is none", "rows.csv", PLAIN, refusal="data.source.delimiter", source={"delimiter": "\n"}
    ),
    MalformedFile("the order of Excel", "rows.csv", b"sep=;\r\ntext;label\r\nhello;a\r\n", (expected_row(3, "hello"),)),
    MalformedFile(
        "tsv", "rows.tsv", b'text\tlabel\na,b\ta\n"x\ty"\tb\n', (expected_row(2, "a,b"), expected_row(3, "x\ty", "b"))
    ),
    MalformedFile(
        "tsv without quotes", "rows.tsv", b'text\tlabel\n"hi\ta\n', (expected_row(2, '"hi'),), source={"quotes": False}
    ),
    MalformedFile(
        "a long field", "rows.csv", b"text,label\n" + b"x" * 2_000_000 + b",a\n", (expected_row(2, "x" * 2_000_000),)
    ),
    MalformedFile(
        "a field too long", "rows.csv", PLAIN + b"x" * 11_000_000, refusal="rows.csv:4: a line of more than 8 MiB"
    ),
    MalformedFile("too long a line", "rows.jsonl", b"\0" * (33 << 20), refusal="rows.jsonl:1: a line of more than"),
    MalformedFile(
        "U+2028 in csv",
        "rows.csv",
        "text,label\na\u2028b\x85c\x0cd,a\n".encode(),
        (expected_row(2, "a\u2028b\x85c\x0cd"),),
    ),
    MalformedFile("a workbook by another name", "rows.csv", b"PK\x03\x04\x14\0\x06\0", refusal="an Excel workbook"),
    MalformedFile("gzip by another name", "rows.csv", gzip.compress(PLAIN), refusal="the content is gzip data"),
]

JSON = [
    MalformedFile("jsonl", "rows.jsonl", LINES, LINE_ROWS),
    MalformedFile("ndjson", "rows.ndjson", LINES, LINE_ROWS),
    MalformedFile("jsonl, marked, crlf", "rows.jsonl", BOM + LINES.replace(b"\n", b"\r\n"), LINE_ROWS),
    MalformedFile("jsonl with carriage returns", "rows.jsonl", LINES.replace(b"\n", b"\r"), LINE_ROWS),
    MalformedFile(
        "jsonl with blank lines",
        "rows.jsonl",
        b"\n  \n" + LINES,
        (expected_row(3, "hello"), expected_row(4, "world", "b")),
    ),
    MalformedFile("jsonl of nothing", "rows.jsonl", b"\n\n"),
    MalformedFile(
        "values that are no text",
        "rows.jsonl",
        b'{"text": 12, "label": null, "more": {"a": [1.5, true]}}\n',
        ((1, {"text": 12, "label": None, "more": {"a": [1.5, True]}}),),
    ),
    MalformedFile(
        "not objects",
        "rows.jsonl",
        b'[1]\n"x"\n3\nnull\ntrue\n',
        ((1, "a JSON array where an object"), (2, "a JSON string"), (3, "a JSON number"), (4, "null"), (5, "boolean")),
    ),
    MalformedFile(
        "broken json", "rows.jsonl", b"{'text': 1}\n" + GOOD_LINE(), ((1, "at column 2"), expected_row(2, "hello"))
    ),
    MalformedFile(
        "two objects in a line", "rows.jsonl", b"{} {}\n" + GOOD_LINE(), ((1, "Extra data"), expected_row(2, "hello"))
    ),
    MalformedFile("cut off", "rows.jsonl", LINES + b'{"text": "he', (*LINE_ROWS, (3, "the last line is cut off"))),
    MalformedFile(
        "a key twice",
        "rows.jsonl",
        b'{"text": "a", "text": "b"}\n' + GOOD_LINE(),
        ((1, "key 'text' occurs"), expected_row(2, "hello")),
    ),
    MalformedFile("a key twice further in", "rows.jsonl", b'{"text": {"k": 1, "k": 2}}\n', ((1, "key 'k' occurs"),)),
    MalformedFile(
        "no numbers",
        "rows.jsonl",
        b'{"text": NaN}\n{"text": -Infinity}\n{"text": 1e999}\n' + GOOD_LINE(),
        ((1, "NaN"), (2, "-Infinity"), (3, "1e999 is too large"), expected_row(4, "hello")),
    ),
    MalformedFile(
        "a huge integer", "rows.jsonl", b'{"text": 1' + b"0" * 30 + b', "label": "a"}\n', (expected_row(1, 10**30),)
    ),
    MalformedFile(
        "an endless integer",
        "rows.jsonl",
        b'{"text": 1' + b"0" * 5000 + b"}\n" + GOOD_LINE(),
        ((1, "digits"), expected_row(2, "hello")),
    ),
    MalformedFile("deep", "rows.jsonl", DEEP_LINE + GOOD_LINE(), ((1, "nested too deep"), expected_row(2, "hello"))),
    MalformedFile(
        "U+2028 in a string",
        "rows.jsonl",
        '{"text": "a\u2028b\x85c", "label": "a"}\n'.encode(),
        (expected_row(1, "a\u2028b\x85c"),),
    ),
    MalformedFile(
        "an escaped pair", "rows.jsonl", b'{"text": "\\ud83c\\udf89", "label": "a"}\n', (expected_row(1, "🎉"),)
    ),
    MalformedFile(
        "an escaped half",
        "rows.jsonl",
        b'{"text": "\\ud800", "label": "a"}\n' + GOOD_LINE(),
        ((1, "surrogate"), expected_row(2, "hello")),
    ),
    MalformedFile("an escaped half in a key", "rows.jsonl", b'{"\\udfff": 1}\n', ((1, "surrogate"),)),
    MalformedFile(
        "an escaped zero", "rows.jsonl", b'{"text": "a\\u0000b", "label": "a"}\n', (expected_row(1, "a\0b"),)
    ),
    MalformedFile("jsonl in utf-16", "rows.jsonl", ("\ufeff" + LINES.decode()).encode("utf-16-le"), LINE_ROWS),
    MalformedFile(
        "an array",
        "rows.json",
        json.dumps([json.loads(GOOD_LINE()), {"text": "🎉", "label": "b"}], indent=1).encode(),
        (expected_row(1, "hello"), expected_row(2, "🎉", "b")),
    ),
    MalformedFile("an empty array", "rows.json", b"[ ]"),
    MalformedFile(
        "an array in an object",
        "rows.json",
        b'{"version": 1, "labels": ["a"], "data": [' + GOOD_LINE() + b'], "more": {}}\n',
        (expected_row(1, "hello"),),
        facts={"array": "data"},
    ),
    MalformedFile("two arrays in an object", "rows.json", b'{"a": [{}], "b": [{}]}', refusal="several, 'a', 'b'"),
    MalformedFile("one object", "rows.json", b'{"text": "hello", "label": "a"}', (expected_row(1, "hello"),)),
    MalformedFile(
        "an object without rows", "rows.json", b'{"a": [[1]]}', refusal="rows.json:1: an object without rows"
    ),
    MalformedFile("a string", "rows.json", b'"hello"', refusal="an array of objects"),
    MalformedFile("jsonl by another name", "rows.json", LINES, LINE_ROWS, facts={"json_lines": True}),
    MalformedFile(
        "jsonl by another name, with a bad line",
        "rows.json",
        BOM + b"\n" + LINES + b"{broken\n",
        (expected_row(2, "hello"), expected_row(3, "world", "b"), (4, "not JSON")),
        facts={"json_lines": True, "bom": True},
    ),
    MalformedFile("one line of jsonl by another name", "rows.json", GOOD_LINE(), (expected_row(1, "hello"),)),
    MalformedFile("json cut off", "rows.json", b'[\n{"text": "hello"},\n{"text": "wo', refusal="rows.json:3: not JSON"),
    MalformedFile(
        "a wrapped array cut off", "rows.json", b'{"data": [\n{"text": "hello"}', refusal="the file is cut off"
    ),
    MalformedFile("a json array and more", "rows.json", b"[{}]\n{}", refusal="rows.json:2: not JSON: Extra data"),
    MalformedFile("deep in a json array", "rows.json", b"[" + DEEP_LINE + b"]", refusal="nested too deep"),
    MalformedFile(
        "bad rows in a json array",
        "rows.json",
        b'[1, {"a": 1, "a": 2}, {"a": NaN}, {"a": "\\ud800"}, ' + GOOD_LINE() + b"]",
        ((1, "a JSON number"), (2, "key 'a'"), (3, "NaN"), (4, "surrogate"), expected_row(5, "hello")),
    ),
]

COMPRESSED = [
    MalformedFile("csv.gz", "rows.csv.gz", gzip.compress(PLAIN), TWO_ROWS, facts={"kind": "csv", "compression": "gz"}),
    MalformedFile("csv.zst", "rows.csv.zst", zstd.compress(PLAIN), TWO_ROWS, facts={"compression": "zst"}),
    MalformedFile("tsv.gz in upper case", "ROWS.TSV.GZ", gzip.compress(PLAIN.replace(b",", b"\t")), TWO_ROWS),
    MalformedFile("jsonl.zst", "rows.jsonl.zst", zstd.compress(LINES), LINE_ROWS),
    MalformedFile("json.gz", "rows.json.gz", gzip.compress(b"[" + GOOD_LINE() + b"]"), (expected_row(1, "hello"),)),
    MalformedFile("utf-16 in gzip", "rows.csv.gz", gzip.compress(KOREAN.encode("utf-16")), EMOJI_ROWS),
    MalformedFile("latin-1 in gzip", "rows.csv.gz", gzip.compress(UMLAUTS.encode("latin-1")), UMLAUT_ROWS),
    MalformedFile("two members", "rows.csv.gz", gzip.compress(PLAIN[:15]) + gzip.compress(PLAIN[15:]), TWO_ROWS),
    MalformedFile("two frames", "rows.csv.zst", zstd.compress(PLAIN[:15]) + zstd.compress(PLAIN[15:]), TWO_ROWS),
    MalformedFile(
        "gzip cut off",
        "rows.csv.gz",
        gzip.compress(PLAIN)[:-8],
        refusal="rows.csv.gz:4: the gz stream is cut off after line 3",
    ),
    MalformedFile(
        "zst cut off", "rows.csv.zst", zstd.compress(PLAIN)[:-4], refusal="the zst stream is cut off after line"
    ),
    MalformedFile(
        "gzip with a wrong sum",
        "rows.csv.gz",
        gzip.compress(PLAIN)[:-8] + b"\0" * 8,
        refusal="cut off after line 3 or damaged",
    ),
    MalformedFile("gzip and rubbish", "rows.csv.gz", gzip.compress(PLAIN) + b"rubbish", refusal="damaged"),
    MalformedFile(
        "no gzip", "rows.csv.gz", PLAIN, refusal="rows.csv.gz:1: the gz stream is cut off after line 0 or damaged"
    ),
    MalformedFile("no zst", "rows.csv.zst", PLAIN, refusal="rows.csv.zst:1: the zst stream"),
    MalformedFile("gzip of nothing", "rows.csv.gz", gzip.compress(b""), refusal="rows.csv.gz: the file is empty"),
    MalformedFile(
        "gzip in gzip", "rows.csv.gz", gzip.compress(gzip.compress(PLAIN)), refusal="the content is gzip data"
    ),
    MalformedFile(
        "a bomb", "rows.csv.gz", gzip.compress(b"\0" * (64 << 20)), refusal="rows.csv.gz:1: a line of more than"
    ),
]

PARQUET = [
    MalformedFile("parquet", "rows.parquet", TABLE, LINE_ROWS, facts={"columns": ["text", "label"]}),
    MalformedFile("parquet of no rows", "rows.parquet", parquet_bytes({"text": pa.array([], pa.string())})),
    MalformedFile(
        "parquet cut off", "rows.parquet", TABLE[:-20], refusal="rows.parquet: not Parquet, or a damaged one"
    ),
    MalformedFile("parquet without its start", "rows.parquet", TABLE[20:], refusal="rows.parquet"),
    MalformedFile("no parquet", "rows.parquet", PLAIN, refusal="rows.parquet: not Parquet"),
    MalformedFile("empty parquet", "rows.parquet", b"", refusal="rows.parquet: the file is empty"),
    MalformedFile(
        "bytes for text",
        "rows.parquet",
        parquet_bytes({"text": [b"hello"], "label": ["a"]}),
        ((1, "column 'text' holds bytes"),),
    ),
    MalformedFile(
        "bytes that nobody needs",
        "rows.parquet",
        parquet_bytes({"text": ["hello"], "label": ["a"], "scan": [b"\xff\xd8"]}),
        (expected_row(1, "hello"),),
        facts={"columns_not_read": ["scan"]},
    ),
    MalformedFile(
        "numbers that are none",
        "rows.parquet",
        parquet_bytes({"text": ["a", "b"], "label": [float("nan"), float("inf")]}),
        (expected_row(1, "a", None), (2, "column 'label' holds infinity")),
    ),
]

TEXT = [
    MalformedFile(
        "txt",
        "rows.txt",
        b"hello\r\n\r\n  world \r\n",
        (expected_text_line(1, "hello"), expected_text_line(3, "  world ")),
    ),
    MalformedFile("txt.gz", "rows.txt.gz", gzip.compress(b"hello"), (expected_text_line(1, "hello", "rows.txt.gz"),)),
    MalformedFile(
        "txt in cp1252",
        "rows.txt",
        b"na\xefve caf\xe9\n",
        (expected_text_line(1, "naïve café"),),
        facts={"encoding": "latin-1"},
    ),
    MalformedFile(
        "txt with carriage returns",
        "rows.txt",
        b"hello\rworld\r",
        (expected_text_line(1, "hello"), expected_text_line(2, "world")),
    ),
    MalformedFile("U+2028 in txt", "rows.txt", "a\u2028b\x85c\n".encode(), (expected_text_line(1, "a\u2028b\x85c"),)),
    MalformedFile(
        "a name of two parts",
        "card.lost.txt",
        b"hello\n",
        (expected_text_line(1, "hello", "card.lost.txt", "card.lost"),),
    ),
    MalformedFile(
        "txt that names a split",
        "refund_test.txt",
        b"hello\n",
        (expected_text_line(1, "hello", "refund_test.txt", "refund"),),
    ),
    MalformedFile(
        "half a pair in txt", "rows.txt", b"x\xed\xa0\xbd\nhello\n", ((1, "surrogate"), expected_text_line(2, "hello"))
    ),
    MalformedFile("blank txt", "rows.txt", b"\n \n"),
    MalformedFile("empty txt", "rows.txt", b"", refusal="rows.txt: the file is empty"),
    MalformedFile("txt that is a workbook", "rows.txt", b"PK\x03\x04\x14\0\x06\0", refusal="an Excel workbook"),
]

HEADER = workbook_row(1, "text", "label")
SHEET = HEADER + workbook_row(2, "hello", "a") + workbook_row(3, "world", "b")
XXE = '<!DOCTYPE worksheet [<!ENTITY e "x">]>'
WORKBOOKS = [
    MalformedFile(
        "a workbook", "rows.xlsx", workbook_bytes(SHEET), TWO_ROWS, facts={"sheet": "S", "columns": ["text", "label"]}
    ),
    MalformedFile("a workbook with macros", "rows.xlsm", workbook_bytes(SHEET), TWO_ROWS),
    MalformedFile("a workbook of a header", "rows.xlsx", workbook_bytes(HEADER)),
    MalformedFile("an empty sheet", "rows.xlsx", workbook_bytes(""), refusal="rows.xlsx:1: sheet 'S' is empty"),
    MalformedFile(
        "one name twice in a sheet",
        "rows.xlsx",
        workbook_bytes(workbook_row(1, "text", "text")),
        refusal="rows.xlsx:1: column",
    ),
    MalformedFile(
        "rows far apart",
        "rows.xlsx",
        workbook_bytes(
            workbook_row(3, "text", "label") + workbook_row(7, "hello", "a") + workbook_row(1048576, "world", "b")
        ),
        (expected_row(7, "hello"), expected_row(1048576, "world", "b")),
    ),
    MalformedFile(
        "a sheet without a header",
        "rows.xlsx",
        workbook_bytes(workbook_row(1, "hello", "a") + workbook_row(2, "world", "b")),
        source={"header": ["text", "label"]},
        rows=(expected_row(1, "hello"), expected_row(2, "world", "b")),
    ),
    MalformedFile(
        "a header that is named again",
        "rows.xlsx",
        workbook_bytes(SHEET),
        refusal="1: the first line is a header itself (text, label)",
        source={"header": ["text", "label"]},
    ),
    MalformedFile(
        "a header too short", "rows.xlsx", workbook_bytes(SHEET), refusal="2 cells where", source={"header": ["text"]}
    ),
    MalformedFile(
        "no such sheet",
        "rows.xlsx",
        workbook_bytes(SHEET),
        refusal="no sheet 'T' (data.source.sheet)",
        source={"sheet": "T"},
    ),
    MalformedFile(
        "a short row", "rows.xlsx", workbook_bytes(HEADER + workbook_row(2, "hello")), (expected_row(2, "hello", None),)
    ),
    MalformedFile(
        "a cell beside the table",
        "rows.xlsx",
        workbook_bytes(HEADER + workbook_row(2, "hello", "a", "mine")),
        (expected_row(2, "hello"),),
    ),
    MalformedFile(
        "numbers, truths, errors",
        "rows.xlsx",
        workbook_bytes(
            HEADER
            + '<row r="2"><c><v>12.100000000000001</v></c><c t="b"><v>1</v></c></row>'
            + '<row r="3"><c><v>3.0</v></c><c><v>1E3</v></c></row>'
            + '<row r="4"><c t="str"><f>A1</f><v>hello</v></c><c t="e"><v>#N/A</v></c></row>'
        ),
        (
            expected_row(2, 12.1, True),
            expected_row(3, 3, 1000),
            (4, "column 'label' holds the error #N/A; fix its formula"),
        ),
    ),
    MalformedFile(
        "an escaped line end",
        "rows.xlsx",
        workbook_bytes(HEADER + workbook_row(2, "hello_x000D_\nworld", "a_b")),
        (expected_row(2, "hello\r\nworld", "a_b"),),
    ),
    MalformedFile(
        "an escaped half in a sheet",
        "rows.xlsx",
        workbook_bytes(HEADER + workbook_row(2, "_xD800_", "a")),
        ((2, "surrogate"),),
    ),
    MalformedFile("no workbook", "rows.xlsx", PLAIN, refusal="rows.xlsx: not an Excel workbook"),
    MalformedFile("an empty workbook", "rows.xlsx", b"", refusal="rows.xlsx: not an Excel workbook"),
    MalformedFile(
        "a workbook cut off", "rows.xlsx", workbook_bytes(SHEET)[:-40], refusal="rows.xlsx: not an Excel workbook"
    ),
    MalformedFile("a workbook with a password", "rows.xlsx", b"\xd0\xcf\x11\xe0\xa1", refusal="one with a password"),
    MalformedFile(
        "a sheet that breaks off",
        "rows.xlsx",
        workbook_bytes(f"{SHEET}<row>"),
        refusal="rows.xlsx: not an Excel workbook",
    ),
    MalformedFile(
        "a text that is not there",
        "rows.xlsx",
        workbook_bytes(HEADER + '<row r="2"><c t="s"><v>7</v></c></row>'),
        refusal="rows.xlsx:2: not an Excel workbook",
    ),
    MalformedFile("entities", "rows.xlsx", workbook_bytes(SHEET, XXE), refusal="sheet1.xml has a document type"),
    MalformedFile(
        "entities in styles",
        "rows.xlsx",
        workbook_bytes(SHEET, styles=f"{XXE}<styleSheet/>".encode()),
        refusal="document type",
    ),
    MalformedFile(
        "rows out of order",
        "rows.xlsx",
        workbook_bytes(HEADER + workbook_row(3, "x", "a") + workbook_row(2, "y", "b")),
        refusal="row 2 follows row 3",
    ),
    MalformedFile(
        "a row beyond Excel",
        "rows.xlsx",
        workbook_bytes(HEADER + workbook_row(1 << 40, "x", "a")),
        refusal="rows go from 1 to 1,048,576",
    ),
    MalformedFile(
        "a row of too many cells",
        "rows.xlsx",
        workbook_bytes(f'{HEADER}<row r="2">{"<c/>" * 140_000}</row>'),
        refusal="row 2 has more cells",
    ),
    MalformedFile(
        "styles without end",
        "rows.xlsx",
        workbook_bytes(SHEET, styles=b"<s>" + b"<x/>" * 600_000 + b"</s>"),
        refusal="more than 500,000 elements",
    ),
]

MALFORMED_FILES: list[MalformedFile] = [*ENCODINGS, *CSV, *JSON, *COMPRESSED, *PARQUET, *TEXT, *WORKBOOKS]
