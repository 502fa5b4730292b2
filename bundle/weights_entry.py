"""Where a bundle's weights came from, as the manifest states it."""

from dataclasses import dataclass, field

from dinov2rt.foreign import shown

_LISTED_GROUPS = 6
_NAME_LENGTH = 80


@dataclass(frozen=True, slots=True)
class WeightsEntry:
    """Where the weights came from, and what they are.

    `source` is what was given to `--weights`. `sha256` is that of the checkpoint file, or of all
    tensors where there is no single file. Of a checkpoint, `prefix` is what the names of the
    backbone began with, `naming` tells whose they were (official, timm or transformers), and
    `left_out` counts its other tensors by the module that they are in. `revision` is the commit
    of a repository on a hub.
    """

    source: str
    sha256: str
    prefix: str | None = None
    naming: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    revision: str | None = None

    @property
    def selection(self) -> str | None:
        """What was taken of a checkpoint and what was left out, in one line; None of no file."""
        if self.prefix is None:
            return None
        place = f"below {shown(repr(self.prefix))}" if self.prefix else "at the top"
        left_out = f"; left out: {describe_groups(self.left_out)}" if self.left_out else ""
        revision = f"revision {self.revision}; " if self.revision else ""
        return f"{revision}backbone {place}, {self.naming} names{left_out}"

    @property
    def pinned_source(self) -> str:
        """The source, at the revision that it had."""
        return f"{self.source.partition('@')[0]}@{self.revision}" if self.revision else self.source

    @property
    def options(self) -> list[str]:
        """What asks `export` for the same weights again."""
        is_choice = self.prefix is not None and (self.prefix or self.left_out)
        prefix = [f"--prefix={self.prefix}"] if is_choice else []
        return ["--weights", self.pinned_source, *prefix]


def describe_groups(groups: dict[str, int]) -> str:
    """Groups of tensors, the largest few: `student (178 tensors), head (1 tensor)`."""
    largest = sorted(groups.items(), key=lambda item: -item[1])[:_LISTED_GROUPS]
    names = [
        f"{shown(name, _NAME_LENGTH)} ({count} tensor{'s' * (count != 1)})"
        for name, count in largest
    ]
    more = len(groups) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
