"""The service over HTTP, on a synthetic market and an untrained policy."""

import asyncio
from threading import Event

import pytest
from fastapi.testclient import TestClient

from genrec_rl.decoding.recommender import BeamRecommender
from genrec_rl.decoding.serving.app import RecommendService, create_app
from genrec_rl.decoding.serving.batching import QueueLimits
from genrec_rl.decoding.serving.cache import AnswerCache
from genrec_rl.decoding.serving.load import WidthPlan
from genrec_rl.decoding.serving.requests import RecommendBody, RequestReader
from genrec_rl.decoding.serving.service import SearchService
from genrec_rl.errors import RolloutError
from tests.fixtures import make_policy, write_market


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    dataset, catalog = write_market(tmp_path_factory.mktemp("market"))
    return dataset, catalog, make_policy(catalog)


@pytest.fixture
def service(market):
    dataset, catalog, policy = market
    search = SearchService(BeamRecommender(policy, catalog=catalog), plan=WidthPlan((5, 10, 20), base=10, capacity=4))
    return RecommendService(
        search,
        RequestReader(dataset, max_k=search.max_k, max_items=100, settings_key=""),
        dataset,
        cache=AnswerCache(size=10, ttl_s=60),
        limits=QueueLimits(batch_size=4, batch_wait_ms=1, max_queue=1, deadline_ms=5000, retry_after_s=1.5),
        facts={"items": 60, "policy": "toy"},
    )


@pytest.fixture
def client(service):
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


def ask(client, **body):
    return client.post("/recommend", json={"k": 5} | body)


def test_answer_is_k_distinct_items_of_the_catalogue_with_titles_best_first(client, market):
    dataset = market[0]
    history = dataset.item_ids[:3]
    answer = ask(client, history=[*history, "nowhere"], exclude_seen=True).json()
    ids = [item["item_id"] for item in answer["items"]]
    assert len(set(ids)) == 5
    assert set(ids) <= set(dataset.item_ids) - set(history)
    assert all(item["title"] == dataset.titles[dataset.item_ids.index(item["item_id"])] for item in answer["items"])
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert (answer["unknown_items"], answer["history_items"], answer["cached"]) == (1, 3, False)


def test_known_user_is_answered_and_the_second_time_from_the_cache(client, market):
    user = str(market[0].pages.user_ids[0])
    first, second = ask(client, user_id=user).json(), ask(client, user_id=user).json()
    assert first["items"] == second["items"]
    assert (first["cached"], second["cached"]) == (False, True)
    metrics = client.get("/metrics").json()
    assert (metrics["cache_hits"], metrics["searches"], metrics["answered"], metrics["cache_size"]) == (1, 1, 2, 1)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 422, "send a JSON body"),
        (b"[]", 422, "send a JSON body"),
        (b"{", 422, "the body is no JSON"),
        (b"\xff\xfe", 422, ""),
        (b"{}", 422, "either user_id or history"),
        (b'{"history": [1], "kk": 3}', 422, "unknown key 'kk'; known are user_id, history"),
        (b'{"query": "star wars"}', 422, "unknown key 'query'"),
        (b'{"body": {"history": [1]}}', 422, "unknown key 'body'"),
        (b'{"history": [true]}', 422, "history.0: an id is an integer or a string"),
        (b'{"history": [' + b"9" * 5000 + b"]}", 400, "parsing the body"),
        (b'{"history": [], "time": NaN}', 422, "time: "),
        (b'{"history": [], "k": 6}', 422, "k is 6; ask for 1 to 5 items"),
        (b'{"user_id": "nobody", "k": 1}', 404, "user 'nobody' is not in the data"),
        (b'{"user_id": "\\ud800", "k": 1}', 404, "is not in the data"),
        (b" " * (1 << 20) + b"{}", 413, "the body has 1048578 bytes, at most 1048576"),
    ],
)
def test_bad_requests_get_one_line_that_says_why(client, body, status, message):
    response = client.post("/recommend", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status
    assert message in response.json()["error"]
    assert client.get("/metrics").json()["rejected"] == 1


def test_bodies_of_unknown_length_are_refused(client):
    assert client.post("/recommend", content=iter([b"{}"])).status_code == 411


def test_other_places_say_so_in_the_same_form(client):
    assert client.get("/nowhere").json() == {"error": "GET /nowhere: Not Found"}
    assert client.get("/recommend").status_code == 405


def test_refused_requests_are_told_when_to_come_back(service, client):
    begun, may_go = Event(), Event()
    search = service.batcher._work

    def slow(asks, load):
        begun.set()
        assert may_go.wait(10)
        return search(asks, load)

    service.batcher._work = slow
    portal = client.portal
    first = portal.start_task_soon(service.batcher.submit, service.reader.read(body_of(history=[])))
    assert begun.wait(10)
    second = portal.start_task_soon(service.batcher.submit, service.reader.read(body_of(history=[])))
    while not len(service.batcher):
        portal.call(checkpoint)
    refused = ask(client, history=[])
    may_go.set()
    assert (len(first.result().items), len(second.result().items)) == (5, 5)
    assert refused.status_code == 503
    assert refused.headers["Retry-After"] == "2"
    assert refused.json()["error"] == "too many requests are waiting; ask again in 2 s"
    assert client.get("/metrics").json()["refused_queue_full"] == 1


async def checkpoint():
    await asyncio.sleep(0.001)


def body_of(**body):
    return RecommendBody(**{"k": 5} | body)


def test_a_failing_search_is_500_and_the_next_request_is_answered(service, client):
    search = service.batcher._work

    def fail(asks, load):
        raise RolloutError("NaN log-probabilities")

    service.batcher._work = fail
    response = ask(client, history=[])
    assert response.status_code == 500
    assert response.json()["error"] == "the search failed (RolloutError); the service's log says more"
    service.batcher._work = search
    assert ask(client, history=[]).status_code == 200
    assert client.get("/metrics").json()["failed"] == 1


def test_health_says_what_is_served_and_what_may_be_asked(client):
    facts = client.get("/health").json()
    assert facts == {"status": "ok", "items": 60, "policy": "toy", "max_k": 5}


def test_health_fails_where_nobody_searches(service):
    client = TestClient(create_app(service))  # never started
    assert client.get("/health").status_code == 503


def test_shutdown_ends_the_search_thread(service):
    with TestClient(create_app(service)):
        assert service.batcher.is_running
    assert not service.batcher.is_running
    with pytest.raises(RuntimeError, match="shutdown"):
        service.batcher._pool.submit(print)


def test_titles_are_found_by_all_words_in_any_case(client, market):
    title = market[0].titles[7]
    found = client.get("/items", params={"q": " ".join(reversed(title.upper().split())), "limit": 100}).json()
    assert {"item_id": market[0].item_ids[7], "title": title} in found["items"]
    assert len(client.get("/items", params={"limit": 3}).json()["items"]) == 3
    assert client.get("/items", params={"limit": 0}).json() == {
        "error": "limit: Input should be greater than or equal to 1"
    }


def test_page_loads_nothing_from_elsewhere(client):
    response = client.get("/")
    assert response.headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert "http://" not in response.text
    assert "https://" not in response.text
    assert "innerHTML" not in response.text  # titles are text, never markup
