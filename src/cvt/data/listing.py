"""The image files below a directory, and a count of everything that is left out. No torch.

Every source and command lists images with `list_images`, so that all of them see the same ones.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from cvt.data.images import HEIC_SUFFIXES, SUFFIXES
from cvt.system.text import printable

HIDDEN = "hidden or system files"
NOT_IMAGES = "not images"
OTHER_FORMATS = "formats that are not read: convert them to JPEG or PNG"
NEED_HEIC = "read after pip install 'cvt-torch[heic]'"
NOWHERE = "links that lead nowhere"
AGAIN = "links to directories that are listed already or lie above"
CLOSED = "directories that cannot be opened"
NOT_FILES = "pipes, sockets and devices"
BESIDE = "images beside the class directories"
EMPTY = "class directories without images"
"""Reasons why something is left out. The last seven are complete descriptions."""

_REASONS = (OTHER_FORMATS, NEED_HEIC, NOT_IMAGES, BESIDE, EMPTY, NOWHERE, AGAIN, CLOSED, NOT_FILES,
            HIDDEN)
_BY_SUFFIX = frozenset((OTHER_FORMATS, NEED_HEIC, NOT_IMAGES))
_MAX_SUFFIXES = 5  # per reason in a line; check.json has all

COMPRESSED = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
"""Suffixes of archives that are unpacked before their images can be read."""

# What cameras, annotation tools and file managers write beside images. Everything else with an
# unknown suffix is taken for an image in a format that is not read.
_NOT_IMAGE_SUFFIXES = frozenset((
    ".txt", ".md", ".rst", ".html", ".htm", ".log", ".pdf", ".doc", ".docx", ".xls", ".xlsx",
    ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg",
    ".parquet", ".arrow", ".cls", ".names", ".data", ".cache", ".py", ".ipynb", ".m", ".mat",
    ".sh", ".bat", ".db", ".sqlite", ".npy", ".npz", ".pkl", ".pt", ".pth", ".tfrecord", ".lnk",
    ".url", ".webloc", ".aae", ".xmp", ".thm", ".ctg", ".md5", ".sha1", ".sha256", ".zip", ".tar",
    ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".mp4", ".mov", ".avi", ".mkv", ".m4v",
    ".webm", ".mpg", ".mpeg", ".3gp", ".mts", ".wav", ".mp3", ".m4a", ".part", ".crdownload",
    ".tmp", ".bak"))
# Of a directory that holds nothing else, nobody means a class.
_NOTES = frozenset((".txt", ".md", ".html", ".log", ".pdf", ".csv", ".tsv", ".json", ".jsonl",
                    ".xml", ".yaml", ".yml", ".py", ".ipynb", ".mat", ".ini", ".cfg", ".cache",
                    ".doc", ".docx", ".xls", ".xlsx", ".sh", ".zip", ".tar", ".gz", ".tgz", ".7z",
                    ".rar", ".names", ".data"))

# Of macOS, Windows, Synology and QNAP storage, Android, and Linux, in lower case. Names that start
# with a dot are hidden everywhere.
_SYSTEM = frozenset((
    "__macosx", "icon\r", "network trash folder", "temporary items", "thumbs.db", "ehthumbs.db",
    "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "system volume information", "recycler",
    "@eadir", "@recycle", "@recently-snapshot", "@transcode", "#recycle", "#snapshot",
    "synologyphoto_thumb", "lost.dir", "lost+found", "picasa.ini", "zbthumbnail.info",
    "__pycache__"))

_SUFFIX = re.compile(r"\.[0-9]?[a-z][a-z0-9_~-]{0,15}")
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM.{4}\0{4}|II\*\0|MM\0\*|RIFF.{4}WEBP|"
    rb".{4}ftypavi[fs]|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51|qoif|P[1-6]\s+[#\d]", re.DOTALL)
_MAGIC_HEIF = re.compile(rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)


class LeftOut(Counter[tuple[str, str]]):
    """How many files and directories were left out, by reason and suffix.

    The suffix is in lower case with its dot, empty where there is none or where it does not matter.
    """

    def __str__(self) -> str:
        """All of it in one line; empty if nothing was left out."""
        parts = []
        for reason, suffixes in self.to_dict().items():
            if reason in _BY_SUFFIX:
                shown = list(suffixes.items())
                names = [f"{n:,} {printable(suffix) or 'without a suffix'}"
                         for suffix, n in shown[:_MAX_SUFFIXES]]
                if rest := sum(n for _, n in shown[_MAX_SUFFIXES:]):
                    names.append(f"{rest:,} of other suffixes")
                parts.append(f"{', '.join(names)} ({reason})")
            else:
                parts.append(f"{sum(suffixes.values()):,} {reason}")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, dict[str, int]]:
        """The count of each suffix by reason, most frequent first."""
        return {reason: {suffix: n for (why, suffix), n in sorted(
                    self.items(), key=lambda item: (-item[1], item[0])) if why == reason}
                for reason in _REASONS if any(why == reason for why, _ in self)}

    def add(self, reason: str, suffix: str = "") -> None:
        """Count one more."""
        self[reason, suffix] += 1

    @property
    def only_notes(self) -> bool:
        """Whether nothing but system files, texts, tables and archives was left out."""
        return all(reason in (HIDDEN, EMPTY) or (reason == NOT_IMAGES and suffix in _NOTES)
                   for reason, suffix in self)


def is_hidden(name: str) -> bool:
    """Whether a file or directory of this name is hidden, or written by an operating system."""
    return name.startswith(".") or name.lower() in _SYSTEM


def suffix_of(name: str) -> str:
    """The suffix in lower case; empty for a name without one, such as "IMG.2021.05" or "photo"."""
    start = name.rfind(".")
    suffix = name[start:].rstrip().lower() if start > 0 else ""
    return suffix if suffix in SUFFIXES or _SUFFIX.fullmatch(suffix) else ""


def is_image(suffix: str, left_out: LeftOut) -> bool:
    """Whether a file of this suffix is read as an image; it is counted if not."""
    if suffix in _readable():
        return True
    if suffix in HEIC_SUFFIXES:
        left_out.add(NEED_HEIC, suffix)
    else:
        left_out.add(NOT_IMAGES if not suffix or suffix in _NOT_IMAGE_SUFFIXES else OTHER_FORMATS,
                     suffix)
    return False


@functools.cache
def _readable() -> frozenset[str]:
    """Suffixes of the images that the installed packages read."""
    return SUFFIXES if find_spec("pillow_heif") else SUFFIXES - HEIC_SUFFIXES


def list_images(directory: Path, left_out: LeftOut | None = None) -> list[str]:
    """The paths of all images below `directory`, sorted. Other files are counted in `left_out`.

    Images are known by their suffix; files without one by their first bytes. Links are followed,
    but each directory is listed once, and those above `directory` are not. Links of an image's name
    that lead nowhere are included, so that they are reported as unreadable. Raises OSError if
    `directory` cannot be opened.
    """
    left_out = LeftOut() if left_out is None else left_out
    readable = _readable()
    paths: list[str] = []
    seen: set[tuple[int, int]] = set()
    above: set[tuple[int, int]] = set()
    directories, links = [str(directory)], list[str]()
    while directories or links:
        # Links come last, so that a directory is listed by its own name if it has one here.
        here = directories.pop() if directories else links.pop(0)
        try:
            if (identity := _identity(here)) in seen:
                left_out.add(AGAIN)
                continue
            seen.add(identity)
            with os.scandir(here) as entries:
                for entry in entries:
                    name = entry.name
                    if (name[name.rfind("."):].lower() in readable and not name.startswith(".")
                            and entry.is_file(follow_symlinks=False)):
                        paths.append(entry.path)  # nearly all, so without the steps of _kind
                        continue
                    kind = _kind(entry, left_out)
                    if kind == "image":
                        paths.append(entry.path)
                    elif kind == "directory":
                        (links if entry.is_symlink() else directories).append(entry.path)
        except OSError:
            if here == str(directory):
                raise
            left_out.add(CLOSED)
        if links and not directories:
            links.sort()
            if not above:
                above = {_identity(parent) for parent in Path(directory).resolve().parents}
                seen |= above
    # Sorted by the names on the way, as paths are: a/b.png before a-b.png.
    paths.sort(key=None if len(seen) < 2 else lambda path: path.split(os.sep))
    return paths  # not Path, which takes three times as long to make as the file to find


def _identity(directory: str | Path) -> tuple[int, int]:
    info = os.stat(directory)
    return info.st_dev, info.st_ino


def list_directories(directory: Path, left_out: LeftOut) -> list[str]:
    """The names of the directories in `directory`, sorted; its files are counted in `left_out`.

    Links to directories are included, and those of a directory's name that lead nowhere.
    """
    names: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            kind = _kind(entry, left_out, links_to=names)
            if kind == "directory":
                names.append(entry.name)
            elif kind == "image":
                left_out.add(BESIDE, suffix_of(entry.name))
    return sorted(names)


def _kind(entry: os.DirEntry[str], left_out: LeftOut, links_to: list[str] | None = None) -> str:
    """"image", "directory", or empty for what is left out. With `links_to`, the name of a link that
    leads nowhere and has no suffix goes there."""
    if is_hidden(entry.name):
        left_out.add(HIDDEN)
        return ""
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    suffix = suffix_of(entry.name)
    if entry.is_symlink():
        try:
            mode = os.stat(entry.path).st_mode
        except OSError:
            if suffix in SUFFIXES:
                return "image"
            if suffix or links_to is None:
                left_out.add(NOWHERE)
            else:
                links_to.append(entry.name)
            return ""
        if stat.S_ISDIR(mode):
            return "directory"
        is_file = stat.S_ISREG(mode)
    else:
        is_file = entry.is_file(follow_symlinks=False)
    if not is_file:
        left_out.add(NOT_FILES)
        return ""
    if not suffix:
        suffix = _suffix_by_content(entry.path)
    return "image" if is_image(suffix, left_out) else ""


def _suffix_by_content(path: str) -> str:
    """A suffix of an image that starts as this file does; empty for another file."""
    try:
        with open(path, "rb") as file:
            start = file.read(32)
    except OSError:
        return ""
    return ".jpg" if _MAGIC.match(start) else ".heic" if _MAGIC_HEIF.match(start) else ""
