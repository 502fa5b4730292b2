"""The builder configuration; this part is the same for all flavours."""

from collections.abc import Mapping
from typing import Any

from dinov2rt.bundle.profiles import ShapeRange
from dinov2rt.engines.flavours import Toolkit
from dinov2rt.engines.options import BuildOptions, HardwareCompatibility
from dinov2rt.engines.profile_syntax import tensor_shape
from dinov2rt.errors import BuildError


def configure(
    toolkit: Toolkit,
    builder: Any,
    input_name: str,
    options: BuildOptions,
    profiles: Mapping[str, ShapeRange],
) -> Any:
    """A builder configuration for `options` and `profiles`.

    Raises:
        BuildError: the builder refuses the target or a profile.
    """
    config = builder.create_builder_config()
    # The fusion check needs the names of the graph's nodes in the plan.
    config.profiling_verbosity = toolkit.trt.ProfilingVerbosity.DETAILED
    toolkit.set_target(config, options.target)
    for name, shapes in profiles.items():
        if not _add_profile(builder, config, input_name, shapes):
            raise BuildError(f"{toolkit.name} refuses the profile {name!r}, {shapes}")
    _set_flags(toolkit.trt, config, options)
    _set_levels(toolkit.trt, config, options)
    return config


def _add_profile(builder: Any, config: Any, input_name: str, shapes: ShapeRange) -> bool:
    profile = builder.create_optimization_profile()
    bounds = (tensor_shape(shape, input_name) for shape in (shapes.min, shapes.opt, shapes.max))
    profile.set_shape(input_name, *bounds)
    index: int = config.add_optimization_profile(profile)
    return index >= 0


def _set_flags(trt: Any, config: Any, options: BuildOptions) -> None:
    flags = {
        trt.BuilderFlag.VERSION_COMPATIBLE: options.version_compatible,
        trt.BuilderFlag.STRIP_PLAN: options.strip_weights,
        trt.BuilderFlag.WEIGHT_STREAMING: options.weight_streaming,
    }
    for flag, is_wanted in flags.items():
        if is_wanted:
            config.set_flag(flag)


def _set_levels(trt: Any, config: Any, options: BuildOptions) -> None:
    compatibility = {
        HardwareCompatibility.AMPERE_PLUS: trt.HardwareCompatibilityLevel.AMPERE_PLUS,
        HardwareCompatibility.SAME_COMPUTE_CAPABILITY: (
            trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
        ),
    }
    if options.hardware_compatible is not None:
        config.hardware_compatibility_level = compatibility[options.hardware_compatible]
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.memory_limit_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.memory_limit_mib << 20)
