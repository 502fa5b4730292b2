"""`dinov2rt triton`: a bundle as a model repository for NVIDIA Triton Inference Server."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from dinov2rt.cli.arguments import add_bundle
from dinov2rt.cli.output import table
from dinov2rt.cli.verb import Outcome, Verb
from dinov2rt.engines.triton.repository import Repository, RepositoryOptions, write_repository

_NOT_RUN = (
    "checked against Triton's schema and the graphs, but no server has loaded it; docs/triton.md"
)


def _add_arguments(parser: ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="REPOSITORY", help="folder to make"
    )
    defaults = RepositoryOptions()
    parser.add_argument(
        "--max-batch",
        type=int,
        default=defaults.max_batch,
        help=f"of the ONNX models (default: {defaults.max_batch}); plans have their own; "
        "0: the caller makes batches, and may pad",
    )
    parser.add_argument(
        "--queue-delay",
        type=int,
        default=defaults.queue_delay_us,
        metavar="US",
        help="microseconds that a request waits for others of its shape "
        f"(default: {defaults.queue_delay_us})",
    )


def _run(arguments: Namespace) -> Outcome:
    options = RepositoryOptions(arguments.max_batch, arguments.queue_delay)
    repository = write_repository(arguments.bundle, arguments.out, options)
    document = {
        "bundle": arguments.bundle,
        "out": arguments.out,
        "models": [
            {"name": model.name, "files": [file.path for file in model.files]}
            for model in repository.models
        ],
        "left_out": repository.left_out,
    }
    return Outcome(document, _text(arguments.out, repository))


def _text(out: Path, repository: Repository) -> str:
    rows = [
        (model.name, ", ".join(file.path for file in model.files)) for model in repository.models
    ]
    left_out = [f"left out: {one.file}, {one.reason}" for one in repository.left_out]
    start = f"serve it with: tritonserver --model-repository={out.absolute()}"
    return "\n".join([table(("model", "files"), rows), *left_out, start, f"note: {_NOT_RUN}"])


TRITON = Verb("triton", "write a model repository for NVIDIA Triton", _add_arguments, _run)
