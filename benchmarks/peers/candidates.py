"""All candidates, by name.

A peer's module imports its library. It is imported only in the candidate's own process, so that the
threads and memory of different libraries never mix.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Protocol

from dinov2rt.benchmarks.peers.candidate import Candidate, Runner, Workload, import_all
from dinov2rt.benchmarks.peers.own_requirements import cannot_run_own, own_is_for
from dinov2rt.benchmarks.peers.requirements import (
    cannot_compile,
    cannot_run_onnxruntime,
    cannot_run_openvino,
    cannot_run_torch,
    cannot_run_transformers,
)
from dinov2rt.bundle.precision import Precision
from dinov2rt.named_enum import unknown_name
from dinov2rt.runtime.backends.modes import BACKENDS, BackendName, parse_backend
from dinov2rt.runtime.backends.registry import GRAPH_MODES

_ROOM = __name__.rpartition(".")[0]
_TORCH = f"{_ROOM}.pytorch"


def find(names: Sequence[str]) -> tuple[Candidate, ...]:
    """The candidates called `names`, in that order.

    Raises:
        InputError: a name is unknown; the message lists the known names.
    """
    known = {candidate.name: candidate for candidate in CANDIDATES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise unknown_name("candidate", unknown[0], known)
    return tuple(known[name] for name in names)


def _open_eager(workload: Workload, *, autocast: Precision | None) -> Runner:
    from dinov2rt.benchmarks.peers.pytorch import open_eager

    return open_eager(workload, autocast=autocast)


def _open_compiled(workload: Workload, *, mode: str, autocast: Precision | None) -> Runner:
    from dinov2rt.benchmarks.peers.pytorch import open_compiled

    return open_compiled(workload, mode=mode, autocast=autocast)


def _open_transformers(workload: Workload, *, precision: Precision) -> Runner:
    from dinov2rt.benchmarks.peers.pytorch import open_transformers

    return open_transformers(workload, precision=precision)


def _open_onnxruntime(workload: Workload) -> Runner:
    from dinov2rt.benchmarks.peers.onnxruntime import OnnxRuntimePeer

    return OnnxRuntimePeer(workload)


def _open_openvino(workload: Workload, *, precision: Precision) -> Runner:
    from dinov2rt.benchmarks.peers.openvino import OpenVinoPeer

    return OpenVinoPeer(workload, precision)


def _open_own(workload: Workload, *, backend: BackendName, precision: Precision) -> Runner:
    from dinov2rt.benchmarks.peers.own import OwnRunner

    return OwnRunner(workload, backend=backend, precision=precision)


def _import_own(backend: BackendName, precision: Precision) -> None:
    """A plan's library is loaded with the plan, whose flavour says which."""
    import_all(f"{_ROOM}.own")
    for mode in GRAPH_MODES:
        if (mode.backend, mode.precision) == (backend, precision):
            mode.cannot_run()


class _CannotRun(Protocol):
    def __call__(self, workload: Workload, *, autocast: Precision | None) -> str | None: ...


class _Open(Protocol):
    def __call__(self, workload: Workload, *, autocast: Precision | None) -> Runner: ...


_AUTOCAST: tuple[tuple[Precision | None, str, str], ...] = (
    (None, "", "float32"),
    (Precision.FP16, "-autocast", "float16 autocast"),
    (Precision.BF16, "-bf16", "bfloat16 autocast"),
)
_IN_FULL = ((Precision.FP32, "", "float32"), (Precision.BF16, "-bf16", "bfloat16"))


def _with_autocast(
    name: str, title: str, cannot_run: _CannotRun, open_it: _Open
) -> tuple[Candidate, ...]:
    """A PyTorch peer in float32, under float16 autocast (GPUs), and under bfloat16's (CPUs)."""
    return tuple(
        Candidate(
            name=f"{name}{suffix}",
            title=f"{title}, {kind}",
            precision=autocast or Precision.FP32,
            is_peer=True,
            cannot_run=partial(cannot_run, autocast=autocast),
            open=partial(open_it, autocast=autocast),
            import_libraries=partial(import_all, _TORCH),
        )
        for autocast, suffix, kind in _AUTOCAST
    )


def _own(backend: BackendName, precision: Precision) -> Candidate:
    return Candidate(
        name=f"dinov2rt-{backend}-{precision}",
        title=f"dinov2rt, {backend} {precision}",
        precision=precision,
        is_peer=False,
        cannot_run=partial(cannot_run_own, backend=backend, precision=precision),
        is_for=partial(own_is_for, backend=backend, precision=precision),
        open=partial(_open_own, backend=backend, precision=precision),
        import_libraries=partial(_import_own, backend, precision),
    )


CANDIDATES: tuple[Candidate, ...] = (
    *_with_autocast("eager", "PyTorch eager", cannot_run_torch, _open_eager),
    *_with_autocast(
        "compile", "torch.compile", cannot_compile, partial(_open_compiled, mode="default")
    ),
    *_with_autocast(
        "compile-max-autotune",
        "torch.compile max-autotune",
        cannot_compile,
        partial(_open_compiled, mode="max-autotune"),
    ),
    *(
        Candidate(
            name=f"transformers{suffix}",
            title=f"Hugging Face transformers, SDPA, {kind}",
            precision=precision,
            is_peer=True,
            cannot_run=partial(cannot_run_transformers, precision=precision),
            open=partial(_open_transformers, precision=precision),
            import_libraries=partial(import_all, _TORCH, f"{_ROOM}.transformers"),
        )
        for precision, suffix, kind in _IN_FULL
    ),
    Candidate(
        name="onnxruntime",
        title="plain torch.onnx.export in ONNX Runtime, float32",
        precision=Precision.FP32,
        is_peer=True,
        cannot_run=cannot_run_onnxruntime,
        open=_open_onnxruntime,
        import_libraries=partial(import_all, f"{_ROOM}.onnxruntime"),
    ),
    *(
        Candidate(
            name=f"openvino{suffix}",
            title=f"OpenVINO, converted from PyTorch, {kind}"
            + ", its own default on this CPU" * (precision is Precision.BF16),
            precision=precision,
            is_peer=True,
            cannot_run=partial(cannot_run_openvino, precision=precision),
            open=partial(_open_openvino, precision=precision),
            import_libraries=partial(import_all, f"{_ROOM}.openvino"),
        )
        for precision, suffix, kind in _IN_FULL
    ),
    *(_own(backend, precision) for backend, precision in product(BACKENDS, Precision)),
)


_PEERS: dict[str, dict[str, tuple[str, ...]]] = {
    "eager": {"cpu": ("eager",), "cuda": ("eager", "eager-autocast")},
    "compile": {
        "cpu": ("compile", "compile-max-autotune"),
        "cuda": ("compile-autocast", "compile-max-autotune-autocast"),
    },
    "transformers": dict.fromkeys(("cpu", "cuda"), ("transformers",)),
    "openvino": dict.fromkeys(("cpu", "cuda"), ("openvino",)),
    "onnxruntime": dict.fromkeys(("cpu", "cuda"), ("onnxruntime",)),
}
PEERS = tuple(_PEERS)
"""The libraries that users would run instead; each name stands for one or more candidates."""


_IN_BF16 = {
    "eager": ("eager-bf16",),
    "compile": ("compile-bf16",),
    "transformers": ("transformers-bf16",),
    "openvino": ("openvino-bf16",),
}
"""The same on a CPU that has bfloat16, beside dinov2rt in bf16."""


def peers(names: Sequence[str], device: str, *, in_bf16: bool = False) -> tuple[Candidate, ...]:
    """The candidates that `names` of `PEERS` stand for on "cpu" or "cuda".

    With `in_bf16` there are those in bfloat16 on a CPU as well.

    Raises:
        InputError: a name is unknown.
    """
    unknown = [name for name in names if name not in _PEERS]
    if unknown:
        raise unknown_name("peer", unknown[0], (*PEERS, "none"))
    found = [name for peer in names for name in _PEERS[peer][device]]
    if in_bf16 and device == "cpu":
        found += [name for peer in names for name in _IN_BF16.get(peer, ())]
    return find(found)


def own(backend: str | None, precision: str | None) -> tuple[Candidate, ...]:
    """The candidates of dinov2rt: all, or only one backend or one precision.

    Raises:
        InputError: a name is unknown.
    """
    wanted = Precision if precision is None else (Precision.parse(precision),)
    chosen = product((parse_backend(backend),) if backend else BACKENDS, wanted)
    return find([f"dinov2rt-{backend}-{precision}" for backend, precision in chosen])
