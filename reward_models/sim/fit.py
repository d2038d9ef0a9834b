"""Train a SIM on pages: early stopping on the tuning pages' GAUC, then Platt calibration on the same pages.

Quality must be reported on yet other users (``halve_users``): the tuning pages chose the epoch and the calibration,
so they flatter the model. Test pages stay closed: a reward model that saw them would teach them to the policy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.sids.catalog import Catalog
from genrec_rl.types import Example
from reward_models.candidates import LabelledCandidates, NegativeSampler, add_misses, label_candidates
from reward_models.quality import fit_platt, page_auc
from reward_models.sim.frozen import predict_all_logits, predict_logits
from reward_models.sim.model import Histories, ItemTables, SIMConfig, SIMNetwork, sim_loss
from reward_models.sim.reward import SIM, OrderOutput, check_weights


@dataclass(frozen=True)
class FitSettings:
    """How a SIM is trained."""

    epochs: int = field(default=5, metadata={"help": "at most; the learning rate falls to 0 over them"})
    patience: int = field(default=2, metadata={"help": "epochs without a better GAUC before stopping"})
    batch_size: int = field(default=64, metadata={"help": "pages per step"})
    learning_rate: float = field(default=1e-2, metadata={"help": "AdamW's, at the start"})
    weight_decay: float = field(default=0.5, metadata={"help": "AdamW's"})
    alpha: float = field(default=1.0, metadata={"help": "weight of the soft search's own task"})
    beta: float = field(default=1.0, metadata={"help": "weight of the click prediction"})
    negatives_per_positive: int = field(default=1, metadata={"help": "drawn items per positive"})
    popular_share: float = field(default=0.5, metadata={"help": "share of them drawn by popularity"})
    misses_per_page: int = field(
        default=10, metadata={"help": "with a policy: of its proposals that were not taken, drawn anew each epoch"}
    )
    click_weight: float = field(default=1.0, metadata={"help": "of p_click in the reward, beside order_weight"})
    order_weight: float = field(
        default=0.0, metadata={"help": "of p_order in the reward; above 0 the network learns to predict orders too"}
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"SIM: {name} {getattr(self, name)} must be at least 1")
        check_weights(self.click_weight, self.order_weight)
        for name in ("weight_decay", "alpha", "negatives_per_positive", "misses_per_page"):
            if getattr(self, name) < 0:
                raise ConfigError(f"SIM: {name} {getattr(self, name)} must be at least 0")
        for name in ("learning_rate", "beta"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"SIM: {name} {getattr(self, name)} must be above 0")


@dataclass(frozen=True, slots=True, eq=False)
class Proposals:
    """What a policy proposed, labelled: for each training page (none real where it was not asked), and to tune by.

    ``alone``: nothing else is learnt from, neither exposed nor drawn items.
    """

    train: LabelledCandidates
    tuning: LabelledCandidates
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch's mean training loss, and the tuning pages' GAUC after it."""

    number: int
    loss: float
    gauc: float


def fit_sim(
    train: Sequence[Example],
    tuning: Sequence[Example],
    *,
    catalog: Catalog,
    sampler: NegativeSampler,
    search_keys: Int[np.ndarray, " n"],
    config: SIMConfig,
    settings: FitSettings,
    seed: int,
    device: str = "cpu",
    on_epoch: Callable[[Epoch], None] | None = None,
    proposed: Proposals | None = None,
) -> SIM:
    """Train, keep the best epoch, calibrate. Deterministic on CPU given the seed and the number of threads.

    Args:
        train: pages to learn from.
        tuning: pages that choose the epoch and the calibration.
        catalog: SID codes and vectors of the items.
        sampler: draws negatives.
        search_keys: each row's category for the hard search (``sid_search_keys`` by default).
        config: shape of the network.
        settings: how to train.
        seed: of initialisation, order, dropout and drawn negatives.
        device: where to train.
        on_epoch: called after each epoch, to log it.
        proposed: a policy's proposals to learn from too. They then choose the epoch and the calibration, because RL
            will ask about such.

    Raises:
        DataError: when there is nothing to learn from, or the loss is no longer finite.
    """
    if not len(train) or not len(tuning):
        raise DataError(f"SIM: {len(train)} training and {len(tuning)} tuning pages; both must be above 0")
    judged = proposed.tuning if proposed else _label_tuning(tuning, sampler=sampler, settings=settings, seed=seed)
    _check_labels(judged, settings)
    source = _Source(train, sampler, settings, proposed)
    tables = ItemTables(
        codes=torch.from_numpy(catalog.codes.astype(np.int64)),
        vectors=torch.from_numpy(np.array(catalog.vectors, dtype=np.float32)),
        search_keys=torch.from_numpy(search_keys.astype(np.int64)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = SIMNetwork(tables, config, predicts_orders=settings.order_weight > 0).to(device)
        _train(network, source, judged, settings=settings, seed=seed, on_epoch=on_epoch)
    return _calibrate(network, judged, settings=settings, catalog_fingerprint=catalog.fingerprint)


def _label_tuning(
    tuning: Sequence[Example], *, sampler: NegativeSampler, settings: FitSettings, seed: int
) -> LabelledCandidates:
    return label_candidates(
        [tuning[i] for i in range(len(tuning))],
        sampler=sampler,
        rng=np.random.default_rng([seed, 1]),
        negatives_per_positive=settings.negatives_per_positive,
    )


def _calibrate(
    network: SIMNetwork, judged: LabelledCandidates, *, settings: FitSettings, catalog_fingerprint: str
) -> SIM:
    """Fit each output's calibration on the tuning pages' candidates."""
    is_real_PG = judged.is_real_PG
    logits_nO = predict_all_logits(network, judged.contexts, judged.rows_PG).cpu().numpy()[is_real_PG]
    slope, intercept = fit_platt(logits_nO[:, 0], judged.labels_PG[is_real_PG])
    order = None
    if network.predicts_orders:
        calibration = fit_platt(logits_nO[:, 1], judged.is_ordered_PG[is_real_PG].astype(np.float32))
        order = OrderOutput(*calibration, click_weight=settings.click_weight, order_weight=settings.order_weight)
    return SIM(network, catalog_fingerprint=catalog_fingerprint, slope=slope, intercept=intercept, order=order)


def sid_search_keys(catalog: Catalog) -> Int[np.ndarray, " n"]:
    """Return the first code of each item's SID: a category for the hard search that needs no category column."""
    return catalog.codes[:, 0].astype(np.int64)


def category_search_keys(categories: Sequence[str | None]) -> Int[np.ndarray, " n"]:
    """Number the categories; an item without one matches only items without one."""
    known = {category: number for number, category in enumerate(dict.fromkeys(categories))}
    return np.array([known[category] for category in categories], dtype=np.int64)


def halve_users(examples: Sequence[Example], *, seed: int) -> tuple[list[Example], list[Example]]:
    """Divide pages by user into tuning and report pages, so that no user is in both."""
    pages = [examples[i] for i in range(len(examples))]
    users = np.unique([page.context.user_id for page in pages])
    tuning_users = set(np.random.default_rng(seed).permutation(users)[: (len(users) + 1) // 2].tolist())
    halves: tuple[list[Example], list[Example]] = ([], [])
    for page in pages:
        halves[page.context.user_id not in tuning_users].append(page)
    return halves


def _check_labels(judged: LabelledCandidates, settings: FitSettings) -> None:
    """Refuse before training what could not be calibrated after it."""
    wanted = {"positive": judged.labels_PG[judged.is_real_PG] > 0}
    wanted |= {"order": judged.is_ordered_PG[judged.is_real_PG]} if settings.order_weight else {}
    for name, is_one in wanted.items():
        if is_one.all() or not is_one.any():
            raise DataError(
                f"SIM: {is_one.sum()} of {len(is_one)} tuning candidates are a{'n' * (name == 'order')} {name}; "
                "calibration needs some that are and some that are not: take more pages or beams, or other settings"
            )


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """Where training candidates come from."""

    train: Sequence[Example]
    sampler: NegativeSampler
    settings: FitSettings
    proposed: Proposals | None

    def pages(self) -> Int[np.ndarray, " P"]:
        """Return the places of the pages that are learnt from."""
        if self.proposed is None or not self.proposed.alone:
            return np.arange(len(self.train))
        pages = np.flatnonzero(self.proposed.train.is_real_PG.any(axis=1))
        if not len(pages):
            raise DataError(f"SIM: the policy proposed nothing for {len(self.train)} training pages")
        return pages

    def candidates(self, batch: Int[np.ndarray, " p"], *, rng: np.random.Generator) -> LabelledCandidates:
        """Label the candidates of some pages."""
        if self.proposed is not None and self.proposed.alone:
            return self.proposed.train.of_pages(batch)
        settings = self.settings
        labelled = label_candidates(
            [self.train[int(i)] for i in batch],
            sampler=self.sampler,
            rng=rng,
            negatives_per_positive=settings.negatives_per_positive,
        )
        if self.proposed is None:
            return labelled
        return add_misses(labelled, self.proposed.train.of_pages(batch), per_page=settings.misses_per_page, rng=rng)


def _train(
    network: SIMNetwork,
    source: _Source,
    judged: LabelledCandidates,
    *,
    settings: FitSettings,
    seed: int,
    on_epoch: Callable[[Epoch], None] | None,
) -> None:
    """Train in place; the network ends with the weights of the epoch of highest GAUC."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    best_gauc, best_epoch, best_weights = -np.inf, 0, network.state_dict()
    pages = source.pages()
    n_batches = -(-len(pages) // settings.batch_size)
    n_steps = settings.epochs * n_batches
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=n_steps)
    with _progress() as progress:
        task = progress.add_task("SIM", total=n_steps, note="")
        for number in range(1, settings.epochs + 1):
            rng = np.random.default_rng([seed, 0, number])
            losses = []
            for batch in np.array_split(rng.permutation(pages), n_batches):
                losses.append(_step(network, optimizer, source.candidates(batch, rng=rng), settings))
                schedule.step()
                progress.advance(task)
            epoch = Epoch(number, float(np.mean(losses)), _mean_gauc(network, judged))
            if not np.isfinite(epoch.loss):
                raise DataError(f"SIM: loss {epoch.loss} in epoch {number}; lower the learning_rate")
            if epoch.gauc > best_gauc:
                best_gauc, best_epoch = epoch.gauc, number
                best_weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            progress.update(task, note=f"epoch {number}  loss {epoch.loss:.4f}  GAUC {epoch.gauc:.4f}")
            if on_epoch is not None:
                on_epoch(epoch)
            if number - best_epoch >= settings.patience:
                progress.update(task, completed=n_steps)
                break
    network.load_state_dict(best_weights)


def _step(
    network: SIMNetwork, optimizer: torch.optim.Optimizer, candidates: LabelledCandidates, settings: FitSettings
) -> float:
    network.train()
    device = network.search_keys.device
    histories = Histories.pack(candidates.contexts, max_history=network.config.max_history, device=device)
    logits = network(histories, torch.from_numpy(candidates.rows_PG).to(device))
    loss = sim_loss(
        logits,
        torch.from_numpy(candidates.labels_PG).to(device),
        torch.from_numpy(candidates.is_real_PG).to(device),
        alpha=settings.alpha,
        beta=settings.beta,
        is_ordered_PG=torch.from_numpy(candidates.is_ordered_PG).to(device),
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def _mean_gauc(network: SIMNetwork, judged: LabelledCandidates) -> float:
    """GAUC with each page weighted by its number of candidates."""
    logits_PG = predict_logits(network, judged.contexts, judged.rows_PG).cpu().numpy()
    auc_P = page_auc(logits_PG, judged.labels_PG, judged.is_real_PG)
    weights_P = judged.is_real_PG.sum(axis=1) * np.isfinite(auc_P)
    return float((np.nan_to_num(auc_P) * weights_P).sum() / max(weights_P.sum(), 1))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
