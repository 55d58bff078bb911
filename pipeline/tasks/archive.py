"""Unpack zip archives of data sets without trusting them, copy folders of data sets, and pack archives."""

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from pipeline.utils.atomic import replacing
from pipeline.utils.errors import UserError

EPOCH = (1980, 1, 1, 0, 0, 0)
MAX_UNPACKED_BYTES = 4 * 1024**3  # two orders of magnitude above the largest archive fetched, far below a full disk


def unpack(archive: Path, folder: Path, root: str = "", members: tuple[str, ...] | None = None) -> None:
    """Unpack the entries under ``root`` of the zip ``archive`` into the new folder ``folder``.

    Every entry's name is checked before the first byte is written. The declared sizes bound the bytes written, since
    ``zipfile`` reads no entry past its declared size.

    Args:
        archive: the zip file.
        folder: the folder to make. After an error its contents are partial; the caller must discard it.
        root: the folder inside the archive that becomes ``folder``; empty for the archive's own root.
        members: files and folders below ``root`` to take; ``None`` takes all.

    Raises:
        UserError: the archive is damaged, truncated or encrypted; an entry would land outside ``folder`` (absolute,
            ``..``, drive letter, backslash), is a link or device, or occurs twice; nothing lies under ``root``; the
            entries are larger than ``MAX_UNPACKED_BYTES`` together.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            wanted = _select(archive, file.infolist(), root, members)
            for target, entry in wanted.items():
                path = folder / target
                path.parent.mkdir(parents=True, exist_ok=True)
                with file.open(entry) as source, path.open("xb") as sink:
                    shutil.copyfileobj(source, sink)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{archive}: is not a whole zip archive, truncated or damaged ({error})") from error
    except (NotImplementedError, RuntimeError) as error:  # zipfile raises these for rare features of the format
        raise UserError(f"{archive}: is encrypted or compressed in a way not supported ({error})") from error


def copy_folder(source: Path, folder: Path, members: tuple[str, ...] | None = None) -> None:
    """Copy the files of ``source`` that ``members`` names (``None``: all) into the new folder ``folder``.

    Raises:
        UserError: ``source`` holds none of them.
    """
    paths = [path for path in sorted(source.rglob("*")) if path.is_file()]
    wanted = [path for path in paths if _is_member(path.relative_to(source).as_posix(), members)]
    if not wanted:
        raise UserError(f"{source}: holds none of the files expected in it")
    for path in wanted:
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def pack(folder: Path, archive: Path) -> None:
    """Write the files below ``folder`` to the zip ``archive``, atomically; equal files give equal bytes."""
    with replacing(archive) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            file.writestr(entry, path.read_bytes())


def _select(
    archive: Path, entries: list[zipfile.ZipInfo], root: str, members: tuple[str, ...] | None
) -> dict[str, zipfile.ZipInfo]:
    """Check all ``entries``; return the wanted ones by their path below ``root``."""
    wanted: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        _check_entry(archive, entry)
        name = PurePosixPath(entry.filename)
        if entry.is_dir() or not name.is_relative_to(root):
            continue
        target = name.relative_to(root).as_posix()
        if target in wanted:
            raise UserError(f"{archive}: refused: entry {entry.filename!r} occurs twice")
        if _is_member(target, members):
            wanted[target] = entry
    if not wanted:
        raise UserError(f"{archive}: holds none of the files expected under {root or 'its root'}")
    total = sum(entry.file_size for entry in wanted.values())
    if total > MAX_UNPACKED_BYTES:
        raise UserError(f"{archive}: refused: would unpack to {total} bytes, allowed are {MAX_UNPACKED_BYTES}")
    return wanted


def _check_entry(archive: Path, entry: zipfile.ZipInfo) -> None:
    name = entry.orig_filename  # before zipfile cuts it at a NUL
    escapes = (
        not name
        or "\0" in name
        or "\\" in name
        or PurePosixPath(name).is_absolute()
        or ".." in PurePosixPath(name).parts
        or PureWindowsPath(name).drive != ""
    )
    if escapes:
        raise UserError(f"{archive}: refused: entry {name!r} would be written outside its folder")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):  # 0: made on a system without file modes
        raise UserError(f"{archive}: refused: entry {name!r} is a link or a device, not a file")


def _is_member(path: str, members: tuple[str, ...] | None) -> bool:
    return members is None or any(PurePosixPath(path).is_relative_to(member) for member in members)
