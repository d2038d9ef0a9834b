"""Does our SIM reach the AUC of FuxiCTR's SIM and DIN on the same pages?

    pip install fuxictr keras_preprocessing
    python benchmarks/sim_oracle.py --data_dir runs/demo/data --sid_dir runs/demo/sids

FuxiCTR is needed here alone, and is no dependency: it brings ray. Its networks are trained by our loop on our
training candidates (positives, exposed, drawn anew each epoch), with Adam at its own learning rate; the tuning pages'
GAUC picks the epoch. All are judged on the same candidates of held-out users' pages. Its items are described
by id and SID codes; ours also reads the catalogue's vectors, ``ours_plain`` does not. FuxiCTR knows no time gaps.

Reads   prepared data and a catalogue.
Writes  runs/sim_oracle/<name>/<system>/seed<n>/: a system's numbers, done once;
        benchmarks/results/sim_oracle_<name>.{json,md}.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from benchmarks.harness import parse
from benchmarks.tables.cells import Cell, work_off
from benchmarks.tables.report import as_result, cell
from genrec_rl.config import nearest
from genrec_rl.errors import ConfigError
from genrec_rl.tracking import console, require_stage, run_recipe, stage_record
from genrec_rl.types import Context, Example
from reward_models.candidates import LabelledCandidates, NegativeSampler, label_candidates
from reward_models.quality import fit_platt, page_auc
from reward_models.report import RewardReport, judge, score_pages
from reward_models.sim.fit import FitSettings, fit_sim, sid_search_keys
from reward_models.sim.model import SIMConfig
from reward_models.stage import Inputs

MAX_HISTORY = 50
NEGATIVES_PER_POSITIVE = 1
KINDS = ("exposed", "uniform", "popular")
SYSTEMS = {
    "ours": "our SIM",
    "ours_plain": "our SIM without the catalogue's vectors",
    "fuxi_sim": "FuxiCTR's SIM",
    "fuxi_din": "FuxiCTR's DIN",
}
MINUTES = {"ours": 3.0, "ours_plain": 3.0, "fuxi_sim": 12.0, "fuxi_din": 12.0}
RUNS, RESULTS = Path("runs/sim_oracle"), Path("benchmarks/results")
OURS = FitSettings(epochs=4)
MEASURES = "measures.json"


@dataclass
class Settings:
    """Which systems, on which data."""

    data_dir: str = field(default="runs/demo/data", metadata={"help": "prepared data"})
    sid_dir: str = field(default="runs/demo/sids", metadata={"help": "catalogue of semantic ids"})
    name: str = field(default="movielens", metadata={"help": "of the data, in folders and files"})
    systems: list[str] = field(default_factory=lambda: list(SYSTEMS), metadata={"help": "what is trained"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "of everything trained"})
    jobs: int = field(default=1, metadata={"help": "systems trained at a time"})
    report: bool = field(default=False, metadata={"help": "train nothing: write the table of what is done"})
    epochs: int = field(default=10, metadata={"help": "of FuxiCTR's networks, at most"})
    learning_rate: float = field(default=1e-3, metadata={"help": "of FuxiCTR's networks"})
    embedding_dim: int = field(default=16, metadata={"help": "of FuxiCTR's item id and each code"})


class Oracle:
    """A network of FuxiCTR behind ``RewardModel.score``."""

    fingerprint = "fuxictr"

    def __init__(self, name: str, codes: Int[np.ndarray, "n L"], settings: Settings) -> None:
        try:
            from fuxictr.features import FeatureMap
            from model_zoo.LongCTR.DIN.DIN import DIN
            from model_zoo.LongCTR.SIM.SIM import SIM
        except ImportError as error:
            raise ConfigError(f"{name} needs FuxiCTR ({error}): pip install fuxictr keras_preprocessing") from None
        # 0 is padding
        known = np.concatenate([np.arange(len(codes))[:, None], codes], axis=1) + 1
        self._columns = torch.from_numpy(np.concatenate([np.zeros((1, known.shape[1]), np.int64), known]))
        features = FeatureMap("pages", mkdtemp())
        features.labels, features.default_emb_dim = ["label"], settings.embedding_dim
        for column in range(known.shape[1]):
            size = int(known[:, column].max()) + 1
            described = {"type": "categorical", "source": "item", "vocab_size": size, "padding_idx": 0}
            features.features[f"item_{column}"] = described
        common = {"optimizer": "adam", "loss": "binary_crossentropy", "metrics": ["AUC"], "model_root": mkdtemp()}
        common |= {"learning_rate": settings.learning_rate, "embedding_dim": settings.embedding_dim, "verbose": 0}
        sizes = {"short_seq_len": 10, "topk": 20} if name == "fuxi_sim" else {}
        network: Any = (SIM if name == "fuxi_sim" else DIN)(features, net_dropout=0.2, **common, **sizes)
        network._max_gradient_norm, network._batch_index = 10.0, 0
        self.network, self.slope, self.intercept = network, 1.0, 0.0

    def _batch(self, contexts: Sequence[Context], rows: Int[np.ndarray, " n"], pages: Int[np.ndarray, " n"]) -> tuple:
        """Lay out one row a candidate: its user's history, padded in front, and the candidate last."""
        newest = [context.history[-MAX_HISTORY:] + 1 for context in contexts]
        width = max(1, *map(len, newest))
        histories_PN = np.zeros((len(contexts), width), np.int64)
        for history, target in zip(newest, histories_PN, strict=True):
            target[width - len(history) :] = history
        items = np.concatenate([histories_PN[pages], rows[:, None] + 1], axis=1)
        described = self._columns[torch.from_numpy(items).flatten()]
        item_dict = {f"item_{column}": described[:, column] for column in range(described.shape[1])}
        return item_dict, torch.from_numpy(items[:, :-1] > 0).float()

    def learn(self, candidates: LabelledCandidates) -> None:
        """Make one step."""
        pages, places = np.nonzero(candidates.is_real_PG)
        item_dict, mask = self._batch(candidates.contexts, candidates.rows_PG[pages, places], pages)
        labels = torch.from_numpy(candidates.labels_PG[pages, places])
        self.network.train()
        self.network.train_step(({"label": labels}, item_dict, mask))

    @torch.inference_mode()
    def score(self, contexts: Sequence[Context], candidates: Int[np.ndarray, "P G"]) -> Float[np.ndarray, "P G"]:
        """Return calibrated probabilities."""
        self.network.eval()
        pages = np.repeat(np.arange(len(contexts)), candidates.shape[1])
        item_dict, mask = self._batch(contexts, candidates.flatten(), pages)
        raw = self.network(({}, item_dict, mask))["y_pred"].double().clamp(1e-6, 1 - 1e-6).logit()
        return torch.sigmoid(self.slope * raw + self.intercept).view(candidates.shape).numpy()


def fit_oracle(
    name: str,
    train: Sequence[Example],
    judged: LabelledCandidates,
    *,
    codes: Int[np.ndarray, "n L"],
    sampler: NegativeSampler,
    settings: Settings,
    seed: int,
) -> Oracle:
    """Train until the tuning pages' GAUC falls twice, go back to the best epoch, and calibrate."""
    torch.manual_seed(seed)
    oracle = Oracle(name, codes, settings)
    best, best_epoch, weights = -np.inf, 0, {}
    for epoch in range(settings.epochs):
        rng = np.random.default_rng([seed, 0, epoch])
        for batch in np.array_split(rng.permutation(len(train)), -(-len(train) // 64)):
            pages = [train[int(i)] for i in batch]
            oracle.learn(
                label_candidates(pages, sampler=sampler, rng=rng, negatives_per_positive=NEGATIVES_PER_POSITIVE)
            )
        scores_PG = score_pages(oracle, judged.contexts, judged.rows_PG)
        auc_P = page_auc(scores_PG, judged.labels_PG, judged.is_real_PG)
        gauc = float(np.average(np.nan_to_num(auc_P), weights=judged.is_real_PG.sum(axis=1) * np.isfinite(auc_P)))
        print(f"{name} seed {seed} epoch {epoch + 1}: tuning GAUC {gauc:.4f}", flush=True)
        if gauc > best:
            best, best_epoch = gauc, epoch
            weights = {key: value.clone() for key, value in oracle.network.state_dict().items()}
        elif epoch - best_epoch >= 2:
            break
    oracle.network.load_state_dict(weights)
    scores = score_pages(oracle, judged.contexts, judged.rows_PG)[judged.is_real_PG].clip(1e-6, 1 - 1e-6)
    oracle.slope, oracle.intercept = fit_platt(np.log(scores / (1 - scores)), judged.labels_PG[judged.is_real_PG])
    return oracle


def measure(name: str, seed: int, settings: Settings, folder: Path) -> None:
    """Train one system, judge it on users whom no seed changes, and keep its numbers."""
    torch.set_num_threads(1)
    inputs = Inputs.read(settings.data_dir, settings.sid_dir)
    dataset, catalog = inputs.dataset, inputs.catalog
    train = dataset.examples("train", max_history=MAX_HISTORY)
    tuning, held_out = inputs.halves(max_history=MAX_HISTORY, seed=0)
    sampler = NegativeSampler(dataset.popularity, popular_share=0.5)
    given = {"sampler": sampler, "negatives_per_positive": NEGATIVES_PER_POSITIVE, "seed": 0}
    if name.startswith("fuxi"):
        judged = label_candidates(
            tuning, sampler=sampler, rng=np.random.default_rng([seed, 1]), negatives_per_positive=1
        )
        codes = catalog.codes.astype(np.int64)
        model: Any = fit_oracle(name, train, judged, codes=codes, sampler=sampler, settings=settings, seed=seed)
    else:
        model = fit_sim(
            train,
            tuning,
            catalog=catalog,
            sampler=sampler,
            search_keys=sid_search_keys(catalog),
            config=SIMConfig(use_content=name == "ours"),
            settings=OURS,
            seed=seed,
        )
    measures = measures_of(judge(model, held_out, popularity=dataset.popularity, **given))
    (folder / MEASURES).write_text(json.dumps(measures, indent=1) + "\n")


def measures_of(report: RewardReport) -> dict[str, float]:
    """Return AUC and GAUC by kind of candidate, and the calibration of their mixture."""
    of_kinds = {
        f"{kind}_{key}": getattr(report.slices[kind].model, key).mean
        for kind in KINDS if kind in report.slices for key in ("auc", "gauc")
    }  # fmt: skip
    return of_kinds | {"log_loss": report.calibration.log_loss, "ece": report.calibration.ece_equal_mass}


def oracle_cells(settings: Settings) -> list[Cell]:
    """Return each system and seed, seed by seed."""
    data = require_stage(settings.data_dir, stage="prepare", command="python recipes/prepare.py")
    sids = require_stage(settings.sid_dir, stage="build_sids", command="python recipes/build_sids.py")
    stages = {folder.name: stage_record(folder)["key"] for folder in (data, sids)}
    own = {"network": asdict(SIMConfig()), "fit": asdict(OURS)}
    others = {name: getattr(settings, name) for name in ("epochs", "learning_rate", "embedding_dim")}
    cells = []
    for seed in settings.seeds:
        for name in settings.systems:
            facts = {"system": name, "seed": seed, "stages": stages, "max_history": MAX_HISTORY}
            facts |= {"negatives": NEGATIVES_PER_POSITIVE} | (others if name.startswith("fuxi") else own)
            folder = RUNS / settings.name / name / f"seed{seed}"
            run = partial(measure, name, seed, settings)
            cells.append(Cell(f"{name}, seed {seed}", folder, facts, run, MINUTES[name]))
    return cells


def report(settings: Settings) -> None:
    """Write the table of all systems that are done with these settings, whichever were asked for."""
    systems: dict[str, dict[str, list[float]]] = {}
    for made in oracle_cells(replace(settings, systems=list(SYSTEMS))):
        if made.record() is not None:
            row = systems.setdefault(made.facts["system"], {})
            for name, value in json.loads((made.folder / MEASURES).read_text()).items():
                row.setdefault(name, []).append(value)
    if not systems:
        console.print("nothing is done yet")
        return
    result = as_result(systems, {}, seeds=settings.seeds)
    file = RESULTS / f"sim_oracle_{settings.name}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    file.with_suffix(".md").write_text(as_markdown(result))
    console.print(f"{file}, {file.with_suffix('.md')}: {len(systems)} systems")


def as_markdown(result: dict[str, Any]) -> str:
    """Write a row a system: mean and standard deviation over seeds."""
    shown = [*next(iter(result["systems"].values()))]
    lines = [f"Written by `{result['command']}`, commit {result['commit']}.", ""]
    lines += ["| | seeds | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
    for name, row in result["systems"].items():
        cells = " | ".join(cell(row[measure]) for measure in shown)
        lines.append(f"| **{name}**, {SYSTEMS[name]} | {len(row[shown[0]])} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    settings = parse(Settings)
    for name in settings.systems:
        if name not in SYSTEMS:
            raise ConfigError(f"system '{name}' is not one of {', '.join(SYSTEMS)}{nearest(name, SYSTEMS)}")
    if not settings.report:
        work_off(oracle_cells(settings), jobs=settings.jobs)
    report(settings)


if __name__ == "__main__":
    run_recipe(main)
