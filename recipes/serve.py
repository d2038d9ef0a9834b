"""Serve a policy over HTTP: a page to try it, and JSON for programs.

    python recipes/serve.py --policy_dir runs/demo/sft
    curl http://127.0.0.1:8000/recommend -H 'Content-Type: application/json' -d '{"user_id": 1, "k": 5}'

Reads   data (items, titles, and users' histories to the end of the log), catalogue, any policy, and with ``--rerank``
        a reward model.
Writes  nothing.
Watch   http://127.0.0.1:8000/metrics: latency, width, refused requests. Ctrl-C or SIGTERM ends it: who waits is
        answered first.
"""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import uvicorn

from genrec_rl.config import parse_recipe
from genrec_rl.decoding.rerank import check_weight
from genrec_rl.decoding.serving.app import RecommendService, create_app
from genrec_rl.decoding.serving.batching import QueueLimits
from genrec_rl.decoding.serving.cache import AnswerCache
from genrec_rl.decoding.serving.load import WidthPlan, largest_capacity
from genrec_rl.decoding.serving.requests import RequestReader
from genrec_rl.decoding.serving.service import Reranking, SearchService
from genrec_rl.errors import ConfigError
from genrec_rl.evaluation.policies import BeamOptions, load_recommender, open_catalogue
from genrec_rl.models.policy import fingerprint_policy, read_facts
from genrec_rl.rewards.components import load_reward_model, reward_block
from genrec_rl.tracking import check_made_from, console, run_recipe


@dataclass
class Settings:
    """What is served, and how it holds its latency."""

    policy_dir: str = field(default="runs/demo/sft", metadata={"help": "policy to serve"})
    data_dir: str = field(default="runs/demo/data", metadata={"help": "prepared data"})
    sid_dir: str = field(default="runs/demo/sids", metadata={"help": "catalogue of semantic ids"})
    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on; 0.0.0.0 is open to the network"})
    port: int = field(default=8000, metadata={"help": "port to listen on"})
    rerank: float | None = field(
        default=None, metadata={"help": "weight of the reward's log-odds in the order; none: the policy's own order"}
    )
    reward_model: dict | str | None = field(
        default=None, metadata={"help": "{class_path, init_args: {path}}, loaded with --rerank only"}
    )
    reward_dir: str | None = field(default=None, metadata={"help": "folder to load reward_model from, over its path"})
    trusted_packages: list[str] = field(default_factory=list, metadata={"help": "further packages to load from"})
    widths: list[int] = field(
        default_factory=lambda: [20, 35, 50, 80],
        metadata={"help": "beam widths to choose from by load; the first also limits k"},
    )
    base_width: int = field(default=50, metadata={"help": "width where the load is just the capacity"})
    growing_widths: bool = field(default=True, metadata={"help": "W/4, W/2, W beams; else W on every level"})
    capacity: float | None = field(
        default=None,
        metadata={"help": "requests in the service that are served base_width wide; none: measured at the start"},
    )
    smoothing_s: float = field(default=1.0, metadata={"help": "time constant by which the width comes back, seconds"})
    hysteresis: float = field(default=0.5, metadata={"help": "share of the gap between widths that changes nothing"})
    batch_size: int = field(default=16, metadata={"help": "requests searched together; 1: one by one"})
    batch_wait_ms: float = field(default=3.0, metadata={"help": "how long a request waits for others"})
    max_queue: int = field(default=64, metadata={"help": "requests that may wait; beyond: 503"})
    deadline_ms: float = field(default=1000.0, metadata={"help": "how long one may wait to be searched; beyond: 503"})
    retry_after_s: float = field(default=1.0, metadata={"help": "Retry-After of a 503, whole seconds"})
    cache_size: int = field(default=10_000, metadata={"help": "answers kept; 0: none"})
    cache_ttl_s: float = field(default=60.0, metadata={"help": "how long an answer is given again"})
    max_items: int = field(default=1000, metadata={"help": "items that a request may name"})
    normalisation: Literal["vocabulary", "level", "children"] | None = field(
        default=None,
        metadata={"help": "probabilities over all tokens, a level's codes, real items' | none: as trained"},
    )
    dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata={"help": "of the weights"})
    continue_page: bool = field(
        default=False, metadata={"help": "the policy reads the request's own day as the beginning of its answer"}
    )
    threads: int | None = field(default=None, metadata={"help": "threads of a search; none: torch's choice"})


def build(settings: Settings) -> RecommendService:
    """Load everything and check that it belongs together; settings first, weights last.

    Raises:
        ConfigError: for a setting out of range, or folders of different runs.
        DataError: for damaged files.
    """
    plan = WidthPlan(
        tuple(settings.widths),
        settings.base_width,
        1.0 if settings.capacity is None else settings.capacity,  # measured below
        settings.smoothing_s,
        settings.hysteresis,
    )
    if plan.capacity > (most := largest_capacity(plan, max_queue=settings.max_queue)):
        raise ConfigError(
            f"capacity {plan.capacity:g} with max_queue {settings.max_queue}: the line is full before the width has "
            f"come down to {plan.floor}; lower it to {most:g} at most, or raise max_queue"
        )
    limits = QueueLimits(
        settings.batch_size, settings.batch_wait_ms, settings.max_queue, settings.deadline_ms, settings.retry_after_s
    )
    cache: AnswerCache = AnswerCache(size=settings.cache_size, ttl_s=settings.cache_ttl_s)
    options = BeamOptions(settings.batch_size, None, settings.normalisation, settings.dtype, settings.continue_page)
    block = rerank_block(settings)
    read_facts(Path(settings.policy_dir))
    dataset, catalog = open_catalogue(settings.data_dir, settings.sid_dir)
    made_from = {"data": settings.data_dir, "sids": settings.sid_dir}
    check_made_from(settings.policy_dir, made_from, command="accelerate launch recipes/sft.py")
    fingerprint = fingerprint_policy(settings.policy_dir)
    recommender = load_recommender(Path(settings.policy_dir), catalog=catalog, options=options)
    reranking = None
    if block is not None and settings.rerank is not None:
        reward_model = load_reward_model(block, catalog=catalog, trusted_packages=settings.trusted_packages)
        reranking = Reranking(reward_model, settings.rerank)
    search = SearchService(recommender, plan=plan, growing_widths=settings.growing_widths, reranking=reranking)
    if settings.capacity is None:  # half a deadline's worth: width is shed before anybody waits too long
        known = [example.context for example in dataset.examples("valid")[: settings.batch_size]]
        search.fit_capacity(known, within_s=settings.deadline_ms / 2000, max_queue=settings.max_queue)
    settings_key = (
        fingerprint, recommender.normalisation, settings.dtype, settings.continue_page,
        reranking and (reranking.reward_model.fingerprint, reranking.weight),
    )  # fmt: skip
    reader = RequestReader(dataset, max_k=search.max_k, max_items=settings.max_items, settings_key=settings_key)
    facts = {
        "policy": settings.policy_dir,
        "policy_fingerprint": fingerprint,
        "items": catalog.n_items,
        "widths": settings.widths,
        "capacity": round(search.plan.capacity, 2),
        "prompt_items": recommender.policy.prompts.grammar.max_history,
        "rerank": settings.rerank,
    }
    return RecommendService(search, reader, dataset, cache=cache, limits=limits, facts=facts)


def rerank_block(settings: Settings) -> Mapping[str, Any] | None:
    """Return the block of the reward model that re-ranks, checked; None for the policy's own order."""
    if settings.rerank is None:
        return None
    check_weight(settings.rerank)
    block = reward_block(settings.reward_model, settings.reward_dir)
    if block is None:
        raise ConfigError("rerank needs a reward_model to re-rank by; name one, or leave both out")
    return block


def main(argv: list[str] | None = None) -> None:
    (settings,) = parse_recipe([Settings], __file__, argv)
    for name, least, most in (("port", 1, 65535), ("threads", 1, 1024), ("max_items", 1, 100_000)):
        value = getattr(settings, name)
        if value is not None and not least <= value <= most:
            raise ConfigError(f"{name} is {value}; it must lie in {least}..{most}")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    check_address(settings.host, settings.port)
    app = create_app(build(settings))
    console.print(f"serving {settings.policy_dir} on http://{settings.host}:{settings.port} (Ctrl-C ends it)")
    uvicorn.run(app, host=settings.host, port=settings.port, log_level="warning")


def check_address(host: str, port: int) -> None:
    """Refuse an address that nobody can listen on, before anything loads.

    Raises:
        ConfigError: naming it.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} ({error.strerror}); choose another port or host"
            ) from None


if __name__ == "__main__":
    run_recipe(main)
