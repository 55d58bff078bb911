"""A remote that clones share: what one has made, the other is given, and what goes wrong on the way is one line."""

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

from pipeline.orchestration.share import push
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
    """A project, the current folder, that has run."""
    root = project(tmp_path / "maker")
    dvc(root, "repro")
    monkeypatch.chdir(root)
    return root


def make_remote(root: Path, url: str, **options: str) -> None:
    """As ``make remote`` does."""
    dvc(root, "remote", "add", "--local", "--force", "--default", "shared", url)
    for name, value in options.items():
        dvc(root, "remote", "modify", "--local", "shared", name, value)


def assert_travels(maker: Path, url: str, **options: str) -> None:
    taker = project(maker.parent / "taker")
    for root in (maker, taker):
        make_remote(root, url, **options)
    assert push(maker) >= 1
    assert push(maker) == 0, "what is there is not sent again"
    dvc(taker, "repro", "--pull")
    assert (maker.parent / "runs.txt").read_text(encoding="utf-8") == "run\n", "it did not run"
    for name in ("model.txt", "report.txt"):
        assert (taker / name).read_bytes() == (maker / name).read_bytes()


def test_a_folder(maker: Path, tmp_path: Path) -> None:
    assert_travels(maker, str(tmp_path / "remote"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """The port of an OpenSSH server on loopback, and the key that it takes."""
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
        Path("/run/sshd").mkdir(exist_ok=True)  # where it gives up root's rights
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


def test_a_server_by_ssh(maker: Path, tmp_path: Path, server: tuple[int, Path]) -> None:
    port, key = server
    url = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{tmp_path / 'remote'}"
    assert_travels(maker, url, keyfile=str(key), allow_agent="false")


def test_no_remote_and_one_that_cannot_be_written_are_one_line(maker: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"DVC's remote: .*no remote") as caught:
        push(maker)
    assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    make_remote(maker, str(tmp_path / "file"))
    with pytest.raises(UserError, match="DVC's remote: ") as caught:
        push(maker)
    assert "\n" not in str(caught.value)
