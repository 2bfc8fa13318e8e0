"""Which files a source names: folders, globs and links."""

import gzip
import os
from pathlib import Path

import pytest

from data_prep.readers.sources import find_ignored_files
from insource.config.schema.source import Source
from tests.helpers.malformed_files import PLAIN
from tests.helpers.reader_rows import names, read_error, read_rows, write_file


def test_a_folder_gives_its_files_in_order_and_tells_what_it_leaves(tmp_path: Path) -> None:
    for name in ("2024/rows.csv.gz", "2023/rows.csv"):
        write_file(tmp_path / name, gzip.compress(PLAIN) if name.endswith("gz") else PLAIN)
    write_file(tmp_path / "june.jsonl", b'{"text": "x", "label": "a"}\n')
    for name in ("notes.txt", "2024/.hidden.csv", "_SUCCESS", "rows.parquet.gz"):
        write_file(tmp_path / name, b"nothing")
    source = Source(path=str(tmp_path))
    assert names(source) == [("all", "2023/rows.csv"), ("all", "2024/rows.csv.gz"), ("all", "june.jsonl")]
    assert find_ignored_files(source) == ["2024/.hidden.csv", "_SUCCESS", "notes.txt", "rows.parquet.gz"]
    assert len(read_rows(source)) == 5


def test_a_glob_names_files_below_its_first_wildcard(tmp_path: Path) -> None:
    for name in ("a/rows.csv", "b/rows.csv", "b/rows.txt"):
        write_file(tmp_path / name)
    source = Source(path=str(tmp_path / "*" / "rows.*"))
    assert names(source) == [("all", "a/rows.csv"), ("all", "b/rows.csv")]
    assert find_ignored_files(source) == ["b/rows.txt"]
    assert names(Source(path=str(tmp_path / "**" / "*.csv"))) == names(source)
    write_file(tmp_path / "c[1].csv")
    assert names(Source(path=str(tmp_path / "c[1].csv"))) == [("all", "c[1].csv")]


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    train, test = (str(write_file(tmp_path / split / "rows.csv")) for split in ("train", "test"))
    assert names(Source(train=train, test=test)) == [("train", "train/rows.csv"), ("test", "test/rows.csv")]


def test_a_folder_with_the_name_of_a_file_is_a_folder(tmp_path: Path) -> None:
    write_file(tmp_path / "x.csv" / "part-0.csv")
    assert names(Source(path=str(tmp_path / "x.csv"))) == [("all", "part-0.csv")]


def test_links_are_followed_but_not_in_circles_and_not_to_nowhere(tmp_path: Path) -> None:
    write_file(tmp_path / "elsewhere" / "rows.csv")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "circle").symlink_to(folder)
    assert names(Source(path=str(folder))) == [("all", "linked/rows.csv")]
    (folder / "gone.csv").symlink_to(tmp_path / "gone.csv")
    assert "data.source.path: gone.csv is a link" in read_error(Source(path=str(folder)))
    assert "is a link to" in read_error(Source(path=str(folder / "gone.csv")))


def test_what_is_not_there_is_refused_with_its_key(tmp_path: Path) -> None:
    rows = str(write_file(tmp_path / "rows.csv"))
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    notes = write_file(tmp_path / "notes.pdf")
    cases = {
        "data.source.path: there is no file": Source(path=str(tmp_path / "none.csv")),
        "data.source.paths[1]: there is no file": Source(paths=[rows, str(tmp_path / "none.csv")]),
        "data.source.test: there is no file": Source(train=rows, test=str(tmp_path / "none.csv")),
        "has no file that can be read": Source(path=str(tmp_path / "empty")),
        "data.source.path: " + str(tmp_path / "*.json"): Source(path=str(tmp_path / "*.json")),
        "unknown kind of file '.pdf'; known: .csv": Source(path=str(notes)),
        "neither a file nor a folder": Source(path=str(tmp_path / "pipe.csv")),
        "are the same file": Source(train=rows, test=rows),
    }
    for message, source in cases.items():
        assert message in read_error(source)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    write_file(tmp_path / "rows.csv").chmod(0)
    assert "permission denied" in read_error(Source(path=str(tmp_path / "rows.csv")))
