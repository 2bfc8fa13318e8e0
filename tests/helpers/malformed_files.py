"""Files as people have them, bad ones above all, and what becomes of each: a table for more than one test.

Hostile("quotes never closed", "rows.csv", b'text,label\\n"hello,a\\n', refused="rows.csv:2: not CSV")
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
class Hostile:
    """One file, and either why it is refused, or its rows: (line, values), or (line, words of the problem)."""

    case: str
    file: str
    content: bytes
    rows: tuple[tuple[int, dict[str, Any] | str], ...] = ()
    refused: str = ""
    source: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    """What must be told of the file beside its rows."""


def row(line: int, text: Any, label: Any = "a") -> tuple[int, dict[str, Any]]:
    """Returns what a reader must give for a row of text and label."""
    return line, {"text": text, "label": label}


def line(number: int, text: str, file: str = "rows.txt", label: str = "rows") -> tuple[int, dict[str, Any]]:
    """Returns what a reader must give for a line of text."""
    return number, {"text": text, "label": label, "file": file}


def parquet(columns: dict[str, Any]) -> bytes:
    """Returns the bytes of a Parquet file."""
    written = BytesIO()
    pq.write_table(pa.table(columns), written)
    return written.getvalue()


MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"


def workbook(rows: str, prolog: str = "", **parts: bytes) -> bytes:
    """Returns the bytes of an Excel workbook of one sheet, made of `rows` of XML, and of further parts."""
    sheet = f'{prolog}<worksheet xmlns="{MAIN}"><sheetData>{rows}</sheetData></worksheet>'
    types = f'<Types xmlns="{PACKAGE}/content-types"><Default Extension="xml" ContentType="application/xml"/>'
    for part, kind in (("workbook", "sheet.main"), ("worksheets/sheet1", "worksheet"), ("styles", "styles")):
        content = f"application/vnd.openxmlformats-officedocument.spreadsheetml.{kind}+xml"
        types += f'<Override PartName="/xl/{part}.xml" ContentType="{content}"/>'
    relation = '<Relationship Id="r{}" Type="' + RELATIONS + '/{}" Target="{}"/>'
    relations = f'<Relationships xmlns="{PACKAGE}/relationships">' + "{}</Relationships>"
    book = f'<workbook xmlns="{MAIN}" xmlns:r="{RELATIONS}"><sheets><sheet name="S" sheetId="1" r:id="r1"/></sheets>'
    inside = relation.format(1, "worksheet", "worksheets/sheet1.xml") + relation.format(2, "styles", "styles.xml")
    written = BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", f"{types}</Types>")
        archive.writestr("_rels/.rels", relations.format(relation.format(1, "officeDocument", "xl/workbook.xml")))
        archive.writestr("xl/workbook.xml", f"{book}</workbook>")
        archive.writestr("xl/_rels/workbook.xml.rels", relations.format(inside))
        archive.writestr("xl/styles.xml", parts.pop("styles", f'<styleSheet xmlns="{MAIN}"/>'.encode()))
        archive.writestr("xl/worksheets/sheet1.xml", sheet)
        for name, content in parts.items():
            archive.writestr(f"xl/{name}.xml", content)
    return written.getvalue()


def cells(number: int, *texts: str) -> str:
    """Returns a row of texts as a sheet has it."""
    written = "".join(f'<c t="inlineStr"><is><t>{text}</t></is></c>' for text in texts)
    return f'<row r="{number}">{written}</row>'


def cesu8(text: str) -> bytes:
    """Returns the text as old MySQL and Java write it: what is above U+FFFF as two halves of three bytes each."""
    units = struct.unpack(f"<{len(text.encode('utf-16-le', 'surrogatepass')) // 2}H", text.encode("utf-16-le"))
    return "".join(map(chr, units)).encode("utf-8", "surrogatepass")


PLAIN = b"text,label\nhello,a\nworld,b\n"
TWO = (row(2, "hello"), row(3, "world", "b"))
UMLAUTS = "text,label\nGrüße aus Köln,a\nworld,b\n"
UMLAUT_ROWS = (row(2, "Grüße aus Köln"), row(3, "world", "b"))
LINES = b'{"text": "hello", "label": "a"}\n{"text": "world", "label": "b"}\n'
LINE_ROWS = (row(1, "hello"), row(2, "world", "b"))
TABLE = parquet({"text": ["hello", "world"], "label": ["a", "b"]})
GOOD = '{"text": "hello", "label": "a"}\n'.encode
DEEP = b'{"text": "x", "label": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
KOREAN = "text,label\n안녕 🎉,a\n"
PARTY = (row(2, "안녕 🎉"),)
MARK = b"\xef\xbb\xbf"

# One byte a character, or two, and not Western European: to read these as latin-1 would be to misread them.
FOREIGN = {
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
    Hostile("plain", "rows.csv", PLAIN, TWO, about={"encoding": "utf-8", "bom": False, "last_line_ended": True}),
    Hostile("utf-8 with a mark", "rows.csv", MARK + PLAIN, TWO, about={"bom": True}),
    Hostile("a mark and utf-8 by name", "rows.csv", MARK + PLAIN, TWO, source={"encoding": "utf-8"}),
    Hostile("a mark and utf-8-sig by name", "rows.csv", MARK + PLAIN, TWO, source={"encoding": "utf-8-sig"}),
    Hostile("a mark before a quote", "rows.csv", b'\xef\xbb\xbf"text","label"\n"hello","a"\n', (row(2, "hello"),)),
    *(
        Hostile(
            f"{codec} {'with' if mark else 'without'} a mark",
            "rows.csv",
            (mark + KOREAN.replace("\n", "\r\n")).encode(codec),
            PARTY,
            about={"encoding": codec, "bom": bool(mark), "line_ends": {"crlf": 2}},
        )
        for codec in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
        for mark in ("\ufeff", "")
    ),
    Hostile("utf-16 by name", "rows.csv", KOREAN.encode("utf-16"), PARTY, source={"encoding": "utf-16"}),
    Hostile("utf-16 cut inside a character", "rows.csv", KOREAN.encode("utf-16")[:-1], refused="rows.csv:2: byte 0x0a"),
    Hostile(
        "half a pair in utf-16",
        "rows.csv",
        "\ufefftext,label\nx\ud83d,a\nworld,b\n".encode("utf-16-le", "surrogatepass"),
        ((2, "surrogate"), row(3, "world", "b")),
    ),
    Hostile("cesu-8", "rows.csv", cesu8(KOREAN), PARTY, about={"encoding": "cesu-8"}),
    Hostile(
        "cesu-8 with a half left over",
        "rows.csv",
        cesu8(KOREAN) + b"x\xed\xa0\xbdy,a\ngood,b\n",
        (*PARTY, (3, "surrogate"), row(4, "good", "b")),
    ),
    Hostile(
        "cesu-8 in jsonl",
        "rows.jsonl",
        cesu8('{"text": "🎉", "label": "a"}\n') + b'{"text": "\xed\xa0\xbd", "label": "a"}\n',
        (row(1, "🎉"), (2, "surrogate")),
    ),
    *(
        Hostile(
            f"{language} in {codec}",
            "rows.csv",
            f"text,label\n{text},a\n".encode(codec),
            (row(2, text),),
            about={"encoding": codec, "encoding_guessed": True},
        )
        for language, codec, text in (
            ("German", "latin-1", "Grüße aus Köln"),
            ("French", "cp1252", "ça coûte 5 € : c’est très cher"),
            ("Portuguese", "latin-1", "informação não é OPÇÃO"),
            ("Spanish", "latin-1", "¿Compañía? ¡sí señor!"),
            ("Finnish", "latin-1", "tämä on hyvää työtä"),
        )
    ),
    Hostile("latin-1 by name", "rows.csv", b"text,label\n\xff,a\n", (row(2, "ÿ"),), source={"encoding": "latin-1"}),
    *(
        Hostile(codec, "rows.csv", f"text,label\n{text},a\n".encode(codec), refused="rows.csv:2: byte 0x")
        for codec, text in FOREIGN.items()
    ),
    *(
        Hostile(
            f"{codec} by name",
            "rows.csv",
            f"text,label\n{text},a\n".encode(codec),
            (row(2, text),),
            source={"encoding": codec},
        )
        for codec, text in FOREIGN.items()
    ),
    Hostile("a byte that no text has", "rows.csv", b"text,label\nhell\xff,a\n", refused="byte 0xff in line 2"),
    Hostile(
        "utf-8 with one broken byte",
        "rows.csv",
        UMLAUTS.encode() + b"caf\xe9,a\n",
        refused="rows.csv:4: byte 0xe9 in line 4 is not UTF-8, though the rest is UTF-8",
    ),
    Hostile("utf-8 read strictly", "rows.csv", UMLAUTS.encode("latin-1"), refused="0xfc", source={"encoding": "utf-8"}),
    Hostile("ascii by name", "rows.csv", UMLAUTS.encode(), refused="byte 0xc3", source={"encoding": "ascii"}),
    Hostile("no encoding of text", "rows.csv", PLAIN, refused="data.source.encoding", source={"encoding": "hex"}),
    Hostile("overlong", "rows.csv", b"text,label\nhe\xc0\x80llo,a\n", refused="rows.csv:2: byte 0xc0 in line 2"),
    Hostile("above U+10FFFF", "rows.csv", b"text,label\nx\xf5\x90\x80\x80,a\n", refused="rows.csv:2: byte 0xf5"),
    Hostile("a cut character", "rows.csv", PLAIN + b"caf\xc3", refused="the file ends inside a character"),
    Hostile("zeros in a value", "rows.csv", b"text,label\nhe\0llo,a\n", (row(2, "he\0llo"),)),
    Hostile("a tail of zeros", "rows.csv", PLAIN + b"\0" * 5000, (*TWO, (4, "1 fields where the header has 2 (NUL"))),
    Hostile("nothing but zeros", "rows.csv", b"\0" * 5000, ()),
    Hostile("a tail of zeros in jsonl", "rows.jsonl", LINES + b"\0" * 5000, (*LINE_ROWS, (3, "NUL bytes"))),
    Hostile("zeros after json", "rows.json", b"[" + LINES.split(b"\n")[0] + b"]" + b"\0" * 9, refused="rows.json:1"),
]

CSV = [
    Hostile("empty", "rows.csv", b"", refused="rows.csv: the file is empty"),
    Hostile("only a mark", "rows.csv", MARK, refused="empty but for a byte order mark"),
    Hostile("only a mark of utf-16", "rows.csv", b"\xff\xfe", refused="empty but for a byte order mark"),
    Hostile("only newlines", "rows.csv", b"\n\r\n\n", refused="no header line"),
    Hostile("only delimiters", "rows.csv", b",,\n,,\n", refused="no header line"),
    Hostile("header only", "rows.csv", b"text,label\n"),
    Hostile("header without its end", "rows.csv", b"text,label", about={"last_line_ended": False}),
    Hostile("one name twice", "rows.csv", b"text,text\na,b\n", refused="rows.csv:1: column 'text' stands there twice"),
    Hostile(
        "the index of pandas",
        "rows.csv",
        b",text,label\n0,hello,a\n",
        ((2, {"column 1": "0", "text": "hello", "label": "a"}),),
        about={"columns": ["column 1", "text", "label"], "unnamed_columns": [1]},
    ),
    Hostile(
        "blank lines", "rows.csv", b"\n\ntext,label\n\nhello,a\r\n\r\nworld,b", (row(5, "hello"), row(7, "world", "b"))
    ),
    Hostile("one column", "rows.csv", b'text\nhello\n\n""\n', ((2, {"text": "hello"}), (4, {"text": ""}))),
    Hostile("carriage returns alone", "rows.csv", PLAIN.replace(b"\n", b"\r"), TWO, about={"line_ends": {"cr": 3}}),
    Hostile("no end of the last line", "rows.csv", PLAIN[:-1], TWO, about={"last_line_ended": False}),
    Hostile(
        "bare newlines in quotes",
        "rows.csv",
        b'text,label\r\n"\nWhere is\nmy card?",a\r\n"a\r\nb\rc",b\r\n',
        (row(2, "\nWhere is\nmy card?"), row(5, "a\r\nb\rc", "b")),
        about={"line_ends": {"crlf": 4, "lf": 2, "cr": 1}},
    ),
    Hostile("doubled quotes", "rows.csv", b'text,label\n"say ""hi"", now",a\n', (row(2, 'say "hi", now'),)),
    Hostile("a quote inside a bare field", "rows.csv", b'text,label\n5" pipe,a\n', (row(2, '5" pipe'),)),
    Hostile("never closed", "rows.csv", PLAIN + b'"never,a\nand,b\n', refused="rows.csv:4: not CSV: a quote"),
    Hostile("text after a quote", "rows.csv", PLAIN + b'"a\nb" c,a\n', refused="rows.csv:4: not CSV: a quoted field"),
    Hostile("bare quotes", "rows.csv", b'text,label\n"hello,a\n', (row(2, '"hello'),), source={"quotes": False}),
    Hostile(
        "single quotes",
        "rows.csv",
        b"text,label\n'say \"hi\", it''s',a\n",
        (row(2, 'say "hi", it\'s'),),
        source={"quotes": "'"},
        about={"quotes": "'"},
    ),
    Hostile(
        "quotes by name, delimiter found",
        "rows.csv",
        b"text;label\n|a;b|;a\n",
        (row(2, "a;b"),),
        source={"quotes": "|"},
        about={"delimiter": ";"},
    ),
    Hostile(
        "a delimiter of several characters",
        "rows.csv",
        b'text::label\n"a:b::a\na::b::c\n',
        (row(2, '"a:b'), (3, "3 fields where the header has 2")),
        source={"delimiter": "::", "quotes": False},
        about={"delimiter": "::"},
    ),
    Hostile(
        "a delimiter of several characters, no header",
        "rows.csv",
        b"hello ||| a\n",
        (row(1, "hello"),),
        source={"delimiter": " ||| ", "quotes": False, "header": ["text", "label"]},
    ),
    Hostile(
        "a delimiter without a header",
        "rows.csv",
        b"hello, you;a\nworld;b\n",
        (row(1, "hello, you"), row(2, "world", "b")),
        source={"header": ["text", "label"]},
        about={"delimiter": ";"},
    ),
    Hostile("an excel order that quotes", "rows.csv", b'sep="\ntext,label\n', refused="data.source.delimiter"),
    Hostile(
        "ragged",
        "rows.csv",
        b"text,label\nhello,a\nworld\na,b,c\nagain,b\n",
        (row(2, "hello"), (3, "1 fields where the header has 2"), (4, "3 fields where"), row(5, "again", "b")),
    ),
    *(
        Hostile(
            f"delimiter {delimiter!r}",
            "rows.csv",
            f'text{delimiter}label\n"x,;\t|y"{delimiter}a\n'.encode(),
            (row(2, "x,;\t|y"),),
            about={"delimiter": delimiter},
        )
        for delimiter in ",;\t|"
    ),
    Hostile(
        "more commas than semicolons",
        "rows.csv",
        b"text;label;a,b,c,d\nhello;a;1,2,3,4\n",
        ((2, {"text": "hello", "label": "a", "a,b,c,d": "1,2,3,4"}),),
    ),
    Hostile("a delimiter by name", "rows.csv", b"text~label\na,b;c~a\n", (row(2, "a,b;c"),), source={"delimiter": "~"}),
    Hostile("a delimiter that is none", "rows.csv", PLAIN, refused="data.source.delimiter", source={"delimiter": "\n"}),
    Hostile("the order of Excel", "rows.csv", b"sep=;\r\ntext;label\r\nhello;a\r\n", (row(3, "hello"),)),
    Hostile("tsv", "rows.tsv", b'text\tlabel\na,b\ta\n"x\ty"\tb\n', (row(2, "a,b"), row(3, "x\ty", "b"))),
    Hostile("tsv without quotes", "rows.tsv", b'text\tlabel\n"hi\ta\n', (row(2, '"hi'),), source={"quotes": False}),
    Hostile("a long field", "rows.csv", b"text,label\n" + b"x" * 2_000_000 + b",a\n", (row(2, "x" * 2_000_000),)),
    Hostile("a field too long", "rows.csv", PLAIN + b"x" * 11_000_000, refused="rows.csv:4: a line of more than 8 MiB"),
    Hostile("too long a line", "rows.jsonl", b"\0" * (33 << 20), refused="rows.jsonl:1: a line of more than"),
    Hostile(
        "U+2028 in csv",
        "rows.csv",
        "text,label\na\u2028b\x85c\x0cd,a\n".encode(),
        (row(2, "a\u2028b\x85c\x0cd"),),
    ),
    Hostile("a workbook by another name", "rows.csv", b"PK\x03\x04\x14\0\x06\0", refused="an Excel workbook"),
    Hostile("gzip by another name", "rows.csv", gzip.compress(PLAIN), refused="this is gzip data"),
]

JSON = [
    Hostile("jsonl", "rows.jsonl", LINES, LINE_ROWS),
    Hostile("ndjson", "rows.ndjson", LINES, LINE_ROWS),
    Hostile("jsonl, marked, crlf", "rows.jsonl", MARK + LINES.replace(b"\n", b"\r\n"), LINE_ROWS),
    Hostile("jsonl with carriage returns", "rows.jsonl", LINES.replace(b"\n", b"\r"), LINE_ROWS),
    Hostile("jsonl with blank lines", "rows.jsonl", b"\n  \n" + LINES, (row(3, "hello"), row(4, "world", "b"))),
    Hostile("jsonl of nothing", "rows.jsonl", b"\n\n"),
    Hostile(
        "values that are no text",
        "rows.jsonl",
        b'{"text": 12, "label": null, "more": {"a": [1.5, true]}}\n',
        ((1, {"text": 12, "label": None, "more": {"a": [1.5, True]}}),),
    ),
    Hostile(
        "not objects",
        "rows.jsonl",
        b'[1]\n"x"\n3\nnull\ntrue\n',
        ((1, "a JSON array where an object"), (2, "a JSON string"), (3, "a JSON number"), (4, "null"), (5, "boolean")),
    ),
    Hostile("broken json", "rows.jsonl", b"{'text': 1}\n" + GOOD(), ((1, "at column 2"), row(2, "hello"))),
    Hostile("two objects in a line", "rows.jsonl", b"{} {}\n" + GOOD(), ((1, "Extra data"), row(2, "hello"))),
    Hostile("cut off", "rows.jsonl", LINES + b'{"text": "he', (*LINE_ROWS, (3, "the last line is cut off"))),
    Hostile(
        "a key twice",
        "rows.jsonl",
        b'{"text": "a", "text": "b"}\n' + GOOD(),
        ((1, "key 'text' stands"), row(2, "hello")),
    ),
    Hostile("a key twice further in", "rows.jsonl", b'{"text": {"k": 1, "k": 2}}\n', ((1, "key 'k' stands"),)),
    Hostile(
        "no numbers",
        "rows.jsonl",
        b'{"text": NaN}\n{"text": -Infinity}\n{"text": 1e999}\n' + GOOD(),
        ((1, "NaN"), (2, "-Infinity"), (3, "1e999 is too large"), row(4, "hello")),
    ),
    Hostile("a huge integer", "rows.jsonl", b'{"text": 1' + b"0" * 30 + b', "label": "a"}\n', (row(1, 10**30),)),
    Hostile(
        "an endless integer",
        "rows.jsonl",
        b'{"text": 1' + b"0" * 5000 + b"}\n" + GOOD(),
        ((1, "digits"), row(2, "hello")),
    ),
    Hostile("deep", "rows.jsonl", DEEP + GOOD(), ((1, "nested too deep"), row(2, "hello"))),
    Hostile(
        "U+2028 in a string",
        "rows.jsonl",
        '{"text": "a\u2028b\x85c", "label": "a"}\n'.encode(),
        (row(1, "a\u2028b\x85c"),),
    ),
    Hostile("an escaped pair", "rows.jsonl", b'{"text": "\\ud83c\\udf89", "label": "a"}\n', (row(1, "🎉"),)),
    Hostile(
        "an escaped half",
        "rows.jsonl",
        b'{"text": "\\ud800", "label": "a"}\n' + GOOD(),
        ((1, "surrogate"), row(2, "hello")),
    ),
    Hostile("an escaped half in a key", "rows.jsonl", b'{"\\udfff": 1}\n', ((1, "surrogate"),)),
    Hostile("an escaped zero", "rows.jsonl", b'{"text": "a\\u0000b", "label": "a"}\n', (row(1, "a\0b"),)),
    Hostile("jsonl in utf-16", "rows.jsonl", ("\ufeff" + LINES.decode()).encode("utf-16-le"), LINE_ROWS),
    Hostile(
        "an array",
        "rows.json",
        json.dumps([json.loads(GOOD()), {"text": "🎉", "label": "b"}], indent=1).encode(),
        (row(1, "hello"), row(2, "🎉", "b")),
    ),
    Hostile("an empty array", "rows.json", b"[ ]"),
    Hostile(
        "an array in an object",
        "rows.json",
        b'{"version": 1, "labels": ["a"], "data": [' + GOOD() + b'], "more": {}}\n',
        (row(1, "hello"),),
        about={"array": "data"},
    ),
    Hostile("two arrays in an object", "rows.json", b'{"a": [{}], "b": [{}]}', refused="several, 'a', 'b'"),
    Hostile("one object", "rows.json", b'{"text": "hello", "label": "a"}', (row(1, "hello"),)),
    Hostile("an object without rows", "rows.json", b'{"a": [[1]]}', refused="rows.json:1: an object without rows"),
    Hostile("a string", "rows.json", b'"hello"', refused="no array of objects"),
    Hostile("jsonl by another name", "rows.json", LINES, LINE_ROWS, about={"json_lines": True}),
    Hostile(
        "jsonl by another name, with a bad line",
        "rows.json",
        MARK + b"\n" + LINES + b"{broken\n",
        (row(2, "hello"), row(3, "world", "b"), (4, "not JSON")),
        about={"json_lines": True, "bom": True},
    ),
    Hostile("one line of jsonl by another name", "rows.json", GOOD(), (row(1, "hello"),)),
    Hostile("json cut off", "rows.json", b'[\n{"text": "hello"},\n{"text": "wo', refused="rows.json:3: not JSON"),
    Hostile("a wrapped array cut off", "rows.json", b'{"data": [\n{"text": "hello"}', refused="the file is cut off"),
    Hostile("a json array and more", "rows.json", b"[{}]\n{}", refused="rows.json:2: not JSON: Extra data"),
    Hostile("deep in a json array", "rows.json", b"[" + DEEP + b"]", refused="nested too deep"),
    Hostile(
        "bad rows in a json array",
        "rows.json",
        b'[1, {"a": 1, "a": 2}, {"a": NaN}, {"a": "\\ud800"}, ' + GOOD() + b"]",
        ((1, "a JSON number"), (2, "key 'a'"), (3, "NaN"), (4, "surrogate"), row(5, "hello")),
    ),
]

COMPRESSED = [
    Hostile("csv.gz", "rows.csv.gz", gzip.compress(PLAIN), TWO, about={"kind": "csv", "compression": "gz"}),
    Hostile("csv.zst", "rows.csv.zst", zstd.compress(PLAIN), TWO, about={"compression": "zst"}),
    Hostile("tsv.gz in upper case", "ROWS.TSV.GZ", gzip.compress(PLAIN.replace(b",", b"\t")), TWO),
    Hostile("jsonl.zst", "rows.jsonl.zst", zstd.compress(LINES), LINE_ROWS),
    Hostile("json.gz", "rows.json.gz", gzip.compress(b"[" + GOOD() + b"]"), (row(1, "hello"),)),
    Hostile("utf-16 in gzip", "rows.csv.gz", gzip.compress(KOREAN.encode("utf-16")), PARTY),
    Hostile("latin-1 in gzip", "rows.csv.gz", gzip.compress(UMLAUTS.encode("latin-1")), UMLAUT_ROWS),
    Hostile("two members", "rows.csv.gz", gzip.compress(PLAIN[:15]) + gzip.compress(PLAIN[15:]), TWO),
    Hostile("two frames", "rows.csv.zst", zstd.compress(PLAIN[:15]) + zstd.compress(PLAIN[15:]), TWO),
    Hostile(
        "gzip cut off",
        "rows.csv.gz",
        gzip.compress(PLAIN)[:-8],
        refused="rows.csv.gz:4: the gz stream is cut off after line 3",
    ),
    Hostile("zst cut off", "rows.csv.zst", zstd.compress(PLAIN)[:-4], refused="the zst stream is cut off after line"),
    Hostile(
        "gzip with a wrong sum",
        "rows.csv.gz",
        gzip.compress(PLAIN)[:-8] + b"\0" * 8,
        refused="cut off after line 3 or damaged",
    ),
    Hostile("gzip and rubbish", "rows.csv.gz", gzip.compress(PLAIN) + b"rubbish", refused="damaged"),
    Hostile("no gzip", "rows.csv.gz", PLAIN, refused="rows.csv.gz:1: the gz stream is cut off after line 0 or damaged"),
    Hostile("no zst", "rows.csv.zst", PLAIN, refused="rows.csv.zst:1: the zst stream"),
    Hostile("gzip of nothing", "rows.csv.gz", gzip.compress(b""), refused="rows.csv.gz: the file is empty"),
    Hostile("gzip in gzip", "rows.csv.gz", gzip.compress(gzip.compress(PLAIN)), refused="this is gzip data"),
    Hostile("a bomb", "rows.csv.gz", gzip.compress(b"\0" * (64 << 20)), refused="rows.csv.gz:1: a line of more than"),
]

PARQUET = [
    Hostile("parquet", "rows.parquet", TABLE, LINE_ROWS, about={"columns": ["text", "label"]}),
    Hostile("parquet of no rows", "rows.parquet", parquet({"text": pa.array([], pa.string())})),
    Hostile("parquet cut off", "rows.parquet", TABLE[:-20], refused="rows.parquet: not Parquet, or a damaged one"),
    Hostile("parquet without its start", "rows.parquet", TABLE[20:], refused="rows.parquet"),
    Hostile("no parquet", "rows.parquet", PLAIN, refused="rows.parquet: not Parquet"),
    Hostile("empty parquet", "rows.parquet", b"", refused="rows.parquet: the file is empty"),
    Hostile(
        "bytes for text",
        "rows.parquet",
        parquet({"text": [b"hello"], "label": ["a"]}),
        ((1, "column 'text' holds bytes"),),
    ),
    Hostile(
        "bytes that nobody needs",
        "rows.parquet",
        parquet({"text": ["hello"], "label": ["a"], "scan": [b"\xff\xd8"]}),
        (row(1, "hello"),),
        about={"columns_not_read": ["scan"]},
    ),
    Hostile(
        "numbers that are none",
        "rows.parquet",
        parquet({"text": ["a", "b"], "label": [float("nan"), float("inf")]}),
        (row(1, "a", None), (2, "column 'label' holds infinity")),
    ),
]

TEXT = [
    Hostile("txt", "rows.txt", b"hello\r\n\r\n  world \r\n", (line(1, "hello"), line(3, "  world "))),
    Hostile("txt.gz", "rows.txt.gz", gzip.compress(b"hello"), (line(1, "hello", "rows.txt.gz"),)),
    Hostile(
        "txt in cp1252", "rows.txt", b"na\xefve caf\xe9\n", (line(1, "naïve café"),), about={"encoding": "latin-1"}
    ),
    Hostile("txt with carriage returns", "rows.txt", b"hello\rworld\r", (line(1, "hello"), line(2, "world"))),
    Hostile("U+2028 in txt", "rows.txt", "a\u2028b\x85c\n".encode(), (line(1, "a\u2028b\x85c"),)),
    Hostile("a name of two parts", "card.lost.txt", b"hello\n", (line(1, "hello", "card.lost.txt", "card.lost"),)),
    Hostile("txt that names a split", "refund_test.txt", b"hello\n", (line(1, "hello", "refund_test.txt", "refund"),)),
    Hostile("half a pair in txt", "rows.txt", b"x\xed\xa0\xbd\nhello\n", ((1, "surrogate"), line(2, "hello"))),
    Hostile("blank txt", "rows.txt", b"\n \n"),
    Hostile("empty txt", "rows.txt", b"", refused="rows.txt: the file is empty"),
    Hostile("txt that is a workbook", "rows.txt", b"PK\x03\x04\x14\0\x06\0", refused="an Excel workbook"),
]

HEADER = cells(1, "text", "label")
SHEET = HEADER + cells(2, "hello", "a") + cells(3, "world", "b")
XXE = '<!DOCTYPE worksheet [<!ENTITY e "x">]>'
WORKBOOKS = [
    Hostile("a workbook", "rows.xlsx", workbook(SHEET), TWO, about={"sheet": "S", "columns": ["text", "label"]}),
    Hostile("a workbook with macros", "rows.xlsm", workbook(SHEET), TWO),
    Hostile("a workbook of a header", "rows.xlsx", workbook(HEADER)),
    Hostile("an empty sheet", "rows.xlsx", workbook(""), refused="rows.xlsx:1: sheet 'S' is empty"),
    Hostile(
        "one name twice in a sheet", "rows.xlsx", workbook(cells(1, "text", "text")), refused="rows.xlsx:1: column"
    ),
    Hostile(
        "rows far apart",
        "rows.xlsx",
        workbook(cells(3, "text", "label") + cells(7, "hello", "a") + cells(1048576, "world", "b")),
        (row(7, "hello"), row(1048576, "world", "b")),
    ),
    Hostile(
        "a sheet without a header",
        "rows.xlsx",
        workbook(cells(1, "hello", "a") + cells(2, "world", "b")),
        source={"header": ["text", "label"]},
        rows=(row(1, "hello"), row(2, "world", "b")),
    ),
    Hostile(
        "a header that is named again",
        "rows.xlsx",
        workbook(SHEET),
        refused="1: the first line is a header itself (text, label)",
        source={"header": ["text", "label"]},
    ),
    Hostile("a header too short", "rows.xlsx", workbook(SHEET), refused="2 cells where", source={"header": ["text"]}),
    Hostile(
        "no such sheet", "rows.xlsx", workbook(SHEET), refused="no sheet 'T' (data.source.sheet)", source={"sheet": "T"}
    ),
    Hostile("a short row", "rows.xlsx", workbook(HEADER + cells(2, "hello")), (row(2, "hello", None),)),
    Hostile(
        "a cell beside the table", "rows.xlsx", workbook(HEADER + cells(2, "hello", "a", "mine")), (row(2, "hello"),)
    ),
    Hostile(
        "numbers, truths, errors",
        "rows.xlsx",
        workbook(
            HEADER
            + '<row r="2"><c><v>12.100000000000001</v></c><c t="b"><v>1</v></c></row>'
            + '<row r="3"><c><v>3.0</v></c><c><v>1E3</v></c></row>'
            + '<row r="4"><c t="str"><f>A1</f><v>hello</v></c><c t="e"><v>#N/A</v></c></row>'
        ),
        (row(2, 12.1, True), row(3, 3, 1000), (4, "column 'label' holds the error #N/A; mend its formula")),
    ),
    Hostile(
        "an escaped line end",
        "rows.xlsx",
        workbook(HEADER + cells(2, "hello_x000D_\nworld", "a_b")),
        (row(2, "hello\r\nworld", "a_b"),),
    ),
    Hostile(
        "an escaped half in a sheet", "rows.xlsx", workbook(HEADER + cells(2, "_xD800_", "a")), ((2, "surrogate"),)
    ),
    Hostile("no workbook", "rows.xlsx", PLAIN, refused="rows.xlsx: not an Excel workbook"),
    Hostile("an empty workbook", "rows.xlsx", b"", refused="rows.xlsx: not an Excel workbook"),
    Hostile("a workbook cut off", "rows.xlsx", workbook(SHEET)[:-40], refused="rows.xlsx: not an Excel workbook"),
    Hostile("a workbook with a password", "rows.xlsx", b"\xd0\xcf\x11\xe0\xa1", refused="one with a password"),
    Hostile(
        "a sheet that breaks off", "rows.xlsx", workbook(f"{SHEET}<row>"), refused="rows.xlsx: not an Excel workbook"
    ),
    Hostile(
        "a text that is not there",
        "rows.xlsx",
        workbook(HEADER + '<row r="2"><c t="s"><v>7</v></c></row>'),
        refused="rows.xlsx:2: not an Excel workbook",
    ),
    Hostile("entities", "rows.xlsx", workbook(SHEET, XXE), refused="sheet1.xml has a document type"),
    Hostile(
        "entities in styles",
        "rows.xlsx",
        workbook(SHEET, styles=f"{XXE}<styleSheet/>".encode()),
        refused="document type",
    ),
    Hostile(
        "rows out of order",
        "rows.xlsx",
        workbook(HEADER + cells(3, "x", "a") + cells(2, "y", "b")),
        refused="row 2 follows row 3",
    ),
    Hostile(
        "a row beyond Excel",
        "rows.xlsx",
        workbook(HEADER + cells(1 << 40, "x", "a")),
        refused="rows go from 1 to 1,048,576",
    ),
    Hostile(
        "a row of too many cells",
        "rows.xlsx",
        workbook(f'{HEADER}<row r="2">{"<c/>" * 140_000}</row>'),
        refused="row 2 has more cells",
    ),
    Hostile(
        "styles without end",
        "rows.xlsx",
        workbook(SHEET, styles=b"<s>" + b"<x/>" * 600_000 + b"</s>"),
        refused="more than 500,000 elements",
    ),
]

HOSTILE: list[Hostile] = [*ENCODINGS, *CSV, *JSON, *COMPRESSED, *PARQUET, *TEXT, *WORKBOOKS]
