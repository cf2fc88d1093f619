"""Memory, communication and time of a run, estimated without starting anything.

torch, which counts the cost of the network, is imported after everything else has been checked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ssl_vit.cost.devices import DEVICES, Device
from ssl_vit.cost.feeding import Feeding, assumed_feeding, measure_feeding
from ssl_vit.cost.memory import USABLE, Memory, largest_micro_batch, memory_of
from ssl_vit.cost.network import Arithmetic, Cost
from ssl_vit.cost.traffic import ADAPTER, GPUS_PER_MACHINE, Traffic, traffic_of
from ssl_vit.data.shards import ShardSet
from ssl_vit.errors import UserError
from ssl_vit.run.config import RunConfig
from ssl_vit.run.data import data_facts, open_data
from ssl_vit.run.given import settle_objective
from ssl_vit.training.config import EngineConfig, ZeroStage
from ssl_vit.training.length import Timed
from ssl_vit.training.plan import DataFacts, Machine, RunPlan, make_plan, with_cost, with_length

IMAGENET = 1_281_167
"""Number of images, where nothing is known of the data."""
# Settings that reduce memory, the cheapest first.
_REMEDIES: tuple[dict[str, object], ...] = (
    {"zero_stage": 2},
    {"activation_checkpointing": True},
    {"zero_stage": 2, "activation_checkpointing": True},
    {"zero_stage": 3, "activation_checkpointing": True},
    {"zero_stage": 3, "activation_checkpointing": True, "offload_optimizer": True},
)


@dataclass(frozen=True)
class Estimate:
    """The values that `ssl-vit plan` prints."""

    config: RunConfig
    plan: RunPlan
    device: Device
    mfu: float
    cost: Cost
    num_shards: int
    """Number of shards; 0: not known."""
    feeding: Feeding
    """What one processor core prepares."""
    memory: dict[ZeroStage, Memory | None]
    """Memory of one GPU by ZeRO stage, everything else as configured; None if a stage is
    incompatible with the settings.
    """
    traffic: dict[ZeroStage, Traffic | None]
    """What one GPU sends in a step, by ZeRO stage; None as in ``memory``."""
    sends: float
    """GB/s that a GPU sends to others at best: to those of its machine, or with more GPUs than one
    machine has, to other machines.
    """
    checkpointed: Memory
    """Memory at the configured stage with activation checkpointing."""
    largest_micro_batch: int
    """Largest micro-batch size at the configured stage; 0 if none fits."""
    remedies: tuple[str, ...]
    """Settings with which the run would fit, the smallest change first."""

    @property
    def usable_bytes(self) -> float:
        """Bytes of a GPU's memory that a run may use."""
        return USABLE * self.device.memory_bytes

    @property
    def compute_seconds(self) -> float:
        """Duration of a step's computation."""
        config = self.config.engine
        peak = self.device.peak_flops(self.plan.precision, config.tf32)
        # Recomputation is work too: a second forward pass.
        again = 4 / 3 if config.activation_checkpointing else 1.0
        return self.images_per_gpu * self.plan.step_flops_per_image * again / (peak * self.mfu)

    def waiting_seconds(self, stage: ZeroStage) -> float:
        """How long a GPU waits for communication in a step; 0 for a stage that is excluded."""
        traffic = self.traffic[stage]
        return traffic.waiting(self.compute_seconds, self.sends) if traffic else 0.0

    def waiting_share(self, stage: ZeroStage) -> float:
        """Share of a step in which a GPU waits for communication, in [0, 1)."""
        waiting = self.waiting_seconds(stage)
        return waiting / (waiting + self.compute_seconds)

    @property
    def images_per_second(self) -> float:
        """Throughput of all GPUs together."""
        return self.rate_at(self.config.engine.zero_stage)

    def rate_at(self, stage: ZeroStage) -> float:
        """Images/s of all GPUs together at a ZeRO stage."""
        seconds = self.compute_seconds + self.waiting_seconds(stage)
        return self.config.data.global_batch_size / seconds

    @property
    def cores(self) -> float:
        """Number of processor cores of a machine that prepare images as fast as its GPUs take
        them.
        """
        machines = -(-self.plan.world_size // GPUS_PER_MACHINE)
        return self.images_per_second / machines / self.feeding.images_per_second

    @property
    def fits(self) -> bool:
        """Whether the run fits as configured."""
        chosen = self.memory[self.config.engine.zero_stage]
        return chosen is not None and chosen.fits(self.device.memory_bytes)

    @property
    def images_per_gpu(self) -> int:
        """Images per GPU and step."""
        return self.plan.micro_batch_size * self.plan.accumulation

    @property
    def hours(self) -> float:
        """Duration of the whole run."""
        images = self.plan.total_steps * self.config.data.global_batch_size
        return images / self.images_per_second / 3600


def make_estimate(
    config: RunConfig, gpus: int, device: str, mfu: float, images: int, network: float = ADAPTER
) -> Estimate:
    """Estimate the cost of a run.

    Args:
        config: Configuration of the run.
        gpus: Total number of GPUs, with one process each.
        device: A name in ``DEVICES``.
        mfu: Expected fraction of the device's peak, in (0, 1].
        images: Number of images in the data set, if ``data.shards`` is not set; 0: ImageNet-1k's.
        network: GB/s that each GPU sends to other machines.

    Raises:
        UserError: The device is unknown, a number is out of range, batch, lanes and GPUs do not
            divide, or both shards and a number of images are given.
    """
    known = _known_device(device, mfu)
    if not network > 0:
        raise UserError(f"--network {network:g} is not a speed", "give GB/s, such as 50")
    data, shards = _read_data(config, images)
    fast: Literal["bfloat16", "float16"] = "bfloat16" if known.has_bfloat16 else "float16"
    machine = Machine(gpus, 1, "cuda", known.memory_bytes, fast)
    plan = make_plan(config, machine, data)

    from ssl_vit.cost.counting import count_cost

    config, arithmetic = _with_given(config, data), Arithmetic(plan.precision, "cuda")
    parts = (config.objective, config.backbone, arithmetic)
    cost = count_cost(*parts, config.optimizer.freeze_units)
    plan = with_cost(plan, config, machine, cost)
    engine, ways = config.engine, _Ways(config.engine, plan, cost, arithmetic)
    largest = largest_micro_batch(
        cost, engine, gpus, config.data.global_batch_size, arithmetic, known.memory_bytes
    )
    remedies = ways.that_fit(known.memory_bytes)
    if largest:
        remedies.insert(0, f"engine.micro_batch_size={largest}")
    checkpointed = ways.memory(activation_checkpointing=True)
    assert checkpointed is not None
    made = Estimate(
        config=config,
        plan=plan,
        device=known,
        mfu=mfu,
        cost=cost,
        num_shards=len(shards.shards) if shards else 0,
        feeding=measure_feeding(config, shards) if shards else assumed_feeding(config),
        memory={stage: ways.memory(zero_stage=stage) for stage in get_args(ZeroStage)},
        traffic={stage: ways.traffic(stage) for stage in get_args(ZeroStage)},
        sends=known.link_gbs if gpus <= GPUS_PER_MACHINE else network,
        checkpointed=checkpointed,
        largest_micro_batch=largest,
        remedies=tuple(remedies),
    )
    return _with_estimated_steps(made) if config.schedule.unit == "minutes" else made


@dataclass(frozen=True)
class _Ways:
    """The same run with other settings of the engine."""

    engine: EngineConfig
    plan: RunPlan
    cost: Cost
    arithmetic: Arithmetic

    def memory(self, **changes: object) -> Memory | None:
        """Memory of one GPU; None if the settings exclude each other."""
        if (engine := self._changed(changes)) is None:
            return None
        batches = (self.plan.micro_batch_size, self.plan.accumulation)
        return memory_of(self.cost, engine, self.plan.world_size, batches, self.arithmetic)

    def traffic(self, stage: ZeroStage) -> Traffic | None:
        """What one GPU sends in a step; None as above."""
        if (engine := self._changed({"zero_stage": stage})) is None:
            return None
        return traffic_of(self.cost, engine, self.plan.world_size, self.plan.accumulation)

    def that_fit(self, memory_bytes: float) -> list[str]:
        """Settings that reduce memory and with which the run fits, the cheapest first."""
        return [
            " ".join(f"engine.{name}={str(value).lower()}" for name, value in changes.items())
            for changes in _REMEDIES
            if (found := self.memory(**changes)) and found.fits(memory_bytes)
        ]

    def _changed(self, changes: Mapping[str, object]) -> EngineConfig | None:
        try:
            return EngineConfig.model_validate({**self.engine.model_dump(), **changes})
        except ValueError:
            return None


def _with_given(config: RunConfig, data: DataFacts) -> RunConfig:
    """The config with the network that its objective reads, if one is named."""
    given = config.objective.given
    if given is None or not given.path:
        return config
    return settle_objective(config, data.num_samples)[0]


def _known_device(name: str, mfu: float) -> Device:
    name = name.lower()
    if name not in DEVICES:
        raise UserError(f"no device named '{name}'", f"known devices: {', '.join(DEVICES)}")
    if not 0 < mfu <= 1:
        raise UserError(
            f"--mfu {mfu:g} is not a fraction of the peak",
            "give a number above 0 and up to 1; 0.4 is common",
        )
    return DEVICES[name]


def _with_estimated_steps(estimate: Estimate) -> Estimate:
    """The estimate with as many steps as fit into the minutes at the estimated rate."""
    config, rate = estimate.config, estimate.images_per_second
    steps = round(60 * config.schedule.length * rate / config.data.global_batch_size)
    timed = Timed(max(1, steps), rate)
    return replace(estimate, plan=with_length(estimate.plan, config, timed))


def _read_data(config: RunConfig, images: int) -> tuple[DataFacts, ShardSet | None]:
    """The data of the run and its shards; None if only a number of images is given."""
    if not config.data.sources:
        return DataFacts(images or IMAGENET, "assumed"), None
    if images:
        raise UserError("both data.shards and --images are given", "leave out --images")
    _, shards = open_data(config)
    return data_facts(shards), shards
