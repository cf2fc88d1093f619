"""Published recipes as functions, each with its source and the result to expect; and how a command
finds its config.
"""

from collections.abc import Sequence
from pathlib import Path

from ssl_vit.config import merged, read_yaml, to_plain, validate, with_current_names
from ssl_vit.errors import UserError
from ssl_vit.overrides import note_renamed
from ssl_vit.recipes import dino, mae
from ssl_vit.recipes.recipe import Recipe
from ssl_vit.run.config import CONFIG_FILE, RunConfig
from ssl_vit.run.minutes import apply_with_warmup, fill_in_warmup
from ssl_vit.run.smoke import smoke

RECIPES: dict[str, Recipe] = {
    each.name: each
    for each in (
        *(mae.mae_vits16, mae.mae_vitb16, mae.mae_vitl16, mae.mae_vith14, mae.mae_small_data),
        *(dino.dinov2_small_data, dino.dino_vits16, dino.ibot_vits16),
        *(dino.dinov2_vitl16, dino.dinov2_vitl14_in22k, dino.dinov2_vitg14),
    )
}


def find_recipe(name: str) -> RunConfig:
    """The recipe of that name.

    Raises:
        UserError: There is none; lists those there are.
    """
    if name not in RECIPES:
        raise UserError(f"no recipe named '{name}'", f"recipes: {', '.join(RECIPES)}")
    return RECIPES[name]()


def read_config(recipe: str, overrides: Sequence[str], is_smoke: bool) -> RunConfig:
    """A recipe's name, a `config.yaml` or the run folder of one, shrunk if asked, then the
    overrides.

    A file that leaves settings out takes them from the recipe that it names.

    Raises:
        UserError: A word or value that does not validate; another recipe's name as an override.
    """
    file = Path(recipe)
    if (file / CONFIG_FILE).is_file():
        file = file / CONFIG_FILE
    if file.suffix in (".yaml", ".yml"):
        values = read_yaml(file)
        base = values.get("recipe")
        if isinstance(base, str) and base in RECIPES:
            whole = RECIPES[base]()
            values, renamed = with_current_names(RunConfig, values, whole)
            note_renamed(renamed)
            values = merged(to_plain(whole), fill_in_warmup(values, whole.schedule))
        config = validate(RunConfig, values, str(file))
    else:
        config = find_recipe(recipe)
    if renamed := next((word for word in overrides if word.startswith("recipe=")), None):
        raise UserError(
            f"{renamed} would only change the name, not the settings",
            f"begin with that recipe instead of {recipe}",
        )
    return apply_with_warmup(smoke(config) if is_smoke else config, overrides)
