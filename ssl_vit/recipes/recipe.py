"""What is known about a recipe besides its values: method, paper, and the result to expect."""

from collections.abc import Callable
from dataclasses import dataclass

from ssl_vit.run.config import RunConfig


@dataclass(frozen=True)
class Recipe:
    """A recipe; calling it gives its config."""

    build: Callable[[], RunConfig]
    """Makes the config."""
    method: str
    """The method's name, such as DINOv2."""
    network: str
    """The backbone, such as ViT-B/16."""
    source: str
    """Where the values are from: the paper, or our own runs."""
    details: str
    """The place in the source, and where the recipe differs from it; may be empty."""
    expected: str
    """The result it should give, and on what."""
    notes: str
    """What else to know before choosing it; may be empty."""

    def __call__(self) -> RunConfig:
        """The config."""
        return self.build()

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return self.build.__name__

    @property
    def title(self) -> str:
        """One line: method and network."""
        return f"{self.method}, {self.network}"

    @property
    def command(self) -> str:
        """What starts it."""
        return f"ssl-vit pretrain {self.name} --run RUN data.shards=SHARDS"

    def description(self) -> list[str]:
        """Everything known about it, as paragraphs."""
        source = f"Source: {self.source}{self.details and '; '}{self.details}."
        known = (f"{self.title}.", self.command, self.notes, source, f"Expected: {self.expected}.")
        return [text for text in known if text]


def recipe(
    *, method: str, network: str, source: str, expected: str, details: str = "", notes: str = ""
) -> Callable[[Callable[[], RunConfig]], Recipe]:
    """Turn a function that makes a config into a :class:`Recipe`; see there for the arguments."""
    return lambda build: Recipe(build, method, network, source, details, expected, notes)
