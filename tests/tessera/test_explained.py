"""What a user can mend is one line that says where and what; a defect keeps its traceback."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest

from tessera import entry
from tessera.cli import main as command
from tessera.explained import explained


def said(error: Exception) -> str:
    found = explained(error)
    assert found is not None and "\n" not in str(found)
    return str(found)


class SafetensorError(Exception):
    """As the library calls it."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_with_what_is_free(in_tmp, number):
    text = os.strerror(number)
    for error in (
        OSError(number, text),
        SafetensorError(f"Error while serializing: I/O error: {text} (os error {number})"),
        caused(RuntimeError("writing failed"), OSError(number, text)),
    ):
        line = said(error)
        assert line.startswith(f"{in_tmp}: {text}; free: ") and f" MB at {in_tmp}" in line and "make room" in line
    assert said(OSError(number, text, "models/vqvae")).startswith(f"models/vqvae: {text}")
    assert f"{in_tmp}: Not enough disk space" in said(OSError("Not enough disk space. Needed: 9 GB (download: 1 GB)"))


def test_of_several_disks_the_fullest_one_is_named(in_tmp, monkeypatch):
    (in_tmp / ".state").mkdir()
    monkeypatch.setattr("tessera.explained._device", lambda place: "state" in str(place))
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1e6 if "state" in place else 54e9))
    state = in_tmp / ".state"
    assert said(OSError(errno.ENOSPC, "No space left on device")) == (
        f"{state}: No space left on device; free: 54000 MB at {in_tmp}, 1 MB at {state}; make room, and run the same "
        "command again: what was published before is unchanged"
    )


def test_a_full_disk_is_said_where_no_temporary_file_can_be_written_either(in_tmp, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [str(in_tmp / "gone")])
    monkeypatch.setenv("TMPDIR", str(in_tmp / "gone"))
    monkeypatch.setenv("DVC_ROOT", str(in_tmp / "gone too"))
    line = said(OSError(errno.ENOSPC, "No space left on device"))
    assert line.startswith(f"{in_tmp}: No space left on device; free: ") and line.count(" MB at ") == 1


def test_a_limit_of_the_shell_is_named(in_tmp):
    line = said(OSError(errno.EFBIG, "File too large"))
    assert line.startswith(f"{in_tmp}: File too large; a limit of this shell (`ulimit -f`)")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EEXIST])
def test_a_place_that_cannot_be_written_is_named(number):
    assert said(OSError(number, "reason", "results/x")) == "results/x: reason; this stage must be able to write there"


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOTDIR, errno.ELOOP, errno.EIO])
def test_a_file_that_cannot_be_read_is_not_said_to_be_for_writing_alone(number):
    line = said(OSError(number, "reason", "data/x"))
    assert line == "data/x: reason; this stage must be able to read it, or to write there"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::nms does not exist"),
        AttributeError("partially initialized module 'torchvision' has no attribute 'extension'"),
        ModuleNotFoundError("No module named 'transformers'", name="transformers"),
        ImportError("cannot import name 'AutoModel' from 'transformers'", name="transformers"),
        OSError("libcudart.so.12: cannot open shared object file: No such file or directory"),
        RuntimeError("Failed to import transformers.models.gpt2 because of the following error"),
    ],
)
def test_a_broken_library_is_said(error):
    line = said(error)
    assert line.startswith(f"a library cannot be imported ({type(error).__name__}: ") and "tessera doctor" in line


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a"),
        ModuleNotFoundError("No module named 'tessera.gone'", name="tessera.gone"),
        OSError("odd"),
        OSError(errno.ENOENT, "No such file", "gone"),
        RuntimeError("File too large"),
    ],
)
def test_a_defect_is_not_explained(error):
    assert explained(error) is None


def test_commands_say_it_in_one_line_too(in_tmp, monkeypatch, capsys):
    def full(argv):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tessera.cli.check.main", full)
    assert command(["check"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {in_tmp}: No space left on device; free: ") and printed.count("\n") == 1


def test_a_record_of_fingerprint_without_its_keys_is_one_line(in_tmp, monkeypatch, capsys, write_params):
    write_params()
    monkeypatch.setenv("DVC_STAGE", "sample")
    keys = '"module": "x", "parameters"'
    for text in ("{}", "[]", '{"module": "x"}', f'{{{keys}: [], "code": {{}}}}', f'{{{keys}: {{}}, "code": 5}}'):
        (in_tmp / "results" / "fingerprint").mkdir(parents=True, exist_ok=True)
        (in_tmp / "results" / "fingerprint" / "sample.json").write_text(text)
        assert entry.main(lambda *_: pytest.fail("ran"), "doc", []) == 2
        printed = capsys.readouterr().err
        assert "sample.json: not as `fingerprint` writes it" in printed and printed.count("\n") == 1
