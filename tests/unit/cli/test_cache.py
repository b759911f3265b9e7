"""`mmrl cache`: figures of a folder, and what prune deletes of it."""

import os
import time

import pytest

from lightning_mmrl.cli import cache
from lightning_mmrl.errors import ConfigError, DataError

DAY_S = 86_400


@pytest.fixture
def folder(tmp_path):
    """Four entries of 1 MB, one by an earlier version, that were used 1 to 4 days ago; and files of others."""
    for number in range(1, 5):
        write(tmp_path, f"{number:064x}.{'safetensors' if number == 4 else 'media'}", 1_000_000, number * DAY_S)
    write(tmp_path, f"{7:064x}.media.0123abcd.tmp", 500_000, 2 * DAY_S)
    write(tmp_path, f"{8:064x}.media.0123abcd.tmp", 500_000, 10)
    for name in ("model.safetensors", f"{9:064x}.media.bak", f"a{9:063x}.media", f"{9:063x}.media"):
        write(tmp_path, name, 1000, 9 * DAY_S)
    (tmp_path / "notes.media").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / f"{9:064x}.media").write_text("mine")
    return tmp_path


def write(folder, name, num_bytes, age_s):
    path = folder / "00" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(num_bytes))
    when = time.time() - age_s
    os.utime(path, (when, when))


def entries(folder):
    return {int(path.name[:64], 16) for path in (folder / "00").iterdir() if path.stat().st_size == 1_000_000}


def others(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.stat().st_size < 500_000)


def test_stats_count_entries_and_nothing_else(folder, capsys):
    assert cache.run(["stats", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "entries      4, 0.004 GB"
    assert lines[1] == "per entry    1.00 MB"
    first, last = (time.strftime("%Y-%m-%d", time.localtime(time.time() - days * DAY_S)) for days in (4, 1))
    assert lines[2].startswith(f"last used    {first} ")
    assert f" to {last} " in lines[2]
    assert lines[3] == "no use       1, 0.001 GB: entries of an earlier version of mmrl"
    assert lines[4].startswith("unfinished   2, 0.001 GB")


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["--limit-gb", "0.003"], {1, 2}),  # with 0.5 MB of a live writer's file
        (["--limit-gb", "1"], {1, 2, 3, 4}),
        (["--limit-gb", "0"], set()),
        (["--unused-days", "2.5"], {1, 2}),
        (["--unused-days", "2.5", "--limit-gb", "0.0016"], {1}),
        (["--unused-days", "9"], {1, 2, 3, 4}),
    ],
)
def test_prune_deletes_the_least_recently_used_and_no_file_of_others(folder, capsys, options, kept):
    before = others(folder)
    cache.run(["prune", str(folder), *options, "--dry-run"])
    dry = capsys.readouterr().out
    assert entries(folder) == {1, 2, 3, 4}
    cache.run(["prune", str(folder), *options])
    assert entries(folder) == kept
    assert others(folder) == before
    assert not (folder / "00" / f"{7:064x}.media.0123abcd.tmp").exists(), "its writer is dead"
    assert (folder / "00" / f"{8:064x}.media.0123abcd.tmp").exists()
    said = capsys.readouterr().out
    assert said.startswith(f"deleted      {5 - len(kept)} files")
    assert dry == said.replace("deleted     ", "would delete").replace("kept      ", "would keep")


def test_links_are_not_followed(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / f"{5:064x}.media").write_bytes(bytes(100))
    (folder / "01").symlink_to(outside)
    (folder / "00" / f"{6:064x}.media").symlink_to(outside / f"{5:064x}.media")
    cache.run(["prune", str(folder), "--limit-gb", "0"])
    assert [path.name for path in outside.iterdir()] == [f"{5:064x}.media"]
    assert (folder / "00" / f"{6:064x}.media").is_symlink()


def test_a_folder_that_is_no_cache_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(DataError, match=r"is no media cache: no file in it is named like an entry; name the folder"):
        cache.run(["prune", str(tmp_path), "--limit-gb", "0"])
    with pytest.raises(DataError, match=r"does not exist; name the folder of data.media.cache_dir"):
        cache.run(["stats", str(tmp_path / "no")])
    with pytest.raises(DataError, match="is no folder"):
        cache.run(["stats", str(tmp_path / "model.safetensors")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needs --limit-gb or --unused-days"),
        (["--limit-gb", "-1"], r"--limit-gb is -1; it must be a number from 0"),
        (["--unused-days", "nan"], r"--unused-days is nan"),
        (["--limit-gb", "inf"], r"--limit-gb is inf"),
    ],
)
def test_prune_without_a_usable_bound_is_refused(folder, options, message):
    with pytest.raises(ConfigError, match=message):
        cache.run(["prune", str(folder), *options])
    assert entries(folder) == {1, 2, 3, 4}
