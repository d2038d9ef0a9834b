"""What every run leaves behind: metrics.jsonl, a W&B run (offline without an account), and a stage record.

Logging never ends a run: metrics.jsonl is written first, and when W&B fails it is switched off with one line.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console

from genrec_rl.errors import ConfigError, DataError, GenRecError

PROJECT = "genrec_rl"
STAGE_FILE = "stage.json"
_RECORDED = ("genrec-rl", "torch", "transformers", "trl")
console = Console(soft_wrap=True)


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe's main; an error raised on purpose is one line on stderr and exit code 2."""
    try:
        main()
    except GenRecError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]{type(error).__name__}[/]: ", end="")
        print(error, file=sys.stderr)  # noqa: T201  (plain: the message may hold square brackets)
        raise SystemExit(2) from None


def require_stage(
    folder: str | Path, *, stage: str, command: str, made_from: Mapping[str, str | Path] | None = None
) -> Path:
    """Return the folder of a finished earlier stage.

    Args:
        folder: where the stage should be.
        stage: its name, for messages.
        command: what makes it.
        made_from: folders that it must have been made from, by the name under which it read them.

    Raises:
        ConfigError: when it is absent or unfinished, or was made from something else.
        DataError: when its record is damaged.
    """
    path = Path(folder)
    if not (path / STAGE_FILE).is_file():
        raise ConfigError(f"no finished '{stage}' stage in {path}; make it with `{command} --output_dir {path}`")
    check_made_from(path, made_from or {}, command=command)
    return path


def check_made_from(folder: str | Path, made_from: Mapping[str, str | Path], *, command: str) -> None:
    """Check that a stage read what is used with it now; a folder without a record is not checked.

    What extends that which a stage read (``finish_stage``) will do in its place, with the data that it extends it to.

    Raises:
        ConfigError: when it was made from something else.
        DataError: when its record is damaged.
    """
    if not (Path(folder) / STAGE_FILE).is_file():
        return
    inputs = _read_record(Path(folder)).get("inputs", {})
    for name, expected in made_from.items():
        recorded = inputs.get(name)
        extended = {key for used in made_from.values() for key in _extends(Path(used)).get(name, ())}
        if recorded is not None and recorded["key"] not in {_stage_digest(Path(expected)), *extended}:
            raise ConfigError(
                f"{folder} was made from other {name} ({recorded['folder']} as it then was) than {expected}; "
                f"pass what it was made from, or make it again with `{command} --output_dir {folder}`"
            )


def check_unseen_valid(folder: str | Path) -> None:
    """Refuse a policy that learnt the validation pages, where something is to be chosen or judged by them.

    Raises:
        ConfigError: naming the folder.
    """
    has_record = (Path(folder) / STAGE_FILE).is_file()
    if has_record and _read_record(Path(folder)).get("settings", {}).get("learn_valid"):
        raise ConfigError(
            f"{folder} learnt the validation pages (learn_valid), so they can choose and judge nothing of it: use a "
            "policy without it, or evaluate it with --split test alone"
        )


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / STAGE_FILE).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{folder / STAGE_FILE} is damaged ({error}); make the stage again") from None


def stage_record(folder: str | Path) -> dict[str, Any]:
    """Return the record of a finished stage: ``settings``, ``inputs`` and what else ``finish_stage`` writes.

    Raises:
        DataError: when it is damaged.
    """
    return _read_record(Path(folder))


def _extends(folder: Path) -> dict[str, list[str]]:
    """Keys of the catalogues, and of their data, that a catalogue extends."""
    record = _read_record(folder) if (folder / STAGE_FILE).is_file() else {}
    return {"data": [], "sids": []} | record.get("extends", {})


def stage_key(settings: Any, inputs: Mapping[str, str | Path]) -> str:
    """Digest of a stage's settings and of the stages it reads: what a later stage was made from."""
    plain = {k: v for k, v in _plain(settings).items() if k != "output_dir"}
    upstream = {name: _stage_digest(Path(folder)) for name, folder in sorted(inputs.items())}
    return _digest({"settings": plain, "inputs": upstream})


def finish_stage(
    output_dir: str | Path,
    *,
    stage: str,
    settings: Any,
    inputs: Mapping[str, str | Path],
    seconds: float,
    extends: str | Path | None = None,
) -> None:
    """Write ``stage.json``, last of all files of a stage, so that its presence means the stage is whole.

    ``extends`` is the folder of a catalogue that this one extends: what was made from that one, and from its data,
    may be used with this one and its data.
    """
    record = {
        "stage": stage,
        "key": stage_key(settings, inputs),
        "settings": _plain(settings),
        "inputs": {name: {"folder": str(f), "key": _stage_digest(Path(f))} for name, f in inputs.items()},
        "seconds": round(seconds, 1),
        "commit": source_commit(),
        "versions": {name: metadata.version(name) for name in _RECORDED},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if extends is not None:
        older, data = _extends(Path(extends)), stage_record(extends)["inputs"]["data"]["key"]
        record["extends"] = {"sids": [*older["sids"], _stage_digest(Path(extends))], "data": [*older["data"], data]}
    path = Path(output_dir) / STAGE_FILE
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=2, default=str) + "\n")
    part.replace(path)


def source_commit() -> str | None:
    """Commit of the source tree that runs, with ``+`` when files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _stage_digest(folder: Path) -> str:
    return str(_read_record(folder)["key"]) if (folder / STAGE_FILE).is_file() else str(folder)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _plain(settings: Any) -> dict[str, Any]:
    if is_dataclass(settings) and not isinstance(settings, type):
        return asdict(settings)
    return dict(settings)


class Tracker:
    """Writes each logged row to ``output_dir/metrics.jsonl`` and to a W&B run.

    W&B goes online only with WANDB_MODE=online or a configured key; otherwise the run lies in
    ``output_dir/wandb`` and can be uploaded later with ``wandb sync``. ``enabled=False``, for all processes
    but the main one, makes a tracker that writes nothing; ``resume=True`` goes on in the files that are there.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        job_type: str,
        config: Mapping[str, Any],
        project: str = PROJECT,
        group: str | None = None,
        tags: Sequence[str] = (),
        enabled: bool = True,
        resume: bool = False,
    ) -> None:
        self.enabled, self._run = enabled, None
        if not enabled:
            return
        self.output_dir = Path(output_dir)
        self._resume = resume
        self._tables: set[str] = set()
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._wandb: dict[str, Any] = {
            "job_type": job_type,
            "config": dict(config),
            "project": project,
            "group": group,
        }
        self._wandb["tags"] = list(tags)
        self._file: TextIO | None = None

    def _open(self) -> TextIO:
        """Begin the records with the first row: a run that is refused before it logs leaves an older one whole."""
        if self._file is None:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            (self.output_dir / STAGE_FILE).unlink(missing_ok=True)  # until it is written again, not whole
            self._file = (self.output_dir / "metrics.jsonl").open("a" if self._resume else "w")
            self._run = self._start_wandb(**self._wandb)
        return self._file

    def _start_wandb(self, **settings: Any) -> Any:
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
        if mode == "disabled":
            return None
        os.environ.setdefault("WANDB_SILENT", "true")
        attempts = ["online", "offline"] if mode == "online" else ["offline"]
        for attempt in attempts:
            try:
                import wandb

                return wandb.init(
                    mode=attempt,  # type: ignore[arg-type]
                    dir=str(self.output_dir),
                    name=self.output_dir.name,
                    settings=wandb.Settings(init_timeout=20),
                    reinit="finish_previous",
                    **settings,
                )
            except Exception as error:  # noqa: BLE001  (whatever W&B raises, a run must go on)
                console.print(
                    f"W&B ({attempt}) is off: {error}. metrics.jsonl goes on.", style="yellow", markup=False
                )
        return None

    def log(self, values: Mapping[str, float | int | str], step: int | None = None) -> None:
        """Log one row of finite or missing numbers; a NaN is written as null, never dropped."""
        if not self.enabled:
            return
        row = ({} if step is None else {"step": step}) | {k: _finite(v) for k, v in values.items()}
        file = self._open()
        file.write(json.dumps(row) + "\n")
        file.flush()
        self._to_wandb(dict(values), step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int | None) -> None:
        """Log a table to W&B, and its rows to ``output_dir/<name>.jsonl``."""
        if not self.enabled:
            return
        self._open()
        mode = "a" if self._resume or name in self._tables else "w"
        self._tables.add(name)
        with (self.output_dir / f"{name}.jsonl").open(mode) as file:
            for row in rows:
                file.write(json.dumps({"step": step} | dict(zip(columns, row, strict=True)), default=str) + "\n")
        self._to_wandb({name: (columns, rows)}, step)

    def _to_wandb(self, values: dict[str, Any], step: int | None) -> None:
        if self._run is None:
            return
        try:
            import wandb

            for name, value in values.items():
                if isinstance(value, tuple):
                    columns, rows = value
                    values[name] = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            self._run.log(values | ({} if step is None else {"train/global_step": step}))
        except Exception as error:  # noqa: BLE001  (whatever W&B raises, a run must go on)
            console.print(f"W&B is off from here: {error}. metrics.jsonl goes on.", style="yellow", markup=False)
            self._run = None

    def close(self) -> None:
        """Finish the W&B run and the file."""
        if self._run is not None:
            try:
                self._run.finish()
            except Exception as error:  # noqa: BLE001  (whatever W&B raises, a run must go on)
                _warn(f"W&B did not finish cleanly: {error}")
            self._run = None
        if self.enabled and self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_main_process() -> bool:
    """Whether this process writes files and logs: rank 0 of a launch, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def _warn(message: str) -> None:
    console.print(message, style="yellow", markup=False)


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "api.wandb.ai" in netrc.read_text()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
