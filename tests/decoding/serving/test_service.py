import numpy as np
import pytest

from genrec_rl.decoding.recommender import BeamRecommender
from genrec_rl.decoding.serving.load import WidthPlan
from genrec_rl.decoding.serving.requests import Ask
from genrec_rl.decoding.serving.service import Reranking, SearchService
from genrec_rl.errors import ConfigError
from reward_models.scripted import Popularity
from tests.fixtures import make_catalog, make_context

PLAN = WidthPlan((3, 6, 12), base=6, capacity=2, smoothing_s=0.0, hysteresis=0.0)


def ask(history=(0, 4), k=3, excluded=()):
    return Ask(make_context(list(history)), k, frozenset(excluded), 0, None)


def make_service(policy, catalog, **settings):
    recommender = BeamRecommender(policy, catalog=catalog)
    return SearchService(recommender, **{"plan": PLAN, "growing_widths": False, "clock": lambda: 0.0} | settings)


def rows(answer):
    return [row for row, _ in answer.items]


def test_answers_are_the_recommenders_first_k(policy, catalog):
    expected = BeamRecommender(policy, catalog=catalog).recommend([ask().context], k=12, constrained=True)
    (answer,) = make_service(policy, catalog).answer([ask()], 1)
    assert rows(answer) == expected.rows_PG[0, :3].tolist()
    assert [score for _, score in answer.items] == pytest.approx(expected.log_probs_PG[0, :3].tolist(), abs=1e-5)


@pytest.mark.parametrize(("load", "width"), [(1, 12), (2, 6), (4, 3), (100, 3)])
def test_width_follows_the_load_and_shed_answers_are_counted(policy, catalog, load, width):
    service = make_service(policy, catalog)
    (answer,) = service.answer([ask()], load)
    assert (answer.width, service.width) == (width, width)
    assert service.counters.snapshot()["shed"] == (width < 6)


def test_capacity_is_what_is_searched_in_a_time(policy, catalog):
    times = iter([0.0, 10.0, 14.0])  # 2 contexts in 4 seconds
    service = make_service(policy, catalog, clock=lambda: next(times))
    service.fit_capacity([ask().context] * 2, within_s=6.0, max_queue=64)
    assert service.plan.capacity == 3.0


def test_capacity_is_at_least_one_request(policy, catalog):
    times = iter([0.0, 10.0, 14.0])
    service = make_service(policy, catalog, clock=lambda: next(times))
    service.fit_capacity([ask().context], within_s=1.0, max_queue=64)
    assert service.plan.capacity == 1.0


def test_capacity_is_so_small_that_a_full_line_is_searched_at_the_floor(policy, catalog):
    times = iter([0.0, 10.0, 14.0])
    service = make_service(policy, catalog, clock=lambda: next(times))
    service.fit_capacity([ask().context] * 2, within_s=60.0, max_queue=8)
    assert service.plan.capacity == 4.0  # floor 3, base 6
    service._clock = lambda: 20.0
    assert service.answer([ask()], 8)[0].width == 3


def test_capacity_is_not_measured_without_requests(policy, catalog):
    with pytest.raises(ConfigError, match="set capacity"):
        make_service(policy, catalog).fit_capacity([], within_s=1.0, max_queue=8)


def test_a_request_that_excludes_much_widens_no_other(policy, catalog, monkeypatch):
    service, searched = make_service(policy, catalog), []
    best = [set(rows(answer)) for answer in service.answer([ask((5,)), ask((0,))], 100)]
    heavy = ask((5,), excluded=best[0] | set(range(6)))
    light = ask((0,), excluded=best[1])
    propose = service.recommender.propose

    def watched(contexts, *, widths, constrained):
        searched.append((len(contexts), widths[-1]))
        return propose(contexts, widths=widths, constrained=constrained)

    monkeypatch.setattr(service.recommender, "propose", watched)
    service.answer([heavy, light], 100)
    assert searched == [(2, 3), (1, 3 + len(heavy.excluded)), (1, 6)]


def test_a_batch_gets_the_answers_of_requests_alone_in_their_order(policy, catalog):
    asks = [ask((5,), 2), ask((0, 4, 7, 3, 2), 3), ask((), 1)]
    together = make_service(policy, catalog).answer(asks, 3)
    alone = [make_service(policy, catalog).answer([one], 3)[0] for one in asks]
    assert [rows(answer) for answer in together] == [rows(answer) for answer in alone]
    assert [len(answer.items) for answer in together] == [2, 3, 1]


def test_excluded_items_are_never_recommended_and_others_take_their_place(policy, catalog):
    best = rows(make_service(policy, catalog).answer([ask(k=3)], 9)[0])
    service = make_service(policy, catalog)
    (answer,) = service.answer([ask(k=3, excluded=best)], 9)  # 3 beams hold none of the others
    assert len(answer.items) == 3
    assert not set(rows(answer)) & set(best)
    assert service.counters.snapshot()["searched_again"] == 1


def test_only_a_catalogue_that_is_used_up_gives_fewer(policy, catalog):
    (answer,) = make_service(policy, catalog).answer([ask(k=3, excluded=range(10))], 9)
    assert sorted(rows(answer)) == [10, 11]


def test_narrow_first_levels_still_give_k_items(policy, catalog):
    """Of 12 items behind 4 first codes, none has more than four behind it: 1 beam cannot answer six."""
    plan = WidthPlan((6,), base=6, capacity=1)
    service = make_service(policy, catalog, plan=plan, growing_widths=True)
    service.recommender.batch_size = 1
    service_widths = []
    search = service._search

    def spy(asks, widths):
        service_widths.append(widths)
        return search(asks, (1, *widths[1:]) if len(service_widths) == 1 else widths)

    service._search = spy
    (answer,) = service.answer([ask(k=6)], 1)
    assert service_widths == [(2, 3, 6), (6, 6, 6)]
    assert len(set(rows(answer))) == 6


def test_no_more_can_be_asked_than_the_narrowest_search_or_the_catalogue_answers(policy, catalog):
    assert make_service(policy, catalog).max_k == 3
    assert make_service(policy, catalog, plan=WidthPlan((40,), base=40, capacity=1)).max_k == 12


def test_a_heavy_reward_orders_the_beams_of_the_search(policy, catalog):
    reranking = Reranking(Popularity(catalog.popularity), weight=1e6)
    (answer,) = make_service(policy, catalog, reranking=reranking).answer([ask(k=3)], 1)
    assert rows(answer) == [11, 10, 9]  # the most popular of all 12 beams


def test_reranked_answers_that_ran_short_are_reranked_too(policy, catalog):
    reranking = Reranking(Popularity(catalog.popularity), weight=1e6)
    found = make_service(policy, catalog, reranking=reranking).answer([ask(k=3, excluded=(11, 10, 9))], 9)[0]
    order = rows(found)
    assert order == sorted(order, reverse=True)


def test_negative_weights_are_refused():
    with pytest.raises(ConfigError, match="rerank weight -1"):
        Reranking(Popularity(np.arange(12)), weight=-1)


def test_items_of_one_sid_are_recommended_once(policy):
    codes = make_catalog().codes.copy()
    codes[1] = codes[0]
    catalog = make_catalog(codes)
    (answer,) = make_service(policy, catalog, plan=WidthPlan((12,), base=12, capacity=1)).answer([ask(k=11)], 1)
    assert sorted(rows(answer)) == [1, *range(2, 12)]
