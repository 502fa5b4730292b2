"""Folders of checkpoints: which of their files hold the weights."""

from pathlib import Path
from typing import Any

from dinov2rt.errors import WeightsError
from dinov2rt.export.weights.containers import SUFFIXES
from dinov2rt.export.weights.state_dict import first_few
from dinov2rt.files import read_regular
from dinov2rt.strict_json import parse

_MOST_BYTES = 2**26
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_ADAPTER = "adapter_config.json"
_DISTRIBUTED = ".metadata"


def weight_files(folder: Path) -> list[Path]:
    """The files that make up the checkpoint in `folder`, as transformers, timm or torch.hub write.

    Raises:
        WeightsError: there is no checkpoint or more than one, or the index of shards is wrong.
    """
    for name in _WHOLE:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            return _shards(index)
    return [_only_file(folder)]


def _only_file(folder: Path) -> Path:
    if (folder / _DISTRIBUTED).is_file():
        raise WeightsError(
            f"{folder} is a distributed checkpoint; make one file of it first: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} model.pth"
        )
    files = [file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES]
    if len(files) == 1:
        if (folder / _ADAPTER).is_file():
            raise WeightsError(
                f"{folder} holds an adapter (LoRA) alone; merge it into its model first, in PEFT "
                "with merge_and_unload(), and save the result"
            )
        return files[0]
    if not files:
        raise WeightsError(
            f"{folder} holds no weights; give a folder with {', '.join(_WHOLE)}, or a file of "
            f"{', '.join(SUFFIXES)}"
        )
    raise WeightsError(
        f"{folder} holds several checkpoints: {first_few(file.name for file in files)}; give one"
    )


def _shards(index: Path) -> list[Path]:
    shards = read_json(index, otherwise="get the folder again").get("weight_map")
    if not (isinstance(shards, dict) and all(isinstance(name, str) for name in shards.values())):
        raise WeightsError(f"{index} has no weight_map; get the folder again")
    outside = [name for name in shards.values() if Path(name).name != name or name == ".."]
    if outside:
        raise WeightsError(
            f"{index} points to {outside[0]!r}, which is not in the folder; get the folder again"
        )
    return [index.parent / name for name in sorted(set(shards.values()))]


def read_json(path: Path, *, otherwise: str) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        WeightsError: it cannot be read, is not an index, or holds a key twice; the message ends in
            `otherwise`.
    """
    try:
        document = parse(read_regular(path, _MOST_BYTES))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); {otherwise}") from error
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON ({error}); {otherwise}") from error
    if not isinstance(document, dict):
        raise WeightsError(f"{path} is not a JSON object; {otherwise}")
    return document
