"""Features of every image in a folder, as a Parquet dataset.

python examples/folder_features.py artifacts/dinov2_vits14_reg photos/ features.parquet

The same command continues a run that was interrupted. `dinov2rt run` does this and more.
"""

import argparse
from pathlib import Path

import dinov2rt
from dinov2rt.extraction.collection import find_chunks
from dinov2rt.extraction.decoding import Decoders
from dinov2rt.extraction.extract import ExtractOptions
from dinov2rt.extraction.extractor import Extractor
from dinov2rt.extraction.job import num_images
from dinov2rt.runtime.images import Preprocess


def extract_folder(bundle: str, folder: str, out: Path, *, processes: int) -> int:
    """Write a row for each image, and return how many images could not be used."""
    chunks = find_chunks([folder])
    # Scale the short side to 256 pixels and cut a square of 224: the official evaluation's steps.
    options = ExtractOptions(preprocess=Preprocess.parse("classification"), batch=8)
    failed = 0
    with Decoders(processes) as decoders, dinov2rt.load(bundle) as model:
        extractor = Extractor.into(out, model, options, decoders)
        with extractor.dataset.resumed(chunks) as missing:
            print(f"{num_images(missing)} of {num_images(chunks)} images are still to be done")
            for part in extractor.process(missing):
                print(f"wrote {part.images} images, {part.failures} failed")
                failed += part.failures
    return failed


def main() -> int:
    """Extract, and read the features back."""
    parser = argparse.ArgumentParser(description="features of a folder")
    parser.add_argument("bundle")
    parser.add_argument("folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=2, help="that decode images")
    given = parser.parse_args()
    failed = extract_folder(given.bundle, given.folder, given.out, processes=given.processes)
    table = dinov2rt.read_features(given.out, columns=["key", "cls_token"])
    print(f"{table.num_rows} rows of {table.schema.field('cls_token').type}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
