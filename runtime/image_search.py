"""Finds image files: given files, and files with an image suffix in given folders."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dinov2rt.errors import InputError
from dinov2rt.foreign import shown

SUFFIXES = {
    "AVIF": ".avif .avifs",
    "BMP": ".bmp",
    "GIF": ".gif",
    "HEIF": ".heic .heics .heif .heifs .hif",
    "JPEG": ".jfif .jpe .jpeg .jpg .mpo",
    "JPEG2000": ".j2c .j2k .jp2 .jpc .jpf .jpx",
    "PNG": ".apng .png",
    "PPM": ".pbm .pfm .pgm .pnm .ppm",
    "TGA": ".icb .tga .vda .vst",
    "TIFF": ".tif .tiff",
    "WEBP": ".webp",
}
"""Every suffix of the supported formats, by Pillow's name of the format."""

IMAGE_SUFFIXES = frozenset(" ".join(SUFFIXES.values()).split())
"""A search of a folder finds files with these suffixes, in upper or lower case."""

_LISTED_SUFFIXES = 8


@dataclass(frozen=True, slots=True)
class FoundImages:
    """The images that paths name, and how many other files of their folders there are, by suffix.

    A suffix is in small letters, with its dot; it is empty for a file without one.
    """

    files: list[Path]
    left_out: Counter[str] = field(default_factory=Counter)


def find_images(paths: Sequence[Path | str]) -> list[Path]:
    """The images that `paths` name, each once, in the order given; see `search_images`.

    Raises:
        InputError: as `search_images`.
    """
    return search_images(paths).files


def search_images(paths: Sequence[Path | str]) -> FoundImages:
    """The images that `paths` name, each once, in the order given, and what was left out.

    A file is taken as it is. A folder is searched recursively in sorted order for
    `IMAGE_SUFFIXES`, following links and leaving out hidden files and folders.

    Raises:
        InputError: a path that does not exist or cannot be read, a folder without any image, or a
            URL.
    """
    unique: dict[str, Path] = {}
    left_out: Counter[str] = Counter()
    for path in paths:
        for image in _images_at(path, left_out):
            # By its place, not its target: two links to one file are two images of a data set.
            place = os.path.join(os.path.realpath(image.parent), image.name)  # noqa: PTH118
            unique.setdefault(place, image)
    return FoundImages(list(unique.values()), left_out)


def describe_left_out(left_out: Counter[str]) -> str:
    """How many files there are of each suffix, the most frequent few: `.txt (3), .json (1)`."""
    counts = left_out.most_common()
    names = [
        f"{shown(suffix, 40) or 'no suffix'} ({count})"
        for suffix, count in counts[:_LISTED_SUFFIXES]
    ]
    more = len(counts) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _images_at(given: Path | str, left_out: Counter[str]) -> list[Path]:
    path = Path(given)
    try:
        if not path.is_dir():
            path.stat()
            return [path]
        images = list(_walk(path, set(), left_out))
    except OSError as error:
        if "://" in str(given):
            raise InputError(
                f"{shown(given)} is a URL; copy its images here and give their files or folder"
            ) from error
        raise InputError(
            f"{error.filename} cannot be read ({error.strerror}); give image files or folders"
        ) from error
    if not images:
        beside = f"; it holds {describe_left_out(left_out)}" if left_out else ""
        raise InputError(
            f"{path} holds no image{beside}; looked for {', '.join(sorted(IMAGE_SUFFIXES))} in it "
            "and below"
        )
    return images


def _walk(folder: Path, visited: set[str], left_out: Counter[str]) -> Iterator[Path]:
    identity = os.path.realpath(folder)
    if identity in visited:
        return
    visited.add(identity)
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        suffix = entry.suffix.lower()
        if entry.is_dir():
            yield from _walk(entry, visited, left_out)
        elif suffix in IMAGE_SUFFIXES:
            yield entry
        else:
            left_out[suffix] += 1
