"""Caches have a place where the home folder is missing or cannot be written."""

import logging
import os
import pwd
import stat
import tempfile
from pathlib import Path

import pytest

from sae_sweep.config import ConfigError, FilesDataset, ModelConfig, PathsConfig, RunConfig
from sae_sweep.config.command import CommandConfig
from sae_sweep.store import cache_folder
from sae_sweep.store.home import provide_home

CACHES = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "WANDB_CONFIG_DIR", "TRITON_CACHE_DIR")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without any of the variables, which is put back afterwards."""
    for name in (*CACHES, "HOME", "HF_HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without an entry in /etc/passwd."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)


def spare(temporary: Path) -> Path:
    return temporary / f"sae_sweep-{os.geteuid()}"


def test_a_home_that_can_be_written_is_left_alone(temporary, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    before = dict(os.environ)
    provide_home()
    assert dict(os.environ) == before
    assert cache_folder(None) == tmp_path / "home" / ".cache" / "sae_sweep"
    assert not caplog.messages


@pytest.mark.usefixtures("nameless")
def test_a_user_without_name_and_home_gets_a_private_folder(temporary, caplog):
    assert cache_folder(None) == spare(temporary) / ".cache" / "sae_sweep"  # in a notebook, too
    with caplog.at_level(logging.WARNING):
        provide_home()
    assert os.environ["HOME"] == str(spare(temporary))
    assert {os.environ[name].startswith(str(spare(temporary))) for name in CACHES} == {True}
    assert os.environ["LOGNAME"] == str(os.geteuid())
    assert stat.S_IMODE(spare(temporary).stat().st_mode) == 0o700
    assert [message.split(":")[0] for message in caplog.messages] == ["there is no home folder (HOME)"]
    provide_home()  # as in a process that this one starts
    assert len(caplog.messages) == 1


def test_what_can_be_read_in_a_home_is_still_read_there(temporary, tmp_path, monkeypatch, caplog):
    home = tmp_path / "home"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "mine"))
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not Path(path).is_relative_to(home) and allowed(path, mode)
    )
    provide_home()
    assert os.environ["HOME"] == str(home)
    assert os.environ["HF_HOME"] == str(home / ".cache" / "huggingface")
    assert os.environ["XDG_CONFIG_HOME"] == str(tmp_path / "mine")
    assert cache_folder(None) == spare(temporary) / ".cache" / "sae_sweep"
    assert [message.split(":")[0] for message in caplog.messages] == [
        f"the home folder {home} cannot be written"
    ]


@pytest.mark.parametrize("taken", ["file", "open to all", "link"])
def test_a_folder_that_others_could_write_is_not_used(temporary, tmp_path, taken):
    place = spare(temporary)
    if taken == "file":
        place.write_text("")
    elif taken == "link":
        place.symlink_to(tmp_path)
    else:
        place.mkdir()
        place.chmod(0o777)
    os.environ["HOME"] = str(tmp_path / "file" / "home")
    (tmp_path / "file").write_text("")
    provide_home()
    used = Path(os.environ["XDG_CACHE_HOME"])
    assert used.is_relative_to(temporary)
    assert not used.is_relative_to(place)


@pytest.mark.parametrize(
    ("key", "make"),
    [
        ("paths.output", lambda path: CommandConfig(paths=PathsConfig(output=path))),
        ("paths.cache", lambda path: CommandConfig(paths=PathsConfig(cache=path))),
        ("model.path", lambda path: RunConfig(model=ModelConfig(path=path))),
        ("dataset.path", lambda path: RunConfig(dataset=FilesDataset(path=path))),
    ],
)
def test_the_home_of_an_unknown_user_is_one_line(key, make):
    with pytest.raises(ConfigError) as caught:
        make("~nobody-here/x")
    (problem,) = caught.value.problems
    assert (
        problem
        == f"{key}=~nobody-here/x: ~nobody-here is no home folder of a user here; write the whole path"
    )


def test_a_home_of_somebody_else_cannot_be_looked_into(temporary, tmp_path, monkeypatch):
    """As with `docker run --user` where HOME is /root: each look below it is refused."""
    home = tmp_path / "root"
    home.mkdir()
    may = os.access

    def refusing(look):
        def look_as_another(path, *args, **options):
            if home in Path(os.fsdecode(path)).parents:
                raise PermissionError(13, "Permission denied", path)
            return look(path, *args, **options)

        return look_as_another

    monkeypatch.setenv("HOME", str(home))
    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != home and may(path, mode))
    provide_home()
    assert Path(os.environ["XDG_CACHE_HOME"]) == spare(temporary) / ".cache"
