"""Fetching the Inception weights, with small content in place of the real 96 MB."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.tasks import inception
from pipeline.tasks.inception import NAME, check_inception, fetch_inception
from pipeline.utils.errors import UserError
from tests.tasks.http_server import Server, serving

CONTENT = b"weights" * 1000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    with serving(CONTENT) as server:
        monkeypatch.setattr(inception, "URL", f"{server.url}/{NAME}")
        yield server


def test_valid_file_precedes_mirror_and_mirror_precedes_download(server: Server, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    destination = tmp_path / "out" / NAME
    assert fetch_inception(destination, tmp_path).read_bytes() == CONTENT
    (tmp_path / NAME).unlink()
    fetch_inception(destination, tmp_path)
    assert server.ranges == []

    destination.write_bytes(CONTENT[:-1])
    fetch_inception(destination, tmp_path)
    assert destination.read_bytes() == CONTENT
    assert server.ranges == [None]
    assert list(destination.parent.iterdir()) == [destination]


def test_missing_weights_give_an_error_with_sources_and_remedy(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    (tmp_path / NAME).write_bytes(b"other")
    with pytest.raises(UserError) as caught:
        fetch_inception(tmp_path / "out" / NAME, tmp_path, lambda _: None)
    message = str(caught.value)
    assert "\n" not in message
    assert "FID needs" in message
    assert f"{tmp_path / NAME}: wrong checksum: sha256" in message
    assert f"{server.url}/{NAME}: HTTP 404" in message
    assert f"Put one of {NAME} in a folder and set FLOWTUNE_MIRROR" in message


def test_missing_or_wrong_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no such file; FID needs {NAME} there"):
        check_inception(tmp_path / NAME)
    (tmp_path / NAME).write_bytes(CONTENT)
    with pytest.raises(UserError, match="wrong checksum"):
        check_inception(tmp_path / NAME)


def test_address_and_checksum_are_those_of_torch_fidelity() -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    assert inception.URL == URL_INCEPTION_V3
    assert inception.SHA256.startswith(NAME.removesuffix(".pth").rpartition("-")[2])
