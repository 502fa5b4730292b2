"""Disks that are full, read-only or not there."""

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from dinov2rt.benchmarks.studies.reliability.processes import Ended, end, start
from dinov2rt.benchmarks.studies.reliability.site import IMAGES, Site, mount, mounted, nothing_left
from dinov2rt.benchmarks.studies.reliability.small_bundle import (
    write_small_bundle,
    write_small_checkpoint,
)


def full_disk(site: Site) -> Iterator[str]:
    """Outputs that grow beyond what the system lets them, and a file system of 12 KiB."""
    small = {resource.RLIMIT_FSIZE: 8192}
    for output in ("small.npz", "small.parquet"):
        yield f"run to {output}"
        end(start([*site.run, str(site.folder / output)], limits=small)).must(2)
        nothing_left(site.folder, output)
    yield "search"
    end(start([*site.search, str(site.folder / "small.png")], limits=small)).must(2)
    nothing_left(site.folder, "small.png")
    with mounted(site.folder / "tiny", "size=12k") as tiny:
        if tiny:
            for output in ("a.npz", "a.parquet"):
                yield f"run to {output} on a full tmpfs"
                end(start([*site.run, str(tiny / output), "--part-images", "1"])).must(2)
                nothing_left(tiny, output)
            yield "TMPDIR on a full tmpfs"
            (tiny / "filled").write_bytes(bytes(2**12))
            temporary = {"TMPDIR": str(tiny)}
            out = str(site.folder / "temporary.parquet")
            end(start([*site.run, out], environment=temporary)).must(0, 2)


def full_disk_of_other_verbs(site: Site) -> Iterator[str]:
    """The outputs of all other verbs that write, on a file system of 4 KiB."""
    bundle = _exported(site)
    with mounted(site.folder / "full", "size=4k") as full:
        place = full or site.folder
        limits = {} if full else {resource.RLIMIT_FSIZE: 4096}
        for verb, arguments in _that_write(site, bundle, place).items():
            yield f"{verb} on a full disk"
            _must_tell_the_disk(end(start([verb, *arguments], limits=limits)), 2)
            left = [file.name for file in place.rglob("*") if file.name.endswith(".partial")]
            if left or (place / f"{verb}-out").is_file():
                raise AssertionError(f"left behind: {left}")
            shutil.rmtree(place / f"{verb}-out", ignore_errors=True)
    yield "build on a full disk"
    limits = {resource.RLIMIT_FSIZE: 8192}
    profile = ("--profiles", "224", "--max-batch", "2")
    build = ["build", str(bundle), "--flavour", "tensorrt-rtx", *profile]
    _must_tell_the_disk(end(start(build, limits=limits)), 1, 2)
    end(start(["info", str(bundle), "--check"])).must(0)


def _must_tell_the_disk(ended: Ended, *statuses: int) -> None:
    """Refuse another status, and a reason that has nothing to do with the disk."""
    ended.must(*statuses)
    if not any(os.strerror(number) in ended.said for number in (errno.ENOSPC, errno.EFBIG)):
        raise AssertionError(f"does not name the disk: {ended.said[-500:]!r}")


def _that_write(site: Site, bundle: Path, place: Path) -> dict[str, list[str]]:
    """The arguments of each; the output of VERB is VERB-out in `place`."""
    labels = site.folder / "labels.csv"
    rows = "".join(f"{index:03}.png,{index % 3}\n" for index in range(IMAGES))
    labels.write_text(f"key,label\n{rows}", encoding="utf-8")
    weights, images = str(site.folder / "weights"), str(site.folder / "images")
    features = str(site.folder / "features.parquet")
    head = str(place / "train-head-out.npz")
    arguments = {
        "export": ["auto", "--weights", weights],
        "predict": [str(bundle), images],
        "triton": [str(bundle)],
    }
    outputs = {
        verb: [*each, "--out", str(place / f"{verb}-out")] for verb, each in arguments.items()
    }
    return outputs | {
        "train-head": ["--features", features, "--labels", str(labels), "--out", head]
    }


def _exported(site: Site) -> Path:
    """A bundle of one narrow block with a head, and its weights beside it."""
    bundle, weights = site.folder / "exported", site.folder / "weights"
    write_small_checkpoint(weights, 0)
    arguments = ["--head", "linear=synthetic:0", "--weights", str(weights), "--out", str(bundle)]
    end(start(["export", "auto", *arguments])).must(0)
    return bundle


def missing_places(site: Site) -> Iterator[str]:
    """No HOME, no TMPDIR, or ones that do not exist; a bundle that cannot be written to."""
    for name, value in (("none", None), ("nowhere", "/nowhere")):
        yield f"HOME and TMPDIR: {name}"
        out = str(site.folder / f"{name}.parquet")
        end(start([*site.run, out], environment={"HOME": value, "TMPDIR": value})).must(0)
    with mounted(site.folder / "frozen", "size=8m") as frozen:
        if frozen:
            write_small_bundle(frozen / "bundle")
            mount("-o", "remount,ro", str(frozen))
            for verb in ("verify", "info"):
                yield f"{verb} of a read-only bundle"
                end(start([verb, str(frozen / "bundle")])).must(0)
            yield "build into a read-only bundle"
            end(start(["build", str(frozen / "bundle")])).must(2)
            yield "run to a read-only place"
            end(start([*site.run, str(frozen / "a.npz")])).must(2)
