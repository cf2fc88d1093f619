"""A recipe: its config and its documentation (method, source, expected result)."""

from collections.abc import Callable
from dataclasses import dataclass

from ssl_vit.run.config import RunConfig


@dataclass(frozen=True)
class Recipe:
    """A recipe; calling it returns its config."""

    build: Callable[[], RunConfig]
    """Builds the config."""
    method: str
    """The method's name, such as DINOv2."""
    network: str
    """The backbone, such as ViT-B/16."""
    source: str
    """Source of the settings: the paper, or our own runs."""
    details: str
    """Location in the source, and differences from it; may be empty."""
    expected: str
    """Expected result, and on which data."""
    notes: str
    """Other advice on choosing the recipe; may be empty."""

    def __call__(self) -> RunConfig:
        """The config."""
        return self.build()

    @property
    def name(self) -> str:
        """The recipe's name on the command line."""
        return self.build.__name__

    @property
    def title(self) -> str:
        """Method and network, in one line."""
        return f"{self.method}, {self.network}"

    @property
    def command(self) -> str:
        """The command that starts a run."""
        return f"ssl-vit pretrain {self.name} --run RUN data.shards=SHARDS"

    def description(self) -> list[str]:
        """The documentation of the recipe, as paragraphs."""
        source = f"Source: {self.source}{self.details and '; '}{self.details}."
        known = (f"{self.title}.", self.command, self.notes, source, f"Expected: {self.expected}.")
        return [text for text in known if text]


def recipe(
    *, method: str, network: str, source: str, expected: str, details: str = "", notes: str = ""
) -> Callable[[Callable[[], RunConfig]], Recipe]:
    """Turn a function that builds a config into a :class:`Recipe`; see there for the arguments."""
    return lambda build: Recipe(build, method, network, source, details, expected, notes)
