import pytest

from lightning_mmrl.data.formats.label_csv import read_label_csv
from lightning_mmrl.errors import DataError


@pytest.fixture
def read(tmp_path):
    def read(text, **names):
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "labels.csv").write_bytes(content)
        return read_label_csv(tmp_path / "labels.csv", names)

    return read


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_and_the_columns_are_found(read, delimiter):
    lines = ["Clip,Emotion,Actor,Subset,valence", "a.mp4,angry,7,dev,0.5", "", "b.mp4, sad ,,Train,"]
    table = read("\ufeff" + "\r\n".join(line.replace(",", delimiter) for line in lines) + "\r\n")
    assert table.columns == {"file": "Clip", "label": "Emotion", "speaker": "Actor", "split": "Subset"}
    first, second = table.rows
    assert (first.line, first.file, first.label, first.speaker, first.split) == (2, "a.mp4", "angry", "7", "validation")
    assert (second.line, second.label, second.speaker, second.split) == (4, "sad", None, "train")
    assert (first.extras, second.extras) == ({"valence": "0.5"}, {})


def test_quoted_texts_may_hold_delimiters_and_line_ends(read):
    table = read('path,label,reasoning\na.mp4,sad,"slow, low\nand ""flat"""\nb.mp4,sad,\n')
    assert [row.reasoning for row in table.rows] == ['slow, low\nand "flat"', None]
    assert [row.line for row in table.rows] == [2, 4]


def test_columns_may_be_named(read):
    table = read("wav,y,label\na.wav,sad,?\n", file="wav", label="y")
    assert (table.rows[0].file, table.rows[0].label) == ("a.wav", "sad")


def test_times_are_read(read):
    [row] = read("file,label,start,end\na.mp4,sad,1.5,2\n").rows
    assert (row.start_s, row.end_s) == (1.5, 2.0)


@pytest.mark.parametrize(
    ("row", "group", "reason"),
    [
        (",sad,,", "missing file", "no file is named"),
        ("a.mp4,,,", "label", "'a.mp4' has no label"),
        ("a.mp4,sad,soon,", "span", "start is 'soon'; it must be a time"),
        ("a.mp4,sad,-1,", "span", "start is '-1'"),
        ("a.mp4,sad,nan,", "span", "start is 'nan'"),
        ("a.mp4,sad,,,x", "not a CSV row", "5 fields but 4 columns"),
        ("a.mp4,sad", "not a CSV row", "2 fields but 4 columns"),
    ],
)
def test_a_bad_row_is_a_problem_with_its_line(read, row, group, reason):
    table = read(f"file,label,start,end\n{row}\nb.mp4,sad,,\n")
    [problem] = table.problems
    assert (problem.line, problem.group) == (2, group)
    assert reason in problem.reason
    assert [row.line for row in table.rows] == [3]


def test_an_unknown_split_is_a_problem(read):
    [problem] = read("file,label,split\na.mp4,sad,holdout\n").problems
    assert "split is 'holdout'; it must be one of train" in problem.reason


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", r"labels.csv:1: no column of files .*; name it by --file-column, the header has ''|nothing"),
        ("a,b\n", "labels.csv:1: no column of files .file, path, clip.*the header has 'a', 'b'"),
        ("file,b\n", "no column of labels .*--label-column"),
        ("file,label,file\n", "column 'file' appears twice"),
        (b"file,label\na.mp4,tr\xe4urig\n", "labels.csv:2: byte 0xe4 is not UTF-8; save the file as CSV UTF-8"),
        ('file,label\na.mp4,"sad\n', "labels.csv:2: not a CSV row .unexpected end of data.; check its quotes"),
        ('file,label\na.mp4,"sad"x\n', "labels.csv:2: not a CSV row"),
        ("file,label\na.mp4," + "x" * 200_000 + "\n", "labels.csv:2: not a CSV row .field larger than"),
    ],
)
def test_a_file_that_is_no_table_of_labels_is_refused(read, text, found):
    with pytest.raises(DataError, match=found):
        read(text)


def test_a_named_column_must_exist(read, tmp_path):
    with pytest.raises(DataError, match=r"labels.csv:1: no column 'who'; the header has 'file', 'label'"):
        read("file,label\na.mp4,sad\n", speaker="who")
    with pytest.raises(DataError, match=r"none.csv does not exist; name the CSV of labels"):
        read_label_csv(tmp_path / "none.csv")
