"""How wide to search under a live load (GR4AD's dynamic beam serving; METHODS section 1.6).

    f_t = clip(C / Q_t, floor / base, cap / base)        Q_t requests in the service, C those it can answer in time
    F_t = min(f_t, F_s + (1 - exp(-(t - s) / tau)) (f_t - F_s))    since the last look, s: down at once, up smoothed
    width = the width whose neighbourhood base * F_t lies in, left only where it is clearly in another's

GR4AD prints neither f nor what Q and C are: these are ours. It widens off-peak alone (floor = base, cap = 1.6 base);
a floor below the base also sheds width under overload, before anybody is refused: smoothed on the way down too, it
came after the line was full (LOG.md). All here is a pure function of its arguments, time among them.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from genrec_rl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class WidthPlan:
    """Which widths there are, and how they follow the load.

    Attributes:
        widths: final beam widths to choose from, ascending: the floor first, the cap last. One alone never changes.
        base: width where the load is exactly ``capacity``; between floor and cap.
        capacity: C, requests in the service (waiting or taken along) that are served ``base`` wide.
        smoothing_s: tau of the EMA by which the width comes back, seconds; 0 follows each load at once.
        hysteresis: share of the gap between two widths, around its middle, in which the width stays what it was.

    Raises:
        ConfigError: for widths that do not ascend, or a number outside its range.
    """

    widths: tuple[int, ...]
    base: int
    capacity: float
    smoothing_s: float = 1.0
    hysteresis: float = 0.5

    def __post_init__(self) -> None:
        ascends = all(narrow < wide for narrow, wide in pairwise(self.widths))
        if not self.widths or self.widths[0] < 1 or not ascends:
            raise ConfigError(f"widths {list(self.widths)} must ascend from at least 1, each once")
        if not self.floor <= self.base <= self.cap:
            raise ConfigError(
                f"base_width {self.base} must lie in {self.floor}..{self.cap}, first and last of widths"
            )
        if not 0 < self.capacity < math.inf:
            raise ConfigError(f"capacity {self.capacity} must be a number of requests above 0")
        if not 0 <= self.smoothing_s < math.inf:
            raise ConfigError(f"smoothing_s {self.smoothing_s} must be at least 0 seconds")
        if not 0 <= self.hysteresis < 1:
            raise ConfigError(
                f"hysteresis {self.hysteresis} must lie in [0, 1), a share of the gap between two widths"
            )

    @property
    def floor(self) -> int:
        """The narrowest width."""
        return self.widths[0]

    @property
    def cap(self) -> int:
        """The widest."""
        return self.widths[-1]


@dataclass(frozen=True, slots=True)
class LoadState:
    """What is remembered from one look at the load to the next: F, the width chosen, and when."""

    factor: float
    width: int
    time: float


def start(plan: WidthPlan, *, now: float) -> LoadState:
    """Return the state of a service that nobody has asked yet: as wide as the base or, where it is none, below it."""
    return LoadState(1.0, max(width for width in plan.widths if width <= plan.base), now)


def step(plan: WidthPlan, state: LoadState, *, load: float, now: float) -> LoadState:
    """Return the state after a look at the load.

    The width is one of the plan's, and never wider under a higher load, now or earlier.

    Args:
        plan: the choices.
        state: after the last look.
        load: Q, requests in the service.
        now: seconds of a clock that does not go back; a time before the last look counts as that.
    """
    passed = max(now - state.time, 0.0)
    weight = 1 - math.exp(-passed / plan.smoothing_s) if plan.smoothing_s else 1.0
    now_right = capacity_factor(plan, load)
    factor = min(now_right, state.factor + weight * (now_right - state.factor))
    width = quantise(plan, state.width, wanted=factor * plan.base)
    return LoadState(factor, width, max(now, state.time))


def capacity_factor(plan: WidthPlan, load: float) -> float:
    """Return f = clip(C / Q, floor / base, cap / base); the cap without a load."""
    lowest, highest = plan.floor / plan.base, plan.cap / plan.base
    if load <= 0:
        return highest
    return min(max(plan.capacity / load, lowest), highest)


def largest_capacity(plan: WidthPlan, *, max_queue: int) -> float:
    """Return the capacity at which a full line wants the floor, so that width is shed before requests are.

    Not below 1; one width alone sheds nothing, and may have any.
    """
    return max(max_queue * plan.floor / plan.base, 1.0) if len(plan.widths) > 1 else math.inf


def quantise(plan: WidthPlan, width: int, *, wanted: float) -> int:
    """Return the plan's width to use next where ``wanted`` beams would be right and ``width`` are in use.

    Between two neighbours it changes half-way, but half the hysteresis band further on than that.
    """
    steps = [((a + b) / 2, plan.hysteresis * (b - a) / 2) for a, b in pairwise(plan.widths)]
    lowest = sum(wanted > middle + band for middle, band in steps)
    highest = sum(wanted >= middle - band for middle, band in steps)
    return plan.widths[min(max(plan.widths.index(width), lowest), highest)]


def level_widths(width: int, n_levels: int, *, growing: bool = True) -> tuple[int, ...]:
    """Return the beams of each level, the last ``width``: doubling from level to level (W/4, W/2, W), or all equal.

    Halves are rounded up. GR4AD doubles over its three levels: 128, 256, 512.
    """
    return tuple(-(-width // 2 ** (n_levels - 1 - level)) if growing else width for level in range(n_levels))
