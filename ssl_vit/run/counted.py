"""A run's plan with what torch counts of its network."""

from ssl_vit.cost.counting import count_cost
from ssl_vit.run.config import RunConfig
from ssl_vit.training.plan import Machine, RunPlan, choose_arithmetic, with_cost


def counted(plan: RunPlan, config: RunConfig, machine: Machine) -> RunPlan:
    """The plan with parameters and operations, and a micro-batch size that fits where the config
    leaves it open.

    Args:
        plan: As `make_plan` made it of this config for this machine.
        config: What was said.
        machine: Where it runs.

    Raises:
        UserError: Not even one image fits.
    """
    arithmetic = choose_arithmetic(config.engine, machine)
    cost = count_cost(config.objective, config.backbone, arithmetic)
    return with_cost(plan, config, machine, cost)
