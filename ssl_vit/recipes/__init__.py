"""Recipes as functions, each with its source and expected result; and how a command reads its
config.
"""

from collections.abc import Sequence
from pathlib import Path

from ssl_vit.config import merged, read_yaml, to_plain, validate, with_current_names
from ssl_vit.errors import UserError
from ssl_vit.overrides import note_renamed
from ssl_vit.recipes.dino import SELF_DISTILLATION
from ssl_vit.recipes.masked import MASKED
from ssl_vit.recipes.recipe import Recipe
from ssl_vit.recipes.supervised import SUPERVISED
from ssl_vit.recipes.tokens import TOKENS
from ssl_vit.run.config import CONFIG_FILE, RunConfig
from ssl_vit.run.minutes import apply_with_warmup, fill_in_warmup
from ssl_vit.run.smoke import smoke

RECIPES: dict[str, Recipe] = {
    each.name: each for each in (*MASKED, *TOKENS, *SELF_DISTILLATION, *SUPERVISED)
}


def find_recipe(name: str) -> RunConfig:
    """The recipe of that name.

    Raises:
        UserError: The recipe does not exist; lists those that do.
    """
    if name not in RECIPES:
        raise UserError(f"no recipe named '{name}'", f"recipes: {', '.join(RECIPES)}")
    return RECIPES[name]()


def read_config(recipe: str, overrides: Sequence[str], is_smoke: bool) -> RunConfig:
    """Read a recipe's config and apply the overrides.

    Args:
        recipe: The name of a recipe, a `config.yaml`, or a run folder that has one. Settings that a
            file leaves out are those of the recipe it names.
        overrides: Settings as path=value.
        is_smoke: Whether to shrink the config, before the overrides.

    Raises:
        UserError: A setting does not validate; an override changes the recipe's name.
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
            f"start from that recipe instead of {recipe}",
        )
    return apply_with_warmup(smoke(config) if is_smoke else config, overrides)
