import numpy as np
import polars as pl
import pytest

from genrec_rl.data.events import check_events, check_items, check_tables
from genrec_rl.data.sources.synthetic import DAYS, SHARPNESS, START, THRESHOLD, Market, make_synthetic
from genrec_rl.data.store import load_dataset, write_dataset
from genrec_rl.errors import ConfigError, DataError

SIZE = {"n_users": 20, "n_items": 40, "n_requests": 600, "seed": 3}
LAST = START + DAYS * 86_400


@pytest.fixture(scope="module")
def tables():
    return make_synthetic(**SIZE)


@pytest.fixture
def market():
    """One user whose interest turns from the first axis to the second, and one item on each axis."""
    first, second = np.eye(2)
    return Market(
        user_ids=np.array(["u"]),
        interest_starts=first[None],
        interest_ends=second[None],
        item_vectors=np.eye(2),
        popularity=np.ones(2),
        affordability=np.ones(2),
    )


def curve(cosine):
    return 1 / (1 + np.exp(-SHARPNESS * (cosine - THRESHOLD)))


@pytest.mark.parametrize(
    ("time", "cosines"), [(START, [1, 0]), ((START + LAST) // 2, [0.5**0.5, 0.5**0.5]), (LAST, [0, 1])]
)
def test_true_preference_drifts_from_the_first_interest_to_the_last(market, time, cosines):
    np.testing.assert_allclose(market.true_preference("u", np.array([0, 1]), time), curve(np.array(cosines)))


def test_true_preference_broadcasts_users_items_and_times(tables, tmp_path):
    np.savez(tmp_path / "truth.npz", **tables.truth)
    market = Market.load(tmp_path / "truth.npz")
    users, times = market.user_ids[[2, 7]], np.array([START, LAST])
    candidates = np.array([[0, 1, 2], [3, 4, 5]])
    scores = market.true_preference(users[:, None], candidates, times[:, None])
    assert scores.shape == (2, 3)
    assert scores[1, 2] == market.true_preference(str(users[1]), np.array(5), LAST)
    assert ((scores > 0) & (scores < 1)).all()


@pytest.mark.parametrize("user", ["a", "zzz"])
def test_stranger_is_named(market, user):
    with pytest.raises(DataError, match=f"user '{user}' is not in the market"):
        market.true_preference(np.array(["u", user]), np.array([0, 1]), START)


def test_foreign_truth_is_named(tmp_path):
    np.savez(tmp_path / "truth.npz", x=np.arange(2))
    for name in ("truth.npz", "absent.npz"):
        with pytest.raises(DataError, match=f"{name}: no synthetic market's truth"):
            Market.load(tmp_path / name)


def test_tables_keep_the_contract(tables):
    check_tables(check_events(tables.events), check_items(tables.items))


def test_equal_seeds_give_equal_markets_and_others_do_not(tables):
    again, other = make_synthetic(**SIZE), make_synthetic(**SIZE | {"seed": 4})
    assert again.events.collect().equals(tables.events.collect())
    assert again.items.equals(tables.items)
    assert not other.events.collect().equals(tables.events.collect())


def test_every_request_exposes_ten_items_and_clicks_only_those(tables):
    events = tables.events.collect()
    exposed = events.filter(pl.col("action") == "expose")
    assert exposed.group_by("request_id").agg(pl.col("item_id").n_unique())["item_id"].unique().to_list() == [10]
    pairs = {name: set(part.select("request_id", "item_id").rows()) for (name,), part in events.group_by("action")}
    assert pairs["order"] < pairs["click"] < pairs["expose"]


def test_clicks_follow_preference_and_position(tables, tmp_path):
    """Expected clicks under the known model equal the logged ones within four standard errors, slot by slot."""
    write_dataset(tables, tmp_path)
    market = Market.load(tmp_path / "truth.npz")
    events = tables.events.collect()
    exposed = events.filter(pl.col("action") == "expose")
    clicked = events.filter(pl.col("action") == "click").select("request_id", "item_id", clicked=True)
    shown = exposed.join(clicked, on=["request_id", "item_id"], how="left").fill_null(False)
    rows = {item: row for row, item in enumerate(load_dataset(tmp_path).item_ids)}
    preference = market.true_preference(
        shown["user_id"].to_numpy().astype(str), np.array([rows[i] for i in shown["item_id"]]),
        shown["timestamp"].to_numpy(),
    )  # fmt: skip
    slot = shown["position"].to_numpy()
    rate = preference * (1 + slot) ** -0.5
    for k in range(10):
        excess = (shown["clicked"].to_numpy() - rate)[slot == k].sum()
        assert abs(excess) < 4 * np.sqrt((rate * (1 - rate))[slot == k].sum())


def test_titles_carry_the_latent_vector(tables):
    """Items that share title words lie closer than items that share none."""
    words = [set(title.split()[1:]) for title in tables.items["title"]]
    cosines = tables.truth["item_vectors"] @ tables.truth["item_vectors"].T
    shared = np.array([[len(a & b) for b in words] for a in words])
    off_diagonal = ~np.eye(len(words), dtype=bool)
    assert cosines[off_diagonal & (shared >= 2)].mean() > cosines[shared == 0].mean() + 0.3


def test_value_is_the_price_of_what_was_ordered(tables):
    events = tables.events.collect().join(tables.items.select("item_id", "price"), on="item_id")
    ordered = events.filter(pl.col("action") == "order")
    assert len(ordered) > 50
    assert (ordered["value"] == ordered["price"]).all()
    assert events.filter(pl.col("action") != "order")["value"].unique().to_list() == [0.0]


@pytest.mark.parametrize(("name", "value"), [("n_users", 0), ("n_items", 9), ("n_requests", 0)])
def test_too_small_a_market_is_refused(name, value):
    with pytest.raises(ConfigError, match=rf"{name}: {value} is below"):
        make_synthetic(**SIZE | {name: value})


SOLD = SIZE | {"copies": 4, "n_sellers": 6, "seller_spread": 2.0}


def test_copies_share_title_and_vector_and_differ_in_seller():
    tables = make_synthetic(**SOLD)
    groups = tables.items.with_row_index("row").with_columns(content=pl.col("row") // 4).group_by("content")
    counted = groups.agg(pl.col("title", "category", "seller").n_unique())
    assert set(counted["title"]) == set(counted["category"]) == {1}
    assert set(counted["seller"]) == {4}
    assert (tables.truth["item_vectors"][::4] == tables.truth["item_vectors"][3::4]).all()
    check_tables(check_events(tables.events), check_items(tables.items))


def test_a_sellers_quality_moves_clicks_by_its_log_odds(tmp_path):
    tables = make_synthetic(**SOLD)
    write_dataset(tables, tmp_path)
    market = Market.load(tmp_path / "truth.npz")
    scores = market.true_preference(market.user_ids[0], np.arange(4), START)
    log_odds = np.log(scores / (1 - scores))
    np.testing.assert_allclose(log_odds - log_odds[0], market.quality[:4] - market.quality[0], atol=1e-9)
    assert np.ptp(market.quality[:4]) > 0.1
    of_seller = dict(zip(tables.items["seller"], market.quality, strict=True))
    assert [of_seller[seller] for seller in tables.items["seller"]] == market.quality.tolist()


def test_sale_lowers_the_price_of_a_copy():
    items = make_synthetic(**SOLD).items
    price = items.group_by("campaign").agg(pl.col("price").median()).rows_by_key("campaign", unique=True)
    assert price["sale"] < price["regular"]


def test_without_copies_nothing_is_sold(tables):
    assert tables.items.columns == ["item_id", "title", "category", "price"]
    assert "quality" not in tables.truth


@pytest.mark.parametrize("wrong", [{"copies": 0}, {"copies": 3}, {"copies": 8}, {"seller_spread": -1.0}])
def test_copies_that_do_not_fit_the_market_are_refused(wrong):
    with pytest.raises(ConfigError, match="copies must divide n_items"):
        make_synthetic(**SOLD | wrong)
