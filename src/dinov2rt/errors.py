"""The exceptions of dinov2rt, as one small tree."""

from collections.abc import Sequence

from dinov2rt.foreign import one_line


class Dinov2rtError(Exception):
    """Root of every error that dinov2rt raises on purpose.

    The message is one line: the value that was given, the allowed values, the way out. It holds no
    control characters, and a few thousand characters at most, whatever it quotes.
    `exit_status` is what the command line returns for it.
    """

    exit_status = 2

    def __str__(self) -> str:
        return one_line(super().__str__())


class InputError(Dinov2rtError, ValueError):
    """An argument or an image that cannot be used."""


class BundleError(Dinov2rtError):
    """A bundle that is missing, altered, incomplete or newer than this version."""


class BundleReplacedError(BundleError):
    """A bundle that another process replaced while it was read; reading it again helps."""


class BackendError(Dinov2rtError):
    """The requested backend, device or precision cannot run here.

    Where several were tried, `reasons` has a line for each; the message has them all.
    """

    def __init__(self, message: str, reasons: Sequence[str] = ()) -> None:
        super().__init__(f"{message} ({'; '.join(reasons)})" if reasons else message)
        self.summary: str = message
        self.reasons: tuple[str, ...] = tuple(reasons)


class WeightsError(Dinov2rtError):
    """A checkpoint that cannot be downloaded or read, or does not fit the variant."""


class ExportError(Dinov2rtError):
    """An exported graph that fails the exporter's checks."""

    exit_status = 1


class BuildError(Dinov2rtError):
    """A plan that the builder cannot make, or that fails a check after the build."""

    exit_status = 1


class FusionError(BuildError):
    """A plan whose attention is not one fused kernel a block, in the requested precision."""


class AccuracyError(Dinov2rtError):
    """A bundle whose outputs disagree with its golden outputs."""

    exit_status = 1


class MissingDependencyError(Dinov2rtError, ImportError):
    """An optional package that this call needs and that is not installed."""


class PlanWarning(UserWarning):
    """A TensorRT plan runs with a limitation, e.g. it is unverified, or a graph replaces it.

    Also: a shape runs without its CUDA graph, on either GPU backend.
    """


class FitWarning(UserWarning):
    """A head was fitted, but not as well as it might be."""


class PlanInputError(InputError):
    """An input that a plan cannot take, though the graph that it was built from could."""


def first_line(error: BaseException | str) -> str:
    """The first line of another library's message, or the error's type if the message is empty.

    Every message of dinov2rt is one line; other libraries' messages may be a page long.
    """
    lines = str(error).strip().splitlines()
    return one_line(lines[0]) if lines else type(error).__name__
