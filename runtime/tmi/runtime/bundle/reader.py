"""Open a bundle and verify its files.

`open_bundle` compares the SHA-256 of every file with the manifest before any content is used. `inspect_bundle` compares
names and sizes only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tmi.runtime.bundle.consistency import require_consistent
from tmi.runtime.bundle.manifest import (
    DIGEST_FILE,
    MANIFEST_FILE,
    UNFINGERPRINTED_FILES,
    GraphSpec,
    Manifest,
    PartDigests,
    manifest_from_json,
    manifest_to_json,
    part_digests,
)
from tmi.runtime.bundle.manifest_records import FileSpec
from tmi.toolkit.compute.cpu import available_cores
from tmi.toolkit.errors import DamagedError, UsageError
from tmi.toolkit.storage.atomic_files import write_text
from tmi.toolkit.storage.bounded_files import FileTooLargeError, open_regular, read_bytes
from tmi.toolkit.storage.documents import DocumentError, parse_json
from tmi.toolkit.storage.hashing import canonical_json, sha256_bytes, sha256_file


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle, whose files have been checked."""

    folder: Path
    manifest: Manifest
    digest: str
    """SHA-256 of manifest.json; identifies the bundle in every prediction."""

    def __repr__(self) -> str:
        manifest = self.manifest
        return f"Bundle({str(self.folder)!r}, {manifest.preset}, {len(manifest.folds)} folds, {self.digest[:16]})"

    parts: PartDigests | None = None
    """Digests of parts of manifest.json as it is; None for a bundle that is being exported."""

    def artefact(self, graph: GraphSpec, kind: str) -> Path | None:
        """The file of `graph` in the format `kind`; None if the bundle does not have it."""
        name = graph.artefacts.get(kind)
        return None if name is None else self.folder / name

    def read(self, path: Path, *, max_bytes: int | None = None) -> bytes:
        """Bytes of a file of the bundle, for loading: the digest is that of these very bytes.

        A file that was exchanged after `open_bundle` compared it is never loaded. A bundle that is being exported has
        no fingerprints yet, and nothing is compared.

        Args:
            path: the file, as `artefact` returns it.
            max_bytes: limit on its size; None: the size that the manifest records.

        Raises:
            DamagedError: the file is missing, differs from the manifest, or is too large.
        """
        name = path.relative_to(self.folder).as_posix()
        spec = self.manifest.files.get(name)
        try:
            with open_regular(path, max_bytes=max_bytes) as stream:
                # At most one byte more than recorded: a file that grew is not read to its end.
                data = stream.read(-1 if spec is None else spec.bytes + 1)
        except FileNotFoundError as error:
            raise DamagedError(f"bundle {self.folder}: {name} is missing", fix=EXPORT_AGAIN_FIX) from error
        except FileTooLargeError as error:
            message = f"bundle {self.folder}: {name} cannot be read: {error.strerror}"
            raise DamagedError(message, fix=EXPORT_AGAIN_FIX) from error
        except OSError as error:  # a folder took its place, or it may not be read
            raise _changed_file_error(self.folder, name) from error
        if spec is not None and (len(data) != spec.bytes or sha256_bytes(data) != spec.sha256):
            raise _changed_file_error(self.folder, name)
        return data

    def has(self, kind: str) -> bool:
        """Whether every graph has an artefact of this kind."""
        return all(kind in g.artefacts for g in self.manifest.graphs)


def fingerprint(folder: Path) -> dict[str, FileSpec]:
    """Digest and size of every file below `folder`, except the manifest, its digest and the signature."""
    return {
        path.relative_to(folder).as_posix(): FileSpec(sha256=sha256_file(path), bytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in UNFINGERPRINTED_FILES
    }


def write_manifest(folder: Path, manifest: Manifest) -> str:
    """Write the manifest and its digest file. Returns the digest."""
    text = canonical_json(manifest_to_json(manifest))
    digest = sha256_bytes(text.encode())
    write_text(folder / MANIFEST_FILE, text)
    write_text(folder / DIGEST_FILE, f"{digest}  {MANIFEST_FILE}\n")
    return digest


MAX_MANIFEST_BYTES = 2**24
"""Largest manifest that is read, in bytes; those of real bundles have less than 1 MB."""
EXPORT_AGAIN_FIX = "copy the bundle again from where it was exported, or export it again"


def open_bundle(folder: Path) -> Bundle:
    """Read the manifest and compare every file with it.

    Args:
        folder: the bundle.

    Raises:
        UsageError: no such folder, or not a bundle.
        DamagedError: a file is missing, was added, or differs from the exported one.
    """
    bundle = inspect_bundle(folder)
    files = bundle.manifest.files
    # Hashing releases the GIL. Largest files first: no core is left alone with a large file at the end.
    largest_first = sorted(files, key=lambda name: -files[name].bytes)
    with ThreadPoolExecutor(max_workers=available_cores()) as pool:
        digests = dict(
            zip(largest_first, pool.map(lambda name: sha256_file(folder / name), largest_first), strict=True)
        )
    for name, spec in files.items():
        if digests[name] != spec.sha256:
            raise _changed_file_error(folder, name)
    return bundle


def inspect_bundle(folder: Path) -> Bundle:
    """Open a bundle, comparing only names and sizes of its files.

    Fast, and sufficient to display a bundle; use `open_bundle` to run one.

    Raises:
        UsageError: no such folder, or not a bundle.
        DamagedError: the manifest was changed, cannot be read or contradicts itself; a file or folder is missing, was
            added, is a link or a special file, or has another size.
    """
    path = folder / MANIFEST_FILE
    for name in (MANIFEST_FILE, DIGEST_FILE):
        _require_small_file(folder, name)  # before it is opened: reading a pipe never ends
    if not path.is_file():
        if (folder / DIGEST_FILE).exists():
            raise DamagedError(f"bundle {folder}: {MANIFEST_FILE} is missing", fix=EXPORT_AGAIN_FIX)
        raise UsageError(
            f"{folder} is not a bundle: {MANIFEST_FILE} is missing",
            fix="name a bundle with --bundle or TMI_BUNDLE, or make one with `tmi export`",
        )
    data = read_bytes(path, max_bytes=MAX_MANIFEST_BYTES)
    digest = sha256_bytes(data)
    try:
        recorded = read_bytes(folder / DIGEST_FILE, max_bytes=MAX_MANIFEST_BYTES)
    except OSError as error:
        raise DamagedError(f"bundle {folder}: {DIGEST_FILE} is missing", fix=EXPORT_AGAIN_FIX) from error
    if recorded != f"{digest}  {MANIFEST_FILE}\n".encode():
        raise _changed_file_error(folder, MANIFEST_FILE)
    try:
        document = parse_json(data)
        manifest = manifest_from_json(document)
    except DocumentError as error:
        message = f"bundle {folder}: {MANIFEST_FILE} cannot be read: {error.detail}"  # it holds no patient data
        raise DamagedError(message, fix=EXPORT_AGAIN_FIX) from error
    _compare_names_and_sizes(folder, manifest.files)
    unlisted = sorted(set(manifest.referenced_files()) - set(manifest.files))
    if unlisted:
        raise DamagedError(f"bundle {folder}: {unlisted[0]} is used but has no fingerprint", fix="export it again")
    require_consistent(folder, manifest)
    return Bundle(folder=folder, manifest=manifest, digest=digest, parts=part_digests(document))


def _compare_names_and_sizes(folder: Path, recorded: Mapping[str, FileSpec]) -> None:
    """Require exactly the recorded files, with their sizes, and the folders that lead to them."""
    present, folders = _entries(folder)
    for name in UNFINGERPRINTED_FILES:
        present.pop(name, None)
    missing, added = sorted(set(recorded) - set(present)), sorted(set(present) - set(recorded))
    if missing:
        raise DamagedError(f"bundle {folder}: {missing[0]} is missing", fix=EXPORT_AGAIN_FIX)
    if added:
        raise DamagedError(f"bundle {folder}: {added[0]} is not part of the bundle", fix="remove that file")
    needed = {parent.as_posix() for name in recorded for parent in PurePosixPath(name).parents}
    if surplus := sorted(folders - needed):
        raise DamagedError(f"bundle {folder}: folder {surplus[0]} is not part of the bundle", fix="remove that folder")
    for name, spec in recorded.items():
        if present[name] != spec.bytes:
            raise _changed_file_error(folder, name)


def _require_small_file(folder: Path, name: str) -> None:
    """Raise if a file exists and is not regular, or is too large to be a manifest."""
    try:
        status = (folder / name).lstat()
    except OSError:  # missing, or not accessible: reported when it is opened
        return
    if not stat.S_ISREG(status.st_mode):
        raise _special_file_error(folder, name, status.st_mode)
    if status.st_size > MAX_MANIFEST_BYTES:
        raise DamagedError(f"bundle {folder}: {name} is too large to be one", fix=EXPORT_AGAIN_FIX)


def _entries(folder: Path) -> tuple[dict[str, int], set[str]]:
    """Sizes of all files of a bundle, and its folders, by relative name; nothing is opened and no link is followed.

    Raises:
        DamagedError: an entry is neither a regular file nor a folder: a link, pipe, socket or device.
        UsageError: a folder cannot be listed.
    """
    files: dict[str, int] = {}
    folders: set[str] = set()
    waiting = [""]
    while waiting:
        parent = waiting.pop()
        try:
            entries = list(os.scandir(folder / parent))
        except OSError as error:
            raise UsageError(
                f"bundle {folder}: {parent or 'its folder'} cannot be listed ({error.strerror})",
                fix="let the user who opens the bundle read its folders and files",
            ) from error
        for entry in entries:
            name = f"{parent}/{entry.name}" if parent else entry.name
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                folders.add(name)
                waiting.append(name)
            elif stat.S_ISREG(status.st_mode):
                files[name] = status.st_size
            else:
                raise _special_file_error(folder, name, status.st_mode)
    return files, folders


def _special_file_error(folder: Path, name: str, mode: int) -> DamagedError:
    return DamagedError(
        f"bundle {folder}: {name} is {_kind(mode)}, not a regular file",
        fix="remove it, or copy the bundle again with the files themselves (`cp -RL`)",
    )


def _kind(mode: int) -> str:
    """Description of a file that is not a regular one."""
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISLNK, "a link"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for matches, name in kinds if matches(mode)), "a device")


def _changed_file_error(folder: Path, name: str) -> DamagedError:
    return DamagedError(f"bundle {folder}: {name} was changed after the export", fix=EXPORT_AGAIN_FIX)
