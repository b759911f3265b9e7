"""CSVs as spreadsheets, editors and other systems save them: rows, encodings, delimiters, times, columns of splits."""

import codecs

import pytest

from lightning_mmrl.data.formats.csv_times import seconds_of
from lightning_mmrl.data.formats.label_csv import NO_COLUMN, read_label_csv
from lightning_mmrl.errors import DataError


@pytest.fixture
def read(tmp_path):
    def read(text, encoding=None, **names):
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "labels.csv").write_bytes(content)
        return read_label_csv(tmp_path / "labels.csv", names, encoding=encoding)

    return read


SEPARATORS = ("\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")
"""Vertical tab, form feed, separators of files, groups and records, next line, line and paragraph separator."""


@pytest.mark.parametrize("separator", SEPARATORS, ids=lambda each: f"U+{ord(each):04X}")
@pytest.mark.parametrize("quote", ["", '"'], ids=["bare", "quoted"])
def test_only_cr_and_lf_end_a_row(read, separator, quote):
    """The case csv_linebreaks."""
    text = f"He frowns.{separator}Then he shouts."
    table = read(f"file,label,reasoning\na.wav,a,{quote}{text}{quote}\nb.wav,b,\n")
    assert table.problems == ()
    assert [(row.line, row.file, row.reasoning) for row in table.rows] == [(2, "a.wav", text), (3, "b.wav", None)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_rows_end_as_any_system_ends_them(read, end):
    table = read(end.join(["file,label,reasoning", 'a.wav,a,"x\ny"', "b.wav,b,", "c.wav,,"]))
    assert [(row.line, row.file) for row in table.rows] == [(2, "a.wav"), (4, "b.wav")]
    assert table.rows[0].reasoning == "x\ny"
    assert [problem.line for problem in table.problems] == [5]


WORDS = {
    "cp1252": "tr\u00e4urig",
    "gb18030": "\u60b2\u4f24",
    "shift_jis": "\u60b2\u3057\u3044",
    "cp1251": "\u0433\u0440\u0443\u0441\u0442\u044c",
    "latin-1": "\u00e9nerv\u00e9",
}


@pytest.mark.parametrize(("encoding", "word"), WORDS.items())
def test_an_encoding_may_be_named(read, encoding, word):
    content = f"file,label\r\na.wav,{word}\r\n".encode(encoding)
    assert read(content, encoding).rows[0].label == word
    with pytest.raises(DataError, match=r"labels.csv:2: byte 0x.. is not UTF-8; .* by --encoding .*can be read as"):
        read(content)


MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize(("encoding", "mark"), MARKED.items())
def test_a_byte_order_mark_says_the_encoding(read, encoding, mark):
    text = "file\tlabel\na.wav\t\u60b2\u4f24\n"
    table = read(mark + text.encode(encoding))
    assert (table.columns["file"], table.rows[0].label) == ("file", "\u60b2\u4f24")


def test_a_mark_is_no_part_of_a_name_if_the_encoding_is_named(read):
    assert read("\ufefffile,label\na.wav,sad\n", "utf-8").columns["file"] == "file"


@pytest.mark.parametrize(
    ("content", "encoding", "found"),
    [
        ("file,label\na.wav,sad\n".encode("utf-16-le"), None, "holds NUL characters, .*; try --encoding utf-16-le"),
        ("file,label\na.wav,sad\n".encode("utf-16-be"), None, "holds NUL characters, .*; try --encoding utf-16-be"),
        (b"file,label\r\na.wav,\x81\r\n", "cp1252", "labels.csv:2: byte 0x81 is not CP1252"),
        (b"file,label\rx,y\ra.wav,\xff\r", None, "labels.csv:3: byte 0xff is not UTF-8"),
        (b"file,label\n", "utf-9", "--encoding utf-9 is no encoding of text that Python knows"),
        (b"file,label\n", "base64", "--encoding base64 is no encoding of text"),
    ],
)
def test_what_is_no_text_of_its_encoding_is_refused(read, content, encoding, found):
    with pytest.raises(DataError, match=found):
        read(content, encoding)


DECLARED = {
    "Excel": "sep=;\r\nfile;label\r\na,b.wav;sad\r\n",
    "quoted": '"sep=;"\nfile;label\na,b.wav;sad\n',
    "capitals": "SEP=;\nfile;label\na,b.wav;sad\n",
    "saved again": "sep=;;\nfile;label\na,b.wav;sad\n",
    "with a mark": "\ufeffsep=;\nfile;label\na,b.wav;sad\n",
    "a tab": "sep=\t\nfile\tlabel\na,b.wav\tsad\n",
    "another character": "sep=^\nfile^label\na,b.wav^sad\n",
    "against what is frequent": "sep=;\nfile;label,x,y\na,b.wav;sad\n",
}


@pytest.mark.parametrize("text", DECLARED.values(), ids=DECLARED.keys())
def test_the_first_line_may_declare_the_delimiter(read, text):
    names = {"label": "label,x,y"} if "x,y" in text else {}
    [row] = read(text, **names).rows
    assert (row.line, row.file, row.label) == (3, "a,b.wav", "sad")


def test_lines_are_counted_with_the_declaration_and_blank_lines(read):
    with pytest.raises(DataError, match=r"labels.csv:3: no column of labels"):
        read("sep=;\n\nfile;x\n")
    assert read("\n\nfile,label\na.wav,sad\n").rows[0].line == 4


TIMES = {
    "5": 5, "5.": 5, ".5": 0.5, "5,5": 5.5, ",5": 0.5, "12,75": 12.75, "1e2": 100, "00:00:05": 5, "0:05.5": 5.5,
    "0:05,5": 5.5, "1:30": 90, "90:00": 5400, "01:02:03.25": 3723.25, "00:00:05,500": 5.5, "\uff15": 5,
    "1\uff1a30": 90, "00:00:00": 0, " 7 ": 7, "1234,5": 1234.5,
}  # fmt: skip


@pytest.mark.parametrize(("text", "seconds"), TIMES.items())
def test_times_are_read(text, seconds):
    assert seconds_of(text, comma_is_decimal=False) == pytest.approx(seconds, abs=1e-12)


@pytest.mark.parametrize(
    "text",
    ["-1", "nan", "inf", "soon", "1:75", "1:60:00", "::5", "1:2:3:4", "00:00:05;12", "5 s", "1.234,5", "1_0", ""],
)
def test_what_is_no_time_is_none(text):
    assert seconds_of(text, comma_is_decimal=True) is None


def test_a_comma_before_three_digits_is_read_where_it_can_be_nothing_else(read):
    assert read("file;label;end\na.wav;sad;1,234\n").rows[0].end_s == 1.234
    [problem] = read('file,label,end\na.wav,sad,"1,234"\n').problems
    assert "end is '1,234'; it must be a time in seconds, such as 65.5, or a clock time, as 1:05.5" in problem.reason


OTHER_MEANING = {
    "sets of an experiment": ("set", ["A", "B"]),
    "numbers": ("Subset", ["1", "2"]),
    "a partition of speakers": ("partition", ["north", "south"]),
    "one value": ("SET", ["full", "full"]),
    "folds": ("subset", ["fold1", "fold2"]),
}


@pytest.mark.parametrize(("name", "values"), OTHER_MEANING.values(), ids=OTHER_MEANING.keys())
def test_a_set_that_names_no_splits_is_a_column_of_its_own(read, name, values):
    table = read(f"file,label,{name}\na.wav,sad,{values[0]}\nb.wav,sad,{values[1]}\n")
    assert [(row.split, row.extras) for row in table.rows] == [(None, {name: value}) for value in values]
    [note] = table.notes
    assert f"column '{name}' names no splits (it has '{values[0]}'" in note
    assert f"--split-column {name} takes it for the split" in note
    named = read(f"file,label,{name}\na.wav,sad,{values[0]}\n", split=name)
    assert "must be one of train" in named.problems[0].reason


def test_the_column_that_names_splits_is_the_split(read):
    table = read("file,label,set,partition\na.wav,sad,A,dev\nb.wav,sad,B,\n")
    assert table.columns["split"] == "partition"
    assert [(row.split, row.extras) for row in table.rows] == [("validation", {"set": "A"}), (None, {"set": "B"})]
    assert "column 'set' names no splits" in table.notes[0]
    assert read("file,label,set\na.wav,sad,test\nb.wav,sad,B\n").problems[0].line == 3


def test_a_column_named_split_is_believed_and_can_be_switched_off(read):
    table = read("file,label,split\na.wav,sad,trian\n")
    [problem] = table.problems
    assert "split is 'trian'; it must be one of train" in problem.reason
    assert "or give --split-column '' for no split" in problem.reason
    off = read("file,label,split\na.wav,sad,trian\n", split=NO_COLUMN)
    assert (off.problems, off.rows[0].split, off.rows[0].extras) == ((), None, {})
