"""Downloads: complete after any interruption, and never mixed from two versions."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.tasks.transfer import ATTEMPTS, discard, download
from pipeline.utils.errors import UserError
from tests.tasks.http_server import Server, serving

CONTENT = bytes(i * 7919 % 251 for i in range(200_000))
OTHER = CONTENT[::-1]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(CONTENT) as server:
        yield server


class Pauses(list[float]):
    """Takes the place of ``time.sleep``."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def interrupt(server: Server, part: Path) -> None:
    """Leave the files of a process that dies during a download."""
    server.cut_after = [60_000]
    with pytest.raises(KeyboardInterrupt):
        download(server.url, part, sleep=raise_interrupt)
    assert part.stat().st_size == 60_000
    server.ranges.clear()


def raise_interrupt(_: float) -> None:
    raise KeyboardInterrupt


def test_dropped_connections_are_resumed(server: Server, tmp_path: Path) -> None:
    server.cut_after = [50_000, 0, 30_000]
    pauses = Pauses()
    download(server.url, tmp_path / "f.part", pauses)
    assert (tmp_path / "f.part").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=50000-", "bytes=50000-", "bytes=80000-"]
    assert pauses == [1, 2, 1], "pauses double while nothing new arrives"


def test_later_call_resumes_and_a_finished_download_sends_no_request(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "f.part"
    interrupt(server, part)
    download(server.url, part)
    download(server.url, part)
    assert part.read_bytes() == CONTENT
    assert server.ranges == ["bytes=60000-"]
    discard(part)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("honours_if_range", [True, False])
@pytest.mark.parametrize("content", [OTHER, OTHER[:1000], OTHER * 2])
def test_changed_file_restarts_the_download(
    server: Server, tmp_path: Path, honours_if_range: bool, content: bytes
) -> None:
    interrupt(server, tmp_path / "f.part")
    server.content, server.etag, server.honours_if_range = content, '"v2"', honours_if_range
    download(server.url, tmp_path / "f.part", Pauses())
    assert (tmp_path / "f.part").read_bytes() == content


@pytest.mark.parametrize("etag", [None, 'W/"v1"'])
def test_without_a_strong_validator_the_download_restarts(server: Server, tmp_path: Path, etag: str | None) -> None:
    server.etag = etag
    interrupt(server, tmp_path / "f.part")
    server.content = OTHER
    download(server.url, tmp_path / "f.part")
    assert (tmp_path / "f.part").read_bytes() == OTHER
    assert server.ranges == [None]


def test_server_without_range_support_restarts_the_download(server: Server, tmp_path: Path) -> None:
    interrupt(server, tmp_path / "f.part")
    server.supports_range = False
    download(server.url, tmp_path / "f.part")
    assert (tmp_path / "f.part").read_bytes() == CONTENT


@pytest.mark.parametrize("notes", [b"", b"{}", b"[]", b"\xff", b'{"url": 1, "validator": 2, "total": 3}'])
def test_invalid_resume_metadata_restarts_the_download(server: Server, tmp_path: Path, notes: bytes) -> None:
    interrupt(server, tmp_path / "f.part")
    (tmp_path / "f.part.json").write_bytes(notes)
    download(server.url, tmp_path / "f.part")
    assert (tmp_path / "f.part").read_bytes() == CONTENT
    assert server.ranges == [None]


def test_part_of_another_url_restarts_the_download(server: Server, tmp_path: Path) -> None:
    interrupt(server, tmp_path / "f.part")
    download(f"{server.url}/other", tmp_path / "f.part")
    assert server.ranges == [None]


def test_oversized_partial_file_restarts_the_download(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "f.part"
    interrupt(server, part)
    part.write_bytes(bytes(len(CONTENT) + 1))
    download(server.url, part, Pauses())
    assert part.read_bytes() == CONTENT


def test_transient_errors_are_retried(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    pauses = Pauses()
    download(server.url, tmp_path / "f.part", pauses)
    assert (tmp_path / "f.part").read_bytes() == CONTENT
    assert pauses == [1, 2]


def test_permanent_errors_are_not_retried(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(UserError, match="HTTP 404 Not Found"):
        download(server.url, tmp_path / "f.part", Pauses())
    assert len(server.ranges) == 1


def test_download_gives_up_without_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(b"") as server:
        url = server.url
    pauses = Pauses()
    with pytest.raises(UserError, match=rf"{url}: .*refused \({ATTEMPTS} attempts without progress\)"):
        download(url, tmp_path / "f.part", pauses)
    assert pauses == [1, 2, 4, 8]


def test_download_of_a_killed_process_is_resumed(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "f.part"
    server.cut_after = [60_000]
    program = (
        "import sys, time; from pathlib import Path; from pipeline.tasks.transfer import download;"
        "download(sys.argv[1], Path(sys.argv[2]), sleep=lambda _: time.sleep(600))"
    )
    command = [sys.executable, "-c", program, server.url, str(part)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2])
    try:
        while not (part.exists() and part.stat().st_size == 60_000):
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    download(server.url, part)
    assert part.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=60000-"]
