"""The manifest's entry about the source of a bundle's weights."""

from dataclasses import dataclass, field

from dinov2rt.foreign import shown

_LISTED_GROUPS = 6
_NAME_LENGTH = 80


@dataclass(frozen=True, slots=True)
class WeightsEntry:
    """The source and the identity of the weights.

    `source` is the value of `--weights`. `sha256` is the hash of the checkpoint file, or of all
    tensors if there is no single file. For a checkpoint, `prefix` is the prefix of the backbone's
    names, `naming` their convention (official, timm or transformers), and `left_out` the number of
    other tensors by module. `revision` is the commit of a repository on a hub.
    """

    source: str
    sha256: str
    prefix: str | None = None
    naming: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    revision: str | None = None

    @property
    def selection(self) -> str | None:
        """The parts of a checkpoint that were used and left out, as text; None if not a file."""
        if self.prefix is None:
            return None
        place = f"below {shown(repr(self.prefix))}" if self.prefix else "at the top"
        left_out = f"; left out: {describe_groups(self.left_out)}" if self.left_out else ""
        revision = f"revision {self.revision}; " if self.revision else ""
        return f"{revision}backbone {place}, {self.naming} names{left_out}"

    @property
    def pinned_source(self) -> str:
        """The source with its revision."""
        return f"{self.source.partition('@')[0]}@{self.revision}" if self.revision else self.source

    @property
    def options(self) -> list[str]:
        """The options of `export` for the same weights."""
        is_choice = self.prefix is not None and (self.prefix or self.left_out)
        prefix = [f"--prefix={self.prefix}"] if is_choice else []
        return ["--weights", self.pinned_source, *prefix]


def describe_groups(groups: dict[str, int]) -> str:
    """The largest groups of tensors as text: `student (178 tensors), head (1 tensor)`."""
    largest = sorted(groups.items(), key=lambda item: -item[1])[:_LISTED_GROUPS]
    names = [
        f"{shown(name, _NAME_LENGTH)} ({count} tensor{'s' * (count != 1)})"
        for name, count in largest
    ]
    more = len(groups) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
