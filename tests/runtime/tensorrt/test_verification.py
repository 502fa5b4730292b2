from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.plans import add_plan

from dinov2rt.bundle.entries import FileEntry, Flavour
from dinov2rt.bundle.golden import Golden
from dinov2rt.bundle.manifest import Manifest
from dinov2rt.errors import PlanInputError, PlanWarning
from dinov2rt.runtime.backends.onnxruntime import OnnxRuntimeBackend
from dinov2rt.runtime.gpu.cuda import Gpu
from dinov2rt.runtime.model import LoadOptions, Model
from dinov2rt.runtime.selection import Choice
from dinov2rt.runtime.verification import compare_all

GPU = Gpu(0, "NVIDIA A100-SXM4-80GB", "sm80", "580.65.06", (13, 0))


class Narrow(OnnxRuntimeBackend):
    """Refuses batches of more than one image, like a plan whose profiles allow only one."""

    def infer(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], *, device_outputs: bool = False
    ) -> dict[str, Any]:
        if len(inputs["pixels"]) > 1:
            raise PlanInputError("too many")
        return super().infer(inputs, outputs, device_outputs=device_outputs)


@pytest.fixture
def narrow(pooling_bundle: Path) -> Iterator[Narrow]:
    backend = Narrow(pooling_bundle / "fp32.onnx", device="cpu", threads=1)
    yield backend
    backend.close()


def test_a_case_that_a_plan_has_no_profile_for_is_left_out_and_named(
    pooling_bundle: Path, narrow: Narrow
) -> None:
    (graph,) = Manifest.read(pooling_bundle).graphs
    (pair,) = Golden.read(pooling_bundle / "golden.npz").cases
    first = {name: value[:1] for name, value in pair.outputs.items()}
    single = replace(pair, name="single", images=pair.images[:1], outputs=first)
    with pytest.warns(PlanWarning) as warned:
        report = compare_all(narrow, graph, [pair, single])
    assert [str(each.message) for each in warned] == ["golden case 28x42 is left out: too many"]
    assert {output.case for output in report.outputs} == {"single"}
    assert report


def test_a_plan_that_can_run_no_case_does_not_pass(pooling_bundle: Path, narrow: Narrow) -> None:
    (graph,) = Manifest.read(pooling_bundle).graphs
    cases = Golden.read(pooling_bundle / "golden.npz").cases
    with pytest.warns(PlanWarning, match="left out"):
        assert not compare_all(narrow, graph, cases)


@pytest.fixture
def vouched_for(pooling_bundle: Path, narrow: Narrow) -> Model:
    """A model that appears to run a plan, to test the record of a verification without a GPU."""
    entry = add_plan(pooling_bundle, flavour=Flavour.TENSORRT, version="11.4.0.106")
    manifest = Manifest.read(pooling_bundle)
    (graph,) = manifest.graphs
    plan: Any = OnnxRuntimeBackend(pooling_bundle / "fp32.onnx", device="cpu", threads=1)
    plan.entry, plan.gpu = entry, GPU
    # The backend behind the plan allows only one image, and would skip the golden case.
    choice = Choice(graph, narrow, (), plan)
    return Model(pooling_bundle, manifest, LoadOptions(), choice, str(pooling_bundle))


def test_verify_asks_the_plan_alone_and_notes_down_that_it_passed(vouched_for: Model) -> None:
    assert "unverified: never compared" in vouched_for.describe()
    report = vouched_for.verify()
    assert report
    entry = Manifest.read(vouched_for.path).plans[0].verification
    assert entry is not None
    assert (entry.machine, entry.driver) == (GPU.name, GPU.driver)
    assert (entry.cosine_min, entry.relative_l2) == (report.cosine_min, report.relative_l2)
    assert "unverified" not in vouched_for.describe()


def test_cases_of_the_callers_own_vouch_for_nothing(vouched_for: Model) -> None:
    cases = Golden.read(vouched_for.path / "golden.npz").cases
    assert vouched_for.verify(cases)
    assert Manifest.read(vouched_for.path).plans[0].verification is None


def test_a_plan_that_fails_is_not_noted_down(vouched_for: Model) -> None:
    golden = Golden.read(vouched_for.path / "golden.npz")
    wrong = {name: value + 1 for name, value in golden.cases[0].outputs.items()}
    Golden((replace(golden.cases[0], outputs=wrong),)).write(vouched_for.path / "golden.npz")
    manifest = Manifest.read(vouched_for.path)
    changed = replace(manifest, golden=FileEntry.of(vouched_for.path, "golden.npz"))
    changed.write(vouched_for.path)
    vouched_for.manifest = changed
    assert not vouched_for.verify()
    assert Manifest.read(vouched_for.path).plans[0].verification is None


def test_a_manifest_that_cannot_be_changed_does_not_undo_the_pass(vouched_for: Model) -> None:
    (vouched_for.path / "manifest.json").unlink()
    with pytest.warns(PlanWarning, match="passed, but not recorded: .+ is not a bundle"):
        assert vouched_for.verify()
