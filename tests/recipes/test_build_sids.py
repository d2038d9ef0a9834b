import json

import numpy as np
import pytest

from genrec_rl.data.store import load_dataset
from genrec_rl.errors import ConfigError
from genrec_rl.sids.catalog import Catalog
from genrec_rl.sids.collaborative import ResidualProjection
from genrec_rl.sids.features import item_vectors
from recipes import build_sids, prepare


def run(data_dir, output_dir, *words):
    build_sids.main(["--data_dir", str(data_dir), "--output_dir", str(output_dir), "--epochs", "1", *words])
    return Catalog.load(output_dir)


@pytest.fixture(scope="module", autouse=True)
def _no_wandb():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("market") / "data"
    sizes = ["--n_users", "40", "--n_items", "60", "--n_requests", "400"]
    prepare.main(["--source", "synthetic", *sizes, "--output_dir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def sid_dir(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sids")
    run(data_dir, folder)
    return folder


def test_every_item_gets_its_own_sid(data_dir, sid_dir):
    catalog, dataset = Catalog.load(sid_dir), load_dataset(data_dir)
    catalog.check_items(dataset.items_fingerprint)
    assert catalog.rows_of(catalog.codes).tolist() == list(range(60))
    assert catalog.codebook_sizes == (16, 16, 16)
    assert (catalog.popularity == dataset.popularity).all()
    names = {path.name for path in sid_dir.iterdir()}
    assert names >= {"stage.json", "sid_report.json", "codebooks.png", "metrics.jsonl", "projection.safetensors"}


def test_logged_numbers_are_those_of_the_report(sid_dir):
    report = json.loads((sid_dir / "sid_report.json").read_text())
    rows = [json.loads(line) for line in (sid_dir / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["co_click/loss"] > 0
    assert rows[-1]["sids/distinct_sids"] == report["distinct_sids"] == 60
    assert rows[-1]["sids/level_3/entropy"] == report["levels"][2]["entropy"]


def test_saved_projection_leads_new_texts_to_the_catalogue_space(data_dir, sid_dir):
    texts = item_vectors(load_dataset(data_dir).items)
    projected = ResidualProjection.load(sid_dir / "projection.safetensors").apply_to(texts)
    np.testing.assert_allclose(projected, Catalog.load(sid_dir).vectors, atol=1e-5)


def test_equal_seeds_give_equal_catalogues_and_the_report_is_printed(data_dir, sid_dir, tmp_path, capsys):
    assert run(data_dir, tmp_path).fingerprint == Catalog.load(sid_dir).fingerprint
    assert "60 items, 60 distinct SIDs" in " ".join(capsys.readouterr().out.split())


def test_without_co_clicks_the_vectors_are_the_texts_and_an_old_projection_goes(data_dir, tmp_path):
    (tmp_path / "projection.safetensors").write_bytes(b"old")
    words = ["--collaborative", "false", "--codebook_sizes", "4", "4", "--collision", "extra_code"]
    catalog = run(data_dir, tmp_path, *words)
    assert (catalog.vectors == item_vectors(load_dataset(data_dir).items)).all()
    assert catalog.codebook_sizes[:2] == (4, 4)
    assert catalog.n_levels == 3
    assert not (tmp_path / "projection.safetensors").exists()


def test_encoder_may_be_a_block_in_a_yaml(data_dir, tmp_path):
    block = "{class_path: genrec_rl.sids.features.WordLlamaEncoder, init_args: {dim: 64}}"
    (tmp_path / "my.yaml").write_text(f"encoder: {block}\ncollaborative: false\n")
    assert run(data_dir, tmp_path, "--config", str(tmp_path / "my.yaml")).vectors.shape == (60, 64)


def test_published_codes_are_taken_as_they_are(data_dir, tmp_path):
    ids = load_dataset(data_dir).item_ids
    index = {str(item_id): [f"<a_{row % 7}>", f"<b_{row // 7}>"] for row, item_id in enumerate(ids)}
    (tmp_path / "index.json").write_text(json.dumps(index))
    words = ["--codes_from", str(tmp_path / "index.json"), "--codes_id_offset", "0", "--collaborative", "false"]
    catalog = run(data_dir, tmp_path / "sids", *words)
    assert catalog.codes[:, 0].tolist() == [row % 7 for row in range(60)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--encoder", "wordlama"], "did you mean 'wordllama'"),
        (["--codebook_sizes", "4", "1000"], r"codebook_sizes\[1\] is 1000, outside 1 to 60"),
        (["--temperature", "0"], "temperature is 0.0"),
        (["--collisions", "bucket"], "did you mean '--collision'"),
    ],
)
def test_wrong_settings_leave_no_stage(data_dir, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        run(data_dir, tmp_path / "sids", *words)
    assert not (tmp_path / "sids" / "stage.json").exists()
    assert not (tmp_path / "sids" / "catalog.json").exists()


def test_missing_data_names_the_command(tmp_path):
    with pytest.raises(ConfigError, match=r"python recipes/prepare\.py --output_dir"):
        run(tmp_path / "nothing", tmp_path / "sids")
