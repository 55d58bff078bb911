"""Fetch and check the Inception weights that define FID."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.tasks.fetching import MIRROR_VARIABLE, Form, check_digest, fetch_published
from pipeline.utils.errors import UserError

NAME = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAME}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def fetch_inception(destination: Path, mirror: Path | None = None, sleep: Callable[[float], None] = time.sleep) -> Path:
    """Fetch torch-fidelity's copy of the weights of TensorFlow's Inception of 2015 (96 MB, Apache License 2.0).

    Args:
        destination: the file to write; unchanged if it is the right file already.
        mirror: a folder that may hold them under their published ``NAME``; None: not searched.
        sleep: waits between attempts to download.

    Returns:
        ``destination``.

    Raises:
        UserError: no source gave the file; the line names each source with the reason, and the remedy.
    """
    try:
        check_inception(destination)
    except UserError:
        form = Form(NAME, URL, _place)
        fetch_published("inception (the weights that FID needs)", (form,), destination, mirror, sleep)
    return destination


def check_inception(path: Path) -> None:
    """Refuse any file other than the published weights.

    Raises:
        UserError: ``path`` does not exist or has other contents.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; FID needs {NAME} there, from {URL} or the folder of {MIRROR_VARIABLE}")
    check_digest(path, SHA256)


def _place(published: Path, fresh: Path) -> None:
    check_inception(published)
    shutil.copyfile(published, fresh)
