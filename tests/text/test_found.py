import os
from pathlib import Path

import pytest

from sae_sweep.config import SaeSweepError
from sae_sweep.text.found import find_files


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def found(pattern, root):
    return [str(path.relative_to(root)) for path in find_files(str(pattern)).paths]


def test_hidden_files_and_folders_are_left_out_and_counted(tmp_path):
    make(tmp_path, "a.txt", "._a.txt", ".ipynb_checkpoints/b.txt", "c/.d.jsonl", "c/e.jsonl", "notes.md")
    names = ["a.txt", "c/e.jsonl"]
    assert found(tmp_path, tmp_path) == names
    assert find_files(str(tmp_path)).left_out == {"hidden": 3, "other files": 1}
    assert found(f"{tmp_path}/**", tmp_path) == names
    assert found(f"{tmp_path}/**/*.*", tmp_path) == names
    assert found(f"{tmp_path}/*", tmp_path) == names[:1]


def test_what_is_named_is_read_even_if_it_is_hidden(tmp_path):
    make(tmp_path, ".data/a.txt", ".data/.b.txt")
    for pattern in (".data", ".data/*.txt", ".data/**"):
        assert found(tmp_path / pattern, tmp_path) == [".data/a.txt"]
    assert found(tmp_path / ".data/.b.txt", tmp_path) == [".data/.b.txt"]


@pytest.mark.parametrize(
    "pattern", ["data", "data/**", "data/**/*.txt", "data/**/part*/*.txt", "da*/**/*.txt"]
)
def test_linked_folders_are_followed_once_each(tmp_path, pattern):
    make(tmp_path, "elsewhere/part/a.txt", "data/part/b.txt", "data/part/deep/part/c.txt")
    (tmp_path / "data" / "a-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "b-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data" / "part")
    expected = ["data/a-link/part/a.txt", "data/part/b.txt", "data/part/deep/part/c.txt"]
    assert found(tmp_path / pattern, tmp_path) == expected


@pytest.mark.parametrize("pattern", ["", "**", "**/*.txt", "**/**/*.txt"])
def test_circles_of_links_end(tmp_path, pattern):
    make(tmp_path, "a/x.txt", "b/y.txt")
    for folder in ("a", "b"):
        for number in range(8):
            (tmp_path / folder / f"up{number}").symlink_to(tmp_path)
    assert found(tmp_path / pattern, tmp_path) == ["a/x.txt", "b/y.txt"]


def test_a_file_that_is_linked_twice_is_read_once_under_its_own_name(tmp_path):
    make(tmp_path, "b.txt")
    for name in ("a.txt", "c.txt"):
        (tmp_path / name).symlink_to("b.txt")
    assert found(tmp_path, tmp_path) == found(tmp_path / "*.txt", tmp_path) == ["b.txt"]
    assert find_files(str(tmp_path)).left_out == {"further links to a file": 2}


def test_a_link_is_read_as_its_own_name_says(tmp_path):
    make(tmp_path, "blobs/0a1b", "data/other")
    (tmp_path / "data" / "train.jsonl").symlink_to("../blobs/0a1b")
    assert found(tmp_path / "data", tmp_path) == ["data/train.jsonl"]


def test_a_link_to_a_lost_text_is_named_and_others_are_counted(tmp_path):
    make(tmp_path, "a.txt")
    (tmp_path / "more").symlink_to("/not/mounted")
    assert find_files(str(tmp_path)).left_out == {"links to nothing": 1}
    (tmp_path / "b.txt").symlink_to("/not/mounted/b.txt")
    for pattern in (tmp_path, tmp_path / "*.txt"):
        with pytest.raises(
            SaeSweepError, match=r"b\.txt: it links to /not/mounted/b\.txt, which is not there"
        ):
            find_files(str(pattern))


def test_pipes_are_not_opened(tmp_path):
    make(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "b.txt")
    assert find_files(str(tmp_path)).left_out == {"pipes and devices": 1}


def test_suffixes_are_read_in_any_case(tmp_path):
    make(tmp_path, "A.TXT", "b.JsonL", "c.Parquet", "d.jsonl.GZ", "e.Txt.Zst")
    assert len(found(tmp_path, tmp_path)) == 5


def test_names_with_the_signs_of_a_glob_are_names_first(tmp_path):
    make(tmp_path, "[a]/x.txt", "b[1].txt", "d/[c]/y.txt")
    assert found(tmp_path / "[a]", tmp_path) == ["[a]/x.txt"]
    assert found(tmp_path / "b[1].txt", tmp_path) == ["b[1].txt"]
    assert found(tmp_path / "d/**/y.txt", tmp_path) == ["d/[c]/y.txt"]


def test_relative_globs_and_homes_are_found(tmp_path, monkeypatch):
    make(tmp_path, "a/b.txt", "c.txt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_files("**/*.txt").paths == [Path("a/b.txt"), Path("c.txt")]
    assert find_files("~/a").paths == [tmp_path / "a/b.txt"]
    with pytest.raises(SaeSweepError, match="no such file or folder"):
        find_files("~nobody-of-that-name/x.txt")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    make(tmp_path, "a.txt", "shut/b.txt")
    listed = Path.iterdir

    def iterdir(folder):
        if folder.name == "shut":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(SaeSweepError, match=r"cannot read .*shut: Permission denied"):
        find_files(str(tmp_path))


def test_a_pipe_is_not_said_to_be_missing(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(SaeSweepError, match=r"a\.txt: neither a file nor a folder"):
        find_files(str(tmp_path / "a.txt"))
