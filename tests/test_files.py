"""Files that are replaced whole or not at all, and a machine without file locks."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ddpm_jax.runtime.files import replacing

ROOT = Path(__file__).parents[1]


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "table.json"
    for text in ("first", "second"):
        with replacing(path) as part:
            assert part.suffix == ".json" and part.parent == path.parent
            part.write_text(text)
            assert not path.exists() or path.read_text() == "first"  # a reader sees no part
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_after_an_error_the_old_file_stays_and_nothing_of_the_new_one(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="disk full"):
        with replacing(path) as part:
            part.write_text("half a ta")
            raise RuntimeError("disk full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_without_fcntl_a_run_is_loaded_and_a_training_says_that_there_is_no_lock(tmp_path):
    """As on Windows; a process of its own, because this one has imported fcntl."""
    shutil.unpack_archive(ROOT / "tests" / "fixtures" / "digits_run_0_1_0.zip", tmp_path)
    code = """
        import logging, sys
        sys.modules["fcntl"] = None
        import ddpm_jax
        sample, params = ddpm_jax.load(sys.argv[1])
        print(len(params))
        from ddpm_jax.runs.workdir import locked
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("OURS: %(message)s"))
        logging.getLogger("ddpm_jax").addHandler(handler)
        with locked(sys.argv[1]):
            print("training")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path / "digits"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["training"]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("OURS: ")]
    assert line.startswith(f"OURS: {tmp_path / 'digits' / 'lock'} cannot be locked")
    assert line.endswith("start no second run here")
