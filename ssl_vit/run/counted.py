"""A run's plan, completed with what torch counts in its network."""

from ssl_vit.cost.counting import count_cost
from ssl_vit.run.config import RunConfig
from ssl_vit.training.plan import Machine, RunPlan, choose_arithmetic, with_cost


def counted(plan: RunPlan, config: RunConfig, machine: Machine) -> RunPlan:
    """The plan with parameters and operations, and with a micro-batch size that fits if the config
    leaves it open.

    Args:
        plan: As `make_plan` made it of this config for this machine.
        config: The run's configuration.
        machine: The machine it runs on.

    Raises:
        UserError: Not even one image fits.
    """
    arithmetic = choose_arithmetic(config.engine, machine)
    frozen = config.optimizer.freeze_units
    cost = count_cost(config.objective, config.backbone, arithmetic, frozen)
    return with_cost(plan, config, machine, cost)
