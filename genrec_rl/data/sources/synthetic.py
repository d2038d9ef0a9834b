"""A seeded market whose click model is known: true pages with exposures, clicks and orders, and their truth.

Users' interests drift along a line between two latent vectors; a recommender exposes slates by popularity,
affinity and chance; a slot is examined with a probability that falls with its position, and an examined item is
clicked with the user's TRUE PREFERENCE. Since that preference can be recomputed for any user, item and second,
reward hacking can be measured exactly (EVALUATION: gold@K).

With ``copies`` above 1 several sellers offer an item of the same title, and so the same vector, at prices and of a
quality of their own, regularly or in a sale: what UA-SID's hash level tells apart and text does not.

    U   users        I   items        D   latent axes        C   requests of a chunk        K   slots of a slate
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from jaxtyping import Float, Int, Shaped
from rich.progress import track

from genrec_rl.data.events import SourceTables
from genrec_rl.data.pages import DAY
from genrec_rl.errors import ConfigError, DataError

PAGE_RULE = "request_id"
NOTE = "The market is simulated: exposures, clicks and orders follow a known click model (truth.npz)."
VALUE_NOTE = "Value: the item's price where it was ordered, else 0: a stand-in for revenue, known here exactly."
START, DAYS, SLATE = 1_700_006_400, 30, 10
SHARPNESS, THRESHOLD = 8.0, 0.65  # of the preference curve over the cosine of interest and item
AFFINITY_WEIGHT, POPULARITY_EXPONENT, ORDER_RATE = 4.0, 0.7, 0.6
REQUESTS_PER_CHUNK, CHUNKS_WORTH_A_BAR = 1_024, 50

CATEGORIES = {
    "Lighting": ("lamp", "lantern", "candle"), "Furniture": ("chair", "desk", "shelf"),
    "Shoes": ("sneaker", "boot", "sandal"), "Outerwear": ("jacket", "coat", "parka"),
    "Audio": ("headphones", "speaker", "microphone"), "Computing": ("keyboard", "monitor", "laptop"),
    "Kitchen": ("kettle", "pan", "blender"), "Bags": ("backpack", "suitcase", "purse"),
    "Makeup": ("lipstick", "mascara", "powder"), "Books": ("novel", "cookbook", "atlas"),
    "Toys": ("puzzle", "doll", "kite"), "Music": ("guitar", "violin", "drum"),
}  # fmt: skip
AXES = (
    ("wooden", "metal"), ("vintage", "modern"), ("soft", "rugged"), ("bright", "dark"),
    ("large", "compact"), ("luxury", "budget"), ("quiet", "loud"), ("floral", "plain"),
)  # fmt: skip
CAMPAIGNS = {"regular": 0.0, "sale": -0.7}  # added to the logarithm of the price
BRANDS = ("Acorn", "Borealis", "Cobalt", "Dune", "Ember", "Fjord", "Granite", "Harbor", "Indigo", "Juniper")


@dataclass(frozen=True, slots=True, eq=False)
class Market:
    """The truth of a synthetic market. Rows of items are catalogue rows; ``user_ids`` are sorted.

    ``interest_starts`` and ``interest_ends`` are users' latent vectors at the first and last second;
    ``affordability`` falls with the price, in (0, 1). ``quality`` is what an item's seller adds to its click's
    log-odds, None where nobody sells copies.
    """

    user_ids: Shaped[np.ndarray, " U"]
    interest_starts: Float[np.ndarray, "U D"]
    interest_ends: Float[np.ndarray, "U D"]
    item_vectors: Float[np.ndarray, "I D"]
    popularity: Float[np.ndarray, " I"]
    affordability: Float[np.ndarray, " I"]
    quality: Float[np.ndarray, " I"] | None = None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the ``truth.npz`` beside a prepared synthetic data set.

        Raises:
            DataError: when the file is missing or not a market's.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                names = [name for name in cls.names() if name != "quality" or name in arrays]
                return cls(**{name: arrays[name] for name in names})
        except (OSError, KeyError, ValueError) as error:
            raise DataError(
                f"{path}: no synthetic market's truth ({error}); make it with recipes/prepare.py --source synthetic"
            ) from None

    @classmethod
    def names(cls) -> list[str]:
        """Names of the arrays in ``truth.npz``; ``quality`` is there where copies are sold."""
        return [f.name for f in fields(cls)]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that it has, by name."""
        return {name: array for name in self.names() if (array := getattr(self, name)) is not None}

    def true_preference(
        self,
        users: Shaped[np.ndarray, "..."] | str,
        items: Int[np.ndarray, "..."],
        times: Int[np.ndarray, "..."] | int,
    ) -> Float[np.ndarray, "..."]:
        """Probability in (0, 1) that a user clicks an item once it is examined, at a second UTC.

        ``users`` (ids), ``items`` (catalogue rows) and ``times`` broadcast against each other.

        Raises:
            DataError: for a user that the market does not have.
        """
        ids = np.asarray(users)
        rows = np.minimum(np.searchsorted(self.user_ids, ids), len(self.user_ids) - 1)
        strangers = ids[self.user_ids[rows] != ids]
        if strangers.size:
            raise DataError(f"user '{strangers.flat[0]}' is not in the market; use user ids of its events.parquet")
        return self.preference_of_rows(rows, items, np.asarray(times))

    def preference_of_rows(
        self, user_rows: Int[np.ndarray, "..."], items: Int[np.ndarray, "..."], times: Int[np.ndarray, "..."]
    ) -> Float[np.ndarray, "..."]:
        """Return sigmoid(SHARPNESS * (cosine of interest and item - THRESHOLD) + quality)."""
        affinity = (self.interests(user_rows, times) * self.item_vectors[items]).sum(axis=-1)
        log_odds = SHARPNESS * (affinity - THRESHOLD)
        if self.quality is not None:
            log_odds = log_odds + self.quality[items]
        return 1 / (1 + np.exp(-log_odds))

    def interests(
        self, user_rows: Int[np.ndarray, "..."], times: Int[np.ndarray, "..."]
    ) -> Float[np.ndarray, "... D"]:
        """Return the unit vector on the line from a user's first interest to the last."""
        passed = np.clip((times - START) / (DAYS * DAY), 0, 1)[..., None]
        return _unit((1 - passed) * self.interest_starts[user_rows] + passed * self.interest_ends[user_rows])


def make_synthetic(
    *,
    n_users: int,
    n_items: int,
    n_requests: int,
    seed: int,
    copies: int = 1,
    n_sellers: int = 20,
    seller_spread: float = 1.0,
) -> SourceTables:
    """Make a market and let its users meet ``n_requests`` slates of ten items over thirty days.

    Args:
        n_users: users.
        n_items: items, copies included.
        n_requests: slates.
        seed: of everything.
        copies: items of equal content, each of another seller; above 1 there are columns ``seller`` and ``campaign``.
        n_sellers: sellers that they are drawn from.
        seller_spread: standard deviation of the sellers' quality, in log-odds of a click.

    Raises:
        ConfigError: when a size is too small for a market, or copies do not divide the items or exceed the sellers.
    """
    limits = {"n_users": (n_users, 1), "n_items": (n_items, SLATE), "n_requests": (n_requests, 1)}
    for name, (value, least) in limits.items():
        if value < least:
            raise ConfigError(f"{name}: {value} is below {least}; give a larger market")
    if copies < 1 or n_items % copies or (copies > 1 and n_sellers < copies) or not seller_spread >= 0:
        raise ConfigError(
            f"copies {copies} of n_items {n_items} by n_sellers {n_sellers}, seller_spread {seller_spread}: copies "
            "must divide n_items, each needs a seller of its own, and the spread is at least 0"
        )
    rng = np.random.default_rng(seed)
    market, items = _make_market(n_users, n_items // copies, rng)
    if copies > 1:
        market, items = _sell_copies(market, items, rng, copies=copies, n_sellers=n_sellers, spread=seller_spread)
    events = _simulate(market, n_requests, rng)
    price = pl.when(pl.col("action") == "order").then(pl.col("price")).otherwise(0.0).alias("value")
    valued = events.join(items.select("item_id", "price"), on="item_id", how="left", maintain_order="left")
    return SourceTables(
        name="synthetic",
        events=valued.with_columns(price).drop("price").lazy(),
        items=items,
        page_rule=PAGE_RULE,
        note=NOTE,
        truth=market.arrays(),
        value_note=VALUE_NOTE,
    )


def _make_market(n_users: int, n_items: int, rng: np.random.Generator) -> tuple[Market, pl.DataFrame]:
    centres = _unit(rng.normal(size=(len(CATEGORIES), len(AXES))))
    category = rng.integers(len(CATEGORIES), size=n_items)
    vectors = _unit(centres[category] + 0.25 * rng.normal(size=(n_items, len(AXES))))
    log_price = rng.normal(size=n_items)
    first, later = rng.integers(len(CATEGORIES), size=(2, n_users))
    starts = _unit(centres[first] + 0.25 * rng.normal(size=(n_users, len(AXES))))
    market = Market(
        user_ids=np.array([f"u{i:07d}" for i in range(n_users)]),
        interest_starts=starts,
        interest_ends=_unit(starts + centres[later]),
        item_vectors=vectors,
        popularity=(1.0 + rng.permutation(n_items)) ** -POPULARITY_EXPONENT,
        affordability=1 / (1 + np.exp(log_price)),
    )
    names = np.array(list(CATEGORIES))[category]
    items = pl.DataFrame(
        {
            "item_id": [f"i{i:07d}" for i in range(n_items)],
            "title": [_title(vector, name, rng) for vector, name in zip(vectors, names, strict=True)],
            "category": names,
            "price": np.round(20 * np.exp(log_price), 2),
        }
    )
    return market, items


def _sell_copies(
    market: Market, items: pl.DataFrame, rng: np.random.Generator, *, copies: int, n_sellers: int, spread: float
) -> tuple[Market, pl.DataFrame]:
    """Repeat each item: the copies differ in seller, campaign, price, quality and popularity, and in nothing else."""
    n_items = copies * len(items)
    markup, quality = 0.3 * rng.normal(size=n_sellers), spread * rng.normal(size=n_sellers)
    seller = np.concatenate([rng.permutation(n_sellers)[:copies] for _ in range(len(items))])
    campaign = rng.integers(len(CAMPAIGNS), size=n_items)
    log_price = np.log(items["price"].to_numpy().repeat(copies) / 20)
    log_price += markup[seller] + np.array(list(CAMPAIGNS.values()))[campaign]
    offered = items.select(pl.all().repeat_by(copies).explode()).with_columns(
        pl.Series("item_id", [f"i{i:07d}" for i in range(n_items)]),
        pl.Series("price", np.round(20 * np.exp(log_price), 2)),
        pl.Series("seller", [f"s{number:04d}" for number in seller]),
        pl.Series("campaign", np.array(list(CAMPAIGNS))[campaign]),
    )
    sold = replace(
        market,
        item_vectors=market.item_vectors.repeat(copies, axis=0),
        popularity=(1.0 + rng.permutation(n_items)) ** -POPULARITY_EXPONENT,
        affordability=1 / (1 + np.exp(log_price)),
        quality=quality[seller],
    )
    return sold, offered


def _title(vector: np.ndarray, category: str, rng: np.random.Generator) -> str:
    """Name an item by its three strongest axes and its category: the words carry the latent vector."""
    strongest = np.argsort(-np.abs(vector))[:3]
    words = [AXES[axis][int(vector[axis] < 0)] for axis in strongest]
    return " ".join([str(rng.choice(BRANDS)), *words, str(rng.choice(CATEGORIES[category]))])


def _simulate(market: Market, n_requests: int, rng: np.random.Generator) -> pl.DataFrame:
    """Log every request's exposures, clicks and orders: one row per action, with request id and position."""
    activity = rng.gamma(1.5, size=len(market.user_ids))
    users = rng.choice(len(activity), size=n_requests, p=activity / activity.sum())
    times = np.sort(rng.integers(START, START + DAYS * DAY, size=n_requests))
    starts = range(0, n_requests, REQUESTS_PER_CHUNK)
    chunks = [slice(start, start + REQUESTS_PER_CHUNK) for start in starts]
    bar = track(chunks, description="Exposing slates", disable=len(chunks) < CHUNKS_WORTH_A_BAR)
    slates = np.concatenate([_expose(market, users[c], times[c], rng) for c in bar])
    preference = market.preference_of_rows(users[:, None], slates, times[:, None])
    examined = rng.random(slates.shape) < (1.0 + np.arange(SLATE)) ** -0.5
    clicked = examined & (rng.random(slates.shape) < preference)
    order_rate = ORDER_RATE * preference * 2 * market.affordability[slates]
    ordered = clicked & (rng.random(slates.shape) < order_rate)
    logs = [("expose", np.ones_like(clicked), 0), ("click", clicked, 5), ("order", ordered, 65)]
    return pl.concat(_log(market, users, times, slates, *log) for log in logs).sort(
        "timestamp", "request_id", "position", maintain_order=True
    )


def _expose(
    market: Market, users: Int[np.ndarray, " C"], times: Int[np.ndarray, " C"], rng: np.random.Generator
) -> Int[np.ndarray, "C K"]:
    """Draw slates without repeats: Gumbel top-K over log popularity plus affinity (the noise explores)."""
    scores = AFFINITY_WEIGHT * market.interests(users, times) @ market.item_vectors.T
    scores += np.log(market.popularity) + rng.gumbel(size=scores.shape)
    best = np.argpartition(-scores, SLATE - 1, axis=1)[:, :SLATE]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
    return np.take_along_axis(best, order, axis=1)


def _log(
    market: Market,
    users: Int[np.ndarray, " R"],
    times: Int[np.ndarray, " R"],
    slates: Int[np.ndarray, "R K"],
    action: str,
    happened: np.ndarray,
    delay: int,
) -> pl.DataFrame:
    """Rows of one action; the item at slot k is acted on ``delay + 5 k`` seconds in (exposures: at once)."""
    request, slot = np.nonzero(happened)
    return pl.DataFrame(
        {
            "user_id": market.user_ids[users[request]],
            "item_id": slates[request, slot],
            "timestamp": times[request] + (delay + 5 * slot if delay else 0),
            "action": np.full(len(request), action),
            "request_id": request,
            "position": slot,
        }
    ).with_columns(
        pl.format("i{}", pl.col("item_id").cast(pl.String).str.zfill(7)).alias("item_id"),
        pl.format("r{}", pl.col("request_id").cast(pl.String).str.zfill(8)).alias("request_id"),
    )


def _unit(vectors: Float[np.ndarray, "... D"]) -> Float[np.ndarray, "... D"]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
