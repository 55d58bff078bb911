"""Small data sets in the format of CIFAR-10's Python version, which Python 2 pickled."""

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PER_BATCH = 4
N = 5 * PER_BATCH


def make_images() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images (20, 3, 32, 32) and labels (20,), two of each class."""
    images = np.random.default_rng(0).integers(0, 256, (N, 3, 32, 32), dtype=np.uint8)
    return images, (np.arange(N) % 10).astype(np.uint8)


def make_batches() -> dict[str, bytes]:
    """Return ``make_images`` as five batch files by name."""
    images, labels = make_images()
    return {
        f"data_batch_{1 + start // PER_BATCH}": pickled(
            images[start : start + PER_BATCH].reshape(PER_BATCH, -1), labels[start : start + PER_BATCH].tolist()
        )
        for start in range(0, N, PER_BATCH)
    }


def pickled(data: NDArray[np.uint8], labels: list[int], kind: bytes = b"u1") -> bytes:
    """Return one batch as Python 2's cPickle and numpy wrote it in 2009, by protocol 2: strings as bytes, align 0."""
    dtype = b"cnumpy\ndtype\n" + string(kind) + b"K\x00K\x01\x87R(K\x03" + string(b"|") + b"NNN"
    dtype += 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
    array += b"(K\x01" + b"".join(map(number, data.shape)) + b"\x86" + dtype + b"\x89" + string(data.tobytes()) + b"tb"
    names = b"".join(string(f"image_{i}.png".encode()) for i in range(len(labels)))
    fields = string(b"batch_label") + string(b"training batch 1 of 5")
    fields += string(b"labels") + b"](" + b"".join(map(number, labels)) + b"e"
    fields += string(b"data") + array + string(b"filenames") + b"](" + names + b"e"
    return b"\x80\x02}(" + fields + b"u."


def string(text: bytes) -> bytes:
    return (b"U" + bytes([len(text)]) if len(text) < 256 else b"T" + struct.pack("<i", len(text))) + text


def number(value: int) -> bytes:
    return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)


def write_archive(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """Write a tar.gz of files by their full names; the content ``-> name`` makes a link."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content.startswith(b"-> "):
                member.type, member.linkname = tarfile.SYMTYPE, content[3:].decode()
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def write_folder(path: Path, batches: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in batches.items():
        (path / name).write_bytes(content)
    return path
