"""Sharing results between clones through a DVC remote, and the errors of doing so."""

import errno
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.orchestration import run_cache
from pipeline.orchestration.share import push
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError

DVC_YAML = """
stages:
  train:
    cmd: echo run >> ../runs.txt; cp params.yaml model.txt; cp params.yaml report.txt
    deps: [params.yaml]
    outs: [model.txt]
    plots: [report.txt: {cache: false}]
"""
SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")


def dvc(root: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "dvc", *arguments, "--quiet"]
    done = subprocess.run(command, cwd=root, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr


def project(root: Path) -> Path:
    root.mkdir()
    (root / "dvc.yaml").write_text(DVC_YAML, encoding="utf-8")
    (root / "params.yaml").write_text("rate: 1\n", encoding="utf-8")
    dvc(root, "init", "--no-scm")
    return root


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project that has run, as the current folder."""
    root = project(tmp_path / "maker")
    dvc(root, "repro")
    monkeypatch.chdir(root)
    return root


def make_remote(root: Path, url: str, **options: str) -> None:
    """Set DVC's remote as ``make remote`` does."""
    dvc(root, "remote", "add", "--local", "--force", "--default", "shared", url)
    for name, value in options.items():
        dvc(root, "remote", "modify", "--local", "shared", name, value)


def assert_travels(maker: Path, url: str, **options: str) -> None:
    taker = project(maker.parent / "taker")
    for root in (maker, taker):
        make_remote(root, url, **options)
    assert push(maker) >= 1
    assert push(maker) == 0, "existing files are not sent again"
    dvc(taker, "repro", "--pull")
    assert (maker.parent / "runs.txt").read_text(encoding="utf-8") == "run\n", "the clone ran the stage itself"
    for name in ("model.txt", "report.txt"):
        assert (taker / name).read_bytes() == (maker / name).read_bytes()


def test_results_are_shared_through_a_folder(maker: Path, tmp_path: Path) -> None:
    assert_travels(maker, str(tmp_path / "remote"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """Yield the port of an OpenSSH server on loopback, and the key that it accepts."""
    pytest.importorskip("dvc_ssh", reason="`make env-ssh` installs it")
    if SSHD is None:
        pytest.skip("needs OpenSSH's server, sshd")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lines = [
        *(f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {tmp_path / 'host'}", "PidFile none", "UsePAM no"),
        *(f"AuthorizedKeysFile {tmp_path / 'user.pub'}", "StrictModes no", "Subsystem sftp internal-sftp"),
    ]
    (tmp_path / "config").write_text("\n".join([*lines, "PermitRootLogin yes", ""]), encoding="utf-8")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd gives up root's rights in it
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", tmp_path / "config"], stderr=subprocess.PIPE)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield port, tmp_path / "user"
    finally:
        process.kill()
        process.wait()


def test_results_are_shared_through_ssh(maker: Path, tmp_path: Path, server: tuple[int, Path]) -> None:
    port, key = server
    url = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{tmp_path / 'remote'}"
    for whole in (maker / ".dvc" / "cache" / "files").rglob("*/*/*"):  # truncated, as by a killed push
        half = tmp_path / "remote" / whole.relative_to(maker / ".dvc" / "cache")
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(whole.read_bytes()[:3])
    assert_travels(maker, url, keyfile=str(key), allow_agent="false")


def test_push_restores_files_that_the_remote_lost(maker: Path, tmp_path: Path) -> None:
    make_remote(maker, str(tmp_path / "remote"))
    assert push(maker, new=True) >= 1
    shutil.rmtree(tmp_path / "remote" / "files")
    assert push(maker, new=True) == 0, "the remote has the run, and its files are not checked"
    assert push(maker) >= 1


def test_run_is_pushed_after_its_outputs_or_not_at_all(
    maker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = tmp_path / "remote"
    make_remote(maker, str(remote))
    remote.mkdir()
    (remote / "files").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="DVC's remote"):
        push(maker)
    assert not (remote / "runs").exists()
    (remote / "files").unlink()

    def half(*_: object) -> None:
        (key,) = (maker / ".dvc" / "cache" / "runs").glob("*/*")
        folder = remote / "runs" / key.parent.name / key.name
        folder.mkdir(parents=True)
        (folder / ".x.tmp").write_text("cmd: ec", encoding="utf-8")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(UserError, match="No space left"):
        patched.setattr(run_cache, "copy", half)
        push(maker)
    assert not [path for path in (remote / "runs").rglob("*") if path.is_file()]
    assert push(maker) >= 1


def test_missing_run_at_the_remote_gives_an_error(maker: Path, tmp_path: Path) -> None:
    taker = project(tmp_path / "taker")
    make_remote(taker, str(tmp_path / "elsewhere"))
    command = [sys.executable, "-m", "pipeline.orchestration.run_cache", "--only-take", "repro", "--pull", "train"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=taker, env=env, capture_output=True, encoding="utf-8", check=False)
    assert result.returncode != 0
    assert "train: a worker has run it, but DVC's remote has no run with the inputs here" in result.stderr
    assert (maker.parent / "runs.txt").read_text(encoding="utf-8") == "run\n", "the clone ran the stage itself"


def test_missing_or_unwritable_remote_gives_a_one_line_error(maker: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"DVC's remote: .*no remote") as caught:
        push(maker)
    assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    make_remote(maker, str(tmp_path / "file"))
    with pytest.raises(UserError, match="DVC's remote: ") as caught:
        push(maker)
    assert "\n" not in str(caught.value)
